package simulation

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
)

// transport carries frames and announcements between the nodes, with the contract of
// [bridge.Bridge]: between two lives everything arrives once and in its order, how
// late ever; while Redis is away nothing does.
type transport struct {
	mu    sync.Mutex // guards below, and all endpoints
	rng   *rand.Rand
	ends  map[bridge.Peer]*endpoint
	moved chan struct{} // closed and replaced when anything has changed
	down  bool          // Redis is away for all
}

// endpoint is one life's.
type endpoint struct {
	// Fixed at construction.
	t    *transport
	self bridge.Peer
	h    handler
	pass func() // returns when the node's process runs
	end  chan struct{}
	one  [2]chan struct{} // of capacity 1: one goroutine at a time calls for frames, and one for changes

	// Guarded by t.mu.
	deaf, mute, cut bool // frames do not get in, or out, or neither and it knows
	closed          bool
	pos             bridge.Position
	routes          map[string]struct{}
	lines           map[uint16]*wireLine
	heard           map[bridge.Peer]bool // whose routes were applied here
}

// handler is who has an endpoint. Whatever is sent carries the sender's clock.
type handler interface {
	bridge.Handler
	Clock() herald.ID
	Observe(id herald.ID)
}

// wireLine is what goes from one life to another: two lanes, each in its order.
type wireLine struct {
	from     *endpoint
	to       bridge.Peer
	live     bool          // not only a guest that has said hello
	end      chan struct{} // closed when the peer was dropped
	frames   []letter
	changes  []letter
	wake     [2]chan struct{} // of capacity 1
	appended int              // frames
	arrived  int
	received int // what the peer has acknowledged of arrived
	applied  bridge.Position
}

// letter is one thing that is carried.
type letter struct {
	frame  []byte
	done   func(error)
	change *bridge.Change
	pos    bridge.Position
	hello  bool // all routes
}

func newTransport(rng *rand.Rand) *transport {
	return &transport{rng: rng, ends: map[bridge.Peer]*endpoint{}, moved: make(chan struct{})}
}

// open connects a life.
func (t *transport) open(self bridge.Peer, h handler, pass func()) *endpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := &endpoint{t: t, self: self, h: h, pass: pass, end: make(chan struct{}), one: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}, routes: map[string]struct{}{},
		lines: map[uint16]*wireLine{}, heard: map[bridge.Peer]bool{}}
	t.ends[self] = e
	t.movedLocked()
	return e
}

func (t *transport) movedLocked() {
	close(t.moved)
	t.moved = make(chan struct{})
}

// await waits until is holds.
func (t *transport) await(ctx context.Context, end chan struct{}, is func() bool) error {
	for {
		t.mu.Lock()
		ok, moved := is(), t.moved
		t.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-end:
			return herald.ErrClosed
		}
	}
}

// latency is how long something is under way.
func (t *transport) latency() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rng.IntN(50) == 0 {
		return time.Duration(t.rng.IntN(300)) * time.Millisecond
	}
	return time.Duration(50+t.rng.IntN(3000)) * time.Microsecond
}

// close ends a life's.
func (e *endpoint) close() {
	e.t.mu.Lock()
	if e.closed {
		e.t.mu.Unlock()
		return
	}
	e.closed = true
	var gone []func(error)
	for _, l := range e.lines {
		gone = append(gone, l.dropLocked()...)
	}
	close(e.end)
	delete(e.t.ends, e.self)
	e.t.movedLocked()
	e.t.mu.Unlock()
	for _, f := range gone {
		f(herald.ErrClosed)
	}
}

// dropLocked ends a line and returns who waits for it.
func (l *wireLine) dropLocked() (waiting []func(error)) {
	close(l.end)
	for _, f := range l.frames {
		if f.done != nil {
			waiting = append(waiting, f.done)
		}
	}
	l.frames, l.changes = nil, nil
	return waiting
}

// setPeers is [bridge.Bridge.SetPeers].
func (e *endpoint) setPeers(live []bridge.Peer) {
	var gone []func(error)
	e.t.mu.Lock()
	if e.closed {
		e.t.mu.Unlock()
		return
	}
	for node, l := range e.lines {
		if l.live && !slices.Contains(live, l.to) {
			gone = append(gone, l.dropLocked()...)
			delete(e.lines, node)
		}
	}
	for _, p := range live {
		if l := e.lines[p.Node]; p.Node != e.self.Node && (l == nil || l.to.Incarnation < p.Incarnation) {
			if l != nil {
				gone = append(gone, l.dropLocked()...)
			}
			e.addLocked(p)
		}
		if l := e.lines[p.Node]; l != nil && l.to == p {
			l.live = true
		}
	}
	e.t.movedLocked()
	e.t.mu.Unlock()
	for _, f := range gone {
		f(bridge.ErrGone)
	}
}

func (e *endpoint) addLocked(p bridge.Peer) {
	l := &wireLine{from: e, to: p, end: make(chan struct{}), wake: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}}
	l.changes = append(l.changes, letter{hello: true})
	e.lines[p.Node] = l
	go l.carry(0)
	go l.carry(1)
	l.poke(1)
}

func (l *wireLine) poke(lane int) {
	select {
	case l.wake[lane] <- struct{}{}:
	default:
	}
}

// carry is a lane's goroutine.
func (l *wireLine) carry(lane int) {
	t := l.from.t
	queue := &l.frames
	if lane == 1 {
		queue = &l.changes
	}
	gone := func() bool {
		select {
		case <-l.end:
			return true
		default:
			return false
		}
	}
	for {
		select {
		case <-l.wake[lane]:
		case <-l.end:
			return
		}
		for {
			t.mu.Lock()
			n := len(*queue)
			t.mu.Unlock()
			if n == 0 {
				break
			}
			if pauseUntil(l.end, t.latency()) {
				return
			}
			l.from.pass()
			if t.await(context.Background(), l.end, l.from.sendsLocked) != nil || gone() {
				return
			}
			clock := l.from.h.Clock()
			if lane == 0 {
				l.reported()
			}
			if pauseUntil(l.end, t.latency()) {
				return
			}
			var to *endpoint
			if t.await(context.Background(), l.end, func() bool {
				to = t.ends[l.to]
				return to != nil && to.getsLocked()
			}) != nil {
				return
			}
			to.pass()
			select {
			case to.one[lane] <- struct{}{}:
			case <-l.end:
				return
			}
			to.h.Observe(clock)
			if lane == 0 {
				l.deliver(to)
			} else {
				l.apply(to)
			}
			<-to.one[lane]
		}
	}
}

func (e *endpoint) sendsLocked() bool { return !e.t.down && !e.cut && !e.mute }
func (e *endpoint) getsLocked() bool  { return !e.t.down && !e.cut && !e.deaf }

// reported tells those who wait that Redis has their frames.
func (l *wireLine) reported() {
	l.from.t.mu.Lock()
	var done []func(error)
	for i := range l.frames {
		if f := &l.frames[i]; f.done != nil {
			done = append(done, f.done)
			f.done = nil
		}
	}
	l.from.t.mu.Unlock()
	for _, f := range done {
		f(nil)
	}
}

// deliver hands what Redis has to the peer.
func (l *wireLine) deliver(to *endpoint) {
	t := l.from.t
	t.mu.Lock()
	n := 0
	for n < len(l.frames) && l.frames[n].done == nil {
		n++
	}
	now := l.frames[:n]
	l.frames = slices.Clone(l.frames[n:])
	t.mu.Unlock()
	if n == 0 {
		return
	}
	frames := make([][]byte, n)
	for i := range now {
		frames[i] = now[i].frame
	}
	to.h.Receive(l.from.self, frames)
	l.arrived += n
	arrived := l.arrived
	go l.acknowledge(to, func() { l.received = max(l.received, arrived) })
}

// acknowledge carries an acknowledgement back, with the peer's clock.
func (l *wireLine) acknowledge(by *endpoint, note func()) {
	t := l.from.t
	if pauseUntil(l.end, t.latency()) {
		return
	}
	by.pass()
	if t.await(context.Background(), l.end, by.sendsLocked) != nil || by.isClosed() {
		return
	}
	clock := by.h.Clock()
	if t.await(context.Background(), l.end, l.from.getsLocked) != nil {
		return
	}
	l.from.pass()
	l.from.h.Observe(clock)
	t.change(note)
}

func (e *endpoint) isClosed() bool {
	e.t.mu.Lock()
	defer e.t.mu.Unlock()
	return e.closed
}

// apply has the peer apply announcements.
func (l *wireLine) apply(to *endpoint) {
	t := l.from.t
	t.mu.Lock()
	if len(l.changes) == 0 {
		t.mu.Unlock()
		return
	}
	c := l.changes[0]
	l.changes = l.changes[1:]
	pos := c.pos
	var routes []string
	if c.hello {
		// All that is announced up to now is in it.
		pos, l.changes = l.from.pos, nil
		for r := range l.from.routes {
			routes = append(routes, r)
		}
		slices.Sort(routes)
		if back := to.lines[l.from.self.Node]; back == nil && !to.closed {
			to.addLocked(l.from.self) // a guest
		}
	}
	t.mu.Unlock()
	if c.hello {
		to.h.Replace(l.from.self, routes)
	} else {
		to.h.Apply(l.from.self, *c.change)
	}
	t.change(func() { to.heard[l.from.self] = true })
	go l.acknowledge(to, func() { l.applied = max(l.applied, pos) })
}

// available is [bridge.Bridge.Available].
func (e *endpoint) available() bool {
	e.t.mu.Lock()
	defer e.t.mu.Unlock()
	return !e.closed && !e.t.down && !e.cut
}

// appendAsync is [bridge.Bridge.AppendAsync].
func (e *endpoint) appendAsync(to bridge.Peer, frame []byte, done func(error)) error {
	e.t.mu.Lock()
	defer e.t.mu.Unlock()
	l := e.lines[to.Node]
	switch {
	case e.closed:
		return herald.ErrClosed
	case l == nil || l.to != to:
		return bridge.ErrGone
	case done != nil && (e.t.down || e.cut):
		return bridge.ErrUnavailable
	}
	l.frames = append(l.frames, letter{frame: frame, done: done})
	l.appended++
	l.poke(0)
	return nil
}

// received is [bridge.Bridge.Received].
func (e *endpoint) received(ctx context.Context) error {
	e.t.mu.Lock()
	goal := map[*wireLine]int{}
	for _, l := range e.lines {
		goal[l] = l.appended
	}
	e.t.mu.Unlock()
	return e.t.await(ctx, e.end, func() bool {
		for l, n := range goal {
			if e.lines[l.to.Node] == l && l.received < n {
				return false
			}
		}
		return true
	})
}

// flush is [bridge.Bridge.Flush]; what was sent before has to have arrived, too.
func (e *endpoint) flush(ctx context.Context) error {
	if err := e.received(ctx); err != nil {
		return err
	}
	return e.settled(ctx, e.pos)
}

// announce is [bridge.Bridge.Announce].
func (e *endpoint) announce(c bridge.Change) (bridge.Position, error) {
	e.t.mu.Lock()
	defer e.t.mu.Unlock()
	if e.closed {
		return 0, herald.ErrClosed
	}
	e.pos++
	for _, r := range c.Add {
		e.routes[r] = struct{}{}
	}
	for _, r := range c.Remove {
		delete(e.routes, r)
	}
	for _, l := range e.lines {
		l.changes = append(l.changes, letter{change: &c, pos: e.pos})
		l.poke(1)
	}
	return e.pos, nil
}

// settled is [bridge.Bridge.Settled].
func (e *endpoint) settled(ctx context.Context, p bridge.Position) error {
	return e.t.await(ctx, e.end, func() bool {
		for _, l := range e.lines {
			if t := e.t.ends[l.to]; l.applied < p && (l.live || t != nil) {
				return false
			}
		}
		return true
	})
}

// ready is [bridge.Bridge.Ready].
func (e *endpoint) ready(ctx context.Context) error {
	return e.t.await(ctx, e.end, func() bool {
		for _, l := range e.lines {
			if !e.heard[l.to] {
				return false
			}
		}
		return true
	})
}

// lose empties Redis: what it had comes again, once it is back.
func (t *transport) lose() {
	t.mu.Lock()
	var all []*endpoint
	for _, e := range t.ends {
		all = append(all, e)
		for _, l := range e.lines {
			if t.rng.IntN(3) == 0 && len(l.changes) == 0 { // some announcements are missing
				l.changes = append(l.changes, letter{hello: true})
				l.poke(1)
			}
		}
	}
	slices.SortFunc(all, func(a, b *endpoint) int { return int(a.self.Node) - int(b.self.Node) })
	t.mu.Unlock()
	for _, e := range all {
		go e.h.Lost(errors.New("emptied"))
	}
}

// change changes the state of lines.
func (t *transport) change(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	t.movedLocked()
}
