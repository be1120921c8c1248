package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
)

// Options are what a schedule can be told.
type Options struct {
	// Steps is the length of the schedule, before everything is let through.
	Steps int
	// Wrap puts something between engine and store, to see what a bug there
	// does; nil: nothing.
	Wrap func(*Store) persistence.Store
	// Shared takes a store of which only single rows are atomic.
	Shared bool
	// Bug is a mistake that such a store makes; empty: none.
	Bug string
}

// backend is a store in the hands of the world: it keeps what it is given, until
// the world lets it go on.
type backend interface {
	persistence.Store
	// Open begins what a start has to do first; Opened tells whether it is done.
	Open()
	Opened() bool
	// Queued is how much waits to be stored, and how many answers wait.
	Queued() (writes, answers int)
	// Sync lets n of the first happen, Tell n of the second.
	Sync(n int)
	Tell(n int)
	// Crash ends the process: see the stores.
	Crash(survive int) backend
	describe(logf func(format string, args ...any))
}

// World is a broker with its clients and everything between. It lives in a
// bubble of testing/synctest.
type World struct {
	opts    Options
	rng     *rand.Rand
	ledger  *ledger
	clients []*client
	cfg     engine.Config
	receive int    // the broker's receive maximum
	bound   int    // bytes that a connection takes before it is slow
	weights []int  // of kinds
	script  func() // what is done before the schedule; may be nil

	store  backend
	engine *engine.Engine
	fleet  *Fleet // many nodes instead of one engine; may be nil
	epoch  int    // lives of the process
	log    []string
	err    error
}

// Run runs the schedule of a seed and returns the steps that it took, with what
// went wrong. It must be called in a bubble of testing/synctest.
func Run(seed uint64, o Options) (log []string, err error) {
	w := newWorld(seed, o)
	w.run()
	return w.log, w.err
}

func newWorld(seed uint64, o Options) *World {
	w := &World{opts: o, rng: rand.New(rand.NewPCG(seed, 8))}
	w.ledger = newLedger(w)
	// Not a millisecond before the epoch of message IDs.
	time.Sleep(time.Until(herald.Epoch.Add(24 * time.Hour)))
	r := w.rng
	w.receive = pick(r, 2, 8, 1024)
	w.bound = pick(r, 200, 2000, 1<<20)
	w.cfg = engine.Config{
		Node: 1, MaxQoS: 2, ReceiveMaximum: w.receive,
		BackgroundAbove: pick(r, 0, 0, 1),
		Memory:          pick(r, session.Memory{}, session.Memory{Pending: 4, Page: 3, Settled: 8}, session.Memory{Pending: 1, Page: 1, Settled: 4}),
		Shared: engine.SharedConfig{
			Expiry:   24 * time.Hour,
			Strategy: pick(r, topic.RoundRobin, topic.LeastInflight, topic.Sticky, topic.Hash),
		},
	}
	lazy, eager := r.IntN(2) == 0, r.IntN(2) == 0
	w.store = NewStore(lazy, eager)
	if o.Shared {
		w.store = newSharedWorldStore(r, o.Bug)
	}
	for i := range kinds {
		w.weights = append(w.weights, kinds[i].weight*pick(r, 1, 2, 4))
	}
	for i := range 2 + r.IntN(4) {
		c := &client{
			w: w, name: fmt.Sprintf("c%d", i), version: pick(r, herald.V311, herald.V5), durable: i == 0 || r.IntN(3) > 0,
			receive: pick(r, 1, 2, 5, 1000), asked: map[uint16]*request{}, aliasOf: map[uint16]string{},
		}
		if c.version == herald.V311 {
			c.receive = w.receive
		}
		c.receive = min(c.receive, w.receive)
		if i > 0 && c.durable && c.version == herald.V5 {
			c.expiry = pick(r, uint32(0), 5, 60)
		}
		if c.version == herald.V5 {
			c.aliases = pick(r, uint16(0), 0, 2)
		}
		if i > 0 && r.IntN(2) == 0 {
			c.will = &willSpec{}
			if c.version == herald.V5 {
				c.will.delay = pick(r, uint32(0), 2, 10)
			}
		}
		c.newSession()
		w.clients = append(w.clients, c)
	}
	w.ledger.groups["$share/g/s/#"] = &group{filter: "$share/g/s/#", exact: r.IntN(2) == 0, count: map[*message]int{}}
	return w
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func (w *World) now() time.Time { return time.Now() }

func (w *World) logf(format string, args ...any) {
	if w.fleet != nil {
		w.fleet.logf(format, args...)
		return
	}
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

// calm tells whether the broker has no reason to close a connection that a client
// holds.
func (w *World) calm(c *conn) bool { return w.fleet == nil && c.e == w.engine }

// dial opens a connection for a client; nil: nobody is there.
func (w *World) dial(name string, connect []byte) *conn {
	if w.fleet == nil {
		return newConn(w.engine, name, connect, w.bound, nil)
	}
	l := w.fleet.home()
	if l == nil {
		return nil
	}
	w.epoch++ // what another node knows, this one may not
	w.logf("%s connects to %s", name, l.n.name)
	return newConn(l.engine.Load(), name, connect, w.bound, l)
}

// healthy tells whether the process that has a connection runs and may store.
func (w *World) healthy(c *conn) func() bool {
	if c.life != nil {
		return func() bool { return c.life.store.Health() == nil && c.life.Valid() }
	}
	store := w.store
	return func() bool { return store.Health() == nil }
}

func (w *World) start() {
	if w.opts.Shared {
		time.Sleep(3 * time.Millisecond) // no two runs of a process in one millisecond
	}
	w.store.Open()
	for synctest.Wait(); !w.store.Opened(); synctest.Wait() {
		n, m := w.store.Queued()
		if n+m == 0 {
			w.fail(fmt.Errorf("the store does not open"))
			break
		}
		// It may die once more before it is open.
		if w.opts.Shared && w.rng.IntN(30) == 0 {
			w.logf("the process dies before it is ready")
			w.store = w.store.Crash(0)
			w.store.Open()
			continue
		}
		w.store.Sync(1 + w.rng.IntN(4))
		w.store.Tell(1 + w.rng.IntN(4))
	}
	var store persistence.Store = w.store
	if s, ok := w.store.(*Store); ok && w.opts.Wrap != nil {
		store = w.opts.Wrap(s)
	}
	w.engine = engine.New(w.cfg, store, zap.NewNop())
	// Several workers, although one goroutine at a time runs.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	started := make(chan error, 1)
	go func() { started <- w.engine.Start(context.Background()) }()
	for {
		w.flush()
		select {
		case err := <-started:
			if err != nil {
				w.fail(fmt.Errorf("start: %w", err))
			}
			return
		default:
		}
	}
}

// flush lets everything through that the store has, until there is nothing.
func (w *World) flush() {
	for {
		synctest.Wait()
		n, m := w.store.Queued()
		if n+m == 0 {
			return
		}
		w.store.Sync(n)
		w.store.Tell(n + m)
	}
}

func (w *World) fail(err error) {
	if err != nil && w.err == nil {
		w.err = err
	}
}

// run runs the schedule.
func (w *World) run() {
	w.logf("receive maximum %d, connections of %d bytes, %+v, %v, wide above %d; store %v", w.receive, w.bound,
		w.cfg.Memory, w.cfg.Shared.Strategy, w.cfg.BackgroundAbove, w.store)
	for _, c := range w.clients {
		w.logf("%s: version %d, durable %v, expiry %d, receive maximum %d, aliases %d, will %v", c.name, c.version, c.durable,
			c.expiry, c.receive, c.aliases, c.will)
	}
	w.start()
	// The first client is there from the beginning, for good: it sees all wills,
	// and keeps the group alive.
	c := w.clients[0]
	c.connect(false)
	w.settle(1)
	if w.err == nil {
		c.subscribe("w/#", 2)
		c.subscribe("$share/g/s/#", w.ledger.groups["$share/g/s/#"].qos())
		w.settle(1)
	}
	if w.script != nil && w.err == nil {
		w.script()
	}
	for i := 0; i < w.opts.Steps && w.err == nil; i++ {
		w.step()
		synctest.Wait()
		w.look()
	}
	if w.err == nil {
		w.finish()
	}
	if w.err != nil {
		w.dump()
	}
	w.stop()
}

func (g *group) qos() byte {
	if g.exact {
		return 2
	}
	return 1
}

// look checks what must hold at any moment.
func (w *World) look() {
	for _, c := range w.clients {
		for i := 0; i < len(c.ghosts); i++ {
			if c.ghosts[i].gone.Load() {
				c.ghosts = slices.Delete(c.ghosts, i, i+1)
				i--
			}
		}
		if c.conn == nil && len(c.ghosts) == 0 {
			c.note()
		}
		if c.conn == nil || !c.up {
			continue
		}
		n, err := c.outstanding()
		w.fail(err)
		if n > c.receive {
			w.fail(fmt.Errorf("%s: %d messages under way, receive maximum %d", c.name, n, c.receive)) // [MQTT-3.3.4-9]
		}
	}
}

// settle lets everything through, with time passing, until nothing moves for a
// number of rounds.
func (w *World) settle(rounds int) {
	for quiet, n := 0, 0; quiet < rounds && w.err == nil; n++ {
		if n > 5000 {
			w.fail(fmt.Errorf("it does not come to rest"))
			return
		}
		quiet++
		w.flush()
		for _, c := range w.clients {
			if c.conn == nil {
				continue
			}
			before := len(w.log)
			w.fail(c.read(1 << 20))
			if c.conn == nil || len(w.log) > before || len(c.net)+len(c.owed) > 0 {
				quiet = 0
			}
			if c.conn != nil {
				c.answer(1 << 20)
				c.carry(1 << 20)
			}
			w.flush()
			w.look()
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// finish lets everybody come back, everything through, and checks.
func (w *World) finish() {
	if w.rng.IntN(2) == 0 {
		w.logf("a long time passes")
		for range 60 {
			w.flush()
			time.Sleep(time.Second)
			w.look()
		}
	}
	w.logf("everybody comes back")
	for range 3 { // a connection may be closed for an old reason
		for _, c := range w.clients {
			if c.conn == nil {
				c.connect(!c.durable)
			}
		}
		w.settle(8)
	}
	w.logf("everything is through")
	if w.err != nil {
		return
	}
	for _, c := range w.clients {
		if !c.up || len(c.out) > 0 || len(c.asked) > 0 {
			w.fail(fmt.Errorf("%s: connected %v, %d publishes and %d requests were not answered", c.name, c.up, len(c.out), len(c.asked)))
		}
	}
	w.fail(w.ledger.check())
	w.audit()
}

// audit looks at the retained messages.
func (w *World) audit() {
	a := &client{w: w, name: "auditor", version: herald.V5, receive: w.receive, asked: map[uint16]*request{}}
	a.newSession()
	w.clients = append(w.clients, a)
	a.connect(true)
	w.settle(2)
	if w.err != nil {
		return
	}
	a.subscribe("r/#", 1)
	w.settle(4)
	got := map[string]string{}
	for topic, seq := range a.gen.seen {
		for _, m := range w.ledger.byTopic[topic] {
			if m.seq == seq {
				got[topic] = m.payload
			}
		}
	}
	if w.err == nil {
		w.fail(w.ledger.checkRetained(got))
	}
}

// stop ends everything in good order: no goroutine is left.
func (w *World) stop() {
	w.hangUp()
	stopped := make(chan struct{})
	go func() {
		w.engine.Stop(context.Background())
		close(stopped)
	}()
	for range 100 {
		w.flush()
		select {
		case <-stopped:
			return
		default:
			time.Sleep(100 * time.Millisecond)
		}
	}
	w.fail(fmt.Errorf("the engine does not stop"))
}

// hangUp ends all connections for both sides.
func (w *World) hangUp() {
	for _, c := range w.clients {
		c.lose(true)
		for _, g := range c.ghosts {
			g.hangUp()
		}
		c.ghosts = nil
	}
	for range 20 {
		w.flush()
	}
}

// crash ends the process between two effects, and starts the next.
func (w *World) crash() {
	n, _ := w.store.Queued()
	survive := 0
	if n > 0 {
		survive = w.rng.IntN(n + 1)
	}
	w.die(survive)
}

// die is a crash that leaves some of the batches that were not durable.
func (w *World) die(survive int) {
	n, _ := w.store.Queued()
	w.logf("the process dies; %d of %d batches survive", survive, n)
	// What is on its way to the clients may still arrive.
	for _, c := range w.clients {
		if c.conn != nil && w.rng.IntN(2) == 0 && !c.conn.closed() {
			w.fail(c.read(1 + w.rng.IntN(8)))
		}
	}
	old := w.engine
	oldStore := w.store
	w.store = oldStore.Crash(survive)
	w.epoch++
	for _, c := range w.clients {
		if c.conn != nil && !c.conn.closed() && c.armed != nil && c.leaving {
			c.armed.unsure = true
		}
		c.lose(true)
		for _, g := range c.ghosts {
			g.hangUp()
		}
		c.ghosts = nil
		for _, wl := range c.pendingW {
			wl.epoch = -1
			// The rows of session and will land apart: how long the session would have
			// outlived the process may not be known to the next.
			wl.unsure = wl.unsure || w.opts.Shared
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	stopped := make(chan struct{})
	synctest.Wait()
	go func() {
		old.Stop(ctx)
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		w.fail(fmt.Errorf("the dead process does not end"))
		return
	}
	w.start()
	w.look()
	for _, c := range w.clients {
		if !c.present.noted.IsZero() {
			c.present.noted = w.now()
		}
	}
}

// restart stops the process in good order and starts it again.
func (w *World) restart() {
	w.logf("the process is stopped and started")
	w.stop()
	if w.err != nil {
		return
	}
	w.store = w.store.Crash(0)
	w.start()
}

// dump logs what is stored of sessions, for an error.
func (w *World) dump() { w.store.describe(w.logf) }
