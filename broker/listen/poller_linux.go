package listen

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// readSize is what one read may bring.
	readSize = 64 << 10
	// prefixSize is up to which size a left-over is put before what the next
	// read brings, so that both are scanned as one; a greater one grows in a
	// buffer of its own.
	prefixSize = 16 << 10
	// readRounds is how often one connection is read before others have their
	// turn.
	readRounds = 4

	eventBatch = 256
	wakeSlot   = -1
)

// poller is an event loop: a goroutine with an epoll of its own, for its share
// of the connections. Edge-triggered: each event is either acted on or noted in
// the connection (more), and whoever keeps the poller from acting on it posts
// the connection when that ends.
type poller struct {
	loop *Loop
	ep   int
	wake int // eventfd, edge-triggered: it is written to and never read

	plan     atomic.Pointer[plan] // connections to move to another poller
	busy     atomic.Int64         // ns not spent waiting
	stopping atomic.Bool
	sleeping atomic.Bool // about to block, or blocked, in epoll_wait

	mu    sync.Mutex
	queue []*Conn // posted
	gone  bool    // the descriptors are closed

	// Owned by the goroutine.
	w      Worker
	count  counters
	events []unix.EpollEvent
	buf    []byte
	spare  []*Conn
}

func (l *Loop) newPollers() error {
	for range l.cfg.Pollers {
		p := &poller{loop: l, ep: -1, wake: -1}
		l.pollers = append(l.pollers, p)
		var err error
		if p.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			l.closePollers()
			return fmt.Errorf("epoll_create1: %w", err)
		}
		if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			l.closePollers()
			return fmt.Errorf("eventfd: %w", err)
		}
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: wakeSlot}
		if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, p.wake, &ev); err != nil {
			l.closePollers()
			return fmt.Errorf("epoll_ctl: %w", err)
		}
		p.w.count = &p.count
	}
	return nil
}

func (l *Loop) closePollers() {
	for _, p := range l.pollers {
		p.mu.Lock()
		p.gone = true
		for _, fd := range []*int{&p.ep, &p.wake} {
			if *fd >= 0 {
				_ = unix.Close(*fd)
				*fd = -1
			}
		}
		p.mu.Unlock()
	}
}

// watch puts c's descriptor under the poller's eyes.
func (p *poller) watch(c *Conn, fd int) error {
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff,
		Fd:     int32(c.slot), Pad: int32(c.gen),
	}
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &ev)
}

// post puts c in the queue. The caller has set c.posted.
func (p *poller) post(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, c)
	p.awakeLocked()
}

// awakeLocked holds the lock while it writes, so that it cannot write to a
// descriptor that has been closed and given to somebody else.
func (p *poller) awakeLocked() {
	if !p.gone && p.sleeping.CompareAndSwap(true, false) {
		sysWake(p.wake)
	}
}

func (p *poller) stop() {
	p.stopping.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.awakeLocked()
}

func (p *poller) run() {
	p.events = make([]unix.EpollEvent, eventBatch)
	p.buf = make([]byte, prefixSize+readSize)
	m := meter{p: p}
	for !p.stopping.Load() {
		m.idle()
		n := p.wait()
		m.work()
		for i := range p.events[:n] {
			ev := &p.events[i]
			if ev.Fd == wakeSlot {
				continue
			}
			if c := p.loop.slots.get(uint32(ev.Fd), uint32(ev.Pad)); c != nil {
				p.event(c, ev.Events)
			}
		}
		p.posted()
		p.flush()
	}
}

// wait returns the number of events. It blocks when there is nothing else to do.
//
// One epoll_wait per turn, blocking: to look without blocking first is a second
// system call for nearly every wake-up (0.7 to 1 instead of 0.3 per message, 1,000
// connections with 12 messages a second each), and the other way of waiting, the
// epoll descriptor in Go's own poller, costs twice the time in user mode.
func (p *poller) wait() int {
	p.count.waits.Add(1)
	// A post after this line writes to the eventfd; one before it is seen here.
	p.sleeping.Store(true)
	if p.anyPosted() || p.stopping.Load() {
		p.sleeping.Store(false)
		return sysEpollWait(p.ep, p.events, false)
	}
	n := sysEpollWait(p.ep, p.events, true)
	p.sleeping.Store(false)
	return n
}

func (p *poller) anyPosted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) > 0
}

func (p *poller) posted() {
	p.mu.Lock()
	q := p.queue
	p.queue = p.spare[:0]
	p.mu.Unlock()
	for i, c := range q {
		q[i] = nil
		c.posted.Store(false)
		p.event(c, 0)
	}
	p.spare = q
}

// flush writes what the batch has brought.
func (p *poller) flush() {
	for !p.tryFlush() {
	}
}

func (p *poller) tryFlush() (done bool) {
	defer func() {
		if r := recover(); r != nil {
			p.loop.counts.panics.Add(1)
			p.loop.log.Error("panic while writing", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	p.w.Flush()
	return true
}

// event handles one connection's event, or its post (0).
func (p *poller) event(c *Conn, ev uint32) {
	defer c.recovered("poller")
	if ev&unix.EPOLLOUT != 0 && c.out.pending.Load() > 0 {
		c.writable(&p.w)
	}
	if ev&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.hup.Store(true)
		c.more.Store(true)
	} else if ev&unix.EPOLLIN != 0 {
		c.more.Store(true)
	}
	if c.poll.Load() != p {
		c.post() // it is on its way from one poller to another
		return
	}
	p.turn(c)
	if plan := p.plan.Load(); plan != nil {
		p.consider(c, plan)
	}
}

// turn does for c what can be done now.
func (p *poller) turn(c *Conn) {
	if c.ended || c.worker.Load() {
		return
	}
	if c.timedOut.Load() && c.timedOut.Swap(false) && !c.stopped.Load() {
		c.loop.handler.Timeout(c, &p.w)
		if !c.stopped.Load() {
			c.Shutdown()
		}
	}
	switch {
	case c.dead.Load():
		p.teardown(c)
	case c.stopped.Load():
		p.discard(c)
	case c.paused.Load():
	default:
		p.pump(c)
	}
}

// pump reads and processes until the socket is empty or something stops it.
func (p *poller) pump(c *Conn) {
	if c.scan {
		c.scan = false
		if !p.digest(c, c.in.b[c.off:]) {
			return
		}
	}
	for round := 0; c.more.Load(); round++ {
		if round == readRounds {
			c.post()
			return
		}
		var dst []byte
		left, own := 0, false
		if c.in != nil {
			if left = len(c.in.b) - c.off; left > prefixSize {
				own = true
				c.roomFor()
				dst = c.in.b[left:cap(c.in.b)]
			}
		}
		if !own {
			dst = p.buf[left : left+readSize]
		}
		n, err := sysRead(c.out.fd, dst)
		p.count.reads.Add(1)
		if n <= 0 {
			if err != nil && wouldBlock(err) {
				c.more.Store(false)
				return
			}
			p.finished(c)
			return
		}
		p.count.bytesIn.Add(int64(n))
		c.lis.bytesIn.Add(int64(n))
		if n < len(dst) && !c.hup.Load() {
			c.more.Store(false)
		}
		if now := c.loop.now.Load(); c.heard.Load() != now {
			c.heard.Store(now)
		}
		var b []byte
		switch {
		case own:
			c.in.b = c.in.b[:left+n]
			b = c.in.b
		default:
			if left > 0 {
				copy(p.buf, c.in.b[c.off:])
				c.releaseIn()
			}
			b = p.buf[:left+n]
		}
		if !p.digest(c, b) {
			return
		}
	}
}

// digest feeds b and keeps what is left of it; false: stop reading.
func (p *poller) digest(c *Conn, b []byte) bool {
	if c.awaitProxy {
		n, ok := c.takeProxy(b)
		if !ok {
			return false
		}
		if b = b[n:]; n == 0 || len(b) == 0 {
			c.keep(b)
			return true
		}
	}
	done, frame, v := c.feed(&p.w, b)
	c.keep(b[done:])
	switch v {
	case needMore:
		return true
	case halted:
		c.scan = c.in != nil
		return false
	}
	// From here on c is the worker's.
	c.frame, c.scan = frame, true
	p.count.handed.Add(1)
	c.worker.Store(true)
	c.loop.submit(c)
	return false
}

// finished: the peer has closed its side, or the connection broke.
func (p *poller) finished(c *Conn) {
	c.eof = true
	c.flush(&p.w, false) // what the last frames brought
	c.stopped.Store(true)
	c.dead.Store(true)
	p.teardown(c)
}

// discard throws away what arrives while the connection closes.
func (p *poller) discard(c *Conn) {
	c.tell()
	for round := 0; c.more.Load() && !c.eof; round++ {
		if round == readRounds {
			c.post()
			return
		}
		n, err := sysRead(c.out.fd, p.buf)
		p.count.reads.Add(1)
		switch {
		case n > 0:
			if n < len(p.buf) && !c.hup.Load() {
				c.more.Store(false)
			}
		case err != nil && wouldBlock(err):
			c.more.Store(false)
		default:
			c.eof = true
		}
	}
	if !c.eof {
		return
	}
	c.out.mu.Lock()
	done := c.out.shut || c.out.broken
	c.out.mu.Unlock()
	if done {
		c.dead.Store(true)
		p.teardown(c)
	}
}

// teardown closes the descriptor: only here, by the goroutine that reads it, and
// when nobody is writing to it.
func (p *poller) teardown(c *Conn) {
	fd, ok := c.releaseOut()
	if !ok {
		return // the writer posts c
	}
	c.ended = true
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	c.gone()
}
