package scenario

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

const (
	// patience is how long a packet that must come is waited for, on a machine
	// that others use too.
	patience = 10 * time.Second
	// quietTime is how long nothing must come where only silence shows that a
	// rule is kept. It comes after a fence.
	quietTime = 300 * time.Millisecond
)

// client is one connection. Its methods are for the test's goroutine.
type client struct {
	t    *testing.T
	id   string
	conn net.Conn
	// present is CONNACK's session present.
	present bool
	in      chan *packets.ControlPacket // closed at the connection's end
	ahead   []*packets.ControlPacket    // read while something else was waited for
	lastID  uint16
}

// connect options.
type option func(*packets.Connect)

func clean(c *packets.Connect) { c.CleanStart = true }

// expires sets the session expiry interval.
func expires(seconds uint32) option {
	return func(c *packets.Connect) { c.Properties.SessionExpiryInterval = &seconds }
}

// atMost sets the receive maximum.
func atMost(n uint16) option {
	return func(c *packets.Connect) { c.Properties.ReceiveMaximum = &n }
}

// will leaves a will at QoS 1, delayed by so many seconds.
func will(topic, payload string, delay uint32) option {
	return func(c *packets.Connect) {
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillQOS = true, topic, []byte(payload), 1
		c.WillProperties = &packets.Properties{WillDelayInterval: &delay}
	}
}

// attempt connects to a node and returns CONNACK's reason.
func attempt(t *testing.T, node int, id string, opts ...option) (*client, byte, error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", box.Nodes[node%len(box.Nodes)].Addr, patience)
	if err != nil {
		return nil, 0, err
	}
	t.Cleanup(func() { conn.Close() })
	p := packets.NewControlPacket(packets.CONNECT)
	content := p.Content.(*packets.Connect)
	content.ClientID, content.KeepAlive = id, 60
	expires(3600)(content)
	for _, o := range opts {
		o(content)
	}
	if _, err := p.WriteTo(conn); err != nil {
		return nil, 0, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(2 * patience))
	ack, err := packets.ReadPacket(conn)
	if err != nil {
		conn.Close()
		return nil, 0, err
	}
	connack, ok := ack.Content.(*packets.Connack)
	if !ok {
		t.Fatalf("%s got %v, want CONNACK", id, ack)
	}
	_ = conn.SetReadDeadline(time.Time{})
	c := &client{t: t, id: id, conn: conn, present: connack.SessionPresent, in: make(chan *packets.ControlPacket, 10_000)}
	if connack.ReasonCode != 0 {
		conn.Close()
		return nil, connack.ReasonCode, nil
	}
	go func() {
		defer close(c.in)
		for {
			p, err := packets.ReadPacket(conn)
			if err != nil {
				return
			}
			c.in <- p
		}
	}()
	return c, 0, nil
}

// connect connects to a node and demands to be accepted at once. A durable
// session is the default.
func connect(t *testing.T, node int, id string, opts ...option) *client {
	t.Helper()
	c, reason, err := attempt(t, node, id, opts...)
	if err != nil || reason != 0 {
		t.Fatalf("%s at node %d: CONNACK %#02x, %v", id, node, reason, err)
	}
	return c
}

// returns connects like a client that is refused while its session cannot be had
// yet, and tries again.
func returns(t *testing.T, node int, id string, opts ...option) *client {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, reason, err := attempt(t, node, id, opts...)
		if c != nil {
			return c
		}
		if time.Now().After(end) || err == nil && !slices.Contains([]byte{0x88, 0x89, 0x8B}, reason) {
			t.Fatalf("%s at node %d: CONNACK %#02x, %v", id, node, reason, err)
		}
	}
}

// wantPresent demands what CONNACK said of the session.
func (c *client) wantPresent(want bool) *client {
	c.t.Helper()
	if c.present != want {
		c.t.Fatalf("%s: session present %t, want %t", c.id, c.present, want)
	}
	return c
}

func (c *client) send(p *packets.ControlPacket) {
	c.t.Helper()
	_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := p.WriteTo(c.conn); err != nil {
		c.t.Fatalf("%s: sending: %v", c.id, err)
	}
}

func (c *client) ack(kind byte, id uint16) {
	c.t.Helper()
	p := packets.NewControlPacket(kind)
	switch content := p.Content.(type) {
	case *packets.Puback:
		content.PacketID = id
	case *packets.Pubrec:
		content.PacketID = id
	case *packets.Pubrel:
		content.PacketID = id
	case *packets.Pubcomp:
		content.PacketID = id
	}
	c.send(p)
}

func (c *client) newID() uint16 { c.lastID++; return c.lastID }

// next is the next packet; none in time, or a closed connection, fails the test.
func (c *client) next() *packets.ControlPacket {
	c.t.Helper()
	if len(c.ahead) > 0 {
		p := c.ahead[0]
		c.ahead = c.ahead[1:]
		return p
	}
	select {
	case p, ok := <-c.in:
		if !ok {
			c.t.Fatalf("%s: the connection is closed", c.id)
		}
		return p
	case <-time.After(patience):
		c.t.Fatalf("%s: nothing comes", c.id)
	}
	return nil
}

// await is the next packet of a kind; others stay for later, in their order.
func (c *client) await(kind byte) *packets.ControlPacket {
	c.t.Helper()
	var others []*packets.ControlPacket
	for {
		p := c.next()
		if p.Type == kind {
			c.ahead = append(others, c.ahead...)
			return p
		}
		others = append(others, p)
	}
}

// acked waits for an answer to a packet id and returns its reason.
func (c *client) acked(kind byte, id uint16) byte {
	c.t.Helper()
	p := c.await(kind)
	if p.PacketID() != id {
		c.t.Fatalf("%s got %v, want packet id %d", c.id, p, id)
	}
	switch content := p.Content.(type) {
	case *packets.Puback:
		return content.ReasonCode
	case *packets.Pubrec:
		return content.ReasonCode
	case *packets.Pubcomp:
		return content.ReasonCode
	}
	return 0
}

// subscribe subscribes at a QoS and demands that it is granted.
func (c *client) subscribe(filter string, qos byte) {
	c.t.Helper()
	c.subscribeWith(packets.SubOptions{Topic: filter, QoS: qos})
}

func (c *client) subscribeWith(o packets.SubOptions) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.SUBSCRIBE)
	content := p.Content.(*packets.Subscribe)
	content.PacketID, content.Subscriptions = c.newID(), []packets.SubOptions{o}
	c.send(p)
	ack := c.await(packets.SUBACK).Content.(*packets.Suback)
	if ack.PacketID != content.PacketID || len(ack.Reasons) != 1 || ack.Reasons[0] != o.QoS {
		c.t.Fatalf("%s: SUBACK %v for %v", c.id, ack, o)
	}
}

func (c *client) unsubscribe(filter string) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.UNSUBSCRIBE)
	content := p.Content.(*packets.Unsubscribe)
	content.PacketID, content.Topics = c.newID(), []string{filter}
	c.send(p)
	if got := c.await(packets.UNSUBACK).PacketID(); got != content.PacketID {
		c.t.Fatalf("%s: UNSUBACK for %d, want %d", c.id, got, content.PacketID)
	}
}

// message makes a PUBLISH.
func message(topic, payload string, qos byte) *packets.Publish {
	return &packets.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, Properties: &packets.Properties{}}
}

// post sends a PUBLISH and waits for nothing.
func (c *client) post(m *packets.Publish) {
	c.t.Helper()
	if m.QoS > 0 && m.PacketID == 0 {
		m.PacketID = c.newID()
	}
	c.send(m.ToControlPacket())
}

// publish publishes and waits until all is answered.
func (c *client) publish(topic, payload string, qos byte) {
	c.t.Helper()
	c.publishMessage(message(topic, payload, qos))
}

func (c *client) publishMessage(m *packets.Publish) {
	c.t.Helper()
	c.post(m)
	switch m.QoS {
	case 1:
		if r := c.acked(packets.PUBACK, m.PacketID); r >= 0x80 {
			c.t.Fatalf("%s: PUBACK %#02x", c.id, r)
		}
	case 2:
		if r := c.acked(packets.PUBREC, m.PacketID); r >= 0x80 {
			c.t.Fatalf("%s: PUBREC %#02x", c.id, r)
		}
		c.ack(packets.PUBREL, m.PacketID)
		if r := c.acked(packets.PUBCOMP, m.PacketID); r != 0 {
			c.t.Fatalf("%s: PUBCOMP %#02x", c.id, r)
		}
	}
}

// message is the next PUBLISH, not acknowledged.
func (c *client) message() *packets.Publish {
	c.t.Helper()
	return c.await(packets.PUBLISH).Content.(*packets.Publish)
}

// take is the next PUBLISH, acknowledged all the way.
func (c *client) take() *packets.Publish {
	c.t.Helper()
	m := c.message()
	switch m.QoS {
	case 1:
		c.ack(packets.PUBACK, m.PacketID)
	case 2:
		c.ack(packets.PUBREC, m.PacketID)
		c.acked(packets.PUBREL, m.PacketID)
		c.ack(packets.PUBCOMP, m.PacketID)
	}
	return m
}

// takes demands these payloads, in this order.
func (c *client) takes(want ...string) {
	c.t.Helper()
	for _, w := range want {
		if m := c.take(); string(m.Payload) != w {
			c.t.Fatalf("%s got %q on %s, want %q", c.id, m.Payload, m.Topic, w)
		}
	}
}

// ping waits for PINGRESP.
func (c *client) ping() {
	c.t.Helper()
	c.send(packets.NewControlPacket(packets.PINGREQ))
	c.await(packets.PINGRESP)
}

// quiet demands that no PUBLISH has come or comes for a while.
func (c *client) quiet() {
	c.t.Helper()
	c.ping()
	c.quietFor(quietTime)
}

func (c *client) quietFor(d time.Duration) {
	c.t.Helper()
	if len(c.ahead) > 0 {
		c.t.Fatalf("%s got %v, want nothing", c.id, c.ahead[0])
	}
	select {
	case p, ok := <-c.in:
		if !ok {
			c.t.Fatalf("%s: the connection is closed", c.id)
		}
		c.t.Fatalf("%s got %v, want nothing", c.id, p)
	case <-time.After(d):
	}
}

// disconnected demands DISCONNECT with a reason and a closed connection.
func (c *client) disconnected(reason byte) {
	c.t.Helper()
	if got := c.await(packets.DISCONNECT).Content.(*packets.Disconnect).ReasonCode; got != reason {
		c.t.Fatalf("%s: DISCONNECT %#02x, want %#02x", c.id, got, reason)
	}
	select {
	case p, ok := <-c.in:
		if ok {
			c.t.Fatalf("%s got %v after DISCONNECT", c.id, p)
		}
	case <-time.After(patience):
		c.t.Fatalf("%s: the connection stays open after DISCONNECT", c.id)
	}
}

// drop breaks the connection.
func (c *client) drop() {
	c.t.Helper()
	c.conn.Close()
	c.drained()
}

// leave sends DISCONNECT and waits until the node has closed the connection.
func (c *client) leave() {
	c.t.Helper()
	c.send(packets.NewControlPacket(packets.DISCONNECT))
	c.drained()
	c.conn.Close()
}

func (c *client) drained() {
	c.t.Helper()
	for end := time.After(patience); ; {
		select {
		case _, ok := <-c.in:
			if !ok {
				return
			}
		case <-end:
			c.t.Fatalf("%s: the connection stays open", c.id)
		}
	}
}

// numbers are the payloads "0" to "n-1".
func numbers(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(i)
	}
	return out
}
