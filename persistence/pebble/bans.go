package pebble

import (
	"bytes"
	"context"
	"fmt"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

var _ persistence.Banner = (*Store)(nil)

// ChangeBan implements [persistence.Banner].
func (s *Store) ChangeBan(ctx context.Context, c persistence.BanChange) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("change bans: %w", err)
	}
	type outcome struct {
		version uint64
		err     error
	}
	done := make(chan outcome, 1)
	s.Commit(&persistence.Batch{Bans: []persistence.BanChange{c}}, func(err error) {
		o := outcome{err: err}
		if err == nil { // also if nobody waits any more
			o.version = s.bans.Add(1) + 1
		}
		done <- o
	})
	select {
	case o := <-done:
		if o.err != nil {
			return 0, fmt.Errorf("change bans: %w", o.err)
		}
		return o.version, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("change bans: %w: %w", herald.ErrUnavailable, ctx.Err())
	}
}

// BanNews implements [persistence.Banner]. Versions count from 1 in each process: who
// has the store knows what it has changed.
func (s *Store) BanNews(ctx context.Context, since uint64) (persistence.BanNews, error) {
	n := persistence.BanNews{Version: s.bans.Load() + 1} // before what is read
	if n.Version == since {
		return n, nil
	}
	n.Whole = true
	err := s.scanPrefix(ctx, "read bans", []byte{kBan}, func(key, val []byte) (bool, error) {
		d := record.Decoder{B: val}
		if c := d.Ban(); d.Err == nil {
			n.Changes = append(n.Changes, c)
			return false, nil
		}
		n.Unreadable++
		s.log.Error("a ban cannot be decoded and is skipped", zap.Binary("key", bytes.Clone(key)), zap.Error(d.Err))
		return false, nil
	})
	if err != nil {
		return persistence.BanNews{}, err
	}
	return n, nil
}

func banKey(b []byte, k persistence.BanKey) []byte {
	return append(append(b, kBan, byte(k.Kind)), k.Who...)
}

// ban writes a ban, or removes it.
func (a *applier) ban(c *persistence.BanChange) {
	a.key = banKey(a.key[:0], c.BanKey)
	if c.Gone {
		a.deleteRow(a.key)
		return
	}
	a.val = record.AppendBan(a.val[:0], c)
	a.setRow(a.key, a.val)
}

// sweepBans removes bans that have ended.
func (k *keeper) sweepBans() error {
	limit := int64(k.graceful())
	return k.pages(kBan, func(keys [][]byte) error { return k.removeBans(keys, limit) })
}

func (k *keeper) removeBans(keys [][]byte, limit int64) error {
	s := k.s
	s.applying.Lock()
	defer s.applying.Unlock()
	for _, key := range keys {
		v, ok, err := s.apply.row(key)
		if err != nil {
			return err
		}
		d := record.Decoder{B: v}
		// One that cannot be decoded stays, for a release that can.
		if c := d.Ban(); ok && d.Err == nil && c.Until != 0 && c.Until < limit {
			s.apply.deleteRow(key)
		}
	}
	return s.apply.flush()
}
