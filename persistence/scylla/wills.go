package scylla

import (
	"context"
	"fmt"
	"sort"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// Wills implements [persistence.Store]. It reads all of them: a node asks when it
// starts, and has the due ones in memory from then on.
func (s *Store) Wills(ctx context.Context, now int64, connected bool, limit int) ([]persistence.Will, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("read wills: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var mu sync.Mutex
	var wills []persistence.Will
	wait, wctx := errgroup.WithContext(ctx)
	wait.SetLimit(32)
	for shard := range int16(willShards) {
		wait.Go(func() error {
			rows := s.rows(wctx, getWills, 500, shard)
			var session int64
			var row []byte
			for rows.next(&session, &row) {
				d := record.Decoder{B: row}
				w := d.Will()
				if d.Err != nil {
					s.undecoded("will", d.Err, zap.Int64("session", session))
					continue
				}
				if w.Due <= now && (w.Due != 0 || connected) {
					mu.Lock()
					wills = append(wills, w)
					mu.Unlock()
				}
			}
			return rows.err
		})
	}
	if err := wait.Wait(); err != nil {
		return nil, s.failed(ctx, "read wills", err)
	}
	sort.Slice(wills, func(i, k int) bool {
		if wills[i].Due != wills[k].Due {
			return wills[i].Due < wills[k].Due
		}
		return wills[i].Session < wills[k].Session
	})
	return wills[:min(len(wills), limit)], nil
}

// Will implements [persistence.WillReader].
func (s *Store) Will(ctx context.Context, session herald.SessionID) (persistence.Will, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.Will{}, fmt.Errorf("read will: %w", err)
	}
	defer s.leave()
	var row []byte
	if err := s.one(ctx, getWill, []any{willShard(session), int64(session)}, &row); err != nil {
		return persistence.Will{}, s.failed(ctx, "read will", err)
	}
	d := record.Decoder{B: row}
	w := d.Will()
	if d.Err != nil {
		s.undecoded("will", d.Err, zap.Int64("session", int64(session)))
		return persistence.Will{}, fmt.Errorf("read will: %w", herald.ErrNotFound)
	}
	return w, nil
}

var _ persistence.WillReader = (*Store)(nil)
