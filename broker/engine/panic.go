package engine

import (
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/persistence"
)

// A panic behind one connection ends that connection and nothing else, whoever's
// goroutine it happens on: a publisher's that delivers to it, a commit's, or one
// that reads its queue.

// unlock gives c.mu back. It is deferred, and catches a panic of the client's
// session.
func (c *client) unlock(w *listen.Worker, s *scratch) {
	if r := recover(); r != nil {
		c.e.panicked(c, r, w, s)
	}
	c.mu.Unlock()
}

// panicked ends the connection of a client whose session has panicked; c.mu is
// held.
func (e *Engine) panicked(c *client, r any, w *listen.Worker, s *scratch) {
	e.stats.Panics.Add(1)
	e.log.Error("panic behind one connection", zap.Any("panic", r), zap.String("client", c.name), zap.Stack("stack"))
	conn := c.conn
	if conn == nil {
		return
	}
	if s.open {
		conn.End(w, s.began)
	}
	*s = scratch{cache: s.cache, remote: s.remote, in: s.in}
	conn.Shutdown()
	e.abandon(conn)
}

// caught is deferred where a read is taken apart: should it panic while the
// client's lock is held for acknowledgements, that is given back, and the panic
// goes on to the listener, which ends the connection.
func (e *Engine) caught(c *client, w *listen.Worker, s *scratch, locked *bool) {
	if !*locked {
		return
	}
	if r := recover(); r != nil {
		e.panicked(c, r, w, s)
		c.mu.Unlock()
	}
}

// guard runs f and keeps a panic of it from ending the process.
func (e *Engine) guard(what string, f func()) {
	defer func() {
		if r := recover(); r != nil {
			e.stats.Panics.Add(1)
			e.log.Error("panic in the background", zap.String("in", what), zap.Any("panic", r), zap.Stack("stack"))
		}
	}()
	f()
}

// detachCore takes a session's machine apart. One that has panicked may do so
// again: then the store keeps what it knew of it.
func (c *client) detachCore(f func(b *persistence.Batch), b *persistence.Batch) {
	n := *b
	done := false
	c.e.guard("detach", func() {
		f(b)
		done = true
	})
	if !done {
		*b = n
	}
}
