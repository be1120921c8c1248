// Package record is what stores share below their contract: the bytes of what
// they keep (FORMAT.md draws them), and how a walk over sorted topics skips what
// a filter cannot match ([Seek]).
//
// The append functions encode. They stand on the path of every commit: they keep
// nothing of what they are given, and allocate nothing where the slice has room.
// A [Decoder] takes the bytes apart again and trusts none of them.
//
// Nothing here has state of its own; different goroutines may use it at once, on
// slices of their own.
package record

import (
	"encoding/binary"
	"fmt"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Flags of an encoded message. FORMAT.md draws it.
const (
	msgQoS       = 0x03
	msgRetain    = 0x04
	msgProps     = 0x08 // Properties stand in it; else they were nil
	msgExpires   = 0x10
	msgPublisher = 0x20
	msgSameTopic = 0x40 // the topic of the message before it
)

// Flags of an encoded target.
const (
	howQoS    = 0x03
	howRetain = 0x04
	howIDs    = 0x08 // subscription identifiers follow
)

// AppendMessage encodes m behind b. before is the message that was encoded just
// before it in the same run, or nil: a run of messages to one topic, which is
// what a publisher's batch is, then carries the topic once.
func AppendMessage(b []byte, m, before *herald.Message) []byte {
	f := m.QoS & msgQoS
	if m.Retain {
		f |= msgRetain
	}
	if m.Properties != nil {
		f |= msgProps
	}
	if m.Expires != 0 {
		f |= msgExpires
	}
	if m.Publisher != 0 {
		f |= msgPublisher
	}
	if before != nil && before.Topic == m.Topic {
		f |= msgSameTopic
	}
	b = append(b, f)
	b = binary.BigEndian.AppendUint64(b, uint64(m.ID))
	if f&msgPublisher != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(m.Publisher))
	}
	if f&msgExpires != 0 {
		b = binary.AppendVarint(b, m.Expires)
	}
	if f&msgSameTopic == 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Topic)))
		b = append(b, m.Topic...)
	}
	if f&msgProps != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Properties)))
		b = append(b, m.Properties...)
	}
	b = binary.AppendUvarint(b, uint64(len(m.Payload)))
	return append(b, m.Payload...)
}

// appendHow encodes how a message goes to one session.
func appendHow(b []byte, qos byte, retain bool, ids []uint32) []byte {
	f := qos & howQoS
	if retain {
		f |= howRetain
	}
	if len(ids) > 0 {
		f |= howIDs
	}
	b = append(b, f)
	if len(ids) > 0 {
		b = binary.AppendUvarint(b, uint64(len(ids)))
		for _, id := range ids {
			b = binary.AppendUvarint(b, uint64(id))
		}
	}
	return b
}

// Tags of the sections of an encoded batch. A section is its tag, a count and
// that many items; a batch ends with tagEnd.
const (
	tagEnd = iota
	tagSpread
	tagRetain
	tagHeld
	tagSent
	tagMark
	tagSession
	tagSubscribe
	tagUnsubscribe
	tagWill
	tagWillGone
	tagDelete
	tagBan
)

// AppendBatch encodes bt behind b. How long the batch is stands nowhere: batches
// may follow each other, and a [Decoder] takes them one by one.
//
// A store may do this under the lock that orders its commits: a message of 64
// bytes in a run of 200 to one topic costs 7 to 15 ns and no allocation
// (BenchmarkAppendBatch, TestAppendAllocatesNothing).
func AppendBatch(b []byte, bt *persistence.Batch) []byte {
	b = section(b, tagSpread, len(bt.Spreads))
	for i := range bt.Spreads {
		b = appendSpread(b, &bt.Spreads[i])
	}
	b = section(b, tagRetain, len(bt.Retain))
	var before *herald.Message
	for _, m := range bt.Retain {
		b = AppendMessage(b, m, before)
		before = m
	}
	b = section(b, tagHeld, len(bt.Held))
	for _, h := range bt.Held {
		b = binary.BigEndian.AppendUint64(b, uint64(h.Session))
		b = binary.BigEndian.AppendUint16(b, h.PacketID)
		b = binary.BigEndian.AppendUint64(b, uint64(h.ID))
	}
	b = section(b, tagSent, len(bt.Sent))
	for _, t := range bt.Sent {
		b = binary.BigEndian.AppendUint64(b, uint64(t.Session))
		b = binary.BigEndian.AppendUint16(b, t.PacketID)
		b = binary.BigEndian.AppendUint64(b, uint64(t.ID))
		b = append(b, byte(t.Step))
		b = binary.BigEndian.AppendUint64(b, uint64(t.Source))
	}
	b = section(b, tagMark, len(bt.Marks))
	for i := range bt.Marks {
		b = binary.BigEndian.AppendUint64(b, uint64(bt.Marks[i].Session))
		b = AppendMark(b, bt.Marks[i].Low, bt.Marks[i].Above)
	}
	return append(appendRows(b, bt), tagEnd)
}

func section(b []byte, tag byte, n int) []byte {
	if n == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, tag), uint64(n))
}

func appendSpread(b []byte, sp *persistence.Spread) []byte {
	b = binary.AppendUvarint(b, uint64(len(sp.Messages)))
	var before *herald.Message
	for _, m := range sp.Messages {
		b = AppendMessage(b, m, before)
		before = m
	}
	b = binary.AppendUvarint(b, uint64(len(sp.Targets)))
	for i := range sp.Targets {
		t := &sp.Targets[i]
		b = binary.BigEndian.AppendUint64(b, uint64(t.Session))
		b = appendHow(b, t.QoS, t.Retain, t.Identifiers)
	}
	return b
}

// AppendMark encodes a mark: low, count, and the distances from one to the next.
// It writes no version. above rises, and all of it is above low.
func AppendMark(b []byte, low herald.ID, above []herald.ID) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(low))
	b = binary.AppendUvarint(b, uint64(len(above)))
	at := low
	for _, id := range above {
		b = binary.AppendUvarint(b, uint64(id-at))
		at = id
	}
	return b
}

// Decoder reads what the append functions wrote. The first thing that does not
// fit sets Err; from then on it returns zero values, so a caller reads everything
// it wants and looks at Err once. It never panics, allocates no more than a small
// multiple of what it is given, and, Take and Bytes apart, returns nothing that points
// into it.
type Decoder struct {
	B   []byte // what is left
	Err error  // wraps herald.ErrCorrupt
}

// Fail is for a caller who has read something that cannot be: it sets Err, unless
// an earlier failure has.
func (d *Decoder) Fail(what string) {
	if d.Err == nil {
		d.Err = fmt.Errorf("%w: %s", herald.ErrCorrupt, what)
	}
	d.B = nil
}

// Byte reads a number of one byte.
func (d *Decoder) Byte() byte {
	if len(d.B) < 1 {
		d.Fail("record too short")
		return 0
	}
	v := d.B[0]
	d.B = d.B[1:]
	return v
}

// Uint16 reads a number of two bytes, big endian.
func (d *Decoder) Uint16() uint16 {
	if len(d.B) < 2 {
		d.Fail("record too short")
		return 0
	}
	v := binary.BigEndian.Uint16(d.B)
	d.B = d.B[2:]
	return v
}

// Uint64 reads a number of eight bytes, big endian.
func (d *Decoder) Uint64() uint64 {
	if len(d.B) < 8 {
		d.Fail("record too short")
		return 0
	}
	v := binary.BigEndian.Uint64(d.B)
	d.B = d.B[8:]
	return v
}

// Uvarint reads a number of 1 to 10 bytes.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.B)
	if n <= 0 {
		d.Fail("bad number")
		return 0
	}
	d.B = d.B[n:]
	return v
}

// Varint reads a number that may be negative.
func (d *Decoder) Varint() int64 {
	v, n := binary.Varint(d.B)
	if n <= 0 {
		d.Fail("bad number")
		return 0
	}
	d.B = d.B[n:]
	return v
}

// Count reads a number of items of at least size bytes each, so that a damaged
// count cannot make the reader allocate more than what is there.
func (d *Decoder) Count(size int) int {
	v := d.Uvarint()
	if v > uint64(len(d.B)/size) {
		d.Fail("count beyond the record")
		return 0
	}
	return int(v)
}

// Take returns the next n bytes: a part of the input, not a copy.
func (d *Decoder) Take(n uint64) []byte {
	if n > uint64(len(d.B)) {
		d.Fail("length beyond the record")
		return nil
	}
	v := d.B[:n:n]
	d.B = d.B[n:]
	return v
}

// Bytes reads a length and so many bytes: a part of the input, not a copy.
func (d *Decoder) Bytes() []byte { return d.Take(d.Uvarint()) }

// String is Bytes, copied.
func (d *Decoder) String() string { return string(d.Bytes()) }

// Message decodes into m, which is zero. before is as for AppendMessage.
func (d *Decoder) Message(m, before *herald.Message) {
	f := d.Byte()
	m.QoS = f & msgQoS
	m.Retain = f&msgRetain != 0
	m.ID = herald.ID(d.Uint64())
	if f&msgPublisher != 0 {
		m.Publisher = herald.SessionID(d.Uint64())
	}
	if f&msgExpires != 0 {
		m.Expires = d.Varint()
	}
	switch {
	case f&msgSameTopic == 0:
		m.Topic = d.String()
	case before != nil:
		m.Topic = before.Topic
	default:
		d.Fail("message without a topic")
	}
	var props []byte
	if f&msgProps != 0 {
		props = d.Bytes()
	}
	payload := d.Bytes()
	if d.Err != nil || (len(props)+len(payload) == 0 && f&msgProps == 0) {
		return
	}
	both := append(append(make([]byte, 0, len(props)+len(payload)), props...), payload...)
	if f&msgProps != 0 {
		m.Properties = both[:len(props):len(props)]
	}
	if len(payload) > 0 {
		m.Payload = both[len(props):]
	}
}

// how decodes what appendHow wrote.
func (d *Decoder) how() (qos byte, retain bool, ids []uint32) {
	f := d.Byte()
	if f&howIDs != 0 {
		n := d.Count(1)
		ids = make([]uint32, 0, n)
		for range n {
			ids = append(ids, uint32(d.Uvarint()))
		}
	}
	return f & howQoS, f&howRetain != 0, ids
}

// Mark decodes what AppendMark wrote.
func (d *Decoder) Mark() (low herald.ID, above []herald.ID) {
	low = herald.ID(d.Uint64())
	n := d.Count(1)
	if n > 0 {
		above = make([]herald.ID, 0, n)
	}
	at := low
	for range n {
		at += herald.ID(d.Uvarint())
		above = append(above, at)
	}
	return low, above
}

// Batch decodes one batch, up to its end, and leaves what stands behind it. Where
// Err is set, what it returns is of no use.
func (d *Decoder) Batch() *persistence.Batch {
	bt := new(persistence.Batch)
	for d.Err == nil {
		tag := d.Byte()
		if tag == tagEnd || d.Err != nil {
			break
		}
		n := d.Count(1)
		for range n {
			if d.Err != nil {
				break
			}
			d.item(tag, bt)
		}
	}
	return bt
}

func (d *Decoder) item(tag byte, bt *persistence.Batch) {
	switch tag {
	case tagSpread:
		bt.Spreads = append(bt.Spreads, d.spread())
	case tagRetain:
		var before *herald.Message
		if n := len(bt.Retain); n > 0 {
			before = bt.Retain[n-1]
		}
		m := new(herald.Message)
		d.Message(m, before)
		bt.Retain = append(bt.Retain, m)
	case tagHeld:
		bt.Held = append(bt.Held, persistence.Held{
			Session: herald.SessionID(d.Uint64()), PacketID: d.Uint16(), ID: herald.ID(d.Uint64())})
	case tagSent:
		bt.Sent = append(bt.Sent, persistence.Sent{
			Session: herald.SessionID(d.Uint64()), PacketID: d.Uint16(), ID: herald.ID(d.Uint64()),
			Step: persistence.Step(d.Byte()), Source: herald.SessionID(d.Uint64())})
	case tagMark:
		m := persistence.Mark{Session: herald.SessionID(d.Uint64())}
		m.Low, m.Above = d.Mark()
		bt.Marks = append(bt.Marks, m)
	default:
		d.row(tag, bt)
	}
}

func (d *Decoder) spread() persistence.Spread {
	var sp persistence.Spread
	n := d.Count(10)
	if n > 0 {
		all := make([]herald.Message, n)
		sp.Messages = make([]*herald.Message, n)
		var before *herald.Message
		for i := range all {
			d.Message(&all[i], before)
			sp.Messages[i] = &all[i]
			before = &all[i]
		}
	}
	if n = d.Count(9); n > 0 {
		sp.Targets = make([]persistence.Target, n)
		for i := range sp.Targets {
			t := &sp.Targets[i]
			t.Session = herald.SessionID(d.Uint64())
			t.QoS, t.Retain, t.Identifiers = d.how()
		}
	}
	return sp
}
