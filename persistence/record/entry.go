package record

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Flags of an entry of an inbox.
const (
	entryPointer = 0x01 // the message stands in a row of its own
	entryExpires = 0x02 // when follows
)

// AppendEntry encodes an entry of an inbox. If pointer is true, its message is
// only pointed at.
func AppendEntry(b []byte, m *herald.Message, qos byte, retain bool, ids []uint32, pointer bool) []byte {
	return appendEntry(b, m, 0, qos, retain, ids, pointer)
}

// AppendExpiringEntry is AppendEntry for a store that removes what has expired by
// itself: when the message does stands where EntryHead finds it.
func AppendExpiringEntry(b []byte, m *herald.Message, qos byte, retain bool, ids []uint32, pointer bool) []byte {
	return appendEntry(b, m, m.Expires, qos, retain, ids, pointer)
}

func appendEntry(b []byte, m *herald.Message, expires int64, qos byte, retain bool, ids []uint32, pointer bool) []byte {
	var f byte
	if pointer {
		f |= entryPointer
	}
	if expires != 0 {
		f |= entryExpires
	}
	b = append(b, V1, f)
	if expires != 0 {
		b = binary.AppendVarint(b, expires)
	}
	b = appendHow(b, min(qos, m.QoS), retain, ids)
	if !pointer {
		b = AppendMessage(b, m, nil)
	}
	return b
}

// EntryHead is what a sweep has to know of an entry: whether its message is only
// pointed at, and when it expires, if AppendExpiringEntry wrote it.
func EntryHead(row []byte) (pointer bool, expires int64, err error) {
	d := Decoder{B: row}
	pointer, expires = d.entryHead()
	return pointer, expires, d.Err
}

func (d *Decoder) entryHead() (pointer bool, expires int64) {
	d.Version()
	f := d.Byte()
	if f&entryExpires != 0 {
		expires = d.Varint()
	}
	return f&entryPointer != 0, expires
}

// IsPointer tells whether an entry is one whose message is only pointed at; a
// damaged one may say either.
func IsPointer(row []byte) bool { return len(row) > 1 && row[1]&entryPointer != 0 }

// DecodeEntry decodes an entry; its message is nil if it is only pointed at. Its
// error wraps herald.ErrCorrupt.
func DecodeEntry(row []byte) (persistence.Entry, error) {
	var e persistence.Entry
	d := Decoder{B: row}
	pointer, _ := d.entryHead()
	e.QoS, e.Retain, e.Identifiers = d.how()
	if !pointer {
		e.Message = new(herald.Message)
		d.Message(e.Message, nil)
	}
	return e, d.Err
}
