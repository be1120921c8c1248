package scylla

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/gocql/gocql"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence/record"
)

// sweeper removes the partitions of inboxes that a mark has left behind, in the
// background. What it does not get round to is found by the session's next mark
// in a new bucket, since the window says how far it was swept.
type sweeper struct {
	s  *Store
	mu sync.Mutex // guards below
	to map[herald.SessionID]herald.ID

	wake chan struct{}
}

// maxSweeps bounds the sessions that wait to be swept.
const maxSweeps = 10_000

func (w *sweeper) init(s *Store) {
	w.s, w.to, w.wake = s, make(map[herald.SessionID]herald.ID), make(chan struct{}, 1)
}

// add asks for a session's buckets below low to be removed.
func (w *sweeper) add(id herald.SessionID, low herald.ID) {
	w.mu.Lock()
	if len(w.to) < maxSweeps {
		w.to[id] = max(w.to[id], low)
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *sweeper) run() {
	for {
		select {
		case <-w.s.ctx.Done():
			return
		case <-w.wake:
		}
		for w.s.ctx.Err() == nil {
			w.mu.Lock()
			var id herald.SessionID
			var low herald.ID
			for id, low = range w.to {
				break
			}
			delete(w.to, id)
			w.mu.Unlock()
			if id == 0 {
				break
			}
			if err := w.s.sweep(id, low); err != nil && w.s.ctx.Err() == nil {
				w.s.log.Warn("removing settled messages of a session; it is tried again with a later mark",
					zap.Uint64("session", uint64(id)), zap.Error(err))
			}
		}
	}
}

// await writes rows in the background and waits for them.
func (s *Store) await(ws []write) error {
	done := make(chan error, 1)
	s.background(ws, func(err error) { done <- err })
	return <-done
}

// sweep removes a session's settled buckets.
func (s *Store) sweep(id herald.SessionID, low herald.ID) error {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	from, err := s.sweptTo(ctx, id)
	if err != nil {
		return err
	}
	c, f := coarse(low), fine(low)
	buckets, err := s.bucketsOf(ctx, id, from, c)
	if err != nil {
		return err
	}
	fines, err := s.directory(ctx, id, c)
	if err != nil {
		return err
	}
	var ws []write
	for _, b := range buckets {
		ws = append(ws, write{stmt: delInbox, size: 64, args: []any{s.clock.next(), int64(id), b}})
	}
	for _, v := range fines {
		if v < f {
			ws = append(ws, write{stmt: delInbox, size: 64, args: []any{s.clock.next(), int64(id), -(v + 1)}},
				write{stmt: delInboxRow, part: part{partInbox, int64(id), c}, size: 64, args: []any{s.clock.next(), int64(id), c, -(v + 1)}})
		}
	}
	if err := s.await(ws); err != nil {
		return err
	}
	if c > from {
		row := binary.BigEndian.AppendUint64([]byte{record.V1}, uint64(c))
		s.background([]write{{stmt: putWindow, part: part{partWindow, int64(id), 0}, size: 64,
			args: []any{int64(id), slotSwept, int64(0), row, int32(0), s.clock.next()}}}, nil)
	}
	return nil
}

// sweptTo is the coarse bucket below which there is nothing of a session any more.
func (s *Store) sweptTo(ctx context.Context, id herald.SessionID) (int64, error) {
	var row []byte
	err := s.one(ctx, getSwept, []any{int64(id), slotSwept, int64(0)}, &row)
	if errors.Is(err, gocql.ErrNotFound) {
		return birth(id), nil
	}
	if err != nil {
		return 0, unavailable(err)
	}
	d := record.Decoder{B: row}
	d.Version()
	v := d.Uint64()
	if d.Err != nil {
		s.undecoded("window", d.Err, zap.Uint64("session", uint64(id)))
		return birth(id), nil
	}
	return int64(v), nil
}
