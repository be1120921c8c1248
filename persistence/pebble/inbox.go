package pebble

import (
	"context"
	"fmt"

	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// Inbox implements [persistence.Store].
func (s *Store) Inbox(ctx context.Context, session herald.SessionID, from, upTo herald.ID, limit, maxBytes int, dst []persistence.Entry) ([]persistence.Entry, error) {
	if err := s.enter(ctx); err != nil {
		return dst, fmt.Errorf("read inbox: %w", err)
	}
	defer s.leave()
	if limit <= 0 || from >= upTo {
		return dst, nil
	}
	// The tail first: what the keeper moves to Pebble meanwhile is then seen
	// twice, and never missed.
	start := len(dst)
	dst = s.tails.read(session, from, upTo, limit, dst)
	if !s.spilled.Load() {
		return cut(dst, start, limit, maxBytes), nil
	}
	tail := append([]persistence.Entry(nil), dst[start:]...)
	dst, err := s.mergeInbox(ctx, session, from, upTo, limit, maxBytes, tail, dst[:start])
	if err != nil {
		return dst[:start], fmt.Errorf("read inbox: %w", readable(err))
	}
	return dst, nil
}

// cut shortens what was appended behind start.
func cut(dst []persistence.Entry, start, limit, maxBytes int) []persistence.Entry {
	weight := 0
	for i := start; i < len(dst); i++ {
		weight += dst[i].Message.Size()
		if i-start+1 >= limit || weight > maxBytes {
			return dst[:i+1]
		}
	}
	return dst
}

// mergeInbox merges tail with what Pebble has of the inbox.
func (s *Store) mergeInbox(ctx context.Context, session herald.SessionID, from, upTo herald.ID, limit, maxBytes int, tail, dst []persistence.Entry) ([]persistence.Entry, error) {
	snap := s.db.NewSnapshot()
	defer snap.Close()
	it, err := s.iterate(snap, key1(nil, kInbox, uint64(session)), key2(nil, kInbox, uint64(session), uint64(from)+1))
	if err != nil {
		return dst, err
	}
	defer it.Close()
	weight, n := 0, 0
	ok := it.First()
	for n < limit && weight <= maxBytes {
		var id herald.ID
		if ok {
			if id = herald.ID(u64At(it.Key(), 9)); id > upTo {
				ok = false
			}
		}
		if !ok && len(tail) == 0 {
			break
		}
		var e persistence.Entry
		if len(tail) > 0 && (!ok || tail[0].Message.ID <= id) {
			e = tail[0]
			if ok && e.Message.ID == id {
				ok = it.Next()
			}
			tail = tail[1:]
		} else {
			if e, err = s.storedEntry(snap, it, id); err != nil {
				return dst, err
			}
			ok = it.Next()
		}
		dst = append(dst, e)
		weight += e.Message.Size()
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return dst, ctx.Err()
		}
	}
	return dst, it.Error()
}

func (s *Store) storedEntry(snap *crdb.Snapshot, it *crdb.Iterator, id herald.ID) (persistence.Entry, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return persistence.Entry{}, err
	}
	e, err := record.DecodeEntry(v)
	if err != nil || e.Message != nil {
		return e, err
	}
	row, closer, err := snap.Get(key1(nil, kPayload, uint64(id)))
	if err != nil {
		return e, fmt.Errorf("%w: message %d of an inbox is missing: %w", herald.ErrCorrupt, id, err)
	}
	defer closer.Close()
	e.Message, err = record.DecodeMessage(row)
	return e, err
}
