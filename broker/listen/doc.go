// Package listen holds the listeners and the connection: it is where bytes
// become frames for the engine, and frames become bytes.
//
// # Who handles a frame
//
// mochi-mqtt is embedded; each connection is a net.Conn to it. The stream is
// split before mochi sees it:
//
//   - data frames (PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP) go to
//     [Handler.Data], in place, all that one read brought in one call;
//   - PINGREQ is answered here;
//   - every other frame is checked completely (package wire), then decoded and
//     handled by mochi, alone: nothing that follows it on the same connection is
//     looked at before mochi has handled it, so the order is kept.
//
// # Who runs
//
// On Linux, TCP and Unix sockets do not use Go's network poller. Pollers (as many
// as the load needs), each a goroutine with an epoll of its own, read, scan, call
// the engine, and write what the engine appended, once per connection and batch.
// An idle connection has no goroutine, no stack and no buffer.
//
// mochi wants a goroutine, blocked in Read, for as long as a connection lives.
// Its frames take 4.6 KB of stack while it waits and more than 8 KB while it
// decodes, so that goroutine costs 16 KB and the one that mochi starts beside it
// another 4 KB, for good. So it is not kept: a worker goroutine runs mochi for
// one control frame at a time. For CONNECT it runs mochi's EstablishConnection;
// when mochi comes back to read the next frame, Read returns [ErrDetached] and
// EstablishConnection unwinds. Every later control frame is given to mochi's
// decoder and packet processor (Client.Read, Server.InjectPacket) by whichever
// worker is free. What that means for mochi's hooks:
//
//   - OnDisconnect with ErrDetached is not the end of the connection, and mochi's
//     Server.Clients does not hold it afterwards. The end is [Handler.Closed],
//     for every connection, exactly once.
//   - The *mqtt.Client is a different one for each control frame. It carries the
//     id, the protocol version and the CONNECT properties; whatever lasts longer
//     belongs to the connection: client.Net.Conn.(*listen.Conn).User().
//   - Do not keep a *mqtt.Client to disconnect it later: use [Conn.CloseAfter].
//
// TLS, WebSocket, and other systems than Linux have a goroutine per connection
// that reads and scans by the same code.
//
// # Order of locks
//
// Conn.out.mu is the only lock that is held while the engine's code runs (between
// Begin and End). Nothing in this package takes another lock under it except the
// queue of a poller.
package listen
