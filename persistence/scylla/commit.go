package scylla

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// job is one batch on its way.
type job struct {
	s     *Store
	batch *persistence.Batch
	done  func(error)
	size  int

	// The steps, one after the other; the rows of one go together. Owned by
	// whoever works on the job: the committer, then the worker that ends a step.
	steps  []step
	at     int
	left   atomic.Int32
	err    atomic.Pointer[error]
	whole  int64         // not 0: an intent is needed, with this timestamp
	after  []func(error) // when all is through, before done
	bound  atomic.Bool   // it may not be given up any more: see executor
	since  int64         // when it was committed
	fenced bool          // its rows are written under a lease only: see fenced
	life   *life         // that it was committed in
	until  int64         // its last timestamp
	passed atomic.Bool   // later ones are done without it

	// Guarded by line.mu.
	finished bool
	late     bool // no longer waited for by others
	result   error
}

// step is what of a batch is written together. must: see executor.
type step struct {
	writes []write
	make   func() ([]write, error) // instead of writes: what it takes to know them
	must   bool
}

// Commit implements [persistence.Store]. Batches over several partitions are not
// atomic, except as the package comment says.
func (s *Store) Commit(b *persistence.Batch, done func(error)) {
	j := &job{s: s, batch: b, done: done, since: mono(), fenced: true, life: s.life.Load()}
	err := s.plan(j)
	if err == nil {
		err = s.fenced(j.life)
	}
	if err == nil {
		err = s.exec.admit(j)
	}
	if errors.Is(err, herald.ErrClosed) {
		for _, f := range j.after {
			f(err)
		}
		if done != nil {
			go done(err)
		}
		return
	}
	if err != nil {
		s.line.enter(j)
		for _, f := range j.after {
			f(err)
		}
		s.line.finish(j, err)
		return
	}
	s.begin(j)
	if j.whole != 0 {
		s.intents.begin(s, j)
	}
	if j.life != nil && s.above(j, j.life) {
		j.steps = append([]step{{make: func() ([]write, error) { return nil, s.awaitCeiling(j) }}}, j.steps...)
	}
	j.next()
}

// begin puts a job into the line and into the inboxes' flights, in the same order: an
// entry is hidden by those before it in its flight, and whoever is told that it is in
// has been told so of those before it in the line only.
func (s *Store) begin(j *job) {
	s.order.Lock()
	defer s.order.Unlock()
	s.line.enter(j)
	for i := range j.batch.Spreads {
		s.flights.depart(j, &j.batch.Spreads[i])
	}
}

// next begins the next step, or ends the job.
func (j *job) next() {
	for {
		if p := j.err.Load(); p != nil {
			j.end(*p)
			return
		}
		if j.at == len(j.steps) {
			j.end(nil)
			return
		}
		if j.fenced && !j.bound.Load() {
			if err := j.s.fenced(j.life); err != nil {
				j.end(err)
				return
			}
		}
		st := &j.steps[j.at]
		if st.make != nil {
			go func() {
				ws, err := st.make()
				for tries := 0; err != nil && st.must && !j.life.ended() && j.s.exec.pause(tries); tries++ {
					ws, err = st.make()
				}
				if err != nil {
					j.fail(unavailable(err))
				}
				st.make, st.writes = nil, ws
				j.next()
			}()
			return
		}
		j.at++
		if len(st.writes) > 0 {
			j.left.Store(int32(len(st.writes)))
			if st.must {
				j.bound.Store(true)
			}
			j.s.exec.submit(j, st.writes, st.must)
			return
		}
	}
}

// background writes rows that nobody waits for; after, if not nil, is told what
// became of them.
func (s *Store) background(ws []write, after func(error)) {
	j := &job{s: s, steps: []step{{writes: ws, must: true}}, since: mono()}
	if after != nil {
		j.after = append(j.after, after)
	}
	s.exec.mu.Lock()
	s.exec.jobs++
	s.exec.mu.Unlock()
	s.line.apart(j)
	j.next()
}

func (j *job) fail(err error) { j.err.CompareAndSwap(nil, &err) }

// written tells that n rows of the step are in, or will not be.
func (j *job) written(n int32, err error) {
	if err != nil {
		j.fail(err)
	}
	if j.left.Add(-n) == 0 {
		j.next()
	}
}

func (j *job) end(err error) {
	for _, f := range j.after {
		f(err)
	}
	if j.batch != nil {
		for i := range j.batch.Spreads {
			j.s.flights.arrive(j, &j.batch.Spreads[i])
		}
	}
	j.s.exec.dismiss(j)
	j.s.line.finish(j, err)
}

// line calls dones in the order of the commits, whatever the order in which the
// rows got in. What waits for a database that is away is taken out of it, so
// that those behind it hear that they have failed.
type line struct {
	mu    sync.Mutex // guards below
	wake  sync.Cond
	jobs  []*job
	head  int
	late  []*job // finished, out of order
	out   int    // taken out of the line and not finished
	stops bool
	ended chan struct{}
}

func newLine() *line {
	l := &line{ended: make(chan struct{})}
	l.wake.L = &l.mu
	go l.run()
	return l
}

func (l *line) enter(j *job) {
	l.mu.Lock()
	if l.head > 1024 && l.head > len(l.jobs)/2 {
		n := copy(l.jobs, l.jobs[l.head:])
		clear(l.jobs[n:])
		l.jobs, l.head = l.jobs[:n], 0
	}
	l.jobs = append(l.jobs, j)
	l.mu.Unlock()
}

func (l *line) finish(j *job, err error) {
	l.mu.Lock()
	j.finished, j.result = true, err
	if j.late {
		l.late = append(l.late, j)
		l.out--
	}
	if j.late || l.jobs[l.head] == j {
		l.wake.Signal()
	}
	l.mu.Unlock()
}

// pass takes jobs out of the line that cannot be given up and do not get on:
// since an outage began, or for as long as before tells.
func (l *line) pass(outage bool, before int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == len(l.jobs) {
		return
	}
	kept := l.jobs[l.head:l.head]
	for _, j := range l.jobs[l.head:] {
		if !j.finished && (outage && j.bound.Load() || j.since < before) {
			j.late = true
			j.passed.Store(true)
			l.out++
		} else {
			kept = append(kept, j)
		}
	}
	clear(l.jobs[l.head+len(kept):])
	l.jobs = l.jobs[:l.head+len(kept)]
	l.wake.Signal()
}

// apart is for a job that nobody waits for.
func (l *line) apart(j *job) {
	l.mu.Lock()
	j.late = true
	l.out++
	l.mu.Unlock()
}

// run is the body of the releaser.
func (l *line) run() {
	defer close(l.ended)
	var ready []*job
	l.mu.Lock()
	for {
		ready = append(ready[:0], l.late...)
		l.late = l.late[:0]
		for l.head < len(l.jobs) && l.jobs[l.head].finished {
			ready = append(ready, l.jobs[l.head])
			l.jobs[l.head] = nil
			l.head++
		}
		if len(ready) == 0 {
			if l.stops && l.head == len(l.jobs) && l.out == 0 {
				l.mu.Unlock()
				return
			}
			l.wake.Wait()
			continue
		}
		l.mu.Unlock()
		for i, j := range ready {
			if j.done != nil {
				j.done(j.result)
			}
			ready[i] = nil
		}
		l.mu.Lock()
	}
}

// stop returns when every done was called.
func (l *line) stop() {
	l.mu.Lock()
	l.stops = true
	l.wake.Signal()
	l.mu.Unlock()
	<-l.ended
}

// maxMessage bounds what is written as one value: the database refuses a mutation
// of half a segment of its log.
const maxMessage = 8 << 20

var errTooLarge = fmt.Errorf("%w: a message is too large for the database", herald.ErrUnavailable)
