package checker

import (
	"slices"
	"time"
)

// entry is one publish between PUBLISH and PUBACK or PUBCOMP.
type entry struct {
	id       uint16
	stream   *stream
	seq      uint64
	late     bool   // a later one has been answered before it
	released bool   // QoS 2: PUBREC has come, PUBREL is due
	sentOn   uint32 // number of the connection it last went out on; 0: never
}

// outbound is a client session's state as a sender; the client's mutex guards
// it.
type outbound struct {
	// Fixed.
	streams []*stream
	rate    float64 // publishes per second; 0: as fast as the window allows
	window  int     // publishes in flight at most
	size    int     // of a payload
	reuse   bool    // take the lowest free packet identifier, not the next

	inflight []*entry // in the order of publishing
	byID     map[uint16]*entry
	lastID   uint16
	turn     int // stream to publish to next
	tokens   float64
	refilled time.Time

	// Of the present connection.
	releases []uint16 // PUBREL due, in the order of PUBREC [MQTT-4.6.0-4]
	cursor   int      // entries before it have gone out on this connection
	quota    int      // the broker's receive maximum less what is in flight, MQTT 5
	limit    int
	aliases  map[*stream]uint16
	maxID    int // topic alias maximum
}

// reconnected resets what belongs to a connection.
func (o *outbound) reconnected(info connackInfo) {
	o.cursor, o.releases = 0, o.releases[:0]
	o.quota, o.limit = info.receiveMaximum, info.receiveMaximum
	o.aliases, o.maxID = make(map[*stream]uint16), info.aliasMaximum
	o.refilled = time.Now()
}

// forget drops the session's state, as a client must when the broker has none.
func (o *outbound) forget() {
	o.inflight, o.byID = nil, make(map[uint16]*entry)
}

// newID takes a packet identifier that is not in use.
func (o *outbound) newID(taken uint16) uint16 {
	if o.reuse {
		o.lastID = 0
	}
	for {
		if o.lastID++; o.lastID == 0 {
			continue
		}
		if o.byID[o.lastID] == nil && o.lastID != taken {
			return o.lastID
		}
	}
}

// refill adds what the rate allows since the last call; what was missed while
// there was no connection is made up for half a second's worth at most.
func (o *outbound) refill(now time.Time) {
	o.tokens = min(o.tokens+now.Sub(o.refilled).Seconds()*o.rate, max(1, o.rate/2))
	o.refilled = now
}

// gather appends what is due on the client's connection: first what was in
// flight before, in its order [MQTT-4.6.0-1], then new publishes if there may
// be any. It returns when to ask again, zero if only an answer can change
// anything.
func (o *outbound) gather(b []byte, c *client, now time.Time, publish bool) ([]byte, time.Time) {
	const enough = 32 << 10
	for _, id := range o.releases {
		b = appendAck(b, c.version, typePubrel, id, 0)
	}
	o.releases = o.releases[:0]
	for ; o.cursor < len(o.inflight) && len(b) < enough; o.cursor++ {
		e := o.inflight[o.cursor]
		if e.released {
			if e.sentOn != c.connects {
				b = appendAck(b, c.version, typePubrel, e.id, 0)
				c.ledger.tally(func(r *Report) { r.Resent++ })
			}
			e.sentOn = c.connects
			continue
		}
		if o.quota == 0 {
			return b, time.Time{}
		}
		b = o.send(b, c, e)
	}
	if !publish || len(o.streams) == 0 {
		return b, time.Time{}
	}
	o.refill(now)
	for len(b) < enough && len(o.inflight) < o.window && o.quota > 0 {
		if o.rate > 0 {
			if o.tokens < 1 {
				wait := time.Duration((1 - o.tokens) / o.rate * float64(time.Second))
				return b, now.Add(max(wait, time.Millisecond))
			}
			o.tokens--
		}
		s := o.streams[o.turn%len(o.streams)]
		o.turn++
		e := &entry{id: o.newID(c.in.pendingID), stream: s, seq: s.next()}
		o.byID[e.id] = e
		o.inflight = append(o.inflight, e)
		o.cursor++
		b = o.send(b, c, e)
	}
	if len(b) >= enough {
		return b, now
	}
	return b, time.Time{}
}

// send appends e's PUBLISH, with DUP unless it is the first time.
func (o *outbound) send(b []byte, c *client, e *entry) []byte {
	p := publication{qos: e.stream.qos, dup: e.sentOn != 0, id: e.id, topic: []byte(e.stream.name)}
	if p.dup {
		e.stream.mark(e.seq, markResent, 0)
		c.ledger.tally(func(r *Report) { r.Resent++ })
	}
	if c.version == v5 && o.maxID > 0 {
		if alias := o.aliases[e.stream]; alias != 0 {
			p.alias, p.topic = alias, nil
		} else if len(o.aliases) < o.maxID {
			p.alias = uint16(len(o.aliases) + 1)
			o.aliases[e.stream] = p.alias
		}
	}
	c.scratch = appendPayload(c.scratch[:0], label{publisher: e.stream.publisher, topic: e.stream.topic, seq: e.seq, run: c.ledger.run}, o.size)
	p.payload = c.scratch
	e.sentOn = c.connects
	o.quota--
	return appendPublish(b, c.version, p)
}

// answered takes a PUBACK, PUBREC or PUBCOMP; it returns true if a PUBREL for
// the same packet identifier must follow now.
func (o *outbound) answered(c *client, kind byte, id uint16, reason byte) (release bool) {
	e := o.byID[id]
	if e == nil || e.sentOn != c.connects {
		c.ledger.protocol("%s got packet type %d for packet identifier %d, which is not in flight", c.name, kind, id)
		return kind == typePubrec
	}
	if (kind == typePuback) != (e.stream.qos == 1) {
		c.ledger.protocol("%s got packet type %d for a publish at QoS %d", c.name, kind, e.stream.qos)
		return false
	}
	switch {
	case kind == typePubcomp && !e.released:
		c.ledger.protocol("%s got PUBCOMP for packet identifier %d before PUBREC", c.name, id)
		return false
	case kind == typePubcomp:
		o.finish(e)
		return false
	case kind == typePubrec && e.released:
		return true // answered twice: [MQTT-4.3.3-4] PUBREL again does no harm
	}
	o.checkOrder(c, kind, e)
	c.ledger.acknowledged(e.stream, e.seq, reason)
	if kind == typePuback || reason >= 0x80 {
		o.finish(e)
		return false
	}
	e.released = true
	return true
}

// checkOrder reports an answer that overtakes an earlier one of its kind
// [MQTT-4.6.0-2] [MQTT-4.6.0-3], once for each that is overtaken.
func (o *outbound) checkOrder(c *client, kind byte, e *entry) {
	for _, other := range o.inflight {
		if other == e {
			return
		}
		if other.stream.qos == e.stream.qos && !other.released && !other.late {
			other.late = true
			c.ledger.protocol("%s got packet type %d for packet identifier %d before that for %d, which was sent earlier", c.name, kind, e.id, other.id)
			return
		}
	}
}

// finish ends e's flow.
func (o *outbound) finish(e *entry) {
	delete(o.byID, e.id)
	i := slices.Index(o.inflight, e)
	o.inflight = slices.Delete(o.inflight, i, i+1)
	if i < o.cursor {
		o.cursor--
	}
	o.quota = min(o.quota+1, o.limit)
}
