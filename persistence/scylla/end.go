package scylla

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// ends are the steps that remove sessions: all that is theirs, then the rows. at is
// the timestamp of the first.
func (s *Store) ends(del []persistence.Session, at int64) []step {
	if len(del) == 0 {
		return nil
	}
	return []step{
		{must: true, make: func() (ws []write, err error) {
			for i := range del {
				if ws, err = s.belongings(del[i].ID, at+int64(i), ws); err != nil {
					return nil, err
				}
			}
			return ws, nil
		}},
		{must: true, make: func() (ws []write, err error) {
			for i := range del {
				if ws, err = s.rowOf(&del[i], at+int64(i), ws); err != nil {
					return nil, err
				}
			}
			return ws, nil
		}},
	}
}

// belongings appends the removal of a session's subscriptions, window and inbox.
func (s *Store) belongings(id herald.SessionID, at int64, ws []write) ([]write, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timeout)
	defer cancel()
	from, err := s.sweptTo(ctx, id)
	if err != nil {
		return nil, err
	}
	newest := s.newestCoarse()
	buckets, err := s.bucketsOf(ctx, id, from, newest+1)
	if err != nil {
		return nil, err
	}
	session := int64(id)
	after := max(at, s.clock.next()) + afterEnd
	for _, b := range append(buckets, s.bucketsToCome(buckets, newest)...) {
		ws = append(ws, write{stmt: delInbox, size: 64, args: []any{after, session, b}})
	}
	s.states.of.Invalidate(id)
	return append(ws,
		write{stmt: delSubscribed, size: 64, args: []any{after, session}},
		write{stmt: delWindow, size: 64, args: []any{after, session}}), nil
}

// afterEnd is how far ahead of the clock the removal of what was a session's own lies
// (microseconds). A node that has not heard of its end may go on to write entries and
// marks for a while: they are gone before they arrive. Nothing else is, since the
// number of a session is never used again.
const afterEnd = int64(24 * time.Hour / time.Microsecond)

// bucketsToCome are those of an inbox that may be begun in that time. There are fine
// ones only where there are others already.
func (s *Store) bucketsToCome(buckets []int64, newest int64) []int64 {
	more := []int64{newest + 1, newest + 2}
	now := s.opts.Now().UnixMilli()
	first, last := fine(herald.IDAt(now-clockSkew)), fine(herald.IDAt(now+2*clockSkew))
	for _, b := range buckets {
		if b < 0 && -b-1 >= first-1024 { // 1024 of them are a coarse one
			for f := first; f <= last; f++ {
				more = append(more, -(f + 1))
			}
			break
		}
	}
	return more
}

// rowOf appends the removal of a session's row, unless it is another session's by
// now. It has the timestamp of what it removes: nobody learns that of a removal, and
// the row of the client's next session may be written by a node whose clock is behind.
func (s *Store) rowOf(row *persistence.Session, at int64, ws []write) ([]write, error) {
	key := sessionKey(row.Kind, row.Name)
	if id, ok := s.putting.newest(string(key)); ok && id != row.ID {
		return ws, nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timeout)
	defer cancel()
	var b []byte
	var written int64
	err := s.one(ctx, getSessionTime, []any{key}, &b, &written)
	if err != nil && !errors.Is(err, gocql.ErrNotFound) {
		return nil, unavailable(err)
	}
	if err == nil {
		d := record.Decoder{B: b}
		if got := d.Session(); d.Err == nil && got.ID != row.ID {
			return ws, nil
		}
		at = written
	}
	return append(ws, write{stmt: delSession, size: 64, args: []any{at, key}}), nil
}

// putting knows the session rows that are under way.
type putting struct {
	mu sync.Mutex
	of map[string][]herald.SessionID
}

func (p *putting) begin(key string, id herald.SessionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil {
		p.of = make(map[string][]herald.SessionID)
	}
	p.of[key] = append(p.of[key], id)
}

func (p *putting) end(key string, id herald.SessionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := p.of[key]
	for i := range ids {
		if ids[i] == id {
			ids = append(ids[:i:i], ids[i+1:]...)
			break
		}
	}
	if len(ids) == 0 {
		delete(p.of, key)
	} else {
		p.of[key] = ids
	}
}

// newest is the session whose row was committed last and is still under way.
func (p *putting) newest(key string) (herald.SessionID, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := p.of[key]
	if len(ids) == 0 {
		return 0, false
	}
	return ids[len(ids)-1], true
}
