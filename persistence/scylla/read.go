package scylla

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/gocql/gocql"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// bounded is ctx, which ends with the store, too.
func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// Session implements [persistence.Store]. It is never answered from memory: the
// row may be another node's by now.
//
// Who reads what is a session's goes on in writing it. So these reads take the
// timestamps of what they find into the clock: what is written next is newer, also
// if the clock of the node that had the session before is ahead.
func (s *Store) Session(ctx context.Context, kind persistence.Kind, name string) (persistence.Session, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.Session{}, fmt.Errorf("read session: %w", err)
	}
	defer s.leave()
	row, err := s.session(ctx, sessionKey(kind, name))
	if err != nil {
		return row, s.failed(ctx, "read session", err)
	}
	return row, nil
}

func (s *Store) session(ctx context.Context, key []byte) (persistence.Session, error) {
	var b []byte
	var at int64
	if err := s.one(ctx, getSessionTime, []any{key}, &b, &at); err != nil {
		return persistence.Session{}, err
	}
	s.clock.saw(at)
	d := record.Decoder{B: b}
	row := d.Session()
	if d.Err != nil {
		s.undecoded("session", d.Err, zap.Binary("key", key))
		return persistence.Session{}, gocql.ErrNotFound
	}
	return row, nil
}

// Subscriptions implements [persistence.Store].
func (s *Store) Subscriptions(ctx context.Context, id herald.SessionID) ([]persistence.Subscription, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("read subscriptions: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows := s.rows(ctx, getSubscriptions, 500, int64(id))
	var filter, row []byte
	var at int64
	var subs []persistence.Subscription
	for rows.next(&filter, &row, &at) {
		s.clock.saw(at)
		if sub, ok := s.subscription(id, filter, row); ok {
			subs = append(subs, sub)
		}
	}
	if rows.err != nil {
		return nil, s.failed(ctx, "read subscriptions", rows.err)
	}
	return subs, nil
}

func (s *Store) subscription(id herald.SessionID, filter, row []byte) (persistence.Subscription, bool) {
	d := record.Decoder{B: row}
	sub := d.Subscription()
	if d.Err != nil {
		s.undecoded("subscription", d.Err, zap.Uint64("session", uint64(id)), zap.ByteString("filter", filter))
		return sub, false
	}
	sub.Filter = string(filter)
	return sub, true
}

// Window implements [persistence.Store].
func (s *Store) Window(ctx context.Context, id herald.SessionID) (persistence.Window, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.Window{}, fmt.Errorf("read window: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows := s.rows(ctx, getWindow, 2000, int64(id), slotSettled)
	var w persistence.Window
	var slot int8
	var key, at int64
	var row []byte
	for rows.next(&slot, &key, &row, &at) {
		s.clock.saw(at)
		if len(row) == 0 {
			continue // free
		}
		if err := windowRow(&w, id, slot, key, row); err != nil {
			s.undecoded("window", err, zap.Uint64("session", uint64(id)), zap.Int8("slot", slot), zap.Int64("key", key))
		}
	}
	if rows.err != nil {
		return persistence.Window{}, s.failed(ctx, "read window", rows.err)
	}
	sort.Slice(w.Sent, func(i, k int) bool { return w.Sent[i].ID < w.Sent[k].ID })
	return w, nil
}

func windowRow(w *persistence.Window, id herald.SessionID, slot int8, key int64, row []byte) error {
	d := record.Decoder{B: row}
	d.Version()
	switch slot {
	case slotMark:
		low, above := d.Mark()
		if d.Err == nil {
			w.Low, w.Above = low, above
		}
	case slotHeld:
		h := persistence.Held{Session: id, PacketID: uint16(key), ID: herald.ID(d.Uint64())}
		if d.Err == nil {
			w.Held = append(w.Held, h)
		}
	case slotSent:
		t := persistence.Sent{Session: id, PacketID: uint16(key), ID: herald.ID(d.Uint64()),
			Step: persistence.Step(d.Byte()), Source: herald.SessionID(d.Uint64())}
		if d.Err == nil {
			w.Sent = append(w.Sent, t)
		}
	}
	return d.Err
}

// payload fetches the message of a wide publish; nil if it has expired.
func (s *Store) payload(ctx context.Context, id herald.ID) (*herald.Message, error) {
	if m := s.caches.payload(id); m != nil {
		return m, nil
	}
	v, err := s.once(ctx, "p"+string(binary.BigEndian.AppendUint64(nil, uint64(id))), func(ctx context.Context) (any, error) {
		var row []byte
		err := s.one(ctx, getPayload, []any{int64(id)}, &row)
		if errors.Is(err, gocql.ErrNotFound) {
			return (*herald.Message)(nil), nil
		}
		if err != nil {
			return nil, err
		}
		d := record.Decoder{B: row}
		d.Version()
		m := new(herald.Message)
		d.Message(m, nil)
		if d.Err != nil {
			s.undecoded("payload", d.Err, zap.Uint64("id", uint64(id)))
			return (*herald.Message)(nil), nil
		}
		s.caches.payloads.Set(id, m)
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*herald.Message), nil
}
