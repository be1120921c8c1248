package checker

import (
	"bufio"
	"encoding/binary"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// toy is a correct little broker in memory, with a fault of choice. Its
// sessions survive restart, as if they were stored.
type toy struct {
	t     *testing.T
	fault toyFault

	mu       sync.Mutex // guards all below, sessions and connections included
	addr     string
	listener net.Listener
	sessions map[string]*toySession
	order    []*toySession // of creation
	conns    map[*toyConn]bool
	turn     int // of shared groups
	dealt    int // messages queued for sessions so far
	dealt2   int // of them at QoS 2
	resumed  int // sessions resumed so far
	acks     int
	heldBack func() // reorder: queues what was held back
	heldKey  string
	lost     string // lose: what it was; sent again, it is lost again
	wg       sync.WaitGroup
}

// toyFault says what the toy does wrong, once, at the n-th occasion (1 is the
// first), or always where it is a bool; zero values are right.
type toyFault struct {
	lose, reorder, duplicate2, duplicate1, corrupt, misroute, phantom, forget, swallowAck int

	forgetHeld  bool // QoS 2 identifiers are not kept after PUBREC
	forgetSent  bool // what was in flight is not sent again
	shuffleSent bool // what was in flight is sent again in reverse
	greedy      bool // ignores the receive maximum
	lateAck     bool // PUBACKs come in pairs, the second first
	lowerQoS    bool // delivers at QoS 1 what is due at QoS 2
}

type toySession struct {
	id      string
	version byte
	subs    []subscription
	subID   int
	queue   []toyMessage
	sent    []*toySent
	ids     map[uint16]bool
	lastID  uint16
	held    map[uint16]bool
	conn    *toyConn
	limit   int // receive maximum; PUBREL in flight counts too
}

type toyMessage struct {
	topic   string
	payload []byte
	qos     byte
}

type toySent struct {
	id       uint16
	m        toyMessage
	released bool
}

type toyConn struct {
	net.Conn
	version byte
	out     chan []byte
	gone    chan struct{}
	once    sync.Once
	late    []byte
}

func (c *toyConn) close() {
	c.once.Do(func() { close(c.gone) })
	c.Close()
}

// send queues a packet; a client that does not read is cut off.
func (c *toyConn) send(b []byte) {
	select {
	case c.out <- b:
	default:
		c.close()
	}
}

// toyDelay is added to everything that the toy sends, so that there is always
// something in flight.
const toyDelay = 2 * time.Millisecond

// flush writes what is queued until the connection is closed.
func (c *toyConn) flush() {
	var b []byte
	for {
		select {
		case p := <-c.out:
			b = append(b[:0], p...)
		case <-c.gone:
			return
		}
		select {
		case <-time.After(toyDelay):
		case <-c.gone:
			return
		}
		for len(c.out) > 0 {
			b = append(b, <-c.out...)
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func newToy(t *testing.T, fault toyFault) *toy {
	b := &toy{t: t, fault: fault, sessions: make(map[string]*toySession), conns: make(map[*toyConn]bool)}
	ports, err := FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	b.addr = (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: ports[0]}).String()
	b.open()
	t.Cleanup(b.shut)
	return b
}

func (b *toy) open() {
	l, err := net.Listen("tcp", b.addr)
	if err != nil {
		b.t.Error(err)
		return
	}
	b.listener = l
	b.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.serve(conn) })
		}
	})
}

// shut breaks all connections; the sessions stay.
func (b *toy) shut() {
	b.listener.Close()
	b.mu.Lock()
	for c := range b.conns {
		c.close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *toy) serve(conn net.Conn) {
	defer conn.Close()
	c := &toyConn{Conn: conn, out: make(chan []byte, 100_000), gone: make(chan struct{})}
	b.mu.Lock()
	b.conns[c] = true
	b.mu.Unlock()
	b.wg.Go(c.flush)
	r := bufio.NewReader(conn)
	var buf []byte
	var s *toySession
	for {
		f, err := readFrame(r, &buf)
		if err != nil {
			break
		}
		b.mu.Lock()
		if f.kind == typeConnect {
			s = b.connect(c, f)
		} else if s != nil && s.conn == c {
			b.packet(s, c, f)
		}
		b.mu.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.close()
	delete(b.conns, c)
	if s != nil && s.conn == c {
		s.conn = nil
	}
}

func (b *toy) connect(c *toyConn, f frame) *toySession {
	p := f.body[6:]
	c.version = p[0]
	clean := p[1]&2 != 0
	p = p[4:]
	limit := 65535
	if c.version == v5 {
		p, _ = parseProperties(p, func(id byte, n int) {
			if id == propReceiveMaximum {
				limit = n
			}
		})
	}
	id := string(p[2 : 2+binary.BigEndian.Uint16(p)])
	s := b.sessions[id]
	present := s != nil && !clean
	if present {
		if b.resumed++; b.resumed == b.fault.forget {
			present = false
		}
	}
	if s != nil && s.conn != nil {
		s.conn.close()
	}
	if !present {
		s = &toySession{id: id, ids: make(map[uint16]bool), held: make(map[uint16]bool)}
		b.sessions[id] = s
		b.order = append(b.order, s)
	}
	s.conn, s.version, s.limit = c, c.version, limit
	ack := []byte{typeConnack << 4, 2, 0, 0}
	if present {
		ack[2] = 1
	}
	if c.version == v5 {
		ack = append(ack, 0)
		ack[1] = 3
	}
	c.send(ack)
	b.resume(s)
	return s
}

func (b *toy) resume(s *toySession) {
	again := s.sent
	if b.fault.forgetSent {
		s.sent, again = nil, nil
	}
	for i := range again {
		x := again[i]
		if b.fault.shuffleSent {
			x = again[len(again)-1-i]
		}
		if x.released {
			s.conn.send(appendAck(nil, s.version, typePubrel, x.id, 0))
		} else {
			b.transmit(s, x, true)
		}
	}
	b.pump(s)
}

func (b *toy) transmit(s *toySession, x *toySent, dup bool) {
	p := publication{qos: x.m.qos, dup: dup, id: x.id, topic: []byte(x.m.topic), payload: x.m.payload}
	if s.version == v5 {
		p.subIDs = []int{s.subID}
	}
	s.conn.send(appendPublish(nil, s.version, p))
}

func (b *toy) pump(s *toySession) {
	for s.conn != nil && len(s.queue) > 0 && (len(s.sent) < s.limit || b.fault.greedy) && len(s.sent) < 60000 {
		for s.lastID++; s.lastID == 0 || s.ids[s.lastID]; s.lastID++ {
		}
		x := &toySent{id: s.lastID, m: s.queue[0]}
		s.queue = s.queue[1:]
		s.ids[x.id] = true
		s.sent = append(s.sent, x)
		b.transmit(s, x, false)
	}
}

func (b *toy) packet(s *toySession, c *toyConn, f frame) {
	switch f.kind {
	case typePublish:
		p, err := parsePublish(f, c.version)
		if err != nil {
			b.t.Errorf("client sent: %v", err)
		}
		b.published(s, c, p)
	case typeSubscribe:
		b.subscribe(s, c, f)
	case typePingreq:
		c.send([]byte{typePingresp << 4, 0})
	case typeDisconnect:
		c.close()
	default:
		id, reason, err := parseAck(f, c.version)
		if err != nil {
			b.t.Errorf("client sent: %v", err)
		}
		b.acked(s, c, f.kind, id, reason)
	}
}

func (b *toy) published(s *toySession, c *toyConn, p publication) {
	m := toyMessage{topic: string(p.topic), payload: append([]byte(nil), p.payload...), qos: p.qos}
	if p.qos == 2 {
		if !s.held[p.id] {
			b.route(m)
		}
		s.held[p.id] = !b.fault.forgetHeld
		c.send(appendAck(nil, c.version, typePubrec, p.id, 0))
		return
	}
	b.route(m)
	ack := appendAck(nil, c.version, typePuback, p.id, 0)
	switch b.acks++; {
	case b.acks == b.fault.swallowAck:
	case b.fault.lateAck && c.late == nil:
		c.late = ack
	case b.fault.lateAck:
		c.send(ack)
		c.send(c.late)
		c.late = nil
	default:
		c.send(ack)
	}
}

func (b *toy) subscribe(s *toySession, c *toyConn, f frame) {
	id, p := f.body[:2], f.body[2:]
	if c.version == v5 {
		p, _ = parseProperties(p, func(id byte, n int) { s.subID = n })
	}
	ack := append([]byte(nil), id...)
	if c.version == v5 {
		ack = append(ack, 0)
	}
	s.subs = nil
	for len(p) > 2 {
		n := int(binary.BigEndian.Uint16(p))
		s.subs = append(s.subs, subscription{string(p[2 : 2+n]), p[2+n]})
		ack = append(ack, p[2+n])
		p = p[3+n:]
	}
	c.send(appendPacket(nil, typeSuback<<4, ack))
}

// route queues a message for every session that it matches, and one member
// of each shared group (the toy knows one group).
func (b *toy) route(m toyMessage) {
	var members []*toySession
	for _, s := range b.order {
		qos, matched := byte(0), false
		for _, sub := range s.subs {
			if rest, ok := strings.CutPrefix(sub.filter, "$share/"); ok {
				if _, filter, _ := strings.Cut(rest, "/"); matches(filter, m.topic) {
					members = append(members, s)
				}
			} else if matches(sub.filter, m.topic) {
				qos, matched = max(qos, sub.qos), true
			}
		}
		if matched && b.sessions[s.id] == s {
			b.deal(s, toyMessage{m.topic, m.payload, min(qos, m.qos)})
		} else if len(s.subs) > 0 && b.fault.misroute > 0 && b.dealt >= b.fault.misroute {
			b.fault.misroute = 0
			b.deal(s, m)
		}
	}
	if len(members) > 0 {
		b.turn++
		b.deal(members[b.turn%len(members)], m)
	}
}

// deal queues a message for a session, and does wrong what it is to do wrong.
func (b *toy) deal(s *toySession, m toyMessage) {
	b.dealt++
	if m.qos == 2 {
		b.dealt2++
	}
	if b.fault.lowerQoS {
		m.qos = 1
	}
	key := s.id + m.topic + string(m.payload[2:6])
	queue := func() {
		s.queue = append(s.queue, m)
		b.pump(s)
	}
	whole := s.id + m.topic + string(m.payload)
	if b.dealt == b.fault.lose {
		b.lost = whole
	}
	if b.lost == whole {
		return
	}
	switch b.dealt {
	case b.fault.reorder:
		b.heldBack, b.heldKey = queue, key
		return
	case b.fault.duplicate1:
		m.qos = min(m.qos, 1)
		queue()
	case b.fault.corrupt:
		m.payload = append([]byte(nil), m.payload...)
		m.payload[len(m.payload)/2] ^= 0x10
	case b.fault.phantom:
		l, err := parsePayload(m.payload)
		if err != nil {
			b.t.Error(err)
		}
		l.seq += 1_000_000
		m.payload = appendPayload(nil, l, len(m.payload))
	}
	if m.qos == 2 && b.dealt2 == b.fault.duplicate2 {
		queue()
	}
	queue()
	if b.heldBack != nil && key == b.heldKey {
		held := b.heldBack
		b.heldBack = nil
		held()
	}
}

// acked takes PUBACK, PUBREC, PUBREL or PUBCOMP of a client.
func (b *toy) acked(s *toySession, c *toyConn, kind byte, id uint16, reason byte) {
	if kind == typePubrel {
		delete(s.held, id)
		c.send(appendAck(nil, c.version, typePubcomp, id, 0))
		return
	}
	for i, x := range s.sent {
		if x.id != id {
			continue
		}
		if kind == typePubrec {
			x.released = true
			c.send(appendAck(nil, c.version, typePubrel, id, 0))
			return
		}
		s.sent = append(s.sent[:i:i], s.sent[i+1:]...)
		delete(s.ids, id)
		b.pump(s)
		return
	}
	if reason == 0 && !b.fault.forgetSent {
		b.t.Errorf("%s acknowledged packet identifier %d with type %d, which was not sent", s.id, id, kind)
	}
}
