package pebble

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// rowV1 begins every encoded row, so that a later release can tell its own rows
// from these without rewriting them.
const rowV1 = 1

// appendRows encodes the sections of a batch that become rows as they stand.
func appendRows(b []byte, bt *persistence.Batch) []byte {
	b = section(b, tagSession, len(bt.Sessions))
	for i := range bt.Sessions {
		b = appendSession(b, &bt.Sessions[i])
	}
	b = section(b, tagSubscribe, len(bt.Subscribe))
	for i := range bt.Subscribe {
		sub := &bt.Subscribe[i]
		b = binary.BigEndian.AppendUint64(b, uint64(sub.Session))
		b = appendString(b, sub.Filter)
		b = appendSubscription(b, &sub.Subscription)
	}
	b = section(b, tagUnsubscribe, len(bt.Unsubscribe))
	for _, f := range bt.Unsubscribe {
		b = binary.BigEndian.AppendUint64(b, uint64(f.Session))
		b = appendString(b, f.Filter)
	}
	b = section(b, tagWill, len(bt.Wills))
	for i := range bt.Wills {
		b = appendWill(b, &bt.Wills[i])
	}
	b = section(b, tagWillGone, len(bt.WillsGone))
	for _, s := range bt.WillsGone {
		b = binary.BigEndian.AppendUint64(b, uint64(s))
	}
	b = section(b, tagDelete, len(bt.Delete))
	for i := range bt.Delete {
		b = appendSession(b, &bt.Delete[i])
	}
	return b
}

// row decodes one item of a section that appendRows wrote.
func (d *decoder) row(tag byte, bt *persistence.Batch) {
	switch tag {
	case tagSession:
		bt.Sessions = append(bt.Sessions, d.session())
	case tagSubscribe:
		sub := persistence.SubscriptionOf{Session: herald.SessionID(d.u64())}
		filter := d.string()
		sub.Subscription = d.subscription()
		sub.Filter = filter
		bt.Subscribe = append(bt.Subscribe, sub)
	case tagUnsubscribe:
		bt.Unsubscribe = append(bt.Unsubscribe, persistence.FilterOf{
			Session: herald.SessionID(d.u64()), Filter: d.string()})
	case tagWill:
		bt.Wills = append(bt.Wills, d.will())
	case tagWillGone:
		bt.WillsGone = append(bt.WillsGone, herald.SessionID(d.u64()))
	case tagDelete:
		bt.Delete = append(bt.Delete, d.session())
	default:
		d.fail("unknown section in a batch")
	}
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func (d *decoder) version() {
	if v := d.byte(); v != rowV1 && d.err == nil {
		d.fail("unknown version of a row")
	}
}

func appendSession(b []byte, s *persistence.Session) []byte {
	b = append(b, rowV1)
	b = binary.BigEndian.AppendUint64(b, uint64(s.ID))
	b = append(b, byte(s.Kind), byte(s.Version))
	b = appendString(b, s.Name)
	b = binary.AppendUvarint(b, s.Epoch)
	b = binary.AppendUvarint(b, uint64(s.ExpiryInterval))
	b = binary.AppendVarint(b, s.Expires)
	b = binary.AppendVarint(b, s.Connected)
	return binary.AppendVarint(b, s.Disconnected)
}

func (d *decoder) session() (s persistence.Session) {
	d.version()
	s.ID = herald.SessionID(d.u64())
	s.Kind = persistence.Kind(d.byte())
	s.Version = herald.Version(d.byte())
	s.Name = d.string()
	s.Epoch = d.uvarint()
	s.ExpiryInterval = uint32(d.uvarint())
	s.Expires = d.varint()
	s.Connected = d.varint()
	s.Disconnected = d.varint()
	return s
}

// Flags of an encoded subscription.
const (
	subQoS               = 0x03
	subNoLocal           = 0x04
	subRetainAsPublished = 0x08
	subRetainHandling    = 0x30 // its two bits
	subIdentifier        = 0x40
	subRetained          = 0x80 // retained messages are still to be sent
)

// appendSubscription encodes everything but the filter, which is in the key.
func appendSubscription(b []byte, s *persistence.Subscription) []byte {
	f := s.QoS&subQoS | s.RetainHandling<<4&subRetainHandling
	if s.NoLocal {
		f |= subNoLocal
	}
	if s.RetainAsPublished {
		f |= subRetainAsPublished
	}
	if s.Identifier != 0 {
		f |= subIdentifier
	}
	if s.RetainedUpTo != 0 || s.RetainedAfter != "" {
		f |= subRetained
	}
	b = append(b, rowV1, f)
	if f&subIdentifier != 0 {
		b = binary.AppendUvarint(b, uint64(s.Identifier))
	}
	if f&subRetained != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(s.RetainedUpTo))
		b = appendString(b, s.RetainedAfter)
	}
	return b
}

func (d *decoder) subscription() (s persistence.Subscription) {
	d.version()
	f := d.byte()
	s.QoS = f & subQoS
	s.NoLocal = f&subNoLocal != 0
	s.RetainAsPublished = f&subRetainAsPublished != 0
	s.RetainHandling = f & subRetainHandling >> 4
	if f&subIdentifier != 0 {
		s.Identifier = uint32(d.uvarint())
	}
	if f&subRetained != 0 {
		s.RetainedUpTo = herald.ID(d.u64())
		s.RetainedAfter = d.string()
	}
	return s
}

func appendWill(b []byte, w *persistence.Will) []byte {
	b = append(b, rowV1)
	b = binary.BigEndian.AppendUint64(b, uint64(w.Session))
	b = appendString(b, w.Client)
	b = binary.AppendUvarint(b, uint64(w.Delay))
	b = binary.AppendVarint(b, w.Due)
	return appendMessage(b, &w.Message, nil)
}

func (d *decoder) will() (w persistence.Will) {
	d.version()
	w.Session = herald.SessionID(d.u64())
	w.Client = d.string()
	w.Delay = uint32(d.uvarint())
	w.Due = d.varint()
	d.message(&w.Message, nil)
	return w
}
