package wire

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/herald-mqtt/herald"
)

// Run is a run of messages that go out together: what one publisher sent to
// one topic in one go, or a page of a queue. Each is encoded once per class
// (protocol version, with or without packet id), whatever the number of
// receivers; per receiver only packet ids and flags are patched.
//
// A Run does not change once it was handed on. Safe for concurrent use.
type Run struct {
	// Messages are never changed.
	Messages []*herald.Message

	// dynamic: a message expires, so it and its encoding depend on the moment.
	dynamic bool
	mixed   bool // the messages differ in QoS
	classes [4]atomic.Pointer[encoding]
}

// encoding holds the frames of a run, back to back, packet ids 0, RETAIN and
// DUP clear, QoS as published.
type encoding struct {
	buf     []byte
	at      []uint32 // n+1 offsets of frames
	pid     []uint32 // offsets of packet ids, if the class has them
	longest uint32   // bytes of the longest frame
}

// class numbers the encodings: bit 0, with packet id; bit 1, MQTT 5.
func class(v herald.Version, qos byte) int {
	c := 0
	if qos > 0 {
		c = 1
	}
	if v == herald.V5 {
		c |= 2
	}
	return c
}

// MakeRun makes a run of messages.
func MakeRun(msgs []*herald.Message) *Run {
	r := &Run{Messages: msgs}
	for _, m := range msgs {
		if m.Expires != 0 {
			r.dynamic = true
		}
		if m.QoS != msgs[0].QoS {
			r.mixed = true
		}
	}
	return r
}

// Mixed tells that the messages differ in QoS.
func (r *Run) Mixed() bool { return r.mixed }

// Preset gives the run the frames that its publisher sent, so that they need
// not be encoded again: frames back to back in a buffer that the run owns from
// now on, at holds len(Messages)+1 offsets, pid the offsets of the packet ids
// (nil at QoS 0). RETAIN and DUP must be clear in all of them. It must be
// called before the run is shared.
func (r *Run) Preset(v herald.Version, qos byte, frames []byte, at, pid []uint32) {
	e := &encoding{buf: frames, at: at, pid: pid}
	for i := 1; i < len(at); i++ {
		e.longest = max(e.longest, at[i]-at[i-1])
	}
	r.classes[class(v, qos)].Store(e)
}

// encoded returns the frames of the run in the class of (v, qos).
func (r *Run) encoded(v herald.Version, qos byte) *encoding {
	p := &r.classes[class(v, qos)]
	if e := p.Load(); e != nil {
		return e
	}
	n := len(r.Messages)
	size := 0
	for _, m := range r.Messages {
		size += m.Size()
	}
	e := &encoding{buf: make([]byte, 0, size), at: make([]uint32, 1, n+1)}
	if qos > 0 {
		e.pid = make([]uint32, 0, n)
	}
	for _, m := range r.Messages {
		q := m.QoS
		if qos > 0 {
			q = max(q, 1)
		} else {
			q = 0
		}
		start := len(e.buf)
		var pid int
		e.buf, pid = appendPublish(e.buf, v, 0x30|q<<1, m.Topic, 0, nil, m.Properties, m.Payload)
		if qos > 0 {
			e.pid = append(e.pid, uint32(pid))
		}
		e.at = append(e.at, uint32(len(e.buf)))
		e.longest = max(e.longest, uint32(len(e.buf)-start))
	}
	p.CompareAndSwap(nil, e)
	return p.Load()
}

// Static tells whether messages from..to of the run can be sent to a client of
// version v by [Run.AppendStatic]: all have one QoS, none expires, and no
// frame is longer than maxPacket bytes (0: no bound).
func (r *Run) Static(v herald.Version, qos byte, maxPacket uint32) bool {
	if r.dynamic || r.mixed {
		return false
	}
	return maxPacket == 0 || r.encoded(v, qos).longest <= maxPacket
}

// AppendStatic appends the frames of messages from up to to (not included),
// sent with qos and RETAIN clear, to dst. With qos > 0, the packet id of message i
// is pid(i): the ids are put in by the caller through [Run.Patch], which is told
// where the first appended byte stands.
func (r *Run) AppendStatic(dst []byte, v herald.Version, qos byte, from, to int) []byte {
	e := r.encoded(v, qos)
	base := len(dst)
	dst = append(dst, e.buf[e.at[from]:e.at[to]]...)
	// The header differs from the encoded one only if the subscription grants
	// another QoS than the message has.
	for i := from; i < to; i++ {
		if h := 0x30 | qos<<1; dst[base+int(e.at[i]-e.at[from])] != h {
			dst[base+int(e.at[i]-e.at[from])] = h
		}
	}
	return dst
}

// Patch sets the packet id of message i in frames that [Run.AppendStatic]
// appended from message from on, the first byte of which stands at base.
func (r *Run) Patch(dst []byte, base int, v herald.Version, from, i int, pid uint16) {
	e := r.classes[class(v, 1)].Load()
	binary.BigEndian.PutUint16(dst[base+int(e.pid[i]-e.at[from]):], pid)
}

// Outgoing is what differs from receiver to receiver when one message is sent.
type Outgoing struct {
	Version     herald.Version
	QoS         byte
	Retain, Dup bool
	PacketID    uint16   // with QoS > 0
	Identifiers []uint32 // MQTT 5
	// Alias is the topic alias to use, 0 for none; Known tells that the client
	// has it already, so the topic is left out.
	Alias uint16
	Known bool
	// Now is the time, in Unix milliseconds, from which what is left of the
	// message's life is counted [MQTT-3.3.2-6].
	Now int64
}

// AppendMessage appends message m as a PUBLISH to dst.
func AppendMessage(dst []byte, m *herald.Message, o Outgoing) []byte {
	h := 0x30 | o.QoS<<1
	if o.Retain {
		h |= 1
	}
	if o.Dup {
		h |= 8
	}
	topic := m.Topic
	if o.Version != herald.V5 {
		dst, _ = appendPublish(dst, o.Version, h, topic, o.PacketID, nil, nil, m.Payload)
		return dst
	}
	var scratch [64]byte
	extra := scratch[:0]
	if m.Expires != 0 {
		left := (m.Expires - o.Now + 999) / 1000
		left = max(1, min(left, 1<<32-1))
		extra = append(extra, propMessageExpiry)
		extra = binary.BigEndian.AppendUint32(extra, uint32(left))
	}
	if o.Alias != 0 {
		extra = append(extra, propTopicAlias)
		extra = binary.BigEndian.AppendUint16(extra, o.Alias)
		if o.Known {
			topic = ""
		}
	}
	for _, id := range o.Identifiers {
		extra = append(extra, propSubscriptionIdentifier)
		extra = AppendUvarint(extra, id)
	}
	dst, _ = appendPublish(dst, o.Version, h, topic, o.PacketID, extra, m.Properties, m.Payload)
	return dst
}

// MessageSize is the length of message m as AppendMessage would write it
// without an alias, in bytes, rounded up.
func MessageSize(m *herald.Message, v herald.Version, identifiers int) int {
	n := 5 + 2 + len(m.Topic) + 2 + len(m.Payload)
	if v == herald.V5 {
		n += 4 + len(m.Properties) + 5 + 5*identifiers
	}
	return n
}

const (
	propMessageExpiry          = 0x02
	propSubscriptionIdentifier = 0x0b
	propTopicAlias             = 0x23
)

// appendPublish appends a PUBLISH and tells where its packet id stands in dst.
func appendPublish(dst []byte, v herald.Version, header byte, topic string, pid uint16, extra, props, payload []byte) ([]byte, int) {
	n := 2 + len(topic) + len(payload)
	withID := header&0x06 != 0
	if withID {
		n += 2
	}
	np := len(extra) + len(props)
	if v == herald.V5 {
		n += np + uvarintLen(np)
	}
	dst = append(dst, header)
	dst = AppendUvarint(dst, uint32(n))
	dst = append(dst, byte(len(topic)>>8), byte(len(topic)))
	dst = append(dst, topic...)
	at := len(dst)
	if withID {
		dst = append(dst, byte(pid>>8), byte(pid))
	}
	if v == herald.V5 {
		dst = AppendUvarint(dst, uint32(np))
		dst = append(dst, extra...)
		dst = append(dst, props...)
	}
	return append(dst, payload...), at
}

func uvarintLen(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}
