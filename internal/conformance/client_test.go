package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

const (
	// patience is how long a packet that must come is waited for.
	patience = 20 * time.Second
	// quietTime is how long nothing must come where only silence shows that a
	// rule is kept. It comes after a fence, a packet that must arrive first.
	quietTime = 150 * time.Millisecond
)

// T is one case under one version of the protocol.
type T struct {
	*testing.T
	v      Version
	prefix string // unique to this case in this and other runs
	count  int
}

// topic is a topic name of this case's own.
func (t *T) topic(s string) string { return "conf/" + t.prefix + "/" + s }

// id is a new client id: 1 to 23 digits and letters.
func (t *T) id() string {
	t.count++
	return fmt.Sprintf("%sc%d", t.prefix, t.count)
}

// client is a connection to the broker. It sends what it is told and shows
// every packet that comes back; nothing is answered by itself.
type client struct {
	t      *T
	v      Version
	id     string
	conn   net.Conn
	in     *bufio.Reader
	hello  answer  // CONNACK
	ahead  []frame // read while something else was waited for; come first
	lastID uint16
}

// dial opens a connection and sends nothing.
func (t *T) dial() *client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", broker.addr, patience)
	if err != nil {
		t.Fatalf("the broker does not accept a connection: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, v: t.v, conn: conn, in: bufio.NewReader(conn)}
}

// open connects and returns the CONNACK, whatever it says.
func (t *T) open(o connect) (*client, answer) {
	t.Helper()
	c := t.dial()
	c.id = o.id
	c.send(o.bytes(t.v))
	c.hello = c.answer(tConnack)
	return c, c.hello
}

// client connects and demands to be accepted. A client id is made up where o
// has none.
func (t *T) client(o connect) *client {
	t.Helper()
	if o.id == "" {
		o.id = t.id()
	}
	c, hello := t.open(o)
	if hello.reason != 0 {
		t.Fatalf("CONNACK 0x%02x, want 0x00", hello.reason)
	}
	return c
}

// anyone is a client with a session that ends with its connection.
func (t *T) anyone() *client { t.Helper(); return t.client(connect{}) }

// subscriber is anyone with subscriptions.
func (t *T) subscriber(filters ...filter) *client {
	t.Helper()
	c := t.anyone()
	c.subscribe(filters...)
	return c
}

func (c *client) send(parts ...[]byte) {
	c.t.Helper()
	c.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.conn.Write(join(parts...)); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
}

// read reads one packet until the deadline.
func (c *client) read(wait time.Duration) (frame, error) {
	if len(c.ahead) > 0 {
		f := c.ahead[0]
		c.ahead = c.ahead[1:]
		return f, nil
	}
	c.conn.SetReadDeadline(time.Now().Add(wait))
	if _, err := c.in.Peek(1); err != nil {
		return frame{}, err
	}
	// The rest of a packet that has begun has time.
	c.conn.SetReadDeadline(time.Now().Add(patience))
	first, _ := c.in.ReadByte()
	n := 0
	for i := 0; ; i++ {
		b, err := c.in.ReadByte()
		if err != nil {
			return frame{}, fmt.Errorf("in the middle of a packet: %w", err)
		}
		n |= int(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			break
		}
		if i == 3 {
			return frame{}, errors.New("the remaining length does not end")
		}
	}
	f := frame{first, make([]byte, n)}
	if _, err := io.ReadFull(c.in, f.body); err != nil {
		return f, fmt.Errorf("in the middle of a packet: %w", err)
	}
	return f, nil
}

// next is the next packet; none in time, or a closed connection, fails the case.
func (c *client) next() frame {
	c.t.Helper()
	f, err := c.read(patience)
	if err != nil {
		c.t.Fatalf("waiting for a packet: %v", err)
	}
	return f
}

func (c *client) decode(f frame) (answer, publish) {
	c.t.Helper()
	a, p, err := decode(c.v, f)
	if err != nil {
		c.t.Fatalf("%v: %v", f, err)
	}
	return a, p
}

// answer is the next packet, which must be of a kind that is not PUBLISH.
func (c *client) answer(kind byte) answer {
	c.t.Helper()
	f := c.next()
	a, _ := c.decode(f)
	if a.kind != kind {
		c.t.Fatalf("got %v, want a packet of type %d", f, kind)
	}
	return a
}

// acked is the next packet, which must be of a kind and have a packet id.
func (c *client) acked(kind byte, id uint16) answer {
	c.t.Helper()
	a := c.answer(kind)
	if a.id != id {
		c.t.Fatalf("packet id %d in an answer of type %d to packet id %d", a.id, kind, id)
	}
	return a
}

// message is the next packet, which must be a PUBLISH. It is not acknowledged.
func (c *client) message() publish {
	c.t.Helper()
	f := c.next()
	if f.kind() != tPublish {
		c.t.Fatalf("got %v, want PUBLISH", f)
	}
	_, p := c.decode(f)
	return p
}

// settle acknowledges a message all the way. Other messages that come before
// the PUBREL are kept for later.
func (c *client) settle(p publish) {
	c.t.Helper()
	switch p.qos {
	case 1:
		c.send(ack(tPuback, p.id))
	case 2:
		c.send(ack(tPubrec, p.id))
		var later []frame
		for {
			f := c.next()
			if f.kind() == tPublish {
				later = append(later, f)
				continue
			}
			if a, _ := c.decode(f); a.kind != tPubrel || a.id != p.id {
				c.t.Fatalf("got %v, want PUBREL for packet id %d", f, p.id)
			}
			break
		}
		c.ahead = append(later, c.ahead...)
		c.send(ack(tPubcomp, p.id))
	}
}

// take is the next message, acknowledged all the way.
func (c *client) take() publish {
	c.t.Helper()
	p := c.message()
	c.settle(p)
	return p
}

// takePayloads takes messages and demands these payloads, in this order.
func (c *client) takePayloads(want ...string) {
	c.t.Helper()
	for _, w := range want {
		if p := c.take(); p.payload != w {
			c.t.Fatalf("payload %q on %q, want %q", p.payload, p.topic, w)
		}
	}
}

// collect takes n messages and acknowledges each as soon as it comes, so that
// handshakes may overlap. It returns when all of them are through.
func (c *client) collect(n int) []publish {
	c.t.Helper()
	var out []publish
	for open := 0; len(out) < n || open > 0; {
		f := c.next()
		a, p := c.decode(f)
		switch f.kind() {
		case tPublish:
			out = append(out, p)
			switch p.qos {
			case 1:
				c.send(ack(tPuback, p.id))
			case 2:
				c.send(ack(tPubrec, p.id))
				open++
			}
		case tPubrel:
			c.send(ack(tPubcomp, a.id))
			open--
		default:
			c.t.Fatalf("got %v, want PUBLISH or PUBREL", f)
		}
	}
	return out
}

func (c *client) newID() uint16 { c.lastID++; return c.lastID }

// subscribe subscribes and demands that each filter is granted what it asks.
func (c *client) subscribe(filters ...filter) { c.t.Helper(); c.subscribeWith(nil, filters...) }

// subscribeID subscribes with a subscription identifier (MQTT 5 only).
func (c *client) subscribeID(n int, filters ...filter) {
	c.t.Helper()
	c.subscribeWith([][]byte{propVar(pSubscriptionID, n)}, filters...)
}

func (c *client) subscribeWith(props [][]byte, filters ...filter) {
	c.t.Helper()
	id := c.newID()
	c.send(subscribe(c.v, id, props, filters...))
	a := c.acked(tSuback, id)
	if len(a.codes) != len(filters) {
		c.t.Fatalf("%d codes in SUBACK for %d filters", len(a.codes), len(filters))
	}
	for i, f := range filters {
		if a.codes[i] != f.opts&3 {
			c.t.Fatalf("SUBACK 0x%02x for %q, want 0x%02x", a.codes[i], f.filter, f.opts&3)
		}
	}
}

// publish publishes and waits for every acknowledgement. No other packet may
// come meanwhile. It returns the reason code of PUBACK or PUBREC.
func (c *client) publish(p publish) byte {
	c.t.Helper()
	if p.qos > 0 && p.id == 0 {
		p.id = c.newID()
	}
	c.send(p.bytes(c.v))
	switch p.qos {
	case 1:
		return c.acked(tPuback, p.id).reason
	case 2:
		reason := c.acked(tPubrec, p.id).reason
		if reason >= 0x80 {
			return reason
		}
		c.send(ack(tPubrel, p.id))
		if a := c.acked(tPubcomp, p.id); a.reason != 0 {
			c.t.Fatalf("PUBCOMP 0x%02x", a.reason)
		}
		return reason
	}
	if p.retain {
		c.fence() // storing takes its time
	} else {
		c.ping() // the broker has read it
	}
	return 0
}

// fence publishes something that nobody waits for at QoS 1: when it is
// acknowledged, all that c published before has been stored.
func (c *client) fence() {
	c.t.Helper()
	c.publish(publish{topic: "conf-fence/" + c.t.prefix, qos: 1})
}

// ping sends PINGREQ; PINGRESP must be the next packet.
func (c *client) ping() {
	c.t.Helper()
	c.send(pingreq)
	c.answer(tPingresp)
}

// quiet demands that nothing comes for a while and the connection stays open.
func (c *client) quiet() {
	c.t.Helper()
	f, err := c.read(quietTime)
	if err == nil {
		c.t.Fatalf("got %v, want nothing", f)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("waiting for nothing: %v", err)
	}
}

// silent demands that no message has come or comes, with a PINGREQ as fence.
func (c *client) silent() { c.t.Helper(); c.ping(); c.quiet() }

// gone tells whether a read error means that the other side has closed.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// closed demands that the broker closes the connection and sends nothing more.
func (c *client) closed() {
	c.t.Helper()
	c.closedWithin(patience)
}

func (c *client) closedWithin(d time.Duration) {
	c.t.Helper()
	f, err := c.read(d)
	if err == nil {
		c.t.Fatalf("got %v, want a closed connection", f)
	}
	if !gone(err) {
		c.t.Fatalf("waiting for the broker to close the connection: %v", err)
	}
}

// refused demands what the specification asks for after a bad packet: in
// MQTT 5 a DISCONNECT with one of these reasons (0x81 or 0x82 where none is
// given), in 3.1.1 nothing; then a closed connection.
func (c *client) refused(codes ...byte) {
	c.t.Helper()
	if len(codes) == 0 {
		codes = []byte{0x81, 0x82}
	}
	if c.v == V5 {
		if a := c.answer(tDisconnect); !slices.Contains(codes, a.reason) {
			c.t.Errorf("DISCONNECT 0x%02x, want one of [% x]", a.reason, codes)
		}
	}
	c.closed()
}

// unwelcome demands what follows a bad CONNECT: a CONNACK with one of these
// codes or none at all, never another packet; then a closed connection.
func (c *client) unwelcome(codes ...byte) {
	c.t.Helper()
	f, err := c.read(patience)
	if err != nil {
		if !gone(err) {
			c.t.Fatalf("waiting for the broker to close the connection: %v", err)
		}
		return
	}
	if f.first == tConnack<<4 && string(f.body) == "\x00\x01" && slices.Contains(codes, 0x01) {
		// The form of 3.1.1 where the protocol itself was not understood.
		c.closed()
		return
	}
	a, _ := c.decode(f)
	if a.kind != tConnack || a.present || !slices.Contains(codes, a.reason) {
		c.t.Fatalf("got %v, want CONNACK with one of [% x], or a closed connection", f, codes)
	}
	c.closed()
}

// drop ends the connection without DISCONNECT.
func (c *client) drop() { c.conn.Close() }

// leave sends DISCONNECT and waits for the broker to close. Messages that were
// on their way are thrown away.
func (c *client) leave() {
	c.t.Helper()
	c.send(disconnect)
	for {
		f, err := c.read(patience)
		if gone(err) {
			return
		}
		if err != nil || f.kind() != tPublish {
			c.t.Fatalf("after DISCONNECT: got %v, %v, want a closed connection", f, err)
		}
	}
}

// stillServes demands that the broker serves other clients as before.
func (t *T) stillServes() {
	t.Helper()
	topic := t.topic("still/serves")
	sub, pub := t.subscriber(filter{topic, 1}), t.anyone()
	pub.publish(publish{topic: topic, payload: "alive", qos: 1})
	sub.takePayloads("alive")
}
