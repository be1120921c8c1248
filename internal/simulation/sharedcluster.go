package simulation

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// membership of a [Database]: rows that change by compare-and-set, and what becomes
// of a life.
type plan struct {
	intents map[*intent]bool
}

var (
	_ persistence.Cluster   = (*Shared)(nil)
	_ persistence.Unclaimer = (*Shared)(nil)
)

// NewMember returns the store of a process of a cluster. It commits nothing before
// Join. now is the machine's clock.
func NewMember(db *Database, now func() time.Time, opts SharedOptions) *Shared {
	s := &Shared{
		db: db, opts: opts, now: now, cluster: true,
		flights: map[herald.SessionID]*inFlight{}, putting: map[string][]herald.SessionID{}, behind: map[place][]*write{},
		moved: make(chan struct{}, 1), end: make(chan struct{}),
	}
	s.stamp = now().UnixMicro()
	return s
}

// act carries out an operation on rows that change by compare-and-set: at some moment
// between its call and its return, and perhaps without an answer.
func (s *Shared) act(ctx context.Context, f func()) error {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if err := s.wait(ctx); err != nil {
		return err
	}
	f()
	if s.db.lose > 0 && s.db.rng.IntN(s.db.lose) == 0 {
		return fmt.Errorf("the answer is lost: %w", herald.ErrUnavailable)
	}
	return nil
}

// Identity implements [persistence.Cluster].
func (s *Shared) Identity(ctx context.Context) (string, error) { return "simulation", ctx.Err() }

func (s *Shared) isDead() bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return s.dead
}

// Join implements [persistence.Cluster].
func (s *Shared) Join(ctx context.Context, name string, status []byte) (m persistence.Member, err error) {
	ok := false
	err = s.act(ctx, func() {
		if s.life == 0 || s.over {
			m, ok = s.db.joinLocked(name, status)
		}
	})
	return s.begins(m, ok, name, err)
}

// Succeed implements [persistence.Cluster].
func (s *Shared) Succeed(ctx context.Context, of persistence.Member, status []byte) (m persistence.Member, err error) {
	ok := false
	err = s.act(ctx, func() {
		m = s.db.members[of.Node]
		if ok = m.Life == of.Life && m.State == persistence.Dead && (s.life == 0 || s.over); ok {
			m.Life, m.State, m.Beat, m.Status = m.Life+1, persistence.Live, 1, slices.Clone(status)
			s.db.members[of.Node] = m
			s.db.past[of.Node] = s.db.clocks[of.Node]
			if s.db.owed[of.Node] == 0 {
				s.db.owed[of.Node] = of.Life
			}
		}
	})
	return s.begins(m, ok, of.Name, err)
}

// begins begins the life that has joined, if it has.
func (s *Shared) begins(m persistence.Member, ok bool, name string, err error) (persistence.Member, error) {
	switch {
	case err != nil:
		return m, err
	case !ok:
		return m, fmt.Errorf("node %q: %w", name, herald.ErrInUse)
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.node, s.life, s.over = m.Node, m.Life, false
	s.run = int64(m.Node)<<32 | int64(m.Life)
	// No life of this number has written anything newer, nor made a higher ID.
	s.stamp = max(s.stamp, s.db.clocks[m.Node]+1)
	s.seen = max(s.seen, s.db.ids[m.Node])
	return m, nil
}

func (d *Database) joinLocked(name string, status []byte) (persistence.Member, bool) {
	m := persistence.Member{Life: 1, Name: name, State: persistence.Live, Beat: 1, Status: slices.Clone(status)}
	over := func(m persistence.Member) bool {
		return m.State == persistence.Finished || m.State == persistence.Left
	}
	for n := range uint16(len(d.members)) {
		old := d.members[n]
		if old.Name != name {
			continue
		}
		if !over(old) {
			return m, false
		}
		m.Node, m.Life = n, old.Life+1
		d.members[n] = m
		d.past[n] = d.clocks[n]
		return m, true
	}
	for n := range uint16(len(d.members)) {
		if old := d.members[n]; len(d.members) > herald.MaxNode && over(old) {
			m.Node, m.Life = n, old.Life+1
			d.members[n] = m
			d.past[n] = d.clocks[n]
			return m, true
		}
	}
	m.Node = uint16(len(d.members))
	d.members[m.Node] = m
	return m, true
}

// Beat implements [persistence.Cluster].
func (s *Shared) Beat(ctx context.Context, m persistence.Member, status []byte) (now persistence.Member, ok bool, err error) {
	err = s.act(ctx, func() {
		ok = false
		now = s.db.members[m.Node]
		if now.Life != m.Life || now.State != persistence.Live {
			s.over = s.over || m.Life == s.life
			return
		}
		if now.Beat == m.Beat {
			now.Beat++
			now.Status = slices.Clone(status)
			s.db.members[m.Node] = now
			s.beaten = m.Beat
		}
		ok = now.Beat == m.Beat+1 && s.beaten == m.Beat // now, or by an attempt without an answer
	})
	if err == nil {
		s.db.mu.Lock()
		s.beaten = 0
		s.db.mu.Unlock()
	}
	return now, ok && err == nil, err
}

// Members implements [persistence.Cluster].
func (s *Shared) Members(ctx context.Context) (all []persistence.Member, err error) {
	err = s.act(ctx, func() {
		for n := range uint16(len(s.db.members)) {
			m := s.db.members[n]
			m.Status = slices.Clone(m.Status)
			all = append(all, m)
			if s.life != 0 && m.Node == s.node && (m.Life != s.life || m.State != persistence.Live) {
				s.over = true
			}
			// From now on this node's writes are newer than those of lives that are over.
			clock := s.db.past[n]
			if m.State != persistence.Live {
				clock = s.db.clocks[n]
			}
			s.stamp = max(s.stamp, clock+1)
		}
	})
	return all, err
}

// Change implements [persistence.Cluster].
func (s *Shared) Change(ctx context.Context, m persistence.Member, from, to persistence.MemberState) (ok bool, err error) {
	for {
		err = s.act(ctx, func() {
			now := s.db.members[m.Node]
			if now.Life != m.Life {
				return
			}
			if now.State == from && (from != persistence.Live || now.Beat == m.Beat) {
				now.State = to
				s.db.members[m.Node] = now
				if to == persistence.Finished {
					delete(s.db.owed, m.Node)
				}
			}
			ok = now.State == to
			s.over = s.over || m.Node == s.node && m.Life == s.life && now.State != persistence.Live
		})
		if err == nil || ctx.Err() != nil || s.isDead() {
			return ok && err == nil, err
		}
		if perr := pauseFor(ctx, 10*time.Millisecond); perr != nil {
			return false, fmt.Errorf("%w: %w", herald.ErrUnavailable, perr)
		}
	}
}

// Fence implements [persistence.Cluster].
func (s *Shared) Fence(valid func() bool) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.valid = valid
}

// fenced tells whether nothing may be written now.
func (s *Shared) fenced() bool {
	return s.cluster && (s.life == 0 || s.over || s.valid != nil && !s.valid())
}

// Finish implements [persistence.Cluster]. Whoever is first says what there is to be
// finished.
func (s *Shared) Finish(ctx context.Context, m persistence.Member) error {
	inUse := false
	var todo plan
	run := int64(m.Node)<<32 | int64(m.Life)
	if err := s.act(ctx, func() {
		now := s.db.members[m.Node]
		switch {
		case now.Life == m.Life && now.State == persistence.Live:
			inUse = true
			return
		case now.Life != m.Life || now.State != persistence.Dead:
			return
		}
		s.stamp = max(s.stamp, s.db.clocks[m.Node]+1)
		p, ok := s.db.plans[run]
		if !ok {
			p = plan{intents: map[*intent]bool{}}
			for _, r := range s.db.rowsLocked(place{table: tableIntent, a: run}) {
				p.intents[r.value.(*intent)] = true
			}
			s.db.plans[run] = p
		}
		todo = p
	}); err != nil {
		return err
	}
	if inUse {
		return fmt.Errorf("finish: %w", herald.ErrInUse)
	}
	done := make(chan struct{})
	s.db.mu.Lock()
	left := 1
	next := func(error) {
		if left--; left == 0 {
			close(done)
		}
	}
	for _, r := range s.db.rowsLocked(place{table: tableIntent, a: run}) {
		in := r.value.(*intent)
		if !todo.intents[in] {
			continue
		}
		left++
		j := &job{s: s, b: in.b, free: true}
		p := &planner{s: s, ts: in.ts, job: j}
		p.batch(in.b)
		j.steps = p.steps()
		j.after = append(j.after, next)
		s.begin(j)
	}
	next(nil)
	s.kick()
	s.db.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.end:
		return herald.ErrClosed
	}
}

// Seal implements [persistence.Cluster].
func (s *Shared) Seal(ctx context.Context, id herald.SessionID) error {
	s.db.mu.Lock()
	if s.dead || s.fenced() {
		s.db.mu.Unlock()
		return fmt.Errorf("seal: %w", herald.ErrUnavailable)
	}
	if err := s.wait(ctx); err != nil {
		s.db.mu.Unlock()
		return err
	}
	at := windowOf(id)
	var ws []mutation
	p := s.db.parts[at]
	rows := s.db.rowsLocked(at)
	for _, r := range rows {
		s.stamp = max(s.stamp, p.rows[r.at].ts)
	}
	ts := s.next(2)
	for _, r := range rows {
		ws = append(ws, mutation{at: r.at, ts: ts + 1, value: r.value})
	}
	done := make(chan struct{})
	steps := []func() []*write{}
	if len(ws) > 0 {
		steps = append(steps, func() []*write { return []*write{{place: at, muts: ws}} })
	}
	steps = append(steps, func() []*write {
		return []*write{{place: at, muts: []mutation{{many: &removal{all: true, ts: ts}}}}}
	})
	s.begin(&job{s: s, steps: steps, free: true, after: []func(error){func(error) { close(done) }}})
	s.kick()
	s.db.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.end:
		return herald.ErrClosed
	}
}

// Observe implements [persistence.Cluster].
func (s *Shared) Observe(id herald.ID) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.stamp = max(s.stamp, idStamp(id)+1000)
}

// Clock is at or above all that this node has seen, as in persistence/scylla.
func (s *Shared) Clock() herald.ID {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return max(herald.IDAt(s.stamp/1000+1), s.seen)
}

// kick tells the pump that there is something to do.
func (s *Shared) kick() {
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// The line between a process and the database.
type lineState byte

const (
	lineUp   lineState = iota
	lineSlow           // everything takes long
	lineCut            // nothing gets through
)

// giveUp is when a commit fails that does not get on.
const giveUp = 8 * time.Second

// pump lets what is under way happen, as time passes, until the process is dead. stuck
// is called before each move: it returns when the process runs.
func (s *Shared) pump(state func() lineState, stuck func()) {
	for {
		select {
		case <-s.moved:
		case <-s.end:
			return
		}
		for {
			s.db.mu.Lock()
			quick := time.Duration(50+s.db.rng.IntN(2000)) * time.Microsecond
			n, m := 1+s.db.rng.IntN(8), 1+s.db.rng.IntN(8)
			s.db.mu.Unlock()
			st := state()
			switch st {
			case lineSlow:
				quick *= 100
			case lineCut:
				quick = 200 * time.Millisecond
			}
			if pauseUntil(s.end, quick) {
				return
			}
			stuck()
			s.unpark()
			if st == lineCut {
				s.expire()
			} else {
				s.Sync(n)
				s.Tell(m)
			}
			if n, m := s.Queued(); n+m == 0 && !s.waiting() {
				break
			}
		}
	}
}

func pauseUntil(end chan struct{}, d time.Duration) (ended bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-end:
		return true
	case <-t.C:
		return false
	}
}

func (s *Shared) waiting() bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return len(s.parked) > 0
}

// unpark goes on with what waited for the lease.
func (s *Shared) unpark() {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	parked := s.parked
	s.parked = nil
	for _, j := range parked {
		s.advance(j)
	}
}

// expire fails what does not get through for too long: what has been sent of it may
// land all the same.
func (s *Shared) expire() {
	s.db.mu.Lock()
	for _, j := range slices.Clone(s.line) {
		if !j.finished && !j.begun && time.Since(j.since) > giveUp {
			s.db.failed = true
			s.fail(j)
		}
	}
	for i := 0; i < len(s.reads); i++ {
		if a := s.reads[i]; time.Since(a.since) > giveUp/2 {
			a.ch <- fmt.Errorf("no answer: %w", herald.ErrUnavailable)
			take(&s.reads, i)
			i--
		}
	}
	told := s.told
	s.told = nil
	s.db.mu.Unlock()
	for _, f := range told {
		f()
	}
}
