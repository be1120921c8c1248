package pebble

import (
	"context"
	"fmt"
	"sort"

	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// Session implements [persistence.Store].
func (s *Store) Session(ctx context.Context, kind persistence.Kind, name string) (persistence.Session, error) {
	var row persistence.Session
	v, err := s.getRow(ctx, "session", sessionKey(nil, kind, name))
	if err != nil {
		return row, err
	}
	d := record.Decoder{B: v}
	row = d.Session()
	if d.Err != nil {
		return row, fmt.Errorf("read session: %w", d.Err)
	}
	return row, nil
}

// Retained implements [persistence.Store].
func (s *Store) Retained(ctx context.Context, topic string) (*herald.Message, error) {
	v, err := s.getRow(ctx, "retained message", topicKey(nil, kRetained, topic))
	if err != nil {
		return nil, err
	}
	m, err := record.DecodeMessage(v)
	if err != nil {
		return nil, fmt.Errorf("read retained message: %w", err)
	}
	return m, nil
}

func (s *Store) getRow(ctx context.Context, what string, key []byte) ([]byte, error) {
	err := s.enter(ctx)
	if err == nil {
		defer s.leave()
		v, ok, gerr := s.get(key)
		if gerr == nil && ok {
			return v, nil
		}
		err = herald.ErrNotFound
		if gerr != nil {
			err = readable(gerr)
		}
	}
	return nil, fmt.Errorf("read %s: %w", what, err)
}

// scan calls f with every key and value from from to upTo (exclusive), until f
// says stop or fails.
func (s *Store) scan(ctx context.Context, what string, from, upTo []byte, f func(key, val []byte) (stop bool, err error)) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer s.leave()
	it, err := s.db.NewIter(&crdb.IterOptions{LowerBound: from, UpperBound: upTo})
	if err != nil {
		return fmt.Errorf("%s: %w", what, readable(err))
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("%s: %w", what, readable(err))
		}
		if stop, err := f(it.Key(), v); err != nil || stop {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("%s: %w", what, readable(err))
	}
	return nil
}

func (s *Store) scanPrefix(ctx context.Context, what string, prefix []byte, f func(key, val []byte) (bool, error)) error {
	return s.scan(ctx, what, prefix, after(prefix), f)
}

// Subscriptions implements [persistence.Store].
func (s *Store) Subscriptions(ctx context.Context, session herald.SessionID) ([]persistence.Subscription, error) {
	var subs []persistence.Subscription
	err := s.scanPrefix(ctx, "read subscriptions", key1(nil, kSubscription, uint64(session)), func(key, val []byte) (bool, error) {
		sub, err := decodeSubscription(key, val)
		subs = append(subs, sub)
		return false, err
	})
	if err != nil {
		return nil, err
	}
	return subs, nil
}

func decodeSubscription(key, val []byte) (persistence.Subscription, error) {
	d := record.Decoder{B: val}
	sub := d.Subscription()
	sub.Filter = string(key[9:])
	if d.Err != nil {
		return sub, fmt.Errorf("read subscription: %w", d.Err)
	}
	return sub, nil
}

// ScanSubscriptions implements [persistence.Store].
func (s *Store) ScanSubscriptions(ctx context.Context, f func(herald.SessionID, persistence.Subscription) error) error {
	return s.scanPrefix(ctx, "scan subscriptions", []byte{kSubscription}, func(key, val []byte) (bool, error) {
		sub, err := decodeSubscription(key, val)
		if err != nil {
			return false, err
		}
		return false, f(herald.SessionID(u64At(key, 1)), sub)
	})
}

// ScanSessions implements [persistence.Store].
func (s *Store) ScanSessions(ctx context.Context, f func(persistence.Session) error) error {
	return s.scanPrefix(ctx, "scan sessions", []byte{kSession}, func(_, val []byte) (bool, error) {
		d := record.Decoder{B: val}
		row := d.Session()
		if d.Err != nil {
			return false, fmt.Errorf("read session: %w", d.Err)
		}
		return false, f(row)
	})
}

// Window implements [persistence.Store].
func (s *Store) Window(ctx context.Context, session herald.SessionID) (persistence.Window, error) {
	var w persistence.Window
	err := s.scanPrefix(ctx, "read window", key1(nil, kWindow, uint64(session)), func(key, val []byte) (bool, error) {
		d := record.Decoder{B: val}
		d.Version()
		switch part := key[9]; part {
		case partMark:
			w.Low, w.Above = d.Mark()
		case partHeld:
			k := record.Decoder{B: key[10:]}
			w.Held = append(w.Held, persistence.Held{Session: session, PacketID: k.Uint16(), ID: herald.ID(d.Uint64())})
		case partSent:
			k := record.Decoder{B: key[10:]}
			w.Sent = append(w.Sent, persistence.Sent{
				Session: session, PacketID: k.Uint16(), ID: herald.ID(d.Uint64()),
				Step: persistence.Step(d.Byte()), Source: herald.SessionID(d.Uint64())})
		default:
			d.Fail("unknown part of a window")
		}
		if d.Err != nil {
			return false, fmt.Errorf("read window: %w", d.Err)
		}
		return false, nil
	})
	if err != nil {
		return persistence.Window{}, err
	}
	sort.Slice(w.Sent, func(i, j int) bool { return w.Sent[i].ID < w.Sent[j].ID })
	return w, nil
}

// ExpiredSessions implements [persistence.Store].
func (s *Store) ExpiredSessions(ctx context.Context, now int64, limit int) ([]persistence.Session, error) {
	if now < 0 || limit <= 0 {
		return nil, nil
	}
	var rows []persistence.Session
	err := s.scan(ctx, "read expired sessions", []byte{kExpiry}, key1(nil, kExpiry, uint64(now)+1), func(key, val []byte) (bool, error) {
		v, ok, err := s.get(append([]byte{kSession}, val...))
		if err != nil {
			return false, readable(err)
		}
		d := record.Decoder{B: v}
		if ok {
			row := d.Session()
			// The row may have moved on since the index was read.
			if d.Err == nil && row.Expires == int64(u64At(key, 1)) && uint64(row.ID) == u64At(key, 9) {
				rows = append(rows, row)
			}
		}
		return len(rows) >= limit, d.Err
	})
	return rows, err
}

// Wills implements [persistence.Store].
func (s *Store) Wills(ctx context.Context, now int64, connected bool, limit int) ([]persistence.Will, error) {
	if now < 0 || limit <= 0 {
		return nil, nil
	}
	first := uint64(1)
	if connected {
		first = 0
	}
	var wills []persistence.Will
	err := s.scan(ctx, "read wills", key1(nil, kWillDue, first), key1(nil, kWillDue, uint64(now)+1), func(key, _ []byte) (bool, error) {
		v, ok, err := s.get(key1(nil, kWill, u64At(key, 9)))
		if err != nil {
			return false, readable(err)
		}
		d := record.Decoder{B: v}
		if ok {
			if w := d.Will(); d.Err == nil && w.Due == int64(u64At(key, 1)) {
				wills = append(wills, w)
			}
		}
		return len(wills) >= limit, d.Err
	})
	return wills, err
}
