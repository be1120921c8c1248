package engine

import (
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
)

// Kick ends the connection of a client with 0x98, at whichever node it is connected.
// Its session stays, and its will is sent, as if the connection had broken. It tells
// whether the client was connected to this node; the others are told.
func (e *Engine) Kick(name string) (here bool) {
	if e.kick(name) {
		return true
	}
	for _, p := range e.nodes.peers() {
		p.send(appendKick(nil, name), surely, 0)
	}
	return false
}

func (e *Engine) kick(name string) bool {
	e.clientsMu.RLock()
	c := e.clients[name]
	e.clientsMu.RUnlock()
	if c == nil {
		return false
	}
	w := listen.NewWorker()
	defer w.Flush()
	return e.expel(c.connection(), w)
}

// expel ends a connection that the operators do not want; nil: there is none.
func (e *Engine) expel(conn Conn, w *listen.Worker) bool {
	if conn == nil {
		return false
	}
	conn.CloseAfter(w, e.Goodbye(conn, wire.ReasonAdministrative, ""))
	e.abandon(conn)
	return true
}

// connection is the client's, or nil.
func (c *client) connection() Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}
