package scylla

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald"
)

// executor writes rows: bounded in flight, those of one partition that wait at the
// same time together, each tried again while there is hope.
//
// A write that is refused or not answered is tried again until Options.GiveUp has
// passed or the circuit opens; then its batch fails. Except for a batch whose
// intent may stand in the database: nobody could tell any more whether the rest of
// it will be found one day, and a publisher that hears of a failure sends again,
// under another ID: the message would come twice. So such a batch waits for the
// database to come back, and its publisher with it.
//
// Rows of one inbox, of one window and of one bucket of intents go in packs one after
// the other. So what a crash leaves of them is a prefix: no mark without the release of
// what it passes, no publish without the one before it of the same QoS.
//
// The same holds for a lease that has run out (fenced): while it may be renewed, a
// batch whose intent may stand waits; when the life is over it ends, and whoever
// finishes that life carries the intent out. What has no intent fails at once.
type executor struct {
	// Fixed at construction.
	s     *Store
	bound int

	mu      sync.Mutex // guards below
	work    sync.Cond  // queue, stopped
	room    sync.Cond  // bytes, jobs, or the circuit
	queue   []*pack    // first in, first out
	head    int
	open    map[packKey]*pack   // in queue or lanes, may still grow
	lanes   map[packKey][]*pack // that wait for one of their partition that is not through
	bytes   int                 // of jobs that are under way
	jobs    int
	closing bool // no new jobs
	stopped bool
	flying  map[*pack]int64 // being executed, since

	workers sync.WaitGroup
}

// pack is what goes as one statement.
type pack struct {
	writes []write
	owners []owner
	key    packKey
	bytes  int
	must   bool
	since  int64 // when it was first tried
	tries  int
	leads  bool // others of its partition wait for it
}

type packKey struct {
	part   part
	must   bool
	fenced bool
	life   *life
}

type owner struct {
	job *job
	n   int32
}

const (
	maxPackBytes = 32 << 10
	maxPackRows  = 100
	maxJobs      = 1 << 15
)

func newExecutor(s *Store) *executor {
	x := &executor{s: s, bound: s.opts.MaxPendingBytes, open: make(map[packKey]*pack), lanes: make(map[packKey][]*pack), flying: make(map[*pack]int64)}
	x.work.L, x.room.L = &x.mu, &x.mu
	for range s.opts.Concurrency {
		x.workers.Add(1)
		go func() {
			defer x.workers.Done()
			x.run()
		}()
	}
	return x
}

// admit makes room for a job, or tells why there is none.
func (x *executor) admit(j *job) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		if x.closing {
			return herald.ErrClosed
		}
		if err := x.s.circuit.reason(); err != nil {
			return err
		}
		if x.bytes <= x.bound && x.jobs < maxJobs {
			x.bytes += j.size
			x.jobs++
			return nil
		}
		x.room.Wait()
	}
}

// idle returns when nothing is under way.
func (x *executor) idle(ctx context.Context) error {
	stop := context.AfterFunc(ctx, x.wake)
	defer stop()
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.jobs > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		x.room.Wait()
	}
	return nil
}

func (x *executor) dismiss(j *job) {
	x.mu.Lock()
	x.bytes -= j.size
	x.jobs--
	x.room.Broadcast()
	x.mu.Unlock()
}

// wake lets those that wait for room see that the circuit has opened.
func (x *executor) wake() {
	x.mu.Lock()
	x.room.Broadcast()
	x.mu.Unlock()
}

// submit queues writes of a job.
func (x *executor) submit(j *job, ws []write, must bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range ws {
		w := &ws[i]
		key := packKey{w.part, must, j.fenced, j.life}
		if w.part != (part{}) {
			if p := x.open[key]; p != nil && p.bytes+w.size <= maxPackBytes && len(p.writes) < maxPackRows {
				p.writes = append(p.writes, *w)
				p.bytes += w.size
				if last := &p.owners[len(p.owners)-1]; last.job == j {
					last.n++
				} else {
					p.owners = append(p.owners, owner{j, 1})
				}
				continue
			}
		}
		p := &pack{writes: []write{*w}, owners: []owner{{j, 1}}, key: key, bytes: w.size, must: must}
		x.push(p)
		if w.part != (part{}) {
			x.open[key] = p
		}
	}
}

func (x *executor) push(p *pack) {
	if x.head > 1024 && x.head > len(x.queue)/2 {
		n := copy(x.queue, x.queue[x.head:])
		clear(x.queue[n:])
		x.queue, x.head = x.queue[:n], 0
	}
	x.queue = append(x.queue, p)
	x.work.Signal()
}

// run is the body of a worker.
func (x *executor) run() {
	x.mu.Lock()
	for {
		for x.head == len(x.queue) && !x.stopped {
			x.work.Wait()
		}
		if x.head == len(x.queue) {
			x.mu.Unlock()
			return
		}
		p := x.queue[x.head]
		x.queue[x.head] = nil
		x.head++
		if !p.leads && p.key.ordered() {
			if waiting, busy := x.lanes[p.key]; busy {
				x.lanes[p.key] = append(waiting, p)
				continue
			}
			x.lanes[p.key], p.leads = nil, true
		}
		if x.open[p.key] == p {
			delete(x.open, p.key)
		}
		now := mono()
		if p.since == 0 {
			p.since = now
		}
		x.flying[p] = now
		x.mu.Unlock()
		err := x.write(p)
		x.mu.Lock()
		delete(x.flying, p)
		x.mu.Unlock()
		x.settle(p, err)
		x.mu.Lock()
	}
}

// oldest is when the oldest statement that is under way was sent; 0: none is.
func (x *executor) oldest() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	var oldest int64
	for _, since := range x.flying {
		if oldest == 0 || since < oldest {
			oldest = since
		}
	}
	return oldest
}

func (x *executor) write(p *pack) error {
	if p.key.fenced {
		if err := x.s.fenced(p.key.life); err != nil {
			return err
		}
	}
	if err := x.s.circuit.reason(); err != nil {
		return err
	}
	s := x.s.cql.Session
	if len(p.writes) == 1 {
		q := s.Query(p.writes[0].stmt.cql, p.writes[0].args...)
		defer q.Release()
		return q.Exec()
	}
	b := s.NewBatch(gocql.UnloggedBatch)
	b.Entries = make([]gocql.BatchEntry, len(p.writes))
	for i := range p.writes {
		b.Entries[i] = gocql.BatchEntry{Stmt: p.writes[i].stmt.cql, Args: p.writes[i].args, Idempotent: true}
	}
	return s.ExecuteBatch(b)
}

// ordered tells whether packs of a partition go one after the other.
func (k packKey) ordered() bool {
	return k.part.table == partInbox || k.part.table == partWindow || k.part.table == partIntent
}

// through lets the next pack of a partition go.
func (x *executor) through(p *pack) {
	if !p.leads {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	waiting := x.lanes[p.key]
	if len(waiting) == 0 { // or the workers were stopped, see there
		delete(x.lanes, p.key)
		return
	}
	next := waiting[0]
	next.leads = true
	x.lanes[p.key] = waiting[1:]
	if x.head > 0 { // before any that came later
		x.head--
		x.queue[x.head] = next
	} else {
		x.queue = slices.Insert(x.queue, 0, next)
	}
	x.work.Signal()
}

// settle goes on after an attempt.
func (x *executor) settle(p *pack, err error) {
	if err == nil {
		x.s.circuit.succeeded()
		x.through(p)
		for _, o := range p.owners {
			o.job.written(o.n, nil)
		}
		return
	}
	broken := x.s.circuit.reason() != nil
	if errors.Is(err, errFenced) {
		if p.must && !p.key.life.ended() && x.again(p, false) {
			return
		}
	} else if !lasting(err) {
		if !broken {
			x.s.circuit.failed(err)
		}
		if x.again(p, broken) {
			return
		}
	}
	err = unavailable(err)
	x.through(p)
	for _, o := range p.owners {
		o.job.written(o.n, err)
	}
}

// again tries a pack again, a little later, if there is hope.
func (x *executor) again(p *pack, broken bool) bool {
	if x.s.ctx.Err() != nil || !p.must && (broken || mono()-p.since > int64(x.s.opts.GiveUp)) {
		return false
	}
	p.tries++
	go func() {
		x.pause(p.tries)
		x.mu.Lock()
		stopped := x.stopped
		if !stopped {
			x.push(p)
		}
		x.mu.Unlock()
		if stopped {
			for _, o := range p.owners {
				o.job.written(o.n, herald.ErrClosed)
			}
		}
	}()
	return true
}

// pause waits until the next attempt makes sense; false: there will be none.
func (x *executor) pause(tries int) bool { return x.pauseFor(tries, 1<<62, nil) }

// pauseFor is pause, for no longer than most or until stop is closed.
func (x *executor) pauseFor(tries int, most time.Duration, stop <-chan struct{}) bool {
	end := x.s.ctx.Done()
	limit := time.NewTimer(most)
	defer limit.Stop()
	if back := x.s.circuit.wait(); back != nil {
		select {
		case <-back:
		case <-end:
		case <-limit.C:
		case <-stop:
		}
	} else {
		select {
		case <-time.After(min(20*time.Millisecond<<min(tries, 5), 500*time.Millisecond)):
		case <-end:
		case <-limit.C:
		case <-stop:
		}
	}
	return x.s.ctx.Err() == nil
}

// lasting tells whether trying again cannot help: the server understood and
// refused.
func lasting(err error) bool {
	var r gocql.RequestError
	if !errors.As(err, &r) {
		return false
	}
	switch r.Code() {
	case gocql.ErrCodeSyntax, gocql.ErrCodeInvalid, gocql.ErrCodeConfig, gocql.ErrCodeUnauthorized:
		return true
	}
	return false
}

// drain takes no more jobs and waits until those under way are done, or until
// there is no hope.
func (x *executor) drain() {
	x.mu.Lock()
	x.closing = true
	x.room.Broadcast()
	x.mu.Unlock()
	end := time.Now().Add(x.s.opts.GiveUp)
	for {
		x.mu.Lock()
		n := x.jobs
		x.mu.Unlock()
		// What waits for a lease is for others to finish.
		if n == 0 || time.Now().After(end) || x.s.circuit.reason() != nil || x.s.fenced(x.s.life.Load()) != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// stop ends the workers; what is still queued fails.
func (x *executor) stop() {
	x.mu.Lock()
	x.stopped = true
	x.closing = true
	rest := x.queue[x.head:]
	for _, waiting := range x.lanes {
		rest = append(rest, waiting...)
	}
	clear(x.lanes)
	x.queue, x.head = nil, 0
	x.work.Broadcast()
	x.room.Broadcast()
	x.mu.Unlock()
	for _, p := range rest {
		for _, o := range p.owners {
			o.job.written(o.n, herald.ErrClosed)
		}
	}
	x.workers.Wait()
}
