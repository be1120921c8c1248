package session

import (
	"bytes"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/herald-mqtt/herald"
)

// Sessions is what decides. Connections are those that the listener gave to
// mochi. Methods may block; they are called by one goroutine at a time for one
// connection.
type Sessions interface {
	// Accept looks at a CONNECT before anything else; false: it was answered and
	// the connection is being closed. keepalive is what to grant if override.
	Accept(conn net.Conn) (keepalive uint16, override, ok bool)
	// Connect claims the session of an authenticated client.
	Connect(conn net.Conn, client string) (Connack, error)
	// Established is called when CONNACK has been sent.
	Established(conn net.Conn)
	// Subscribe and Unsubscribe carry the request out and answer it.
	Subscribe(conn net.Conn, req Request)
	Unsubscribe(conn net.Conn, req Request)
	// Disconnected notes a DISCONNECT, which it reads from the connection: mochi
	// overlooks a reason without properties. An error: the client broke the
	// protocol, was told, and the connection is being closed.
	Disconnected(conn net.Conn) error
	// Refuse tells the client why its connection is closed.
	Refuse(conn net.Conn, reason byte)
}

// Connack is what goes into a CONNACK.
type Connack struct {
	SessionPresent   bool
	HasSessionExpiry bool
	SessionExpiry    uint32 // seconds
}

// Request is a SUBSCRIBE or UNSUBSCRIBE.
type Request struct {
	PacketID   uint16
	Identifier uint32 // 0: none
	Filters    []Filter
}

// Filter is one filter of a Request, with its options if it is a SUBSCRIBE.
type Filter struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// hook is mochi's hook.
type hook struct {
	mqtt.HookBase
	opts     Options
	sessions Sessions
	acks     sync.Map // net.Conn → answer, between OnSessionEstablish and CONNACK
	serial   atomic.Uint64
}

type answer struct {
	ack Connack
	err error
}

func (*hook) ID() string { return "herald-session" }

func (*hook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish,
		mqtt.OnSessionEstablished, mqtt.OnPacketRead, mqtt.OnPacketEncode,
	}, b) >= 0
}

var errRefused = errors.New("refused")

// OnConnect looks at a CONNECT before the client is authenticated.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	keepalive, override, ok := h.sessions.Accept(cl.Net.Conn)
	if !ok {
		return errRefused
	}
	if override {
		cl.State.Keepalive, cl.State.ServerKeepalive = keepalive, true // [MQTT-3.2.2-21]
	}
	return nil
}

// OnConnectAuthenticate lets everybody in: logins come with a later release.
func (*hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnACLCheck is asked by mochi for what never reaches it.
func (*hook) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// OnSessionEstablish claims the session; CONNACK follows.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	ack, err := h.sessions.Connect(cl.Net.Conn, cl.ID)
	h.acks.Store(cl.Net.Conn, answer{ack, err})
	// Who takes whose place is decided. mochi would decide again, by the order in
	// which connections get to the next line, and might end the newer one.
	cl.ID += "\x00" + strconv.FormatUint(h.serial.Add(1), 36)
	// The will is Herald's: mochi would publish it into its own, empty, index.
	cl.Properties.Will = mqtt.Will{}
}

// OnPacketEncode completes the CONNACK.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type != packets.Connack {
		return pk
	}
	v, ok := h.acks.LoadAndDelete(cl.Net.Conn)
	if !ok {
		// A refusal: the code says it all.
		pk.Properties = packets.Properties{}
		return pk
	}
	a := v.(answer)
	v5 := cl.Properties.ProtocolVersion == byte(herald.V5)
	if a.err != nil {
		pk.SessionPresent, pk.Properties = false, packets.Properties{}
		if pk.ReasonCode = packets.ErrServerUnavailable.Code; v5 {
			pk.ReasonCode = 0x88
			if errors.Is(a.err, ErrBusy) {
				pk.ReasonCode = 0x97
			}
		} else {
			pk.ReasonCode = 3 // server unavailable
		}
		return pk
	}
	// In MQTT 3.1 that byte is reserved.
	pk.SessionPresent = a.ack.SessionPresent && cl.Properties.ProtocolVersion > byte(herald.V31)
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = a.ack.SessionExpiry, a.ack.HasSessionExpiry
	pk.Properties.TopicAliasMaximum = h.opts.AliasMaximum
	pk.Properties.MaximumPacketSize = h.opts.MaxPacket
	return pk
}

// ErrBusy is returned by Connect when there are too many clients.
var ErrBusy = errors.New("too many clients")

// OnSessionEstablished starts the session, or ends a connection that could not
// claim one.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	h.acks.Delete(cl.Net.Conn) // in case CONNACK was not encoded
	h.sessions.Established(cl.Net.Conn)
}

// OnPacketRead hands on what is Herald's; mochi gets a packet that it does
// nothing with.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	switch pk.FixedHeader.Type {
	case packets.Subscribe:
		h.sessions.Subscribe(cl.Net.Conn, request(pk))
	case packets.Unsubscribe:
		h.sessions.Unsubscribe(cl.Net.Conn, request(pk))
	case packets.Disconnect:
		return pk, h.sessions.Disconnected(cl.Net.Conn)
	case packets.Auth:
		// Nobody was let in with an authentication method [MQTT-4.12.0-6].
		h.sessions.Refuse(cl.Net.Conn, packets.ErrProtocolViolation.Code)
		return pk, errRefused
	default:
		return pk, nil
	}
	return packets.Packet{ProtocolVersion: pk.ProtocolVersion, FixedHeader: packets.FixedHeader{Type: packets.Puback}}, nil
}

func request(pk packets.Packet) Request {
	r := Request{PacketID: pk.PacketID, Filters: make([]Filter, len(pk.Filters))}
	for i, f := range pk.Filters {
		r.Filters[i] = Filter{
			Filter: f.Filter, QoS: f.Qos, NoLocal: f.NoLocal,
			RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
		}
		r.Identifier = uint32(f.Identifier)
	}
	return r
}
