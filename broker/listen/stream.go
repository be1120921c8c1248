package listen

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// stream is what a connection has that is not polled: TLS, WebSocket, or on a
// system without epoll. One goroutine reads and scans; another one writes, for
// as long as there is something to write.
type stream struct {
	c      *Conn
	nc     net.Conn // outermost layer
	raw    net.Conn // the socket, below TLS, WebSocket and PROXY protocol
	remote net.Addr
	tls    *tls.ConnectionState
	signal chan struct{} // room for one: posted
	hint   int           // size of the next read buffer
}

// The reading buffer of an idle connection is small, because it is held; it
// grows fourfold whenever a read fills it.
const (
	streamReadMin = 512
	streamReadMax = 32 << 10
)

// past is a deadline that ends a blocked call at once.
var past = time.Unix(1, 0)

// newStream counts nothing in: the caller has admitted the socket.
func (l *Listener) newStream(nc, raw net.Conn, remote net.Addr, state *tls.ConnectionState, since uint32) *Conn {
	loop := l.loop
	c := &Conn{loop: loop, lis: l, since: since}
	c.stream = &stream{c: c, nc: nc, raw: raw, remote: remote, tls: state, signal: make(chan struct{}, 1), hint: streamReadMin}
	c.out.fd = -1
	c.heard.Store(since)
	loop.begin(c)
	return c
}

// wake makes the reading goroutine look at the flags of its connection.
func (s *stream) wake() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
	// It may be blocked in Read. That is broken off only to end the
	// connection: a WebSocket cannot be read any further afterwards.
	if s.c.stopped.Load() || s.c.timedOut.Load() {
		_ = s.raw.SetReadDeadline(past)
	}
}

// abort ends blocked reads and writes.
func (s *stream) abort() { _ = s.raw.SetDeadline(past) }

// run owns the reading side until the connection has ended.
func (s *stream) run() {
	c := s.c
	w := workers.Get().(*Worker)
	defer workers.Put(w)
	defer s.teardown()
	for {
		c.posted.Store(false)
		switch {
		case c.worker.Load():
			<-s.signal
		case c.dead.Load():
			return
		case c.stopped.Load():
			c.flush(w, false) // so that the end is written, even if there is nothing else
			w.Flush()
			s.drain()
			return
		case c.timedOut.Swap(false):
			s.guard("Timeout", func() { c.loop.handler.Timeout(c, w) })
			w.Flush()
			if !c.stopped.Load() {
				c.Shutdown()
			}
		case c.paused.Load():
			<-s.signal
		case c.scan:
			c.scan = false
			s.digest(w)
		default:
			if !s.read() {
				if !c.stopped.Load() && !c.timedOut.Load() {
					c.flush(w, false)
					c.stopped.Store(true)
					c.dead.Store(true)
				}
				continue
			}
			if c.stopped.Load() || c.paused.Load() {
				c.scan = true
				continue
			}
			s.digest(w)
		}
	}
}

// read waits for bytes and puts them behind the left-over.
func (s *stream) read() bool {
	c := s.c
	if c.in == nil {
		c.in, c.off = getBuffer(s.hint), 0
	} else {
		if cap(c.in.b)-len(c.in.b) < s.hint/2 {
			c.roomFor()
		}
	}
	have := len(c.in.b)
	space := c.in.b[have:cap(c.in.b)]
	n, err := s.nc.Read(space)
	c.loop.shared.reads.Add(1)
	if n <= 0 {
		// A timeout is the interruption by wake; the loop looks why.
		return err == nil
	}
	c.in.b = c.in.b[:have+n]
	switch {
	case n == len(space) && s.hint < streamReadMax:
		s.hint *= 4
	case n < s.hint/8 && s.hint > streamReadMin:
		s.hint /= 4
	}
	c.loop.shared.bytesIn.Add(int64(n))
	c.lis.bytesIn.Add(int64(n))
	c.heard.Store(c.loop.now.Load())
	return true
}

// digest processes the left-over and writes what that brought.
func (s *stream) digest(w *Worker) {
	c := s.c
	v, frame := halted, 0
	s.guard("stream", func() {
		var done int
		done, frame, v = c.feed(w, c.in.b[c.off:])
		c.keep(c.in.b[c.off+done:])
	})
	s.guard("flush", w.Flush)
	switch v {
	case halted:
		c.scan = c.in != nil
	case handOver:
		c.frame, c.scan = frame, true
		c.loop.shared.handed.Add(1)
		c.worker.Store(true)
		c.loop.submit(c) // not here: this stack stays small
	}
}

func (s *stream) guard(where string, f func()) {
	defer s.c.recovered(where)
	f()
}

// drain throws away what arrives until the peer closes its side too. The sweeper
// shuts the connection down if that takes too long.
func (s *stream) drain() {
	c := s.c
	c.tell()
	scratch := getBuffer(2 << 10)
	defer putBuffer(scratch)
	for !c.dead.Load() {
		_ = s.raw.SetReadDeadline(time.Time{})
		if c.dead.Load() {
			return
		}
		if _, err := s.raw.Read(scratch.b[:cap(scratch.b)]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// teardown closes the connection when nobody writes to it any more.
func (s *stream) teardown() {
	c := s.c
	c.stopped.Store(true)
	c.dead.Store(true)
	_ = s.raw.Close()
	for {
		c.posted.Store(false)
		if _, ok := c.releaseOut(); ok {
			break
		}
		<-s.signal
	}
	c.ended = true
	c.gone()
}

// startFlusher is called with out.writing just set.
func (s *stream) startFlusher() { go s.flusher() }

// flusher writes until nothing is left. A peer that takes nothing holds it, and
// no more than the bound of bytes, until its keepalive runs out; while the
// connection closes, for two seconds.
func (s *stream) flusher() {
	c, o := s.c, &s.c.out
	var w *Worker
	o.mu.Lock()
	for !o.broken {
		if o.buf == nil {
			break
		}
		o.head, o.buf = o.buf, nil
		b := o.head.b
		o.learn(len(b))
		o.mu.Unlock()
		_, err := s.nc.Write(b)
		c.loop.shared.writes.Add(1)
		o.mu.Lock()
		drained := false
		if err != nil {
			drained = c.breakLocked()
		} else {
			c.loop.shared.bytesOut.Add(int64(len(b)))
			c.lis.bytesOut.Add(int64(len(b)))
			if left := o.pending.Add(int64(-len(b))); o.over && left < c.loop.cfg.WriteBound/4 {
				o.over, drained = false, true
			}
			putBuffer(o.head)
			o.head = nil
		}
		if drained {
			if w == nil {
				w = workers.Get().(*Worker)
			}
			o.mu.Unlock()
			s.guard("Drained", func() { c.loop.handler.Drained(c, w) })
			o.mu.Lock()
		}
	}
	if o.closing && !o.shut {
		o.shut = true
		o.mu.Unlock()
		s.closeWrite()
		c.post()
		o.mu.Lock()
	}
	o.writing = false
	again := o.buf != nil && !o.broken
	if again {
		o.writing = true
	}
	o.mu.Unlock()
	if again {
		s.startFlusher()
	}
	if w != nil {
		w.Flush()
		workers.Put(w)
	}
	if c.dead.Load() {
		c.post()
	}
}

// hungUp tells whether the peer has closed its side, without reading: while the
// reading goroutine waits for somebody else, nobody else would notice.
func (s *stream) hungUp() bool {
	raw, ok := s.raw.(*socket)
	if !ok {
		return false
	}
	sc, ok := raw.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true // closed
	}
	gone := false
	err = rc.Control(func(fd uintptr) { gone = sysHungUp(int(fd)) })
	return gone || err != nil
}

// closeWrite says goodbye in each layer.
func (s *stream) closeWrite() {
	type closer interface{ CloseWrite() error }
	if cw, ok := s.nc.(closer); ok && s.nc != s.raw {
		_ = cw.CloseWrite()
	}
	if cw, ok := s.raw.(closer); ok {
		_ = cw.CloseWrite()
	} else {
		_ = s.raw.SetReadDeadline(past)
	}
}
