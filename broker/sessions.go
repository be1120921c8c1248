package broker

import (
	"errors"
	"net"

	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
	hook "github.com/herald-mqtt/herald/hooks/session"
)

// sessions gives mochi's hook the engine.
type sessions struct{ e *engine.Engine }

var _ hook.Sessions = sessions{}

func (s sessions) Accept(c net.Conn) (keepalive uint16, override, ok bool) {
	return s.e.Accept(c.(*listen.Conn))
}

func (s sessions) Connect(c net.Conn, client string) (hook.Connack, error) {
	a, err := s.e.Connect(c.(*listen.Conn), client)
	if errors.Is(err, engine.ErrBusy) {
		err = hook.ErrBusy
	}
	return hook.Connack{SessionPresent: a.SessionPresent, HasSessionExpiry: a.HasSessionExpiry, SessionExpiry: a.SessionExpiry}, err
}

func (s sessions) Established(c net.Conn) { s.e.Established(c.(*listen.Conn)) }

func (s sessions) Subscribe(c net.Conn, r hook.Request) {
	req := wire.Subscribe{PacketID: r.PacketID, Identifier: r.Identifier}
	for _, f := range r.Filters {
		req.Filters = append(req.Filters, wire.SubscribeFilter{
			Filter: []byte(f.Filter), QoS: f.QoS, NoLocal: f.NoLocal,
			RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
		})
	}
	s.e.Subscribe(c.(*listen.Conn), &req)
}

func (s sessions) Unsubscribe(c net.Conn, r hook.Request) {
	req := wire.Unsubscribe{PacketID: r.PacketID}
	for _, f := range r.Filters {
		req.Filters = append(req.Filters, []byte(f.Filter))
	}
	s.e.Unsubscribe(c.(*listen.Conn), &req)
}

func (s sessions) Disconnected(c net.Conn) error {
	conn := c.(*listen.Conn)
	reason, expiry, hasExpiry, err := wire.ParseDisconnect(conn.Control(), conn.Version())
	if err == nil {
		err = s.e.Disconnected(conn, reason, expiry, hasExpiry)
	}
	if err != nil {
		s.Refuse(c, wire.ReasonProtocol)
	}
	return err
}

func (s sessions) Refuse(c net.Conn, reason byte) {
	conn := c.(*listen.Conn)
	conn.CloseAfter(nil, wire.AppendDisconnect(nil, conn.Version(), reason, "", ""))
}

// handler gives the listeners the engine.
type handler struct{ e *engine.Engine }

var _ listen.Handler = handler{}

func (h handler) Data(c *listen.Conn, w *listen.Worker, frames []byte) { h.e.Data(c, w, frames) }

func (h handler) Malformed(c *listen.Conn, w *listen.Worker, err *wire.Error) {
	h.e.Malformed(c, w, err)
}

func (h handler) Timeout(c *listen.Conn, w *listen.Worker) { h.e.Timeout(c, w) }

func (h handler) Drained(c *listen.Conn, w *listen.Worker) { h.e.Drained(c, w) }

func (h handler) Closed(c *listen.Conn) { h.e.Closed(c) }
