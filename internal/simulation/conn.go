package simulation

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
)

// conn is a connection. The engine holds the one end as [engine.Conn]; a client
// the other. It calls the engine as the listener does: one goroutine handles
// what comes in, one packet of control, or a lump of data packets, at a time.
type conn struct {
	// Fixed at construction.
	e       *engine.Engine
	name    string
	bound   int
	connect []byte
	version herald.Version
	w       *listen.Worker
	end     chan struct{} // closed when the engine has heard of the end
	life    *life         // of the node; nil: there is only one

	mu  sync.Mutex // held from Begin to End; guards out
	out []byte     // written by the broker, not read by the client

	pending  atomic.Int64 // length of out
	over     atomic.Bool  // it was half the bound
	gone     atomic.Bool  // the engine was told that it has ended
	answered atomic.Bool  // its CONNECT was carried out, or refused
	user     atomic.Value

	st      sync.Mutex // guards below
	wake    sync.Cond
	in      []input
	paused  bool
	closing bool      // nothing more is handled, and nothing more written
	since   time.Time // when that began
}

// input is what the network brought.
type input struct {
	data        []byte // data packets, or:
	subscribe   *wire.Subscribe
	unsubscribe *wire.Unsubscribe
	disconnect  *leave
	timeout     bool   // the keepalive has passed
	after       func() // is called when the engine has taken it; may be nil
}

// leave is a DISCONNECT.
type leave struct {
	reason    byte
	expiry    uint32
	hasExpiry bool
}

var _ engine.Conn = (*conn)(nil)

// newConn starts a connection with its CONNECT.
func newConn(e *engine.Engine, name string, connect []byte, bound int, l *life) *conn {
	con, err := wire.CheckConnect(connect)
	if err != nil {
		panic("simulation: bad CONNECT: " + err.Error())
	}
	c := &conn{
		e: e, name: name, bound: bound, connect: connect, version: con.Version, w: listen.NewWorker(),
		end: make(chan struct{}), life: l,
	}
	c.wake.L = &c.st
	if l != nil {
		l.mu.Lock()
		l.conns[c] = struct{}{}
		l.mu.Unlock()
	}
	go c.run()
	return c
}

// pass returns when the node's process runs.
func (c *conn) pass() {
	if c.life != nil {
		c.life.n.pass()
	}
}

// bring hands the engine an input, in its turn.
func (c *conn) bring(in input) {
	c.st.Lock()
	defer c.st.Unlock()
	c.in = append(c.in, in)
	c.wake.Signal()
}

// hangUp tells the broker that the connection is gone.
func (c *conn) hangUp() { c.Shutdown() }

// closed tells whether the broker has closed its end.
func (c *conn) closed() bool {
	c.st.Lock()
	defer c.st.Unlock()
	return c.closing
}

// read takes whole packets, at most n, of what the broker has written.
func (c *conn) read(n int) []byte {
	if c.life != nil && c.life.n.still() {
		return nil
	}
	c.mu.Lock()
	at := 0
	for ; n > 0 && at < len(c.out); n-- {
		at += wire.FrameLength(c.out[at:])
	}
	b := c.out[:at:at]
	c.out = append([]byte(nil), c.out[at:]...)
	c.pending.Store(int64(len(c.out)))
	drained := len(c.out) < c.bound/4 && c.over.Swap(len(c.out) >= c.bound/4)
	c.mu.Unlock()
	if drained && !c.closed() {
		c.e.Drained(c, listen.NewWorker())
	}
	return b
}

func (c *conn) run() {
	defer close(c.end)
	defer func() {
		c.pass()
		c.gone.Store(true)
		c.e.Closed(c)
		if c.life != nil {
			c.life.mu.Lock()
			delete(c.life.conns, c)
			c.life.mu.Unlock()
		}
	}()
	c.pass()
	if _, _, ok := c.e.Accept(c); !ok {
		return
	}
	ack, err := c.e.Connect(c, c.name)
	c.answered.Store(true)
	if err != nil {
		c.CloseAfter(nil, wire.AppendConnack(nil, c.version, false, wire.ReasonUnavailable, nil))
		c.e.Established(c)
		return
	}
	var p *wire.ConnackProperties
	if ack.HasSessionExpiry {
		p = &wire.ConnackProperties{HasSessionExpiry: true, SessionExpiry: ack.SessionExpiry}
	}
	c.End(c.w, wire.AppendConnack(c.Begin(), c.version, ack.SessionPresent, 0, p))
	c.e.Established(c)
	for {
		c.st.Lock()
		for !c.closing && (c.paused || len(c.in) == 0) {
			c.wake.Wait()
		}
		if c.closing {
			c.st.Unlock()
			return
		}
		in := c.in[0]
		c.in = c.in[1:]
		c.st.Unlock()
		c.pass()
		switch {
		case in.subscribe != nil:
			c.e.Subscribe(c, in.subscribe)
		case in.unsubscribe != nil:
			c.e.Unsubscribe(c, in.unsubscribe)
		case in.disconnect != nil:
			if c.closed() { // it came too late, while the process stood still
				in.after = nil
			}
			_ = c.e.Disconnected(c, in.disconnect.reason, in.disconnect.expiry, in.disconnect.hasExpiry)
			c.Shutdown()
		case in.timeout:
			c.e.Timeout(c, c.w)
		default:
			c.e.Data(c, c.w, in.data)
		}
		if in.after != nil {
			in.after()
		}
	}
}

// Begin implements [engine.Conn].
func (c *conn) Begin() []byte {
	c.mu.Lock()
	return c.out
}

// End implements [engine.Conn].
func (c *conn) End(_ *listen.Worker, b []byte) {
	defer c.mu.Unlock()
	if c.closed() {
		return
	}
	c.out = b
	c.pending.Store(int64(len(b)))
	if len(b) >= c.bound/2 {
		c.over.Store(true)
	}
}

// Room implements [engine.Conn].
func (c *conn) Room() int { return c.bound - int(c.pending.Load()) }

// CloseAfter implements [engine.Conn].
func (c *conn) CloseAfter(w *listen.Worker, b []byte) {
	c.End(w, append(c.Begin(), b...))
	c.Shutdown()
}

// Shutdown implements [engine.Conn].
func (c *conn) Shutdown() {
	c.st.Lock()
	defer c.st.Unlock()
	if !c.closing {
		c.closing, c.since = true, time.Now()
	}
	c.wake.Signal()
}

// Pause implements [engine.Conn].
func (c *conn) Pause() { c.pause(true) }

// Resume implements [engine.Conn].
func (c *conn) Resume() { c.pause(false) }

func (c *conn) pause(p bool) {
	c.st.Lock()
	defer c.st.Unlock()
	c.paused = p
	c.wake.Signal()
}

// Version implements [engine.Conn].
func (c *conn) Version() herald.Version { return c.version }

// Connect implements [engine.Conn].
func (c *conn) Connect() []byte { return c.connect }

// ReleaseConnect implements [engine.Conn].
func (c *conn) ReleaseConnect() { c.connect = nil }

// SetKeepalive implements [engine.Conn].
func (c *conn) SetKeepalive(time.Duration) {}

// Gone implements [engine.Conn].
func (c *conn) Gone() bool { return c.closed() }

// SetUser implements [engine.Conn].
func (c *conn) SetUser(u any) { c.user.Store(u) }

// User implements [engine.Conn].
func (c *conn) User() any { return c.user.Load() }

// RemoteAddr implements [engine.Conn].
func (c *conn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
