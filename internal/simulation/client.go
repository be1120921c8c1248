package simulation

import (
	"fmt"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// client is an MQTT client that keeps to the specification.
type client struct {
	// Fixed at construction.
	w       *World
	name    string
	version herald.Version
	durable bool
	expiry  uint32 // seconds, of a durable one; 0 is never
	receive int    // receive maximum
	aliases uint16 // topic alias maximum
	will    *willSpec

	// The connection.
	conn     *conn
	up       bool // CONNACK was read
	clean    bool // of the CONNECT
	fresh    bool // a clean start was not answered yet
	lasting  bool // the session outlives the connection
	leaving  bool // DISCONNECT is under way
	began    time.Time
	quit     time.Time // when DISCONNECT was carried; zero: it was not
	net      []sent    // written, not carried yet
	owed     []sent    // answers to what was read
	unacked  []*arrival
	aliasOf  map[uint16]string
	quota    int // PUBLISHes sent over this connection and not acknowledged
	acks     [3][]uint16
	ghosts   []*conn // connections that are gone, which the broker does not know yet
	armed    *will   // of this connection
	pendingW []*will // of earlier ones, undecided

	// The session, as the client keeps it.
	gen     *generation
	pid     uint16
	out     []*outbound
	held    map[uint16]*message
	subs    map[string]*subscription
	asked   map[uint16]*request
	present presence
}

// outbound is a publish that is not acknowledged.
type outbound struct {
	m        *message
	pid      uint16
	released bool
	counted  bool // in quota
}

// subscription is one that the client asked for.
type subscription struct {
	filter string
	qos    byte
	active bool // SUBACK came, and no UNSUBSCRIBE was sent
	ever   bool
}

// request is a SUBSCRIBE or UNSUBSCRIBE that was not answered.
type request struct {
	sub   *subscription
	leave bool
	// retained is what must come: the newest retained message per topic.
	retained []*message
}

// sent is a packet on its way to the broker.
type sent struct {
	kind       byte
	pid        uint16
	data       []byte
	m          *message
	a          *arrival
	sub        *wire.Subscribe
	unsub      *wire.Unsubscribe
	disconnect bool
}

// presence is what the client knows of its session at the broker.
type presence struct {
	known  bool // CONNACK told, and nothing has happened since that may change it
	exists bool
	lasts  bool      // the session outlives the connection
	left   time.Time // when the connection ended at the earliest; zero: it has not
	noted  time.Time // when the broker noted it at the latest; zero: it has not
}

// connect opens a connection. One that there is stays with the broker until it
// notes that it is gone.
func (c *client) connect(clean bool) {
	w := c.w
	c.lose(false)
	// The session may have expired, and another begun with a connection that was
	// not answered: then the client's state belongs to neither.
	k := c.present
	lost := c.expiry > 0 && !k.known && !w.now().Before(k.left.Add(time.Duration(c.expiry)*time.Second))
	if clean = clean || c.fresh || lost; clean {
		// Whatever is left of the session is given up, and a clean start repeated
		// until it is answered: else the two sides might mean different sessions.
		c.newSession()
		c.fresh = true
	}
	w.ledger.decide(c)
	con := &wire.Connect{Version: c.version, ClientID: []byte(c.name), Clean: clean}
	expiry := c.expiry
	if c.durable && expiry == 0 {
		expiry = 1<<32 - 1
	}
	if !c.durable {
		expiry = 0
	}
	if c.version == herald.V5 {
		con.Properties = connectProperties(expiry, uint16(c.receive), c.aliases)
	}
	c.clean, c.lasting = clean, c.durable && (c.version == herald.V5 || !clean)
	c.armed = nil
	if c.will != nil {
		c.armed = w.ledger.newWill(c)
		con.HasWill, con.WillTopic, con.WillPayload = true, []byte(c.armed.m.topic), []byte(c.armed.m.payload)
		con.WillQoS, con.WillDelay = c.armed.m.qos, c.armed.delay
	}
	c.leaving, c.began, c.quit = false, w.now(), time.Time{}
	c.aliasOf = map[uint16]string{}
	c.quota, c.acks = 0, [3][]uint16{}
	c.conn = newConn(w.engine, c.name, wire.AppendConnect(nil, con), w.bound)
}

// lose is the end of the connection as the client sees it. noted: the broker
// has seen it, too.
func (c *client) lose(noted bool) {
	if c.conn == nil {
		return
	}
	w := c.w
	if noted {
		c.conn.hangUp()
	}
	c.ghosts = append(c.ghosts, c.conn)
	if !c.up { // whether it was connected nobody knows
		c.present.known = false
		if c.armed != nil {
			c.armed.unsure = true
		}
		for _, w := range c.pendingW { // this one may have been in time to cancel them
			w.unsure = w.unsure || !w.late
		}
	}
	if c.armed != nil {
		c.armed.left = w.now()
		c.armed.leftClean = c.leaving
		c.pendingW = append(c.pendingW, c.armed)
		c.armed = nil
	}
	if c.present.known {
		c.present.left, c.present.noted = w.now(), time.Time{}
		if !c.quit.IsZero() {
			c.present.left = c.quit
		}
	}
	c.conn, c.up = nil, false
	c.net, c.owed, c.unacked = nil, nil, nil
	c.asked = map[uint16]*request{}
	for _, o := range c.out {
		o.counted = false
	}
	if !c.lasting {
		c.newSession()
	}
}

// note is called when the broker knows of no connection of the client any more.
func (c *client) note() {
	if c.present.noted.IsZero() {
		c.present.noted = c.w.now()
	}
}

// carry takes up to n packets to the broker, consecutive data packets as one.
func (c *client) carry(n int) {
	n = min(n, len(c.net))
	var data []byte
	var acked []*arrival
	bring := func() {
		if data != nil {
			gen, epoch, done := c.gen, c.w.epoch, acked
			c.conn.bring(input{data: data, after: func() {
				for _, a := range done {
					gen.done(a, epoch)
				}
			}})
		}
		data, acked = nil, nil
	}
	for _, s := range c.net[:n] {
		if s.data == nil {
			bring()
		}
		switch {
		case s.sub != nil:
			c.conn.bring(input{subscribe: s.sub})
		case s.unsub != nil:
			c.conn.bring(input{unsubscribe: s.unsub})
		case s.disconnect:
			c.quit = c.w.now()
			will, store := c.armed, c.w.store
			c.conn.bring(input{disconnect: &leave{}, after: func() {
				if will != nil && store.Health() == nil {
					will.forbidden = "its client has disconnected"
				}
			}})
		default:
			data = append(data, s.data...)
		}
		if s.kind == wire.TypePublish {
			s.m.handed++
		}
		if s.a != nil && s.kind != wire.TypePubrec {
			c.unacked = slices.DeleteFunc(c.unacked, func(a *arrival) bool { return a == s.a })
			acked = append(acked, s.a)
		}
	}
	bring()
	c.net = c.net[n:]
}

// answer sends the n oldest of the answers that are owed.
func (c *client) answer(n int) {
	n = min(n, len(c.owed))
	c.net = append(c.net, c.owed[:n]...)
	c.owed = slices.Clone(c.owed[n:])
}

// newPid returns a packet id that the client does not use. They come round
// soon.
func (c *client) newPid() uint16 {
	for {
		c.pid = c.pid%64 + 1
		if c.asked[c.pid] == nil && !slices.ContainsFunc(c.out, func(o *outbound) bool { return o.pid == c.pid }) {
			return c.pid
		}
	}
}

// room is how many more messages the client may publish.
func (c *client) room() int { return min(c.w.receive-c.quota, 40-len(c.out)) }

// publish sends a message.
func (c *client) publish(m *message) {
	if m.qos == 0 {
		c.net = append(c.net, sent{kind: wire.TypePublish, m: m, data: c.encode(m, 0, false)})
		c.w.ledger.published(m)
		return
	}
	o := &outbound{m: m, pid: c.newPid(), counted: true}
	c.quota++
	c.out = append(c.out, o)
	c.w.ledger.published(m)
	c.sendPublish(o, false)
}

func (c *client) sendPublish(o *outbound, dup bool) {
	c.acks[o.m.qos] = append(c.acks[o.m.qos], o.pid)
	c.net = append(c.net, sent{kind: wire.TypePublish, m: o.m, pid: o.pid, data: c.encode(o.m, o.pid, dup)})
}

func (c *client) encode(m *message, pid uint16, dup bool) []byte {
	return wire.AppendMessage(nil, &herald.Message{Topic: m.topic, Payload: []byte(m.payload), QoS: m.qos},
		wire.Outgoing{Version: c.version, QoS: m.qos, Retain: m.retain, Dup: dup, PacketID: pid})
}

func (c *client) ack(kind byte, pid uint16) []byte {
	return wire.AppendAck(nil, c.version, kind, pid, 0)
}

// subscribe asks for a subscription.
func (c *client) subscribe(filter string, qos byte) {
	sub := c.subs[filter]
	if sub == nil {
		sub = &subscription{filter: filter}
		c.subs[filter] = sub
	}
	if sub.active {
		c.gen.cancel(filter) // what is under way may be sent either way
	}
	sub.active, sub.ever = false, true
	sub.qos = qos
	if !shared(filter) {
		for topic := range c.gen.seen {
			if matches(filter, topic) {
				delete(c.gen.seen, topic)
			}
		}
	}
	pid := c.newPid()
	c.asked[pid] = &request{sub: sub, retained: c.w.ledger.retained(filter)}
	c.net = append(c.net, sent{sub: &wire.Subscribe{PacketID: pid, Filters: []wire.SubscribeFilter{{
		Filter: []byte(filter), Shared: shared(filter), QoS: qos,
	}}}})
}

// unsubscribe ends one.
func (c *client) unsubscribe(filter string) {
	sub := c.subs[filter]
	sub.active = false
	c.gen.cancel(filter)
	pid := c.newPid()
	c.asked[pid] = &request{sub: sub, leave: true}
	c.net = append(c.net, sent{unsub: &wire.Unsubscribe{PacketID: pid, Filters: [][]byte{[]byte(filter)}}})
}

// disconnect sends DISCONNECT.
func (c *client) disconnect() {
	c.leaving = true
	c.net = append(c.net, sent{disconnect: true})
}

// read reads up to n packets.
func (c *client) read(n int) error {
	conn := c.conn
	all, err := parse(conn.read(n), c.version)
	if err != nil {
		return err
	}
	for _, p := range all {
		c.w.logf("%s reads %v", c.name, p)
		if err := c.take(p); err != nil {
			return fmt.Errorf("%s: %v: %w", c.name, p, err)
		}
		if c.conn != conn {
			return nil
		}
	}
	if len(all) == 0 && conn.closed() {
		if !c.leaving && c.w.calm(conn) {
			return fmt.Errorf("%s: the broker closed the connection", c.name)
		}
		c.lose(false)
	}
	return nil
}

// take takes a packet.
func (c *client) take(p packet) error {
	if !c.up && p.kind != wire.TypeConnack {
		return fmt.Errorf("before CONNACK")
	}
	switch p.kind {
	case wire.TypeConnack:
		return c.connack(p)
	case wire.TypePublish:
		return c.receivePublish(p)
	case wire.TypePuback, wire.TypePubrec:
		return c.acked(p)
	case wire.TypePubrel:
		delete(c.held, p.pid)
		a := c.find(func(a *arrival) bool { return a.p.pid == p.pid && a.p.qos == 2 })
		c.owed = append(c.owed, sent{kind: wire.TypePubcomp, pid: p.pid, a: a, data: c.ack(wire.TypePubcomp, p.pid)})
	case wire.TypePubcomp:
		i := slices.IndexFunc(c.out, func(o *outbound) bool { return o.pid == p.pid && o.m.qos == 2 })
		if i < 0 || !c.out[i].released {
			return fmt.Errorf("belongs to nothing")
		}
		c.finished(i)
	case wire.TypeSuback, wire.TypeUnsuback:
		r := c.asked[p.pid]
		if r == nil || r.leave != (p.kind == wire.TypeUnsuback) || c.version == herald.V5 && p.codes[0] >= 0x80 {
			return fmt.Errorf("belongs to nothing, or refuses")
		}
		delete(c.asked, p.pid)
		if !r.leave {
			if p.codes[0] != r.sub.qos {
				return fmt.Errorf("grants %d", p.codes[0])
			}
			if !slices.ContainsFunc(mapValues(c.asked), func(o *request) bool { return o.sub == r.sub }) {
				r.sub.active = true
				c.gen.expectRetained(r)
			}
		}
	case wire.TypeDisconnect:
		if c.w.calm(c.conn) && !c.leaving {
			return fmt.Errorf("for no reason")
		}
	default:
		return fmt.Errorf("a server does not send that")
	}
	return nil
}

func mapValues(m map[uint16]*request) (all []*request) {
	for _, r := range m {
		all = append(all, r)
	}
	return all
}

func (c *client) find(f func(*arrival) bool) *arrival {
	if i := slices.IndexFunc(c.unacked, f); i >= 0 {
		return c.unacked[i]
	}
	return nil
}

// connack is the start of the connection: what is under way is sent again.
func (c *client) connack(p packet) error {
	if p.reason != 0 {
		return fmt.Errorf("refused")
	}
	if err := c.checkPresent(p.present); err != nil {
		return err
	}
	c.up, c.fresh = true, false
	c.w.ledger.resumed(c, p.present)
	if !p.present {
		c.newSession()
	}
	c.present = presence{known: true, exists: true, lasts: c.lasting}
	for _, o := range c.out {
		if o.released {
			c.net = append(c.net, sent{kind: wire.TypePubrel, pid: o.pid, data: c.ack(wire.TypePubrel, o.pid)})
			continue
		}
		o.counted = true
		c.quota++
		c.sendPublish(o, true)
	}
	return nil
}

// checkPresent: a session is never forgotten, nor remembered when it has ended.
func (c *client) checkPresent(present bool) error {
	k, now := c.present, c.w.now()
	switch {
	case c.clean:
		if present {
			return fmt.Errorf("session present after a clean start") // [MQTT-3.2.2-2]
		}
	case !k.known:
	case !k.exists && present:
		return fmt.Errorf("session present, but there was none")
	case k.exists && k.lasts && !present && (c.expiry == 0 || now.Before(k.left.Add(time.Duration(c.expiry)*time.Second))):
		return fmt.Errorf("the session was forgotten")
	case k.exists && present && !k.lasts:
		return fmt.Errorf("session present, but it ended with the connection")
	case k.exists && present && c.expiry > 0 && !k.noted.IsZero() && c.began.After(k.noted.Add(time.Duration(c.expiry)*time.Second+100*time.Millisecond)):
		return fmt.Errorf("session present, but it has expired")
	}
	return nil
}

// newSession forgets what the client knew of its session [MQTT-3.2.2-4].
func (c *client) newSession() {
	if c.gen != nil {
		c.gen.end()
	}
	c.gen = c.w.ledger.generation(c)
	c.out, c.held = nil, map[uint16]*message{}
	c.subs, c.asked = map[string]*subscription{}, map[uint16]*request{}
}

// acked takes a PUBACK or PUBREC: they come in the order of the publishes
// [MQTT-4.6.0-2], [MQTT-4.6.0-3].
func (c *client) acked(p packet) error {
	qos := byte(1)
	if p.kind == wire.TypePubrec {
		qos = 2
	}
	i := slices.IndexFunc(c.out, func(o *outbound) bool { return o.pid == p.pid && o.m.qos == qos })
	if i < 0 {
		return fmt.Errorf("belongs to nothing")
	}
	if len(c.acks[qos]) == 0 || c.acks[qos][0] != p.pid {
		return fmt.Errorf("out of order, want %v", c.acks[qos])
	}
	c.acks[qos] = c.acks[qos][1:]
	o := c.out[i]
	if p.reason >= 0x80 {
		return fmt.Errorf("refused")
	}
	c.w.ledger.accepted(o.m)
	if qos == 1 {
		c.finished(i)
		return nil
	}
	if o.released {
		return fmt.Errorf("came before")
	}
	o.released = true
	c.net = append(c.net, sent{kind: wire.TypePubrel, pid: o.pid, data: c.ack(wire.TypePubrel, o.pid)})
	return nil
}

func (c *client) finished(i int) {
	if c.out[i].counted {
		c.quota--
	}
	c.out = slices.Delete(c.out, i, i+1)
}

// receivePublish takes a PUBLISH.
func (c *client) receivePublish(p packet) error {
	if p.alias != 0 {
		if p.alias > c.aliases {
			return fmt.Errorf("topic alias %d, the maximum is %d", p.alias, c.aliases) // [MQTT-3.1.2-26]
		}
		if p.topic == "" {
			p.topic = c.aliasOf[p.alias]
		}
		c.aliasOf[p.alias] = p.topic
	}
	m := c.w.ledger.find(p)
	if m == nil {
		return fmt.Errorf("nobody published that on %q", p.topic)
	}
	a := &arrival{p: p, m: m}
	if p.qos > 0 {
		if other := c.find(func(a *arrival) bool { return a.p.pid == p.pid }); other != nil {
			return fmt.Errorf("the packet id is that of %q, which is not acknowledged", other.p.payload)
		}
		c.unacked = append(c.unacked, a)
	}
	switch p.qos {
	case 1:
		c.owed = append(c.owed, sent{kind: wire.TypePuback, pid: p.pid, a: a, data: c.ack(wire.TypePuback, p.pid)})
	case 2:
		c.owed = append(c.owed, sent{kind: wire.TypePubrec, pid: p.pid, a: a, data: c.ack(wire.TypePubrec, p.pid)})
		if had, ok := c.held[p.pid]; ok { // [MQTT-4.3.3-10]
			if had != m {
				return fmt.Errorf("the packet id is that of %q, which was not released", had.payload)
			}
			if !p.dup {
				return fmt.Errorf("sent again without DUP") // [MQTT-3.3.1-1]
			}
			return nil
		}
		c.held[p.pid] = m
	}
	return c.gen.arrived(a)
}

// outstanding is how many messages the broker has under way to the client, by
// what it can know at the least.
func (c *client) outstanding() (int, error) {
	c.conn.mu.Lock()
	b := slices.Clone(c.conn.out)
	c.conn.mu.Unlock()
	all, err := parse(b, c.version)
	n := len(c.unacked)
	for _, p := range all {
		if p.kind == wire.TypePublish && p.qos > 0 {
			n++
		}
	}
	return n, err
}
