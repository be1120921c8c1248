package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Shared is a [persistence.Store] on a [Database], with the rules of
// persistence/scylla: a batch becomes writes, which land one by one, in any
// order; what must happen as a whole is written down first, as an intent; a read
// shows of an inbox what a prefix of the commits has put there. It is one run of
// one node's process.
type Shared struct {
	// Fixed at construction.
	db   *Database
	node uint16
	run  int64 // names the run among all of its node
	opts SharedOptions

	// Guarded by db.mu.
	stamp   int64                          // last that was given out, in microseconds since 1970
	flights map[herald.SessionID]*inFlight // entries on their way into inboxes
	putting map[string][]herald.SessionID  // rows of sessions on their way
	writes  []*write                       // not landed
	behind  map[place][]*write             // that go one after the other; the first is sent
	landed  []*write                       // not answered
	line    []*job                         // in the order of the commits
	told    []func()                       // dones that may be called
	reads   []asker                        // that wait to go on
	seen    herald.ID                      // highest ID of this run
	intents int64                          // number of the last
	opening bool                           // Open is not done
	dead    bool

	// Of a cluster: see sharedcluster.go.
	cluster bool                    // fixed
	now     func() time.Time        // fixed: the machine's clock; nil is time.Now
	moved   chan struct{}           // of capacity 1: there is something to do
	end     chan struct{}           // closed when the process is dead
	life    uint64                  // from Join on
	hold    func(what string) error // called when all of a kind were read; may be nil
	over    bool                    // the life is known to be over
	beaten  uint64                  // the Beat that was renewed, by an attempt that may have no answer
	valid   func() bool             // the lease; may be nil
	parked  []*job                  // wait for the lease, with their intents standing
}

// SharedOptions are what a [Shared] store does beyond its contract's least.
type SharedOptions struct {
	// Slow: a read takes its time, and the rows that it reads are not of one
	// moment.
	Slow bool
	// InlineUpTo is the number of targets up to which a message stands in each
	// inbox; for more it stands apart, once.
	InlineUpTo int
	// Apart: rows of one partition that are written together land apart.
	Apart bool
	// Sweep: what a mark has passed is removed, some time later.
	Sweep bool
	// Bug is a mistake made on purpose.
	Bug string
}

// The mistakes that a store can be told to make.
const (
	bugIntentEarly = "an intent deleted before its rows are in"
	bugRowsFirst   = "rows written before the intent"
	bugAnyOrder    = "writes of one partition land in any order"
	bugMarkPast    = "a mark past closed time"
	bugWillApart   = "a will is published apart from the removal of its row"
	bugPayload     = "the payload of a wide publish lands before what points at it goes"
	bugClock       = "IDs of the last run are above what a start has for the highest"
)

// job is a batch on its way.
type job struct {
	s        *Shared
	b        *persistence.Batch
	done     func(error)
	steps    []func() []*write
	left     int // writes of the step that are not answered
	finished bool
	err      error         // it has failed
	after    []func(error) // when all is through, or has failed
	whole    bool          // its first step is to write an intent down
	begun    bool          // that was sent
	free     bool          // of the store itself: not fenced
	since    time.Time
}

// asker is a read that waits.
type asker struct {
	ch    chan error
	since time.Time
}

// inFlight is what is on its way into one inbox, in the order of the commits.
type inFlight struct {
	jobs    []*job
	first   int // number of jobs[0]
	readers int
}

var _ persistence.Store = (*Shared)(nil)

// NewShared returns the store of a node's process that has just started. It must
// be opened before it is used.
func NewShared(db *Database, node uint16, opts SharedOptions) *Shared {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.lives[node]++
	// The clock is kept in the database: written at every start, and about once a
	// second.
	stamp := time.Now().UnixMicro()
	if last, ok := db.clocks[node]; ok {
		stamp = max(stamp, last+time.Second.Microseconds())
	}
	db.clocks[node] = stamp
	return &Shared{
		db: db, node: node, run: int64(node)<<32 | int64(db.lives[node]), opts: opts,
		flights: map[herald.SessionID]*inFlight{}, putting: map[string][]herald.SessionID{}, behind: map[place][]*write{},
		stamp: stamp, moved: make(chan struct{}, 1), end: make(chan struct{}),
	}
}

// wall is the machine's clock.
func (s *Shared) wall() time.Time {
	if s.now == nil {
		return time.Now()
	}
	return s.now()
}

// Open begins to finish what earlier runs of the node's process had begun. It
// looks at each of them until one run has done so and noted it: what of theirs
// appears later was never acknowledged, and is void.
func (s *Shared) Open() {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.opening = true
	s.seen = max(s.db.maxID, herald.IDAt(time.Now().UnixMilli()))
	if s.opts.Bug == bugClock {
		s.seen = herald.IDAt(time.Now().Truncate(time.Second).UnixMilli())
	}
	first, _ := s.db.oneLocked(place{table: tableNode}, column{key: int64(s.node)}).(int64)
	left := 1
	next := func(error) {
		if left--; left == 0 {
			s.forgetIntents(first)
		}
	}
	for _, at := range s.intentsFrom(first) {
		for _, r := range s.db.rowsLocked(at) {
			left++
			in := r.value.(*intent)
			j := &job{s: s, b: in.b, free: true}
			p := &planner{s: s, ts: in.ts, job: j}
			p.batch(in.b)
			j.steps = p.steps()
			j.after = append(j.after, next)
			s.begin(j)
		}
	}
	next(nil)
}

// intentsFrom are the places of intents of earlier runs, from first on.
func (s *Shared) intentsFrom(first int64) []place {
	return slices.DeleteFunc(s.db.placesLocked(tableIntent), func(at place) bool {
		return at.a>>32 != int64(s.node) || at.a < first || at.a >= s.run
	})
}

// forgetIntents notes that earlier runs' are carried out, and then removes them.
func (s *Shared) forgetIntents(first int64) {
	note := &write{place: place{table: tableNode}, muts: []mutation{{at: column{key: int64(s.node)}, ts: s.next(1), value: s.run}}}
	s.begin(&job{s: s, free: true, steps: []func() []*write{func() []*write { return []*write{note} }}, after: []func(error){func(error) {
		s.opening = false
		for _, at := range s.intentsFrom(first) {
			s.send(&write{place: at, muts: []mutation{{many: &removal{all: true, ts: s.next(1)}}}})
		}
	}}})
}

// Opened tells whether all that earlier runs had begun is finished.
func (s *Shared) Opened() bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return !s.opening
}

// next gives out n timestamps and returns the first.
func (s *Shared) next(n int) int64 {
	first := max(s.wall().UnixMicro(), s.stamp+1)
	s.stamp = first + int64(n) - 1
	if s.cluster {
		s.db.clocks[s.node] = max(s.db.clocks[s.node], s.stamp)
	}
	return first
}

func (s *Shared) saw(id herald.ID) {
	s.seen = max(s.seen, id)
	s.db.maxID = max(s.db.maxID, id)
	if s.cluster && id.Node() == s.node {
		s.db.ids[s.node] = max(s.db.ids[s.node], id)
		s.db.clocks[s.node] = max(s.db.clocks[s.node], idStamp(id)+1000)
	}
}

// Queued is how many writes have not landed, and how many answers to writes,
// reads and commits are due.
func (s *Shared) Queued() (writes, answers int) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return len(s.writes), len(s.landed) + len(s.told) + len(s.reads)
}

// Sync lets n writes land, any.
func (s *Shared) Sync(n int) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for range min(n, len(s.writes)) {
		w := take(&s.writes, s.db.rng.IntN(len(s.writes)))
		s.db.landLocked(w)
		s.landed = append(s.landed, w)
		if s.db.again > 0 && s.db.rng.IntN(s.db.again) == 0 {
			s.db.late = append(s.db.late, w)
		}
	}
	s.db.lateLocked()
}

// send sends writes on their way. Those to one partition of an inbox, of a window or
// of intents go one after the other, so that what a crash leaves of them is a
// prefix.
func (s *Shared) send(ws ...*write) {
	for _, w := range ws {
		if t := w.place.table; s.opts.Bug != bugAnyOrder && (t == tableInbox || t == tableWindow || t == tableIntent) {
			q := s.behind[w.place]
			s.behind[w.place] = append(q, w)
			if len(q) > 0 {
				continue
			}
		}
		s.writes = append(s.writes, w)
	}
}

// answered sends what waited for a write.
func (s *Shared) answered(w *write) {
	q := s.behind[w.place]
	switch {
	case len(q) == 0 || q[0] != w:
	case len(q) == 1:
		delete(s.behind, w.place)
	default:
		s.behind[w.place] = q[1:]
		s.writes = append(s.writes, q[1])
	}
}

func take[T any](from *[]T, i int) T {
	v := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	return v
}

// Tell gives n answers: to writes and reads in any order, to commits in theirs.
func (s *Shared) Tell(n int) {
	for range n {
		s.db.mu.Lock()
		var f func()
		switch a, b, c := len(s.landed), len(s.told), len(s.reads); {
		case a+b+c == 0:
			s.db.mu.Unlock()
			return
		default:
			switch i := s.db.rng.IntN(a + b + c); {
			case i < a:
				w := take(&s.landed, i)
				s.answered(w)
				if j := w.job; j != nil {
					j.left--
					s.advance(j)
				}
			case i < a+b:
				f = take(&s.told, 0)
			default:
				close(take(&s.reads, i-a-b).ch)
			}
		}
		s.db.mu.Unlock()
		if f != nil {
			f()
		}
	}
}

// Crash ends the process, and returns the store that the next one opens. Of the
// writes under way some land, some land later, some never.
func (s *Shared) Crash(int) backend {
	s.db.mu.Lock()
	if s.dead {
		s.db.mu.Unlock()
		return NewShared(s.db, s.node, s.opts)
	}
	for _, w := range s.writes {
		switch s.db.rng.IntN(3) {
		case 0:
			s.db.landLocked(w)
		case 1:
			s.db.late = append(s.db.late, w)
		}
	}
	var lost []func(error)
	for _, j := range s.line {
		if j.done != nil {
			lost = append(lost, j.done)
		}
	}
	told, reads := s.told, s.reads
	close(s.end)
	s.parked = nil
	s.writes, s.landed, s.line, s.told, s.reads, s.behind, s.dead = nil, nil, nil, nil, nil, nil, true
	s.db.mu.Unlock()
	for _, r := range reads {
		close(r.ch)
	}
	for _, f := range told {
		f() // nobody hears it any more
	}
	for _, f := range lost {
		f(fmt.Errorf("commit: %w", herald.ErrClosed))
	}
	if s.cluster {
		return nil
	}
	return NewShared(s.db, s.node, s.opts)
}

// wait lets a read take its time. db.mu is held.
func (s *Shared) wait(ctx context.Context) error {
	if s.dead {
		return herald.ErrClosed
	}
	if err := ctx.Err(); err != nil || !s.opts.Slow {
		return err
	}
	ch := make(chan error, 1)
	s.reads = append(s.reads, asker{ch, time.Now()})
	s.kick()
	s.db.mu.Unlock()
	var err error
	select {
	case err = <-ch:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.db.mu.Lock()
	if i := slices.IndexFunc(s.reads, func(a asker) bool { return a.ch == ch }); i >= 0 {
		take(&s.reads, i)
	}
	if s.dead {
		return herald.ErrClosed
	}
	return err
}

// Health implements [persistence.Store].
func (s *Shared) Health() error {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if s.dead {
		return herald.ErrClosed
	}
	return nil
}

// MaxID implements [persistence.Store].
func (s *Shared) MaxID() herald.ID {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return s.seen
}

// Close implements [persistence.Store].
func (s *Shared) Close() error {
	if err := s.Health(); err != nil {
		return err
	}
	for n, m := s.Queued(); n+m > 0; n, m = s.Queued() {
		s.Sync(n)
		s.Tell(n + m)
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.dead = true
	close(s.end)
	return nil
}

func (s *Shared) String() string { return fmt.Sprintf("shared, %+v, again %d", s.opts, s.db.again) }

// newSharedWorldStore is a database with the store of its only node.
func newSharedWorldStore(r *rand.Rand, bug string) *Shared {
	db := NewDatabase(rand.New(rand.NewPCG(r.Uint64(), 9)), pick(r, 0, 20, 4))
	return NewShared(db, 1, SharedOptions{Slow: r.IntN(2) == 0, InlineUpTo: pick(r, 0, 1, 16), Sweep: r.IntN(2) == 0, Bug: bug})
}
