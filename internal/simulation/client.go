package simulation

import (
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
	// ghost: a CONNECT that asked for a lasting session was never answered. On a
	// store whose writes may land late, such a session may appear at any time.
	ghost bool
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
	early, _ := w.slack()
	lost := c.expiry > 0 && !k.known && !w.now().Before(k.left.Add(time.Duration(c.expiry)*time.Second-early))
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
	c.conn = w.dial(c.name, wire.AppendConnect(nil, con))
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
		c.ghost = c.ghost || c.lasting
		if c.armed != nil {
			c.armed.unsure = true
		}
		for _, w := range c.pendingW { // this one may have been in time to cancel them
			w.unsure = w.unsure || !w.late
		}
	}
	if c.armed != nil {
		c.armed.left = w.ended(c.conn)
		c.armed.leftClean = c.leaving
		c.pendingW = append(c.pendingW, c.armed)
		c.armed = nil
	}
	if c.present.known {
		c.present.left, c.present.noted = w.ended(c.conn), time.Time{}
		if !c.quit.IsZero() && c.quit.Before(c.present.left) { // its node may have been dead by then
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
			will, healthy := c.armed, c.w.healthy(c.conn)
			c.conn.bring(input{disconnect: &leave{}, after: func() {
				if will != nil && healthy() {
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
				if m := c.gen.want[topic]; m != nil && c.gen.seen[topic] >= m.seq {
					delete(c.gen.want, topic) // it has come
				}
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
