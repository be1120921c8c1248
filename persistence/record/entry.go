package record

import (
	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// entryPointer: the message of an entry stands in a row of its own.
const entryPointer = 0x01

// AppendEntry encodes an entry of an inbox. If pointer is true, its message is
// only pointed at.
func AppendEntry(b []byte, m *herald.Message, qos byte, retain bool, ids []uint32, pointer bool) []byte {
	var f byte
	if pointer {
		f |= entryPointer
	}
	b = AppendHow(append(b, V1, f), min(qos, m.QoS), retain, ids)
	if !pointer {
		b = AppendMessage(b, m, nil)
	}
	return b
}

// DecodeEntry decodes an entry; its message is nil if it is only pointed at.
func DecodeEntry(v []byte) (persistence.Entry, error) {
	var e persistence.Entry
	d := Decoder{B: v}
	d.Version()
	f := d.Byte()
	e.QoS, e.Retain, e.Identifiers = d.How()
	if f&entryPointer == 0 {
		e.Message = new(herald.Message)
		d.Message(e.Message, nil)
	}
	return e, d.Err
}
