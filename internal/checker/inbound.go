package checker

import (
	"fmt"
	"strings"
	"time"
)

// held is an inbound QoS 2 message between PUBLISH and PUBREL.
type held struct {
	label     label
	topic     string
	connect   uint32 // connection on which it came last
	delivered bool   // method B: it went to the application at once
}

// inbound is a client session's state as a receiver; the client's mutex guards
// it. A client that does not subscribe has no filters.
type inbound struct {
	// Fixed.
	aud       *audience
	filters   []subscription
	subID     int           // subscription identifier of all of them, MQTT 5
	limit     int           // receive maximum, MQTT 5; 0: none announced
	aliasMax  uint16        // topic alias maximum announced, MQTT 5
	methodA   bool          // hand QoS 2 messages on at PUBREL, not at PUBLISH
	batch     int           // acknowledgements sent together
	delay     time.Duration // how long one may wait for others
	stall     time.Duration // pauses in reading last up to this long
	stallEach int           // and come about once in so many packets; 0: never

	subscribed bool
	pendingID  uint16 // of the SUBSCRIBE under way, 0: none
	held       map[uint16]*held

	// Of the present connection.
	acks     []byte // due, in order [MQTT-4.6.0-2]
	ackCount int
	ackSince time.Time
	ackFrees int // publishes that acks take out of flight
	quota    int
	aliases  map[uint16]string
}

// reconnected resets what belongs to a connection. Acknowledgements that were
// not sent are void: the broker sends again what they were for.
func (in *inbound) reconnected() {
	in.acks, in.ackCount, in.ackFrees = in.acks[:0], 0, 0
	in.quota = in.limit
	in.aliases = make(map[uint16]string)
	in.pendingID = 0
}

// forget drops the session's state.
func (in *inbound) forget() {
	in.held = make(map[uint16]*held)
	in.subscribed = false
}

// gather appends the acknowledgements that are due, and returns when others
// will be.
func (in *inbound) gather(b []byte, now time.Time) ([]byte, time.Time) {
	if in.ackCount == 0 {
		return b, time.Time{}
	}
	// A broker that has used up the receive maximum waits for these.
	starved := in.limit > 0 && in.quota <= 0
	if due := in.ackSince.Add(in.delay); in.ackCount < in.batch && !starved && now.Before(due) {
		return b, due
	}
	b = append(b, in.acks...)
	if in.limit > 0 {
		// Not capped: the broker may count a PUBCOMP after PUBLISH packets
		// that were sent before it.
		in.quota += in.ackFrees
	}
	in.acks, in.ackCount, in.ackFrees = in.acks[:0], 0, 0
	return b, time.Time{}
}

func (in *inbound) ack(c *client, kind byte, id uint16, reason byte, frees bool) {
	if in.ackCount == 0 {
		in.ackSince = time.Now()
	}
	in.acks = appendAck(in.acks, c.version, kind, id, reason)
	in.ackCount++
	if frees {
		in.ackFrees++
	}
}

// granted is the highest QoS of the filters that match a topic
// [MQTT-3.3.5-1]; ok is false if none does.
func (in *inbound) granted(topic string) (qos byte, ok bool) {
	for _, f := range in.filters {
		filter := f.filter
		if rest, shared := strings.CutPrefix(filter, "$share/"); shared {
			_, filter, _ = strings.Cut(rest, "/")
		}
		if matches(filter, topic) {
			qos, ok = max(qos, f.qos), true
		}
	}
	return qos, ok
}

// subscribe begins a SUBSCRIBE for all filters.
func (in *inbound) subscribe(b []byte, c *client) []byte {
	in.pendingID = c.out.newID(0)
	for _, s := range c.ledger.streams {
		if _, ok := in.granted(s.name); ok {
			in.aud.expect(s)
		}
	}
	return appendSubscribe(b, c.version, in.pendingID, in.filters, in.subID)
}

// subscribeDone makes what is published from now on due to the session.
func (in *inbound) subscribeDone(c *client) {
	in.subscribed, in.pendingID = true, 0
	for _, s := range c.ledger.streams {
		if _, ok := in.granted(s.name); ok {
			in.aud.due(s)
		}
	}
}

// published takes a PUBLISH; an error ends the connection.
func (in *inbound) published(c *client, p publication) error {
	topic := string(p.topic)
	if p.alias != 0 {
		if p.alias > in.aliasMax {
			c.ledger.protocol("%s got topic alias %d above its maximum %d [MQTT-3.3.2-10]", c.name, p.alias, in.aliasMax)
			return errProtocol
		}
		if topic == "" {
			topic = in.aliases[p.alias]
		}
		in.aliases[p.alias] = topic
	}
	if topic == "" {
		c.ledger.protocol("%s got a PUBLISH without a topic, alias %d", c.name, p.alias)
		return errProtocol
	}
	if p.retain {
		c.ledger.protocol("%s got RETAIN on %s, nothing was published so", c.name, topic)
	}
	if want, ok := in.granted(topic); ok && p.qos > want {
		c.ledger.protocol("%s got QoS %d on %s, granted %d [MQTT-3.8.4-8]", c.name, p.qos, topic, want)
	}
	in.checkIdentifiers(c, p, topic)
	if in.limit > 0 && p.qos > 0 {
		if in.quota--; in.quota < 0 {
			c.ledger.protocol("%s got more than its receive maximum %d [MQTT-3.3.4-9]", c.name, in.limit)
			in.quota = 0
		}
	}
	l, err := parsePayload(p.payload)
	if err != nil {
		c.ledger.tally(func(r *Report) {
			r.Corrupted.add("%s got %d bytes on %s at QoS %d that nobody published", c.name, len(p.payload), topic, p.qos)
		})
	} else if s := c.ledger.streams[[2]uint16{l.publisher, l.topic}]; s != nil {
		if want, ok := in.granted(topic); ok && p.qos != min(want, s.qos) {
			c.ledger.protocol("%s got QoS %d on %s, published at %d, granted %d [MQTT-3.8.4-8]", c.name, p.qos, topic, s.qos, want)
		}
	}
	if p.dup && c.connects == 1 && err == nil {
		c.ledger.protocol("%s got DUP on its first connection, %s sequence %d [MQTT-3.3.1-3]", c.name, topic, l.seq)
	}
	ar := arrival{member: c.name, label: l, topic: topic, qos: p.qos, dup: p.dup}
	switch p.qos {
	case 1:
		if err == nil {
			c.ledger.arrived(in.aud, ar)
		}
		in.ack(c, typePuback, p.id, 0, true)
	case 2:
		in.hold(c, p.id, ar, err == nil)
		in.ack(c, typePubrec, p.id, 0, false)
	default:
		c.ledger.protocol("%s got QoS 0 on %s", c.name, topic)
	}
	return nil
}

// hold takes a QoS 2 PUBLISH: a new message unless its packet identifier is
// held [MQTT-4.3.3-10].
func (in *inbound) hold(c *client, id uint16, ar arrival, valid bool) {
	if h := in.held[id]; h != nil {
		switch {
		case h.label != ar.label || h.topic != ar.topic:
			c.ledger.protocol("%s got packet identifier %d for publisher %d sequence %d while it holds it for publisher %d sequence %d",
				c.name, id, ar.label.publisher, ar.label.seq, h.label.publisher, h.label.seq)
		case h.connect == c.connects:
			c.ledger.protocol("%s got packet identifier %d twice on one connection [MQTT-4.4.0-1]", c.name, id)
		case !ar.dup:
			c.ledger.protocol("%s got packet identifier %d again without DUP [MQTT-3.3.1-1]", c.name, id)
		}
		h.connect = c.connects
		return
	}
	h := &held{label: ar.label, topic: ar.topic, connect: c.connects}
	in.held[id] = h
	if valid && !in.methodA {
		h.delivered = true
		c.ledger.arrived(in.aud, ar)
	}
	h.delivered = h.delivered || !valid
}

// released takes a PUBREL.
func (in *inbound) released(c *client, id uint16) {
	h := in.held[id]
	if h == nil {
		reason := byte(0)
		if c.version == v5 {
			reason = 0x92
		}
		in.ack(c, typePubcomp, id, reason, true)
		return
	}
	delete(in.held, id)
	if !h.delivered {
		c.ledger.arrived(in.aud, arrival{member: c.name, label: h.label, topic: h.topic, qos: 2})
	}
	in.ack(c, typePubcomp, id, 0, true)
}

// checkIdentifiers reports a PUBLISH to an MQTT 5 session that does not carry
// the identifier its subscriptions have [MQTT-3.3.4-3] [MQTT-3.3.4-4].
func (in *inbound) checkIdentifiers(c *client, p publication, topic string) {
	if c.version != v5 {
		return
	}
	for _, id := range p.subIDs {
		if id != in.subID {
			c.ledger.protocol("%s got subscription identifier %d on %s, which it never gave", c.name, id, topic)
			return
		}
	}
	if len(p.subIDs) == 0 {
		c.ledger.protocol("%s got %s without its subscription identifier [MQTT-3.3.4-3]", c.name, topic)
	}
}

// String tells what kind of receiver this is.
func (in *inbound) String() string {
	method := "B"
	if in.methodA {
		method = "A"
	}
	return fmt.Sprintf("%v, receive maximum %d, method %s, acknowledgements by %d within %v", in.filters, in.limit, method, in.batch, in.delay)
}
