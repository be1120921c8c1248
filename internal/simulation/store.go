package simulation

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Store is a [persistence.Store] in memory. Batches wait in a queue: Sync makes
// the first of them durable, Tell calls their done functions, and Crash leaves
// what is durable, and of the rest as many as it is told to.
type Store struct {
	// Fixed at construction.
	eager bool // what waits to be durable is read already

	mu      sync.Mutex // guards below
	synced  *disk
	seen    *disk    // what reads see; the same as synced unless eager
	queue   []commit // not durable yet
	told    []commit // durable, not told yet
	dead    bool     // of a process that has died
	commits int
}

type commit struct {
	b    *persistence.Batch
	done func(error)
}

var _ persistence.Store = (*Store)(nil)

// NewStore returns an empty store. lazy: settled entries stay readable; eager:
// reads see what is not durable yet. The contract allows both.
func NewStore(lazy, eager bool) *Store {
	s := &Store{eager: eager, synced: newDisk(lazy)}
	s.seen = s.synced
	if eager {
		s.seen = s.synced.clone()
	}
	return s
}

// Open is nothing: what was durable is there.
func (s *Store) Open() {}

// Opened is true at once.
func (s *Store) Opened() bool { return true }

func (s *Store) String() string {
	return fmt.Sprintf("atomic, lazy %v, eager %v", s.synced.lazy, s.eager)
}

// Commit implements [persistence.Store].
func (s *Store) Commit(b *persistence.Batch, done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		if done != nil {
			go done(fmt.Errorf("commit: %w", herald.ErrClosed))
		}
		return
	}
	if s.eager {
		s.seen.apply(b)
	}
	s.commits++
	s.queue = append(s.queue, commit{b, done})
}

// Queued is how many batches are not durable, and how many are and wait to be
// told.
func (s *Store) Queued() (queued, untold int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue), len(s.told)
}

// Sync makes the n oldest batches durable.
func (s *Store) Sync(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncLocked(n)
}

func (s *Store) syncLocked(n int) {
	n = min(n, len(s.queue))
	for _, c := range s.queue[:n] {
		s.synced.apply(c.b)
	}
	s.told = append(s.told, s.queue[:n]...)
	s.queue = slices.Clone(s.queue[n:])
}

// Tell calls the done functions of the n oldest durable batches.
func (s *Store) Tell(n int) {
	s.mu.Lock()
	n = min(n, len(s.told))
	now := s.told[:n]
	s.told = slices.Clone(s.told[n:])
	s.mu.Unlock()
	for _, c := range now {
		if c.done != nil {
			c.done(nil)
		}
	}
}

// Crash ends the process: it returns the store that the next one opens, with
// all that is durable and the first survive of the batches that were not. Every
// commit that was not told fails, as does everything from now on.
func (s *Store) Crash(survive int) backend {
	s.mu.Lock()
	survive = min(survive, len(s.queue))
	for _, c := range s.queue[:survive] {
		s.synced.apply(c.b)
	}
	lost := append(s.told, s.queue...)
	s.told, s.queue, s.dead = nil, nil, true
	next := &Store{eager: s.eager, synced: s.synced.clone(), commits: s.commits}
	s.mu.Unlock()
	next.seen = next.synced
	if s.eager {
		next.seen = next.synced.clone()
	}
	for _, c := range lost {
		if c.done != nil {
			c.done(fmt.Errorf("commit: %w", herald.ErrClosed))
		}
	}
	return next
}

// read calls f with what reads see.
func (s *Store) read(ctx context.Context, f func(*disk) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return herald.ErrClosed
	}
	return f(s.seen)
}

// Session implements [persistence.Store].
func (s *Store) Session(ctx context.Context, kind persistence.Kind, name string) (row persistence.Session, err error) {
	err = s.read(ctx, func(d *disk) error {
		for _, r := range d.rows {
			if r.Kind == kind && r.Name == name {
				row = r
				return nil
			}
		}
		return herald.ErrNotFound
	})
	return row, err
}

// Subscriptions implements [persistence.Store].
func (s *Store) Subscriptions(ctx context.Context, id herald.SessionID) (subs []persistence.Subscription, err error) {
	err = s.read(ctx, func(d *disk) error {
		for _, sub := range d.subs[id] {
			subs = append(subs, sub)
		}
		slices.SortFunc(subs, func(a, b persistence.Subscription) int { return cmp.Compare(a.Filter, b.Filter) })
		return nil
	})
	return subs, err
}

// Window implements [persistence.Store].
func (s *Store) Window(ctx context.Context, id herald.SessionID) (win persistence.Window, err error) {
	err = s.read(ctx, func(d *disk) error {
		w := d.windows[id]
		if w == nil {
			return nil
		}
		for pid, id2 := range w.held {
			win.Held = append(win.Held, persistence.Held{Session: id, PacketID: pid, ID: id2})
		}
		for _, sent := range w.sent {
			win.Sent = append(win.Sent, sent)
		}
		slices.SortFunc(win.Held, func(a, b persistence.Held) int { return cmp.Compare(a.PacketID, b.PacketID) })
		slices.SortFunc(win.Sent, func(a, b persistence.Sent) int { return cmp.Compare(a.ID, b.ID) })
		win.Low, win.Above = w.low, slices.Clone(w.above)
		return nil
	})
	return win, err
}

// Inbox implements [persistence.Store].
func (s *Store) Inbox(ctx context.Context, id herald.SessionID, after, upTo herald.ID, limit, maxBytes int, dst []persistence.Entry) ([]persistence.Entry, error) {
	err := s.read(ctx, func(d *disk) error {
		weight, n := 0, 0
		for _, e := range d.inboxes[id] {
			if e.Message.ID <= after || e.Message.ID > upTo {
				continue
			}
			if n >= limit || n > 0 && weight >= maxBytes {
				break
			}
			// A store decodes what it has written.
			m := *e.Message
			e.Message = &m
			dst = append(dst, e)
			weight += m.Size()
			n++
		}
		return nil
	})
	return dst, err
}

// ScanSessions implements [persistence.Store].
func (s *Store) ScanSessions(ctx context.Context, f func(persistence.Session) error) error {
	var rows []persistence.Session
	if err := s.read(ctx, func(d *disk) error {
		for _, r := range d.rows {
			rows = append(rows, r)
		}
		return nil
	}); err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b persistence.Session) int { return cmp.Compare(a.ID, b.ID) })
	for _, r := range rows {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// ScanSubscriptions implements [persistence.Store].
func (s *Store) ScanSubscriptions(ctx context.Context, f func(herald.SessionID, persistence.Subscription) error) error {
	var ids []herald.SessionID
	if err := s.read(ctx, func(d *disk) error {
		for id := range d.subs {
			ids = append(ids, id)
		}
		return nil
	}); err != nil {
		return err
	}
	slices.Sort(ids)
	for _, id := range ids {
		subs, err := s.Subscriptions(ctx, id)
		if err != nil {
			return err
		}
		for _, sub := range subs {
			if err := f(id, sub); err != nil {
				return err
			}
		}
	}
	return nil
}

// ExpiredSessions implements [persistence.Store].
func (s *Store) ExpiredSessions(ctx context.Context, now int64, limit int) (rows []persistence.Session, err error) {
	err = s.read(ctx, func(d *disk) error {
		for _, r := range d.rows {
			if r.Expires != 0 && r.Expires <= now {
				rows = append(rows, r)
			}
		}
		slices.SortFunc(rows, func(a, b persistence.Session) int {
			return cmp.Or(cmp.Compare(a.Expires, b.Expires), cmp.Compare(a.ID, b.ID))
		})
		rows = rows[:min(limit, len(rows))]
		return nil
	})
	return rows, err
}

// Wills implements [persistence.Store].
func (s *Store) Wills(ctx context.Context, now int64, connected bool, limit int) (wills []persistence.Will, err error) {
	err = s.read(ctx, func(d *disk) error {
		for _, w := range d.wills {
			if w.Due <= now && (w.Due != 0 || connected) {
				wills = append(wills, w)
			}
		}
		slices.SortFunc(wills, func(a, b persistence.Will) int {
			return cmp.Or(cmp.Compare(a.Due, b.Due), cmp.Compare(a.Session, b.Session))
		})
		wills = wills[:min(limit, len(wills))]
		return nil
	})
	return wills, err
}

// Retained implements [persistence.Store].
func (s *Store) Retained(ctx context.Context, topic string) (m *herald.Message, err error) {
	err = s.read(ctx, func(d *disk) error {
		if m = d.retained[topic]; m == nil {
			return herald.ErrNotFound
		}
		return nil
	})
	return m, err
}

// ScanRetained implements [persistence.Store].
func (s *Store) ScanRetained(ctx context.Context, filter, after string, limit, maxBytes int, dst []*herald.Message) (msgs []*herald.Message, more bool, err error) {
	msgs = dst
	err = s.read(ctx, func(d *disk) error {
		var topics []string
		for t := range d.retained {
			if t > after && herald.Matches(filter, t) {
				topics = append(topics, t)
			}
		}
		slices.Sort(topics)
		weight := 0
		for i, t := range topics {
			if i >= limit || i > 0 && weight >= maxBytes {
				more = true
				break
			}
			msgs = append(msgs, d.retained[t])
			weight += d.retained[t].Size()
		}
		return nil
	})
	return msgs, more, err
}

// RetainedCount implements [persistence.Store].
func (s *Store) RetainedCount() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.seen.retained))
}

// Health implements [persistence.Store].
func (s *Store) Health() error {
	return s.read(context.Background(), func(*disk) error { return nil })
}

// MaxID implements [persistence.Store].
func (s *Store) MaxID() herald.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.maxID
}

// Close implements [persistence.Store].
func (s *Store) Close() error {
	if err := s.Health(); err != nil {
		return err
	}
	n, _ := s.Queued()
	s.Sync(n)
	_, n = s.Queued()
	s.Tell(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	return nil
}

// describe logs what is stored of sessions.
func (s *Store) describe(logf func(format string, args ...any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.seen
	for id, r := range d.rows {
		logf("stored of %q (%d): %+v", r.Name, id, r)
		for _, s := range d.subs[id] {
			logf("  subscription %+v", s)
		}
		if win := d.windows[id]; win != nil {
			logf("  held %v, sent %v, low %d, above %v", win.held, win.sent, win.low, win.above)
		}
		for _, e := range d.inboxes[id] {
			logf("  entry %d: %q", e.Message.ID, e.Message.Payload)
		}
	}
}
