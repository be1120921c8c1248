package listen

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
)

// Conn is one client's connection. It is the net.Conn that mochi gets, too, but
// only mochi calls Read, Write and Close.
//
// The owner of the reading side is the connection's poller (or its reading
// goroutine, see stream.go); while worker is set, it is the worker that runs
// mochi for it. Everybody else only sets flags and then posts the connection to
// its owner.
type Conn struct {
	// Fixed at construction.
	loop   *Loop
	lis    *Listener
	stream *stream // nil: polled
	slot   uint32
	gen    uint32
	since  uint32         // tick of the accept
	peer   netip.AddrPort // of TCP; zero for Unix

	poll      atomic.Pointer[poller]         // the owner; nil: stream
	via       atomic.Pointer[netip.AddrPort] // the client's address by the PROXY protocol
	version   atomic.Uint32
	stopped   atomic.Bool // nothing that arrives is processed any more
	dead      atomic.Bool // to be torn down as soon as its owner can
	paused    atomic.Bool
	worker    atomic.Bool // a worker runs mochi for a frame
	more      atomic.Bool // the socket may hold unread bytes
	hup       atomic.Bool // the peer has closed: read until the end shows, however short a read is
	posted    atomic.Bool // stands in the owner's queue
	timedOut  atomic.Bool
	detached  atomic.Bool // mochi was told ErrDetached: its Close is not meant
	userSet   atomic.Bool
	heard     atomic.Uint32 // tick of the last read
	keepalive atomic.Uint32 // ticks of silence allowed; 0: any
	closeBy   atomic.Uint32 // tick at which a closing connection is torn down

	// Set once, before userSet.
	user any

	// Owned by the owner of the reading side.
	in         *buffer // left-over: bytes read and not yet processed, from off
	off        int
	frame      int    // while worker: length of the control frame at off
	control    []byte // while worker: that frame
	forMochi   []byte // while worker: what mochi has yet to read of it
	scan       bool
	eof        bool
	awaitProxy bool   // the PROXY protocol header comes first
	registered bool   // mochi's EstablishConnection was run
	considered uint32 // the last plan that looked at c, see balance_linux.go
	told       bool   // Handler.Closed was called
	ended      bool   // torn down
	client     clientState

	connectMu sync.Mutex
	connect   []byte

	out outgoing
}

var _ net.Conn = (*Conn)(nil)

// Version is the protocol level of the client's CONNECT; 0 until a CONNECT was
// received and found correct.
func (c *Conn) Version() herald.Version { return herald.Version(c.version.Load()) }

// Connect is the client's CONNECT frame, nil after ReleaseConnect. It must not
// be written to.
func (c *Conn) Connect() []byte {
	c.connectMu.Lock()
	defer c.connectMu.Unlock()
	return c.connect
}

// ReleaseConnect lets the copy of the CONNECT frame go.
func (c *Conn) ReleaseConnect() {
	c.connectMu.Lock()
	c.connect = nil
	c.connectMu.Unlock()
}

func (c *Conn) keepConnect(frame []byte) {
	c.connectMu.Lock()
	c.connect = append([]byte(nil), frame...)
	c.connectMu.Unlock()
}

// Control is the frame that mochi is being run for, as it came: mochi's decoder
// overlooks things. It is valid, and may be asked for, only within mochi's hooks.
func (c *Conn) Control() []byte { return c.control }

// SetUser attaches v, once, before the first data frame: in mochi's
// OnSessionEstablish at the latest.
func (c *Conn) SetUser(v any) {
	c.user = v
	c.userSet.Store(true)
}

// User returns what was attached, or nil.
func (c *Conn) User() any {
	if !c.userSet.Load() {
		return nil
	}
	return c.user
}

// SetKeepalive sets how long the client may be silent: the 1.5 fold of d
// [MQTT-3.1.2-22], never less, up to a second more. 0 is for ever.
func (c *Conn) SetKeepalive(d time.Duration) {
	if d <= 0 {
		c.keepalive.Store(0)
		return
	}
	c.keepalive.Store(uint32(min((d+d/2+tick-1)/tick+2, 1<<30)))
	c.loop.slots.due(c.slot).Store(0) // look at it in the next sweep
}

// Listener is the name of the listener that accepted c.
func (c *Conn) Listener() string { return c.lis.cfg.ID }

// TLS is the state of the TLS connection, nil without TLS.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.stream == nil {
		return nil
	}
	return c.stream.tls
}

// RemoteAddr is the client's address, as the PROXY protocol tells it if that is
// in use.
func (c *Conn) RemoteAddr() net.Addr {
	switch {
	case c.stream != nil:
		return c.stream.remote
	case c.via.Load() != nil:
		return net.TCPAddrFromAddrPort(*c.via.Load())
	case c.peer.IsValid():
		return net.TCPAddrFromAddrPort(c.peer)
	}
	return unixAddr
}

var unixAddr = &net.UnixAddr{Net: "unix", Name: "@"}

// LocalAddr is the listener's address.
func (c *Conn) LocalAddr() net.Addr { return c.lis.addr }

// SetDeadline does nothing: keepalive is kept by the sweeper of the [Loop].
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// Pause stops the processing of what the client sends: nothing more is read, and
// what was read already waits, control frames included. Within [Handler.Data] it
// takes effect when Data returns. Keepalive does not run out meanwhile.
func (c *Conn) Pause() { c.paused.Store(true) }

// Resume ends Pause. Any goroutine may call it.
func (c *Conn) Resume() {
	if c.paused.CompareAndSwap(true, false) {
		c.heard.Store(c.loop.now.Load())
		c.post()
	}
}

// Gone tells whether the client has closed its side, or the connection has broken or
// is being closed. What it had sent before is not looked at, and may still be
// processed. Any goroutine may ask; it costs a system call where connections are not
// polled, and on systems without epoll it says only what was found out by reading.
func (c *Conn) Gone() bool {
	return c.stopped.Load() || c.hup.Load() || c.stream != nil && c.stream.hungUp()
}

// post asks the owner of the reading side to look at c.
func (c *Conn) post() {
	if c.posted.Swap(true) {
		return
	}
	if c.stream == nil {
		c.poll.Load().post(c) // if c has moved meanwhile, that one passes it on
	} else {
		c.stream.wake()
	}
}
