package record

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// V1 begins every encoded row, so that a later release can tell its own rows
// from these without rewriting them.
const V1 = 1

// appendRows encodes the sections of a batch that become rows as they stand.
func appendRows(b []byte, bt *persistence.Batch) []byte {
	b = section(b, tagSession, len(bt.Sessions))
	for i := range bt.Sessions {
		b = AppendSession(b, &bt.Sessions[i])
	}
	b = section(b, tagSubscribe, len(bt.Subscribe))
	for i := range bt.Subscribe {
		sub := &bt.Subscribe[i]
		b = binary.BigEndian.AppendUint64(b, uint64(sub.Session))
		b = appendString(b, sub.Filter)
		b = AppendSubscription(b, &sub.Subscription)
	}
	b = section(b, tagUnsubscribe, len(bt.Unsubscribe))
	for _, f := range bt.Unsubscribe {
		b = binary.BigEndian.AppendUint64(b, uint64(f.Session))
		b = appendString(b, f.Filter)
	}
	b = section(b, tagWill, len(bt.Wills))
	for i := range bt.Wills {
		b = AppendWill(b, &bt.Wills[i])
	}
	b = section(b, tagWillGone, len(bt.WillsGone))
	for _, s := range bt.WillsGone {
		b = binary.BigEndian.AppendUint64(b, uint64(s))
	}
	b = section(b, tagDelete, len(bt.Delete))
	for i := range bt.Delete {
		b = AppendSession(b, &bt.Delete[i])
	}
	b = section(b, tagBan, len(bt.Bans))
	for i := range bt.Bans {
		b = AppendBan(b, &bt.Bans[i])
	}
	return b
}

// row decodes one item of a section that appendRows wrote.
func (d *Decoder) row(tag byte, bt *persistence.Batch) {
	switch tag {
	case tagSession:
		bt.Sessions = append(bt.Sessions, d.Session())
	case tagSubscribe:
		sub := persistence.SubscriptionOf{Session: herald.SessionID(d.Uint64())}
		filter := d.String()
		sub.Subscription = d.Subscription()
		sub.Filter = filter
		bt.Subscribe = append(bt.Subscribe, sub)
	case tagUnsubscribe:
		bt.Unsubscribe = append(bt.Unsubscribe, persistence.FilterOf{
			Session: herald.SessionID(d.Uint64()), Filter: d.String()})
	case tagWill:
		bt.Wills = append(bt.Wills, d.Will())
	case tagWillGone:
		bt.WillsGone = append(bt.WillsGone, herald.SessionID(d.Uint64()))
	case tagDelete:
		bt.Delete = append(bt.Delete, d.Session())
	case tagBan:
		bt.Bans = append(bt.Bans, d.Ban())
	default:
		d.Fail("unknown section in a batch")
	}
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Version reads the version that begins a row. There is only one yet.
func (d *Decoder) Version() {
	if v := d.Byte(); v != V1 && d.Err == nil {
		d.Fail("unknown version of a row")
	}
}

// AppendSession encodes a row, its version included.
func AppendSession(b []byte, s *persistence.Session) []byte {
	b = append(b, V1)
	b = binary.BigEndian.AppendUint64(b, uint64(s.ID))
	b = append(b, byte(s.Kind), byte(s.Version))
	b = appendString(b, s.Name)
	b = binary.AppendUvarint(b, s.Epoch)
	b = binary.AppendUvarint(b, uint64(s.ExpiryInterval))
	b = binary.AppendVarint(b, s.Expires)
	b = binary.AppendVarint(b, s.Connected)
	b = binary.AppendVarint(b, s.Disconnected)
	b = binary.AppendUvarint(b, uint64(s.Node))
	return binary.AppendUvarint(b, s.Life)
}

// Session decodes what AppendSession wrote.
func (d *Decoder) Session() (s persistence.Session) {
	d.Version()
	s.ID = herald.SessionID(d.Uint64())
	s.Kind = persistence.Kind(d.Byte())
	s.Version = herald.Version(d.Byte())
	s.Name = d.String()
	s.Epoch = d.Uvarint()
	s.ExpiryInterval = uint32(d.Uvarint())
	s.Expires = d.Varint()
	s.Connected = d.Varint()
	s.Disconnected = d.Varint()
	s.Node = uint16(d.Uvarint())
	s.Life = d.Uvarint()
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

// AppendSubscription encodes a row, its version included: everything but the
// filter, which is in the key.
func AppendSubscription(b []byte, s *persistence.Subscription) []byte {
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
	b = append(b, V1, f)
	if f&subIdentifier != 0 {
		b = binary.AppendUvarint(b, uint64(s.Identifier))
	}
	if f&subRetained != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(s.RetainedUpTo))
		b = appendString(b, s.RetainedAfter)
	}
	return b
}

// Subscription decodes what AppendSubscription wrote; the filter is left empty.
func (d *Decoder) Subscription() (s persistence.Subscription) {
	d.Version()
	f := d.Byte()
	s.QoS = f & subQoS
	s.NoLocal = f&subNoLocal != 0
	s.RetainAsPublished = f&subRetainAsPublished != 0
	s.RetainHandling = f & subRetainHandling >> 4
	if f&subIdentifier != 0 {
		s.Identifier = uint32(d.Uvarint())
	}
	if f&subRetained != 0 {
		s.RetainedUpTo = herald.ID(d.Uint64())
		s.RetainedAfter = d.String()
	}
	return s
}

// AppendWill encodes a row, its version included.
func AppendWill(b []byte, w *persistence.Will) []byte {
	b = append(b, V1)
	b = binary.BigEndian.AppendUint64(b, uint64(w.Session))
	b = appendString(b, w.Client)
	b = binary.AppendUvarint(b, uint64(w.Delay))
	b = binary.AppendVarint(b, w.Due)
	b = binary.AppendUvarint(b, uint64(w.Node))
	b = binary.AppendUvarint(b, w.Life)
	return AppendMessage(b, &w.Message, nil)
}

// Will decodes what AppendWill wrote.
func (d *Decoder) Will() (w persistence.Will) {
	d.Version()
	w.Session = herald.SessionID(d.Uint64())
	w.Client = d.String()
	w.Delay = uint32(d.Uvarint())
	w.Due = d.Varint()
	w.Node = uint16(d.Uvarint())
	w.Life = d.Uvarint()
	d.Message(&w.Message, nil)
	return w
}

// DecodeMessage decodes a row that is V1 and what AppendMessage wrote, with
// nothing before it. Its error wraps herald.ErrCorrupt.
func DecodeMessage(row []byte) (*herald.Message, error) {
	d := Decoder{B: row}
	d.Version()
	m := new(herald.Message)
	d.Message(m, nil)
	return m, d.Err
}
