package scylla

import (
	"context"
	"fmt"

	"github.com/herald-mqtt/herald"
)

// Seal implements [persistence.Cluster]. What stands in the window is written again,
// with a new timestamp; then the partition is deleted with the timestamp before that.
// So nothing changes at any moment, and whatever was written earlier and arrives later
// lies below the deletion. Sealing again, or going on after a crash, does no harm.
func (s *Store) Seal(ctx context.Context, id herald.SessionID) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer s.leave()
	if err := s.fenced(s.life.Load()); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows := s.rows(ctx, getWholeWindow, 2000, int64(id))
	var slot int8
	var key, at int64
	var row []byte
	type live struct {
		slot int8
		key  int64
		row  []byte
	}
	var all []live
	for rows.next(&slot, &key, &row, &at) {
		s.clock.saw(at)
		if slot == slotSettled || len(row) > 0 { // else a packet id that is free
			if row == nil {
				row = []byte{}
			}
			all = append(all, live{slot, key, row})
		}
		row = nil
	}
	if rows.err != nil {
		return s.failed(ctx, "seal", rows.err)
	}
	ts := s.clock.take(2)
	where := part{partWindow, int64(id), 0}
	ws := make([]write, 0, len(all))
	for _, l := range all {
		ws = append(ws, write{stmt: putWindow, part: where, size: len(l.row) + 64, args: []any{int64(id), l.slot, l.key, l.row, int32(0), ts + 1}})
	}
	s.states.get(id).settles()
	for _, step := range [][]write{ws, {{stmt: delWindow, size: 64, args: []any{ts, int64(id)}}}} {
		if len(step) == 0 {
			continue
		}
		if err := s.awaitFor(ctx, step); err != nil {
			return s.failed(ctx, "seal", err)
		}
	}
	return nil
}

// awaitFor writes rows and waits for them, or for ctx to end.
func (s *Store) awaitFor(ctx context.Context, ws []write) error {
	done := make(chan error, 1)
	s.background(ws, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
