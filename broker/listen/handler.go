package listen

import "github.com/herald-mqtt/herald/broker/wire"

// Handler is the engine as the connection sees it.
//
// Data, Malformed and Timeout are called by one goroutine at a time per
// connection, and never while mochi handles a control frame of it; Drained and
// Closed may come at any time. A panic in any of them is logged and ends that
// connection only, unless it happens between [Conn.Begin] and [Conn.End], where
// the buffer stays locked.
//
// Data, Malformed, Timeout and Drained run on the goroutine that serves many
// other connections: they must not wait for anything slow.
type Handler interface {
	// Data gets complete data frames (PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP),
	// back to back, split by wire.Split but not otherwise checked, in the order
	// in which they came. They are not valid after the return.
	Data(c *Conn, w *Worker, frames []byte)
	// Malformed says that the client broke the protocol with err: a frame that
	// failed its check, was too large or out of place. What came before it has
	// been delivered; nothing more of this connection will be. The handler is
	// to call [Conn.CloseAfter] with what the client should be told; if it
	// does not, the connection is shut down. While [Conn.Version] is 0 the
	// client's CONNECT was at fault, and [Conn.Connect] is that CONNECT if it
	// was whole.
	Malformed(c *Conn, w *Worker, err *wire.Error)
	// Timeout says that nothing was heard for the keepalive time, or, while
	// [Conn.Version] is 0, that CONNECT did not come in time. The handler is to
	// call [Conn.CloseAfter]; if it does not, the connection is shut down.
	Timeout(c *Conn, w *Worker)
	// Drained says that less than a quarter of the bound waits to be written,
	// after it had been half or more. It may come in the same moment in which
	// another goroutine sees that [Conn.Room] is not enough: who decides to wait
	// for Drained looks at Room once more after having noted that it waits.
	Drained(c *Conn, w *Worker)
	// Closed is the last call for c, exactly once for every connection that
	// was accepted, on a goroutine of its own; Drained alone may still overlap
	// it. It may block. It comes when nothing of c will be processed any more:
	// the client's last bytes, and the socket, may take two seconds longer.
	Closed(c *Conn)
}
