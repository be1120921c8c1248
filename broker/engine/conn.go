package engine

import (
	"net"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
)

// Conn is a client's connection as the engine uses it: a [listen.Conn], or one
// of a simulation. Data, Malformed, Timeout, Drained and Closed of the engine
// are called as [listen.Handler] says.
type Conn interface {
	// Begin locks the outgoing buffer and returns it to be appended to; End
	// stores it, to be written with w's next Flush.
	Begin() []byte
	End(w *listen.Worker, b []byte)
	// Room is how many bytes may be appended until the connection's bound.
	Room() int
	// CloseAfter appends b and closes the connection when it has been written,
	// with w's next Flush, or at once if w is nil.
	CloseAfter(w *listen.Worker, b []byte)
	// Shutdown closes it at once.
	Shutdown()
	// Pause stops the reading, Resume goes on.
	Pause()
	Resume()
	// Version is the client's protocol level, 0 before CONNECT.
	Version() herald.Version
	// Connect is the CONNECT frame until ReleaseConnect.
	Connect() []byte
	ReleaseConnect()
	SetKeepalive(time.Duration)
	// Gone tells whether the peer has closed the connection, or it has broken or is being
	// closed, although Closed may not have been called yet.
	Gone() bool
	// SetUser attaches the engine's client, User returns it.
	SetUser(any)
	User() any
	RemoteAddr() net.Addr
}
