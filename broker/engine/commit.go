package engine

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// flight knows which IDs are under way: reserved, and not yet committed and
// delivered. Reservations are made under its lock, so they are ascending.
type flight struct {
	mu    sync.Mutex
	moved chan struct{} // closed when a passage finishes; nil if nobody waits
	queue []*passage    // ascending by first
	last  herald.ID     // newest that was reserved
}

// passage is one reservation of IDs.
type passage struct {
	first herald.ID
	from  string // the client whose publishes have them; empty: the broker itself
	done  bool
}

// begin reserves n IDs.
func (f *flight) begin(ids *herald.IDs, now int64, n int) (herald.Reserved, *passage) {
	return f.beginFor("", ids, now, n)
}

// beginFor is begin for what a client has published.
func (f *flight) beginFor(from string, ids *herald.IDs, now int64, n int) (herald.Reserved, *passage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := ids.Next(now, n)
	p := &passage{first: r.At(0), from: from}
	f.queue = append(f.queue, p)
	f.last = r.At(n - 1)
	return r, p
}

// finish tells that what was reserved with p is committed and delivered, or
// never will be.
func (f *flight) finish(p *passage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.done = true
	n := 0
	for n < len(f.queue) && f.queue[n].done {
		n++
	}
	if n > 0 {
		f.queue = append(f.queue[:0], f.queue[n:]...)
	}
	if f.moved != nil {
		close(f.moved)
		f.moved = nil
	}
}

// closed is the ID at or below which nothing is under way any more, or will be.
func (f *flight) closed() herald.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) > 0 {
		return f.queue[0].first - 1
	}
	return f.last
}

// advance is closed, for a node whose closed time others wait for: if nothing is
// under way it moves on with the clock.
func (f *flight) advance(ids *herald.IDs, now int64) herald.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) > 0 {
		return f.queue[0].first - 1
	}
	f.last = ids.Next(now, 1).At(0)
	return f.last
}

// newest is the last ID that was reserved.
func (f *flight) newest() herald.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// pass returns true when everything is through that was under way when it was called,
// or false when ctx ends.
func (f *flight) pass(ctx context.Context) bool {
	return f.await(ctx, func(last herald.ID) bool { return len(f.queue) == 0 || f.queue[0].first > last })
}

// passOf is pass for what a client has published, be it over earlier connections: what
// is due to very many is acknowledged before it is spread.
func (f *flight) passOf(ctx context.Context, from string) {
	f.await(ctx, func(last herald.ID) bool {
		return !slices.ContainsFunc(f.queue, func(p *passage) bool { return p.from == from && p.first <= last && !p.done })
	})
}

// await returns true when something holds of the queue and of what was the newest ID
// when it was called, or false when ctx ends.
func (f *flight) await(ctx context.Context, is func(last herald.ID) bool) bool {
	f.mu.Lock()
	last := f.last
	for !is(last) {
		if f.moved == nil {
			f.moved = make(chan struct{})
		}
		ch := f.moved
		f.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return false
		}
		f.mu.Lock()
	}
	f.mu.Unlock()
	return true
}

// shipment is a batch of publishes of one client on its way from intake to
// acknowledgement.
type shipment struct {
	from    *client // nil: the broker itself
	runs    []routed
	acks    []byte // for the publisher, when all else is done
	unacked int    // QoS 1 publishes that acks answer
	weight  int    // bytes that it keeps in memory
	batch   persistence.Batch
	passage []*passage
	err     error
	done    bool // committed, or nothing to commit; guarded by from.pmu
	sent    bool // delivered here, and given to the other nodes; guarded by from.pmu
	// appends are the frames that have to be appended before it is acknowledged,
	// and one more until it is sent; lost: one of them was given up.
	appends atomic.Int32
	lost    atomic.Bool
	failed  func() // called if the commit failed; may be nil
	then    func() // called last, on a worker's goroutine; may be nil
}

// ship sends a shipment on: to the store if it has something to store, else on
// at once, or behind those of the same client that are under way.
func (e *Engine) ship(s *shipment, w *listen.Worker) {
	c := s.from
	if s.batch.Empty() {
		if e.waits(s, e.scratch(w)) {
			s.done = true
			if c != nil {
				c.enqueue(s)
			}
			e.worker(c).put(s)
			return
		}
		if c == nil {
			e.deliver(s, w)
			e.landed(s)
			return
		}
		switch busy, next := c.enqueueIfBusy(s); {
		case !busy:
			e.deliver(s, w)
			c.acknowledge(s.acks, w)
			e.landed(s)
		case next:
			e.worker(c).put(s)
		}
		return
	}
	if c != nil {
		c.enqueue(s)
		if e.divided && !c.mayCommit(s) {
			return
		}
	}
	e.commitShipment(s)
}

// commitShipment sends shipments of one client to the store, as one batch. Where
// batches are not atomic what the client sends meanwhile follows, together, when they
// are in: did some of a later one stand in an inbox, and nothing of an earlier one, and
// this node died, then a session would get the later one first, which was never
// acknowledged, and the earlier one when it is sent again.
func (e *Engine) commitShipment(all ...*shipment) {
	c := all[0].from
	e.stats.Commits.Add(1)
	e.store.Commit(together(all), func(err error) {
		for _, s := range all {
			s.err = err
			e.worker(c).put(s)
		}
		if c == nil || !e.divided {
			return
		}
		next, failed := c.nextCommit(err)
		for _, f := range failed {
			f.err = err
			e.worker(c).put(f)
		}
		if len(next) > 0 {
			e.workers[0].call(func(*listen.Worker) { e.commitShipment(next...) }) // Commit may block
		}
	})
}

// together makes one batch of those of shipments, in their order.
func together(all []*shipment) *persistence.Batch {
	if len(all) == 1 {
		return &all[0].batch
	}
	b := new(persistence.Batch)
	for _, s := range all {
		b.Spreads = append(b.Spreads, s.batch.Spreads...)
		b.Retain = append(b.Retain, s.batch.Retain...)
		b.Held = append(b.Held, s.batch.Held...)
	}
	return b
}

// maxTogether bounds what is committed of one client at a time, in bytes: it is the
// size from which a batch gains nothing.
const maxTogether = 128 << 10

// landed ends a shipment. What is still to be spread keeps its passage.
func (e *Engine) landed(s *shipment) {
	if s.err != nil {
		e.outbox.cancel(s)
		if s.failed != nil {
			s.failed()
		}
	}
	if s.err != nil || !e.outbox.post(s) {
		for _, p := range s.passage {
			e.flight.finish(p)
		}
	}
	if s.then != nil {
		s.then()
	}
}

// worker completes shipments whose commit is through: those of one client
// always the same worker, in the order of their commits.
type worker struct {
	e    *Engine
	w    *listen.Worker
	mu   sync.Mutex
	wake sync.Cond
	todo []task
	stop bool
	done chan struct{}
}

// task is a shipment to complete or a function to call.
type task struct {
	s *shipment
	f func(*listen.Worker)
}

func newWorkers(e *Engine) []*worker {
	ws := make([]*worker, runtime.GOMAXPROCS(0))
	for i := range ws {
		k := &worker{e: e, w: listen.NewWorker(), done: make(chan struct{})}
		k.wake.L = &k.mu
		ws[i] = k
		go k.run()
	}
	return ws
}

func stopWorkers(ws []*worker) {
	for _, k := range ws {
		k.mu.Lock()
		k.stop = true
		k.wake.Signal()
		k.mu.Unlock()
		<-k.done
	}
}

// worker returns the one that completes the client's shipments.
func (e *Engine) worker(c *client) *worker {
	if c == nil {
		return e.workers[0]
	}
	return e.workers[int(c.lane)%len(e.workers)]
}

func (k *worker) put(s *shipment) { k.add(task{s: s}) }

// call has f called on the worker's goroutine.
func (k *worker) call(f func(*listen.Worker)) { k.add(task{f: f}) }

func (k *worker) add(t task) {
	k.mu.Lock()
	k.todo = append(k.todo, t)
	if len(k.todo) == 1 {
		k.wake.Signal()
	}
	k.mu.Unlock()
}

func (k *worker) run() {
	defer close(k.done)
	var todo []task
	for {
		k.mu.Lock()
		for len(k.todo) == 0 && !k.stop {
			k.wake.Wait()
		}
		if len(k.todo) == 0 {
			k.mu.Unlock()
			return
		}
		todo, k.todo = k.todo, todo[:0]
		k.mu.Unlock()
		for i := range todo {
			k.e.guard("worker", func() {
				if s := todo[i].s; s != nil {
					k.e.complete(s, k.w)
				} else {
					todo[i].f(k.w)
				}
			})
			todo[i] = task{}
		}
		k.w.Flush()
	}
}

// commitFailed counts, and logs once in a second: a disk that is full fails
// everybody.
func (e *Engine) commitFailed(err error) {
	n := e.stats.CommitErrors.Add(1)
	now := e.now()
	if last := e.failed.Load(); now-last >= 1000 && e.failed.CompareAndSwap(last, now) {
		e.log.Error("commit failed; nothing of it is acknowledged", zap.Int64("failures", n), zap.Error(err))
	}
}

// complete goes on with a shipment whose commit is through, or whose frames are
// appended: it, and those behind it that are as far, are delivered, and
// acknowledged in the order in which they were published.
func (e *Engine) complete(s *shipment, w *listen.Worker) {
	c := s.from
	if c == nil {
		e.completeOwn(s, w)
		return
	}
	if s.err != nil {
		e.commitFailed(s.err)
	}
	for next := c.ready(s); next != nil; next = c.sentNext(next) {
		next.appends.Store(1)
		if next.err != nil {
			c.fail(wire.ReasonBusy, w)
		} else {
			e.deliver(next, w)
		}
	}
	for {
		next := c.dequeue(w)
		if next == nil {
			return
		}
		if next.lost.Load() {
			c.fail(wire.ReasonBusy, w)
		}
		e.landed(next)
	}
}

// completeOwn is complete for what the broker itself publishes.
func (e *Engine) completeOwn(s *shipment, w *listen.Worker) {
	if !s.sent {
		s.sent = true
		s.appends.Store(1)
		if s.err != nil {
			e.commitFailed(s.err)
		} else {
			e.deliver(s, w)
		}
		if s.appends.Add(-1) > 0 {
			return // it comes back when the last frame is appended
		}
	}
	e.landed(s)
}
