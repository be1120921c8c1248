package simulation

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/persistence"
)

// node is a machine with a broker's process, which may die, stop and start again.
type node struct {
	// Fixed at construction.
	f    *Fleet
	name string

	mu    sync.Mutex // guards below
	ahead time.Duration
	state lineState     // of its line to the database
	gate  chan struct{} // not nil: the process stands still until it is closed
	now   *life         // of the process that runs; nil: none does
	// leaving: a process ends in good order. The next one waits for it, at the lock of
	// the node's folder.
	leaving bool
	former  persistence.Member
}

// life is a node's process from its start, or since it was declared dead, to its end.
// It joins store, membership, transport and engine as package broker does.
type life struct {
	n      *node
	store  *Shared
	member *membership.Node
	engine atomic.Pointer[engine.Engine]
	opened atomic.Pointer[endpoint]
	ctx    context.Context // ends with it
	cancel context.CancelFunc
	lost   chan struct{}
	gone   chan struct{} // closed when nothing of it runs any more

	mu      sync.Mutex // guards below
	serving bool
	conns   map[*conn]struct{}
}

var (
	_ engine.Cluster     = (*life)(nil)
	_ membership.Handler = (*life)(nil)
)

// wall is the machine's clock.
func (n *node) wall() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Add(n.ahead)
}

// pass returns when the process does not stand still.
func (n *node) pass() {
	for {
		n.mu.Lock()
		gate := n.gate
		n.mu.Unlock()
		if gate == nil {
			return
		}
		<-gate
	}
}

func (n *node) still() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gate != nil
}

func (n *node) line() lineState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// start starts the process.
func (n *node) start() {
	l := &life{n: n, lost: make(chan struct{}), gone: make(chan struct{}), conns: map[*conn]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.store = NewMember(n.f.db, n.wall, n.f.storeOpts)
	n.mu.Lock()
	n.now = l
	former := n.former
	n.mu.Unlock()
	go l.run(former)
}

const (
	lease = 5 * time.Second
	beat  = time.Second
)

// run is a life from its beginning to its end.
func (l *life) run(former persistence.Member) {
	defer close(l.gone)
	f, n := l.n.f, l.n
	go l.store.pump(n.line, n.pass)
	defer l.store.Crash(0)
	if err := l.serve(former); err != nil && l.ctx.Err() == nil {
		f.logf("%s: %v", n.name, err)
		// It is tried again, like a process that a supervisor starts again.
		l.stop()
		n.f.after(time.Second, func() { n.again(l) })
		return
	}
	select {
	case <-l.ctx.Done():
		l.stop()
	case <-l.lost:
		f.logf("%s finds that it was declared dead", n.name)
		if e := l.engine.Load(); e != nil {
			e.Halt()
		}
		l.stop()
		n.f.after(time.Millisecond, func() { n.again(l) })
	}
}

// again begins a new life in the place of one that has ended by itself.
func (n *node) again(old *life) {
	n.mu.Lock()
	is := n.now == old
	n.mu.Unlock()
	if is && !n.f.ending.Load() {
		n.start()
	}
}

// serve begins to serve.
func (l *life) serve(former persistence.Member) error {
	f, n := l.n.f, l.n
	now := func() time.Time { return time.Now() }
	if f.opts.Bug == bugWallClock {
		now = func() time.Time { return n.wall().Round(0) }
	}
	var err error
	l.member, err = membership.Join(l.ctx, membership.Options{
		Store: l.store, Name: n.name, Lease: lease, Beat: beat, Handler: l, Now: now, Former: former, MaxSkew: time.Minute,
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.former = l.member.Self()
	n.mu.Unlock()
	self := l.member.Self()
	f.logf("%s is node %d/%d", n.name, self.Node, self.Life)
	l.store.Fence(l.member.Valid)
	cfg := f.cfg
	cfg.Node, cfg.Cluster, cfg.Now = self.Node, l, n.wall
	e := engine.New(cfg, l.store, zap.NewNop())
	l.engine.Store(e)
	for _, p := range l.member.Peers() {
		e.Observe(p.Status.Clock)
	}
	l.member.Start()
	end := f.net.open(l.Self(), e, n.pass)
	end.setPeers(peersOf(l.member.Peers()))
	l.opened.Store(end)
	ctx, cancel := context.WithTimeout(l.ctx, 30*time.Second)
	defer cancel()
	if err := l.member.Known(ctx); err != nil {
		return fmt.Errorf("known: %w", err)
	}
	for _, p := range l.member.Peers() {
		e.Observe(p.Status.Clock)
	}
	end.setPeers(peersOf(l.member.Peers()))
	if err := end.ready(ctx); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	procs := runtime.GOMAXPROCS(3) // several workers, although one goroutine at a time runs
	err = e.Start(ctx)
	runtime.GOMAXPROCS(procs)
	if err != nil {
		return err
	}
	if err := l.finish(); err != nil {
		return err
	}
	f.logf("%s serves", n.name)
	l.mu.Lock()
	l.serving = true
	l.mu.Unlock()
	return nil
}

func (l *life) finish() error {
	if m, owes := l.member.Owes(); owes {
		l.n.f.logf("%s finishes what it owes of node %d/%d", l.n.name, m.Node, m.Life)
		if err := l.engine.Load().Died(m); err != nil {
			return err
		}
		l.n.f.db.paid(m.Node)
		l.member.Paid()
	}
	return l.member.Clear(l.ctx)
}

func peersOf(live []membership.Peer) []bridge.Peer {
	out := make([]bridge.Peer, len(live))
	for i, p := range live {
		out[i] = bridge.Peer{Node: p.Node, Incarnation: p.Life}
	}
	return out
}

// kill ends the process between two effects.
func (n *node) kill() {
	n.mu.Lock()
	l := n.now
	n.now = nil
	gate := n.gate
	n.gate = nil
	n.mu.Unlock()
	if l == nil {
		return
	}
	if gate != nil {
		close(gate)
	}
	l.store.Crash(0)
	l.cancel()
	select {
	case <-l.gone:
	case <-time.After(time.Minute):
		n.f.wrong(fmt.Errorf("%s does not end", n.name))
	}
}

// stop ends whatever runs. Connections are gone for their clients, too.
func (l *life) stop() {
	l.mu.Lock()
	l.serving = false
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		c.hangUp()
	}
	l.cancel()
	l.store.Crash(0)
	if end := l.opened.Load(); end != nil {
		end.close()
	}
	if l.member != nil {
		l.member.Close()
	}
	if e := l.engine.Load(); e != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		stopped := make(chan struct{})
		go func() {
			e.Stop(ctx)
			close(stopped)
		}()
		for range 300 {
			select {
			case <-stopped:
				return
			case <-time.After(100 * time.Millisecond):
				e.LetGo() // whom only the transport could help
			}
		}
		select {
		case <-stopped:
		default:
			all := make([]byte, 1<<20)
			l.n.f.wrong(fmt.Errorf("the engine of %s does not stop\n%s", l.n.name, all[:runtime.Stack(all, true)]))
		}
	}
}

// leave ends the process in good order.
func (n *node) leave() error {
	n.mu.Lock()
	l := n.now
	n.now = nil
	n.leaving = l != nil
	n.mu.Unlock()
	if l == nil {
		return nil
	}
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.leaving = false
	}()
	l.mu.Lock()
	serving := l.serving
	l.serving = false
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	e := l.engine.Load()
	if !serving || e == nil {
		l.cancel()
		<-l.gone
		return nil
	}
	e.Refuse()
	for _, c := range conns {
		c.hangUp()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan bool, 1)
	go func() {
		for _, c := range conns {
			<-c.end
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		done <- e.Stop(ctx)
	}()
	through := false
	select {
	case through = <-done:
	case <-ctx.Done():
	}
	err := errors.New("the lease has run out, or not everything is committed")
	if l.member.Valid() && through {
		if err = l.opened.Load().flush(ctx); err == nil {
			err = l.member.Leave(ctx)
		}
	}
	l.cancel()
	<-l.gone
	return err
}

// Of membership.Handler.

func (l *life) Status() membership.Status {
	if e := l.engine.Load(); e != nil && l.opened.Load() != nil {
		return e.Status()
	}
	return membership.Status{}
}

func (l *life) Peers(live []membership.Peer) {
	l.n.pass()
	e, end := l.engine.Load(), l.opened.Load()
	if e == nil || end == nil {
		return
	}
	e.Peers(live)
	end.setPeers(peersOf(live))
}

func (l *life) Died(m persistence.Member) error {
	l.n.pass()
	l.n.f.logf("%s finishes node %d/%d", l.n.name, m.Node, m.Life)
	l.n.f.died(m)
	if e := l.engine.Load(); e != nil {
		return e.Died(m)
	}
	return errors.New("starting")
}

func (l *life) Finished(m persistence.Member) error {
	l.n.pass()
	if e := l.engine.Load(); e != nil {
		return e.Finished(m)
	}
	return nil
}

func (l *life) Lost() { close(l.lost) }

// Of engine.Cluster.

func (l *life) Self() bridge.Peer {
	m := l.member.Self()
	return bridge.Peer{Node: m.Node, Incarnation: m.Life}
}

func (l *life) Valid() bool { return l.member.Valid() }

func (l *life) Live(p bridge.Peer) bool {
	_, ok := l.member.Live(p.Node, p.Incarnation)
	return ok
}

func (l *life) Over(ctx context.Context, p bridge.Peer) error {
	return l.member.Settled(ctx, p.Node, p.Incarnation)
}

func (l *life) BeatNow() { l.member.BeatNow() }

func (l *life) Available() bool {
	end := l.opened.Load()
	return end != nil && end.available()
}

func (l *life) AppendAsync(to bridge.Peer, frame []byte, done func(error)) error {
	if end := l.opened.Load(); end != nil {
		return end.appendAsync(to, frame, done)
	}
	return bridge.ErrUnavailable
}

func (l *life) Received(ctx context.Context) error {
	if end := l.opened.Load(); end != nil {
		return end.received(ctx)
	}
	return nil
}

func (l *life) Announce(c bridge.Change) (bridge.Position, error) {
	if end := l.opened.Load(); end != nil {
		return end.announce(c)
	}
	return 0, bridge.ErrUnavailable
}

func (l *life) Settled(ctx context.Context, p bridge.Position) error {
	if l.n.f.opts.Bug == bugSubackEarly {
		return nil
	}
	if end := l.opened.Load(); end != nil {
		return end.settled(ctx, p)
	}
	return bridge.ErrUnavailable
}
