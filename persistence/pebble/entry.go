package pebble

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Flags of an entry of an inbox in Pebble.
const (
	entryPointer = 0x01 // the message stands in a row of its own
	entryExpires = 0x02 // when follows
)

// appendEntry encodes an item for Pebble.
func appendEntry(b []byte, it *item) []byte {
	var f byte
	if it.how.wide {
		f |= entryPointer
	}
	if it.msg.Expires != 0 {
		f |= entryExpires
	}
	b = append(b, rowV1, f)
	if f&entryExpires != 0 {
		b = binary.AppendVarint(b, it.msg.Expires)
	}
	b = appendHow(b, min(it.how.qos, it.msg.QoS), it.how.retain, it.how.ids)
	if f&entryPointer == 0 {
		b = appendMessage(b, it.msg, nil)
	}
	return b
}

// entryHead is what a sweep has to know of an entry.
func entryHead(v []byte) (pointer bool, expires int64, err error) {
	d := decoder{b: v}
	pointer, expires = d.entryHead()
	return pointer, expires, d.err
}

func (d *decoder) entryHead() (pointer bool, expires int64) {
	d.version()
	f := d.byte()
	if f&entryExpires != 0 {
		expires = d.varint()
	}
	return f&entryPointer != 0, expires
}

func isPointer(v []byte) bool { return len(v) > 1 && v[1]&entryPointer != 0 }

// decodeEntry decodes an entry; its message is nil if it is only pointed at.
func decodeEntry(v []byte) (persistence.Entry, error) {
	var e persistence.Entry
	d := decoder{b: v}
	pointer, _ := d.entryHead()
	e.QoS, e.Retain, e.Identifiers = d.how()
	if !pointer {
		e.Message = new(herald.Message)
		d.message(e.Message, nil)
	}
	return e, d.err
}
