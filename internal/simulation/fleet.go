package simulation

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
)

// The mistakes that a cluster can be told to make.
const (
	bugWallClock   = "a lease checked on the wall clock"
	bugSubackEarly = "a SUBACK before the last node applied the route"
)

// FleetOptions are what a schedule of a cluster can be told.
type FleetOptions struct {
	// Steps is the length of the schedule.
	Steps int
	// Faults: nodes die, stand still, are cut off.
	Faults bool
	// Outage: all nodes may be gone at the same time.
	Outage bool
	// Wills: clients have some. Schedules with it and with faults fail now and then.
	Wills bool
	// Groups: clients share a subscription. Schedules with it fail now and then.
	Groups bool
	// Bug is a mistake made on purpose.
	Bug string
}

// errNever tells that something did not come to pass.
var errNever = errors.New("it never happens")

// Fleet is a cluster: nodes on one database and one transport, with the clients of a
// [World], which connect to any of them. It lives in a bubble of testing/synctest.
// Other than in a world of one node, everything between the steps goes on by itself as
// time passes, some of it slowly.
type Fleet struct {
	w         *World
	opts      FleetOptions
	rng       *rand.Rand // of the schedule
	db        *Database
	net       *transport
	nodes     []*node
	cfg       engine.Config
	storeOpts SharedOptions
	ending    atomic.Bool
	began     time.Time
	script    func() // what is done before the schedule; may be nil
	only      *node  // where everybody connects to; nil: any
	// skew is how far apart clocks have been: what one node dates, another may read.
	skew time.Duration

	logMu  sync.Mutex // guards the log and deaths
	deaths map[bridge.Peer]time.Time
	later  sync.WaitGroup
}

// RunFleet runs the schedule of a seed, like [Run].
func RunFleet(seed uint64, o FleetOptions) (log []string, err error) {
	f := newFleet(seed, o)
	f.run()
	return f.w.log, f.w.err
}

func newFleet(seed uint64, o FleetOptions) *Fleet {
	r := rand.New(rand.NewPCG(seed, 10))
	w := &World{opts: Options{Steps: o.Steps, Shared: true}, rng: r}
	w.ledger = newLedger(w)
	time.Sleep(time.Until(herald.Epoch.Add(24 * time.Hour)))
	w.receive = pick(r, 2, 8, 1024)
	w.bound = pick(r, 200, 2000, 1<<20)
	f := &Fleet{w: w, opts: o, rng: r, began: time.Now(), deaths: map[bridge.Peer]time.Time{}}
	w.fleet = f
	f.cfg = engine.Config{
		MaxQoS: 2, ReceiveMaximum: w.receive, BackgroundAbove: pick(r, 0, 0, 1),
		Memory: pick(r, session.Memory{}, session.Memory{Pending: 4, Page: 3, Settled: 8}, session.Memory{Pending: 1, Page: 1, Settled: 4}),
		Shared: engine.SharedConfig{
			Expiry:   24 * time.Hour,
			Strategy: pick(r, topic.RoundRobin, topic.LeastInflight, topic.Sticky, topic.Hash),
		},
	}
	f.storeOpts = SharedOptions{Slow: true, InlineUpTo: pick(r, 0, 1, 16), Sweep: r.IntN(2) == 0, Bug: o.Bug}
	f.db = NewDatabase(rand.New(rand.NewPCG(r.Uint64(), 9)), pick(r, 0, 20))
	f.db.lose = pick(r, 0, 0, 30)
	f.net = newTransport(rand.New(rand.NewPCG(r.Uint64(), 11)))
	for i := range 3 + r.IntN(3) {
		f.nodes = append(f.nodes, &node{f: f, name: fmt.Sprintf("n%d", i), ahead: time.Duration(r.IntN(3)*r.IntN(1500)) * time.Millisecond})
	}
	f.skewed()
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
			c.expiry = pick(r, uint32(0), 6, 40)
		}
		if o.Wills && i > 0 && r.IntN(2) == 0 {
			c.will = &willSpec{}
			if c.version == herald.V5 {
				c.will.delay = pick(r, uint32(0), 3, 30)
			}
		}
		c.newSession()
		w.clients = append(w.clients, c)
	}
	if o.Groups {
		w.ledger.groups["$share/g/s/#"] = &group{filter: "$share/g/s/#", exact: r.IntN(2) == 0, count: map[*message]int{}}
	}
	return f
}

// skewed notes how far apart clocks are.
func (f *Fleet) skewed() {
	for _, n := range f.nodes {
		for _, o := range f.nodes {
			f.skew = max(f.skew, n.ahead-o.ahead)
		}
	}
}

func (f *Fleet) logf(format string, args ...any) {
	f.logMu.Lock()
	defer f.logMu.Unlock()
	f.w.log = append(f.w.log, fmt.Sprintf("%.3f ", time.Since(f.began).Seconds())+fmt.Sprintf(format, args...))
}

// logged is the length of the log.
func (f *Fleet) logged() int {
	f.logMu.Lock()
	defer f.logMu.Unlock()
	return len(f.w.log)
}

// wrong notes an error that was not found in a step.
func (f *Fleet) wrong(err error) {
	f.db.mu.Lock()
	defer f.db.mu.Unlock()
	if f.db.wrong == nil {
		f.db.wrong = err
	}
}

// after calls g a while later, unless all is over.
func (f *Fleet) after(d time.Duration, g func()) {
	f.later.Go(func() {
		time.Sleep(d)
		if !f.ending.Load() {
			g()
		}
	})
}

// home is a node for a client to connect to, any that serves; nil: there is none.
func (f *Fleet) home() *life {
	var up []*life
	for _, n := range f.nodes {
		if f.only != nil && f.only != n {
			continue
		}
		n.mu.Lock()
		if l := n.now; l != nil {
			l.mu.Lock()
			if l.serving {
				up = append(up, l)
			}
			l.mu.Unlock()
		}
		n.mu.Unlock()
	}
	if len(up) == 0 {
		return nil
	}
	return up[f.rng.IntN(len(up))]
}

// run runs the schedule.
func (f *Fleet) run() {
	w := f.w
	f.logf("%d nodes, receive maximum %d, connections of %d bytes, %+v, wide above %d, %+v, again %d, lose %d", len(f.nodes), w.receive, w.bound,
		f.cfg.Memory, f.cfg.BackgroundAbove, f.storeOpts, f.db.again, f.db.lose)
	for _, n := range f.nodes {
		f.logf("%s: ahead by %v", n.name, n.ahead)
		n.start()
		if f.rng.IntN(2) == 0 {
			time.Sleep(time.Duration(f.rng.IntN(3000)) * time.Millisecond)
		}
	}
	for _, c := range w.clients {
		f.logf("%s: version %d, durable %v, expiry %d, receive maximum %d, will %v", c.name, c.version, c.durable, c.expiry, c.receive, c.will)
	}
	for f.home() == nil && w.err == nil {
		time.Sleep(50 * time.Millisecond)
	}
	if f.script != nil {
		f.script()
	} else {
		f.witness()
	}
	for i := 0; i < f.opts.Steps && w.err == nil; i++ {
		f.step()
		time.Sleep(f.pace())
		f.look()
	}
	if w.err == nil {
		f.finish()
	}
	f.stop()
	if w.err != nil {
		f.describe()
	}
}

// pace is how long a step takes.
func (f *Fleet) pace() time.Duration {
	switch f.rng.IntN(40) {
	case 0:
		return time.Duration(f.rng.IntN(7000)) * time.Millisecond
	case 1, 2, 3:
		return time.Duration(f.rng.IntN(300)) * time.Millisecond
	case 4, 5, 6, 7, 8, 9:
		return time.Duration(f.rng.IntN(20)) * time.Millisecond
	}
	return time.Duration(f.rng.IntN(2000)) * time.Microsecond
}

// look checks what must hold at any moment.
func (f *Fleet) look() {
	f.w.look()
	f.db.mu.Lock()
	defer f.db.mu.Unlock()
	f.w.fail(f.db.wrong)
	if f.db.failed {
		// Of what one client has under way, a commit may fail and a later one not: then
		// what failed comes again, later.
		f.db.failed = false
		for _, c := range f.w.clients {
			for _, o := range c.out {
				o.m.loose = true
			}
		}
	}
}

// finish mends everything, lets everybody come back and everything through, and
// checks.
func (f *Fleet) finish() {
	w := f.w
	f.logf("everything is mended")
	f.healRedis()
	f.healLinks()
	for _, n := range f.nodes {
		n.mu.Lock()
		n.state = lineUp
		n.mu.Unlock()
	}
	away := f.awayForLong()
	f.rest(away)
	if len(away) > 0 && w.err == nil {
		f.expire(away)
		f.rest(nil)
	}
	if w.err != nil {
		for _, c := range w.clients {
			f.logf("%s: up %v, %d to send, %d owed, %d publishes, %d requests", c.name, c.up, len(c.net), len(c.owed), len(c.out), len(c.asked))
		}
		return
	}
	f.logf("everything is through")
	err := w.ledger.check()
	if err != nil { // a group's new owner may be waiting for what members had of the last
		f.logf("not quite: %v", err)
		for range 200 {
			time.Sleep(100 * time.Millisecond)
			for _, c := range w.clients {
				if c.conn != nil {
					f.serve(c)
				}
			}
			f.look()
		}
		err = w.ledger.check()
	}
	w.fail(err)
}

// rest lets everybody but those who are away come back, and everything through.
func (f *Fleet) rest(away []*client) {
	w := f.w
	for quiet, n := 0, 0; quiet < 40 && w.err == nil; n++ {
		if n > 3000 {
			w.fail(fmt.Errorf("it does not come to rest"))
			return
		}
		quiet++
		for _, n := range f.nodes {
			if !n.runs() {
				n.start()
			}
			if !n.serves() || n.still() { // who is about to join, or to be found dead, holds closed time up
				quiet = 0
			}
		}
		for _, c := range w.clients {
			if slices.Contains(away, c) {
				continue
			}
			if c.conn == nil {
				if !c.hanging() {
					c.connect(!c.durable)
				}
				quiet = 0
				continue
			}
			if f.serve(c) {
				quiet = 0
			}
		}
		time.Sleep(100 * time.Millisecond)
		f.look()
	}
}

// serve carries everything between a client and its node, and tells whether anything is
// under way.
func (f *Fleet) serve(c *client) (busy bool) {
	before := f.logged()
	f.w.fail(c.read(1 << 20))
	busy = c.conn == nil || !c.up || f.logged() > before || len(c.net)+len(c.owed)+len(c.out)+len(c.asked) > 0
	if c.conn != nil {
		c.answer(1 << 20)
		c.carry(1 << 20)
	}
	return busy
}

// stop ends everything.
func (f *Fleet) stop() {
	f.ending.Store(true)
	for _, c := range f.w.clients {
		c.lose(true)
		for _, g := range c.ghosts {
			g.hangUp()
		}
		c.ghosts = nil
	}
	for _, n := range f.nodes {
		n.kill()
	}
	f.later.Wait()
	for _, n := range f.nodes { // who was stopping
		n.kill()
	}
}

func (f *Fleet) describe() {
	s := NewMember(f.db, time.Now, f.storeOpts)
	s.describe(f.w.logf)
	f.db.mu.Lock()
	defer f.db.mu.Unlock()
	for n := range uint16(len(f.db.members)) {
		m := f.db.members[n]
		f.w.logf("member %d/%d %s: state %d, beat %d", m.Node, m.Life, m.Name, m.State, m.Beat)
	}
	var keys []string
	for k := range f.db.claims {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		f.w.logf("claim of %q: %+v", k[1:], f.db.claims[k])
	}
}
