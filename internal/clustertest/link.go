package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Harm is what is wrong with a [Link].
type Harm int

// The states of a link.
const (
	// Healed: everything passes.
	Healed Harm = iota
	// Cut: connections are reset, new ones at once.
	Cut
	// Silent: connections stay and new ones come about, but nothing passes. What
	// was sent meanwhile arrives when the link is healed, as with TCP.
	Silent
	// SilentOut: what the broker sends does not arrive; what it is sent does.
	SilentOut
	// SilentIn: what the broker is sent does not arrive; what it sends does.
	SilentIn
)

// String names the harm in reports.
func (h Harm) String() string {
	return [...]string{"healed", "cut", "silent", "silent outwards", "silent inwards"}[h]
}

// stops tells whether nothing passes in a direction.
func (h Harm) stops(out bool) bool {
	return h == Silent || h == SilentOut && out || h == SilentIn && !out
}

// Link is a TCP proxy that stands on one broker's way to a server. Its methods
// may be called from several goroutines.
type Link struct {
	// Addr is where the broker connects to.
	Addr string

	// Fixed.
	target   string
	listener net.Listener
	// oneLayout has the driver of the database ask for the peers without their
	// ports: see hidePorts.
	oneLayout bool
	closing   chan struct{}
	wg        sync.WaitGroup

	mu      sync.Mutex // guards below
	harm    Harm
	changed chan struct{} // closed when harm changes
	conns   map[*net.TCPConn]bool
}

// NewLink listens on addr (port 0 is a free one) and leads to target. The
// caller closes it.
func NewLink(addr, target string) (*Link, error) {
	l := &Link{target: target}
	return l, l.open(addr)
}

func (l *Link) open(addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("clustertest: link: %w", err)
	}
	l.Addr, l.listener = listener.Addr().String(), listener
	l.closing, l.changed = make(chan struct{}), make(chan struct{})
	l.conns = make(map[*net.TCPConn]bool)
	l.wg.Go(l.accept)
	return nil
}

// Close ends the link and all of its connections, and waits for them.
func (l *Link) Close() {
	close(l.closing)
	l.listener.Close()
	l.mu.Lock()
	l.resetLocked()
	l.mu.Unlock()
	l.wg.Wait()
}

// Set harms the link, or heals it.
func (l *Link) Set(h Harm) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.harm = h
	close(l.changed)
	l.changed = make(chan struct{})
	if h == Cut {
		l.resetLocked()
	}
}

// resetLocked resets all connections.
func (l *Link) resetLocked() {
	for c := range l.conns {
		reset(c)
	}
	clear(l.conns)
}

// reset closes a connection so that the other side gets RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // it may be closed already
	c.Close()
}

// state is what is wrong now, and a channel that is closed when that changes.
func (l *Link) state() (Harm, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.harm, l.changed
}

// keep notes a connection; false: the link is cut or closed, and so is it.
func (l *Link) keep(c *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closing:
	default:
		if l.harm != Cut {
			l.conns[c] = true
			return true
		}
	}
	reset(c)
	return false
}

func (l *Link) drop(conns ...*net.TCPConn) {
	for _, c := range conns {
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
		c.Close()
	}
}

func (l *Link) accept() {
	for {
		c, err := l.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // descriptors may have run out: they come back
			case <-l.closing:
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if c := c.(*net.TCPConn); l.keep(c) {
			l.wg.Go(func() { l.serve(c) })
		}
	}
}

// pass waits while nothing passes in a direction; false: the link is closed.
func (l *Link) pass(out bool) bool {
	for {
		harm, changed := l.state()
		if !harm.stops(out) {
			return true
		}
		select {
		case <-changed:
		case <-l.closing:
			return false
		}
	}
}

// serve carries what one connection brings until either side ends it.
func (l *Link) serve(broker *net.TCPConn) {
	defer l.drop(broker)
	if !l.pass(true) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", l.target)
	if err != nil {
		reset(broker)
		return
	}
	server := conn.(*net.TCPConn)
	if !l.keep(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.carry(server, broker, true) })
	both.Go(func() { l.carry(broker, server, false) })
	both.Wait()
}

// carry copies one direction, then closes both sides.
func (l *Link) carry(dst, src *net.TCPConn, out bool) {
	defer l.drop(dst, src)
	buf := make([]byte, 64<<10)
	kept := 0 // bytes at the start of buf that wait for what follows
	for {
		n, err := src.Read(buf[kept:])
		b := buf[:kept+n]
		kept = 0
		// What was read and may not pass stays here until the link is healed.
		if len(b) > 0 && l.pass(out) {
			if l.oneLayout && out && err == nil {
				kept = hidePorts(b)
			}
			if _, werr := dst.Write(b[:len(b)-kept]); werr != nil {
				return
			}
			copy(buf, b[len(b)-kept:])
		}
		if err != nil {
			return
		}
	}
}

// peersTable tells the driver of each server's port as the servers know it, and
// so leads it past the link; the older table has only addresses. The names have
// the same length, so that the query stays well formed.
var (
	peersTable = []byte("system.peers_v2")
	olderTable = []byte("system.peers   ")
)

// hidePorts replaces the table in a driver's queries, and returns how many bytes
// at the end may be the beginning of its name.
func hidePorts(b []byte) (kept int) {
	for rest := b; ; {
		i := bytes.Index(rest, peersTable)
		if i < 0 {
			break
		}
		copy(rest[i:], olderTable)
		rest = rest[i+len(olderTable):]
	}
	for n := min(len(b), len(peersTable)-1); n >= len("system."); n-- {
		if bytes.HasSuffix(b, peersTable[:n]) {
			return n
		}
	}
	return 0
}
