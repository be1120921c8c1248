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
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return false
	}
	w := listen.NewWorker()
	conn.CloseAfter(w, e.Goodbye(conn, wire.ReasonAdministrative, ""))
	w.Flush()
	e.abandon(conn)
	return true
}
