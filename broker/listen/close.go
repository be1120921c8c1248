package listen

import "runtime/debug"

// closeTicks is how long a closing connection may take: for the peer to take
// what is still to be written, and to close its side. Closing a socket while
// unread bytes arrive makes the kernel send a reset, which can destroy the
// DISCONNECT on its way; so after the last byte only the writing side is shut
// down, and what comes in is read and thrown away.
const closeTicks = 4 // 2 s

// CloseAfter stops processing what the client sends, appends b (may be empty; a
// DISCONNECT), and closes the connection when all has been written and the peer
// has closed its side, or after two seconds. With a w the bytes go out with its
// next Flush, with nil at once. Any goroutine may call it; only the first call
// counts.
func (c *Conn) CloseAfter(w *Worker, b []byte) {
	o := &c.out
	o.mu.Lock()
	if o.closing {
		o.mu.Unlock()
		return
	}
	if len(b) > 0 && !o.broken {
		if o.buf == nil {
			o.buf = getBuffer(len(b))
		}
		o.buf.b = append(o.buf.b, b...)
		o.pending.Add(int64(len(b)))
		c.loop.shared.queued.Add(int64(len(b)))
	}
	o.closing = true
	c.closeBy.Store(c.loop.now.Load() + closeTicks)
	c.stopped.Store(true)
	c.loop.slots.due(c.slot).Store(0)
	broken := o.broken
	if w != nil && !o.dirty {
		o.dirty = true
		w.dirty = append(w.dirty, c)
	}
	o.mu.Unlock()
	if broken {
		c.dead.Store(true)
	}
	c.post() // the owner tells the engine
	if w == nil && !broken {
		w = workers.Get().(*Worker)
		c.flush(w, false)
		w.Flush()
		workers.Put(w)
	}
}

// finishLocked ends the writing side after the last byte.
func (c *Conn) finishLocked() {
	c.out.shut = true
	if c.out.fd >= 0 {
		sysShutdownWrite(c.out.fd)
	}
	c.post()
}

// Shutdown ends the connection at once; what has not been written is lost. Any
// goroutine may call it, any number of times.
func (c *Conn) Shutdown() {
	c.stopped.Store(true)
	if c.dead.Swap(true) {
		return
	}
	o := &c.out
	o.mu.Lock()
	o.closing = true
	if o.fd >= 0 {
		sysShutdown(o.fd) // the peer need not wait until the owner gets to it
	}
	o.mu.Unlock()
	if c.stream != nil {
		c.stream.abort()
	}
	c.post()
}

// Close is mochi's: CloseAfter with nothing to say. When mochi only lets go of
// the connection (see ErrDetached) it does nothing.
func (c *Conn) Close() error {
	if !c.detached.Load() {
		c.CloseAfter(nil, nil)
	}
	return nil
}

// releaseOut closes the writing side for good and returns the descriptor to
// close, -1 if that was done already; ok is false while somebody is writing: the
// writer posts c when it is done.
func (c *Conn) releaseOut() (fd int, ok bool) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writing {
		return -1, false
	}
	fd, o.fd = o.fd, -1
	o.closing, o.broken = true, true
	for _, b := range []*buffer{o.buf, o.head} {
		if b != nil {
			putBuffer(b)
		}
	}
	o.buf, o.head, o.blocked = nil, nil, false
	c.dropLocked()
	return fd, true
}

// releaseIn lets the left-over go.
func (c *Conn) releaseIn() {
	if c.in != nil {
		putBuffer(c.in)
		c.in, c.off, c.frame, c.scan = nil, 0, 0, false
	}
}

// tell calls Handler.Closed, once: nothing of c is processed any more. The owner
// calls it while no worker runs.
func (c *Conn) tell() {
	if c.told {
		return
	}
	c.told = true
	c.releaseIn()
	c.loop.wg.Go(func() {
		defer c.recovered("Closed")
		c.loop.handler.Closed(c)
	})
}

// gone is the last thing done for a connection by its owner.
func (c *Conn) gone() {
	c.tell()
	c.ReleaseConnect()
	c.loop.slots.remove(c.slot)
	if c.stream == nil { // else the socket counts itself
		c.lis.dismiss()
	}
	c.loop.counts.conns.Add(-1)
	c.loop.wg.Done()
}

// recovered is deferred around code that is not this package's: a panic ends the
// connection and nothing else.
func (c *Conn) recovered(where string) {
	if r := recover(); r != nil {
		c.panicked(where, r)
	}
}

func (c *Conn) panicked(where string, r any) {
	c.loop.counts.panics.Add(1)
	c.loop.log.Error("panic on a connection, closing it", "where", where, "listener", c.lis.cfg.ID,
		"remote", c.RemoteAddr().String(), "panic", r, "stack", string(debug.Stack()))
	c.Shutdown()
}
