//go:build linux

package load

import "encoding/binary"

// flow is one topic with its publishers and subscribers. All of it is owned by
// one loop.
type flow struct {
	topic string
	index int // of the topic
	pubs  []*publisher
	subs  []*subscriber
	dirty bool // something was received or acknowledged since the last pump
}

// conn is a connection of a publisher or of a subscriber.
type conn struct {
	fd      int
	number  int // in its poller
	flow    *flow
	pub     *publisher  // one of the two
	sub     *subscriber //
	in      []byte      // start of a frame that is not complete
	out     []byte      // what the kernel has not taken
	waiting bool        // for EPOLLOUT, because out is not empty
}

// Handshake states of a publisher's packet identifier.
const (
	idFree    byte = iota
	idPuback       // PUBLISH sent at QoS 1
	idPubrec       // PUBLISH sent at QoS 2
	idPubcomp      // PUBREL sent
)

// publisher sends numbered messages to its topic.
type publisher struct {
	conn  conn
	index int // in its flow
	// Frames of one message size, built once; sending patches and writes a
	// run of them.
	frames     []byte
	stride     int // bytes of one frame
	idAt       int // offset of the packet identifier, 0 at QoS 0
	payloadAt  int
	sent       uint64 // messages; also the next sequence
	acked      uint64 // handshakes completed
	received   uint64 // by the slowest subscriber
	slowest    int    // that subscriber's index
	limit      uint64 // messages to send in all, 0: no limit
	due        uint64 // with a rate: messages that may have been sent by now
	ordinal    int    // among all publishers, for the due time of a message
	badAcks    uint64
	window     int
	ids        []byte // handshake state by packet identifier
	handshakes bool   // QoS > 0
	receive    int    // the broker's receive maximum
}

func newPublisher(c *Config, f *flow, ordinal int) *publisher {
	p := &publisher{index: len(f.pubs), ordinal: ordinal, window: c.Window, handshakes: c.QoS > 0, receive: 1<<16 - 1}
	frame, idAt, payloadAt := appendPublish(nil, c.Protocol, c.QoS, false, f.topic, c.Payload)
	stampPublisher(frame[payloadAt:], f.index, p.index)
	p.stride, p.idAt, p.payloadAt = len(frame), idAt, payloadAt
	run := min(c.Window, max(1, maxRun/p.stride))
	p.frames = make([]byte, 0, run*p.stride)
	for range run {
		p.frames = append(p.frames, frame...)
	}
	if p.handshakes {
		// More identifiers than messages in flight, so that one whose
		// acknowledgement is late does not hold up the others.
		p.ids = make([]byte, min(4*c.Window, 1<<16-1)+1)
	}
	p.limit = uint64(c.Count)
	p.conn.pub, p.conn.flow = p, f
	f.pubs = append(f.pubs, p)
	return p
}

// ready is how many messages the window lets go now.
func (p *publisher) ready() int {
	if subs := p.conn.flow.subs; subs[p.slowest].from[p.index].received != p.received {
		least := ^uint64(0)
		for i, s := range subs {
			if n := s.from[p.index].received; n < least {
				least, p.slowest = n, i
			}
		}
		p.received = least
	}
	settled := p.received
	if !p.handshakes {
		return p.window - int(p.sent-settled)
	}
	return min(p.window-int(p.sent-min(settled, p.acked)), p.receive-int(p.sent-p.acked))
}

// fill patches up to n frames for sending and returns their bytes. dueAt gives
// a message's timestamp in nanoseconds.
func (p *publisher) fill(n int, qos byte, dueAt func(seq uint64) int64) []byte {
	at := 0
	for range n {
		if at == len(p.frames) {
			break
		}
		if p.handshakes {
			id := int(p.sent%uint64(len(p.ids)-1)) + 1
			if p.ids[id] != idFree {
				break
			}
			p.ids[id] = qos // idPuback or idPubrec
			binary.BigEndian.PutUint16(p.frames[at+p.idAt:], uint16(id))
		}
		payload := p.frames[at+p.payloadAt : at+p.stride]
		binary.BigEndian.PutUint64(payload[8:], p.sent)
		binary.BigEndian.PutUint64(payload[16:], uint64(dueAt(p.sent)))
		p.sent++
		at += p.stride
	}
	return p.frames[:at]
}

// acknowledge takes one acknowledgement and appends the answer to acks.
func (p *publisher) acknowledge(first byte, body []byte, acks []byte) []byte {
	if len(body) < 2 {
		p.badAcks++
		return acks
	}
	id := int(binary.BigEndian.Uint16(body))
	if id >= len(p.ids) || (len(body) > 2 && body[2] >= 0x80) {
		p.badAcks++
		return acks
	}
	switch state := p.ids[id]; {
	case first == typePuback && state == idPuback, first == typePubcomp && state == idPubcomp:
		p.ids[id] = idFree
		p.acked++
	case first == typePubrec && state == idPubrec:
		p.ids[id] = idPubcomp
		acks = appendAck(acks, typePubrel|2, uint16(id))
	default:
		p.badAcks++
	}
	return acks
}

// subscriber counts what arrives.
type subscriber struct {
	conn conn
	from []order // by publisher of the flow
	// held marks packet identifiers between PUBREC and PUBREL, a bit each, so
	// that a PUBLISH sent again is not counted twice [MQTT-4.3.3].
	held    []uint64
	qos     byte   // of the subscription
	size    int    // of a payload
	mark    uint32 // its first four bytes
	wrong   uint64 // messages at another QoS
	badAcks uint64
	foreign uint64 // messages that are not of this run
}

func newSubscriber(c *Config, f *flow) *subscriber {
	s := &subscriber{from: make([]order, len(f.pubs)), qos: c.QoS, size: c.Payload, mark: payloadMagic<<16 | uint32(uint16(f.index))}
	if c.QoS == 2 {
		s.held = make([]uint64, 1<<16/64)
	}
	s.conn.sub, s.conn.flow = s, f
	f.subs = append(f.subs, s)
	return s
}

// message counts one PUBLISH and appends its acknowledgement to acks. stamp is
// the message's time and fresh tells that it counts as a delivery.
func (s *subscriber) message(p published, acks []byte) (_ []byte, stamp int64, fresh bool) {
	if p.qos != s.qos {
		s.wrong++
	}
	switch p.qos {
	case 1:
		acks = appendAck(acks, typePuback, p.id)
	case 2:
		acks = appendAck(acks, typePubrec, p.id)
		if s.held == nil {
			s.foreign++
			return acks, 0, false
		}
		word, bit := &s.held[p.id/64], uint64(1)<<(p.id%64)
		if *word&bit != 0 {
			return acks, 0, false
		}
		*word |= bit
	}
	if len(p.payload) != s.size || binary.BigEndian.Uint32(p.payload) != s.mark {
		s.foreign++
		return acks, 0, false
	}
	pub := int(binary.BigEndian.Uint32(p.payload[4:]))
	if pub >= len(s.from) {
		s.foreign++
		return acks, 0, false
	}
	fresh = s.from[pub].add(binary.BigEndian.Uint64(p.payload[8:]))
	return acks, int64(binary.BigEndian.Uint64(p.payload[16:])), fresh
}

// release takes a PUBREL and appends the PUBCOMP to acks.
func (s *subscriber) release(body []byte, acks []byte) []byte {
	if len(body) < 2 || s.held == nil {
		s.badAcks++
		return acks
	}
	id := binary.BigEndian.Uint16(body)
	s.held[id/64] &^= 1 << (id % 64)
	return appendAck(acks, typePubcomp, id)
}
