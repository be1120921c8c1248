package broker_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/wire"
)

// patience is how long something that must happen is waited for.
const patience = 20 * time.Second

// startNode runs a node on a store of its own until the test ends and returns
// its address.
func startNode(t *testing.T) string {
	t.Helper()
	addr, stop := runNode(t, t.TempDir())
	t.Cleanup(stop)
	return addr
}

// runNode runs a node on the store in dir.
func runNode(t *testing.T, dir string) (addr string, stop func()) {
	t.Helper()
	_, addr, stop = startBroker(t, dir)
	return addr, stop
}

// startBroker is runNode that returns the broker, too, when it accepts
// connections.
func startBroker(t *testing.T, dir string) (b *broker.Broker, addr string, stop func()) {
	t.Helper()
	cfg := config.Default()
	cfg.Node.Data = dir
	cfg.Listeners = []config.Listener{{Protocol: config.TCP, Address: "127.0.0.1:0"}}
	return startConfigured(t, cfg)
}

// startConfigured starts a node and returns where its first listener is.
func startConfigured(t *testing.T, cfg config.Config) (b *broker.Broker, addr string, stop func()) {
	t.Helper()
	b, err := broker.New(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	for end := time.Now().Add(patience); len(b.Ready()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not ready: ", b.Ready())
		}
	}
	_, addr, _ = strings.Cut(b.Listening()[0], " ")
	return b, addr, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("stop:", err)
		}
	}
}

// peer is a connection to a node. It sends what it is told and shows every frame
// that comes back.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// dial opens a connection and sends CONNECT, in MQTT 5 if c does not say.
func dial(t *testing.T, addr string, c wire.Connect) *peer {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if c.Version == 0 {
		c.Version = herald.V5
	}
	if c.SessionExpiry > 0 {
		c.Properties = binary.BigEndian.AppendUint32([]byte{0x11}, c.SessionExpiry)
	}
	p := &peer{t: t, conn: conn, in: bufio.NewReader(conn)}
	p.send(wire.AppendConnect(nil, &c))
	return p
}

// connect is dial that demands to be accepted.
func connect(t *testing.T, addr string, c wire.Connect) *peer {
	t.Helper()
	p := dial(t, addr, c)
	if f := p.until(wire.TypeConnack); f[1] != 0 {
		t.Fatalf("CONNACK says %#02x", f[1])
	}
	return p
}

func (p *peer) send(frames ...[]byte) {
	p.t.Helper()
	for _, f := range frames {
		if _, err := p.conn.Write(f); err != nil {
			p.t.Fatal(err)
		}
	}
}

// next returns the next frame: its first byte and what follows the length.
func (p *peer) next() (first byte, body []byte, err error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	if first, err = p.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(p.in)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(p.in, body)
	return first, body, err
}

// until reads up to the next frame of a type and returns its body.
func (p *peer) until(kind byte) []byte {
	p.t.Helper()
	for {
		first, body, err := p.next()
		if err != nil {
			p.t.Fatalf("waiting for packet type %d: %v", kind, err)
		}
		if wire.Type(first) == kind {
			return body
		}
	}
}

// subscribe is a SUBSCRIBE in MQTT 5 to one filter.
func subscribe(pid uint16, filter string, options byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, pid)
	b = binary.BigEndian.AppendUint16(append(b, 0), uint16(len(filter)))
	b = append(append(b, filter...), options)
	return append(wire.AppendUvarint([]byte{0x82}, uint32(len(b))), b...)
}

// unsubscribe is an UNSUBSCRIBE in MQTT 5 of one filter.
func unsubscribe(pid uint16, filter string) []byte {
	b := binary.BigEndian.AppendUint16(nil, pid)
	b = binary.BigEndian.AppendUint16(append(b, 0), uint16(len(filter)))
	b = append(b, filter...)
	return append(wire.AppendUvarint([]byte{0xa2}, uint32(len(b))), b...)
}

// publish is a PUBLISH in MQTT 5.
func publish(pid uint16, topic string, qos byte, retain bool, payload string) []byte {
	return wire.AppendMessage(nil, &herald.Message{Topic: topic, QoS: qos, Retain: retain, Payload: []byte(payload)},
		wire.Outgoing{Version: herald.V5, QoS: qos, Retain: retain, PacketID: pid})
}

// received takes a PUBLISH in MQTT 5 apart.
func received(first byte, body []byte) (topic string, pid uint16, payload []byte) {
	n := int(binary.BigEndian.Uint16(body))
	topic, body = string(body[2:2+n]), body[2+n:]
	if first>>1&3 > 0 {
		pid, body = binary.BigEndian.Uint16(body), body[2:]
	}
	props, k := binary.Uvarint(body)
	return topic, pid, body[k+int(props):]
}
