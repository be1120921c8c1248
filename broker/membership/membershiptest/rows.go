// Package membershiptest has the rows of nodes in memory, for tests: what the shared
// store does for membership, with its failures.
package membershiptest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Rows are the rows that all nodes share. Every operation is atomic, and happens at
// one moment between its call and its return.
type Rows struct {
	// Changed, unless nil, is told of every change of a life's state and of every new
	// life, at that moment: with the rows locked. Fixed before the first Open.
	Changed func(persistence.Member)

	mu   sync.Mutex
	rows []persistence.Member // by node
}

func (r *Rows) changed(m persistence.Member) {
	if r.Changed != nil {
		r.Changed(m)
	}
}

// Open returns a node's access to the rows. rest, which may be nil, is the rest of
// the store.
func (r *Rows) Open(rest persistence.Cluster) *Store { return &Store{Cluster: rest, rows: r} }

// All returns the rows as they are.
func (r *Rows) All() []persistence.Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.rows)
}

// Fault is what becomes of one call.
type Fault struct {
	// Before and After are how long the call takes until the operation happens, and
	// from there until it returns.
	Before, After time.Duration
	// Refuse: the operation does not happen.
	Refuse bool
	// Lose: it happens, and the caller gets an error.
	Lose bool
	// Late: it happens after the call has returned an error, when Before has passed.
	Late bool
}

// Store is one node's access. The methods of membership are here, all others are
// those of Cluster.
type Store struct {
	persistence.Cluster
	rows *Rows

	mu     sync.Mutex
	fault  func(op string) Fault
	gate   chan struct{} // closed: calls pass. nil: they pass too
	killed bool
}

// Faults has f say what becomes of each call from now on: of "join", "beat",
// "members", "change" or "finish". f may be called by several goroutines at once.
func (s *Store) Faults(f func(op string) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Pause stops every call where it is, those under way before they return, until
// Resume: as if the process had been stopped. Their contexts do not end it.
func (s *Store) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate == nil {
		s.gate = make(chan struct{})
	}
}

// Resume ends Pause.
func (s *Store) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		close(s.gate)
		s.gate = nil
	}
}

// Kill has no operation happen any more: the process is dead. It ends Pause.
func (s *Store) Kill() {
	s.mu.Lock()
	s.killed = true
	s.mu.Unlock()
	s.Resume()
}

func (s *Store) pass() {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

func (s *Store) dead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.killed
}

// do carries f out, with the rows locked, and with what is to go wrong.
func do[T any](ctx context.Context, s *Store, op string, f func(r *Rows) T) (T, error) {
	var none T
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	var x Fault
	if fault != nil {
		x = fault(op)
	}
	failed := fmt.Errorf("%s: %w", op, herald.ErrUnavailable)
	act := func() T {
		s.pass()
		if x.Refuse || s.dead() {
			return none
		}
		s.rows.mu.Lock()
		defer s.rows.mu.Unlock()
		return f(s.rows)
	}
	if x.Late {
		time.AfterFunc(x.Before, func() { act() })
		s.pass()
		return none, failed
	}
	err := wait(ctx, x.Before)
	var result T
	if err == nil {
		result = act()
		err = wait(ctx, x.After)
	}
	s.pass()
	switch {
	case err != nil:
		return none, fmt.Errorf("%w: %w", failed, err)
	case x.Refuse || x.Lose || s.dead():
		return none, failed
	}
	return result, nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// row is one, and whether the operation was carried out.
type row struct {
	persistence.Member
	ok bool
}

// Join is [persistence.Cluster.Join].
func (s *Store) Join(ctx context.Context, name string, status []byte) (persistence.Member, error) {
	got, err := do(ctx, s, "join", func(r *Rows) row { return r.join(name, status) })
	if err == nil && !got.ok {
		err = fmt.Errorf("node %q: %w", name, herald.ErrInUse)
	}
	return got.Member, err
}

// Succeed is [persistence.Cluster.Succeed].
func (s *Store) Succeed(ctx context.Context, m persistence.Member, status []byte) (persistence.Member, error) {
	got, err := do(ctx, s, "join", func(r *Rows) row {
		at := r.at(m)
		if at == nil || at.State != persistence.Dead {
			return row{}
		}
		at.Life, at.State, at.Beat, at.Status = m.Life+1, persistence.Live, 1, slices.Clone(status)
		r.changed(*at)
		return row{*at, true}
	})
	if err == nil && !got.ok {
		err = fmt.Errorf("node %q: %w", m.Name, herald.ErrInUse)
	}
	return got.Member, err
}

// Finish is [persistence.Cluster.Finish]: without the rest of a store there are no
// intents.
func (s *Store) Finish(ctx context.Context, m persistence.Member) error {
	if s.Cluster != nil {
		return s.Cluster.Finish(ctx, m)
	}
	_, err := do(ctx, s, "finish", func(*Rows) bool { return true })
	return err
}

func (r *Rows) join(name string, status []byte) row {
	m := persistence.Member{Life: 1, Name: name, State: persistence.Live, Beat: 1, Status: slices.Clone(status)}
	over := func(m persistence.Member) bool {
		return m.State == persistence.Finished || m.State == persistence.Left
	}
	at := slices.IndexFunc(r.rows, func(m persistence.Member) bool { return m.Name == name })
	if at < 0 && len(r.rows) <= herald.MaxNode {
		m.Node = uint16(len(r.rows))
		r.rows = append(r.rows, m)
		r.changed(m)
		return row{m, true}
	}
	if at < 0 {
		at = slices.IndexFunc(r.rows, over)
	}
	if at < 0 || !over(r.rows[at]) {
		return row{}
	}
	m.Node, m.Life = r.rows[at].Node, r.rows[at].Life+1
	r.rows[at] = m
	r.changed(m)
	return row{m, true}
}

// Beat is [persistence.Cluster.Beat].
func (s *Store) Beat(ctx context.Context, m persistence.Member, status []byte) (now persistence.Member, ok bool, err error) {
	got, err := do(ctx, s, "beat", func(r *Rows) row {
		at := r.at(m)
		if at == nil || at.State != persistence.Live {
			return row{}
		}
		switch at.Beat {
		case m.Beat:
			at.Beat++
			at.Status = slices.Clone(status)
		case m.Beat + 1: // an earlier attempt, whose answer was lost
		default:
			return row{}
		}
		return row{*at, true}
	})
	return got.Member, got.ok, err
}

// at is the row of the life m, or nil.
func (r *Rows) at(m persistence.Member) *persistence.Member {
	if int(m.Node) >= len(r.rows) || r.rows[m.Node].Life != m.Life {
		return nil
	}
	return &r.rows[m.Node]
}

// Members is [persistence.Cluster.Members].
func (s *Store) Members(ctx context.Context) ([]persistence.Member, error) {
	return do(ctx, s, "members", func(r *Rows) []persistence.Member { return slices.Clone(r.rows) })
}

// Change is [persistence.Cluster.Change].
func (s *Store) Change(ctx context.Context, m persistence.Member, from, to persistence.MemberState) (ok bool, err error) {
	return do(ctx, s, "change", func(r *Rows) bool {
		at := r.at(m)
		if at == nil {
			return false
		}
		if at.State == from && (from != persistence.Live || at.Beat == m.Beat) {
			at.State = to
			r.changed(*at)
		}
		return at.State == to
	})
}
