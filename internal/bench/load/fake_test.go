//go:build linux

package load

import (
	"encoding/binary"
	"net"
	"sync"
	"testing"
)

// fault changes what the fake broker does to the n-th message (from 0) that it
// delivers, counted over all subscribers: how many copies it sends.
type fault func(n int) (copies int, swapWithNext bool)

// fakeReceiveMaximum is less than the windows of the tests.
const fakeReceiveMaximum = 7

// fakeBroker is a broker for tests: exact topics, QoS of the publisher, the
// handshakes of both sides, no sessions.
type fakeBroker struct {
	t     *testing.T
	ln    net.Listener
	fault fault

	mu        sync.Mutex
	subs      map[string][]*fakeClient
	delivered int
	swapped   map[*fakeClient][]byte
	noAck     bool // publishers get no acknowledgement
	misroute  bool // topics are taken for each other
}

type fakeClient struct {
	mu      sync.Mutex
	conn    net.Conn
	v5      bool
	nextID  uint16
	awaited map[uint16]byte // identifier → packet type that must come
	open    int             // handshakes that this publisher has begun
}

func newFakeBroker(t *testing.T, f fault) *fakeBroker {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBroker{t: t, ln: ln, fault: f, subs: make(map[string][]*fakeClient), swapped: make(map[*fakeClient][]byte)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return b
}

// set changes what the broker does.
func (b *fakeBroker) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *fakeBroker) addr() string { return b.ln.Addr().String() }

func (b *fakeBroker) serve(conn net.Conn) {
	defer conn.Close()
	c := &fakeClient{conn: conn, awaited: make(map[uint16]byte)}
	var in []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return // the client, or a fault, has closed it
		}
		in = append(in, buf[:n]...)
		for {
			body, size, err := nextFrame(in)
			if err != nil {
				b.t.Errorf("fake broker: %v", err)
				return
			}
			if size == 0 {
				break
			}
			if in[0] == typeDisconnect {
				return
			}
			b.packet(c, in[0], in[body:size], in[:size])
			in = append(in[:0], in[size:]...)
		}
	}
}

func (c *fakeClient) send(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.conn.Write(p)
}

func (b *fakeBroker) packet(c *fakeClient, first byte, body, frame []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch first & 0xf0 {
	case typeConnect:
		c.v5 = body[6] == 5
		if c.v5 {
			c.send([]byte{typeConnack, 6, 0, 0, 3, 0x21, 0, fakeReceiveMaximum})
		} else {
			c.send([]byte{typeConnack, 2, 0, 0})
		}
	case typeSubscribe:
		id, rest := body[:2], body[2:]
		ack := []byte{typeSuback, 3, id[0], id[1]}
		if c.v5 {
			rest = rest[1:]
			ack[1] = 4
			ack = append(ack, 0)
		}
		n := int(binary.BigEndian.Uint16(rest))
		filter := string(rest[2 : 2+n])
		b.subs[filter] = append(b.subs[filter], c)
		c.send(append(ack, rest[2+n]))
	case typePublish:
		b.publish(c, first, body, frame)
	case typePubrel:
		if first&0xf != 2 {
			b.t.Errorf("PUBREL with flags %#x [MQTT-3.6.1-1]", first&0xf)
		}
		c.open--
		c.send(appendAck(nil, typePubcomp, binary.BigEndian.Uint16(body)))
	case typePuback, typePubrec, typePubcomp:
		id := binary.BigEndian.Uint16(body)
		if c.awaited[id] != first {
			b.t.Errorf("a subscriber sent %#x for identifier %d, due is %#x", first, id, c.awaited[id])
		}
		delete(c.awaited, id)
		if first == typePubrec {
			c.awaited[id] = typePubcomp
			c.send(appendAck(nil, typePubrel|2, id))
		}
	default:
		b.t.Errorf("fake broker: packet %#x", first)
	}
}

func (b *fakeBroker) publish(c *fakeClient, first byte, body, frame []byte) {
	protocol := byte(4)
	if c.v5 {
		protocol = 5
	}
	p, ok := parsePublish(protocol, first, body)
	if !ok {
		b.t.Error("fake broker: malformed PUBLISH")
		return
	}
	to := b.subs[string(p.topic)]
	if b.misroute {
		for topic, subs := range b.subs {
			if topic != string(p.topic) {
				to = subs
			}
		}
	}
	for _, s := range to {
		copies, swap := 1, false
		if b.fault != nil {
			copies, swap = b.fault(b.delivered)
		}
		b.delivered++
		var out []byte
		for range copies {
			one := append([]byte(nil), frame...)
			if p.qos > 0 {
				s.nextID++
				if s.nextID == 0 {
					s.nextID = 1
				}
				binary.BigEndian.PutUint16(one[len(frame)-len(body)+2+len(p.topic):], s.nextID)
				s.awaited[s.nextID] = map[byte]byte{1: typePuback, 2: typePubrec}[p.qos]
			}
			out = append(out, one...)
		}
		if swap {
			b.swapped[s] = out
			continue
		}
		if late := b.swapped[s]; late != nil {
			out = append(out, late...)
			delete(b.swapped, s)
		}
		s.send(out)
	}
	if p.qos > 0 {
		if c.open++; c.v5 && c.open > fakeReceiveMaximum {
			b.t.Errorf("%d messages unacknowledged, the receive maximum is %d [MQTT-3.3.4-7]", c.open, fakeReceiveMaximum)
		}
	}
	if b.noAck {
		return
	}
	switch p.qos {
	case 1:
		c.open--
		c.send(appendAck(nil, typePuback, p.id))
	case 2:
		c.send(appendAck(nil, typePubrec, p.id))
	}
}
