package wire

import "github.com/herald-mqtt/herald"

// Subscribe is a SUBSCRIBE. Its filters point into the frame.
type Subscribe struct {
	PacketID uint16
	// Identifier is the subscription identifier, 0 for none.
	Identifier uint32
	Filters    []SubscribeFilter
}

// SubscribeFilter is one subscription asked for.
type SubscribeFilter struct {
	// Filter is a valid filter, "$share/{group}/" included.
	Filter []byte
	// Shared tells that it is that of a shared subscription.
	Shared            bool
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	// RetainHandling is 0, 1 or 2.
	RetainHandling byte
}

// Unsubscribe is an UNSUBSCRIBE. Its filters point into the frame.
type Unsubscribe struct {
	PacketID uint16
	Filters  [][]byte
}

// In these two packets mosquitto calls Malformed what it calls a Protocol Error
// elsewhere, but for what stands twice and for no-local.
var (
	errSubscribeID       = &Error{ReasonMalformed, "packet identifier 0"}
	errSubscribeProperty = &Error{ReasonMalformed, "property that does not belong to the packet"}
	errNoFilters         = &Error{ReasonMalformed, "no topic filter"}
	errOptions           = &Error{ReasonMalformed, "malformed subscription options"}
	errIdentifierZero    = &Error{ReasonMalformed, "subscription identifier 0"}
	errSharedNoLocal     = &Error{ReasonProtocol, "no-local on a shared subscription"}
)

// ParseSubscribe reads and verifies a whole SUBSCRIBE. It sets every field of s;
// the memory of s.Filters is used again. An error is an *Error.
func ParseSubscribe(frame []byte, v herald.Version, s *Subscribe) error {
	s.Filters = s.Filters[:0]
	return asError(s.parse(frame, v, true))
}

// parse verifies a SUBSCRIBE, and keeps its filters if asked.
func (s *Subscribe) parse(frame []byte, v herald.Version, keep bool) (e *Error) {
	var at int
	if s.PacketID, at, e = openSubscribe(frame, v, TypeSubscribe); e != nil {
		return e
	}
	s.Identifier = 0
	if v == herald.V5 {
		var b []byte
		if b, at, e = block(frame, at); e != nil {
			return e
		}
		p := properties{b: b, allowed: subscribeProperties}
		for p.next() {
			if p.id == propSubscriptionIdentifier {
				if s.Identifier = p.num; p.num == 0 {
					return errIdentifierZero
				}
			}
		}
		if p.err == errPropertyPlace {
			return errSubscribeProperty
		}
		if p.err != nil {
			return p.err
		}
	}
	if at == len(frame) {
		return errNoFilters // [MQTT-3.8.3-2], [MQTT-3.8.3-3] (3.1.1)
	}
	for at < len(frame) {
		var f SubscribeFilter
		if f.Filter, at, e = bytes16(frame, at); e != nil {
			return e
		}
		if f.Shared, e = checkFilter(f.Filter); e != nil {
			return e
		}
		if at == len(frame) {
			return errTruncated
		}
		options := frame[at]
		at++
		f.QoS = options & 3
		if f.QoS == 3 {
			return errOptions // [MQTT-3-8.3-4] (3.1.1)
		}
		if v == herald.V5 {
			f.NoLocal = options&0x04 != 0
			f.RetainAsPublished = options&0x08 != 0
			f.RetainHandling = options >> 4 & 3
			if options&0xc0 != 0 || f.RetainHandling == 3 {
				return errOptions // [MQTT-3.8.3-5]
			}
			if f.Shared && f.NoLocal {
				return errSharedNoLocal // [MQTT-3.8.3-4]
			}
		} else if options > 2 {
			return errOptions // [MQTT-3-8.3-4] (3.1.1)
		}
		if keep {
			s.Filters = append(s.Filters, f)
		}
	}
	return nil
}

// ParseUnsubscribe reads and verifies a whole UNSUBSCRIBE. It sets every field
// of u; the memory of u.Filters is used again. An error is an *Error.
func ParseUnsubscribe(frame []byte, v herald.Version, u *Unsubscribe) error {
	u.Filters = u.Filters[:0]
	return asError(u.parse(frame, v, true))
}

func (u *Unsubscribe) parse(frame []byte, v herald.Version, keep bool) (e *Error) {
	var at int
	if u.PacketID, at, e = openSubscribe(frame, v, TypeUnsubscribe); e != nil {
		return e
	}
	if v == herald.V5 {
		var b []byte
		if b, at, e = block(frame, at); e != nil {
			return e
		}
		p := properties{b: b, allowed: unsubscribeProperties}
		for p.next() {
		}
		if p.err == errPropertyPlace {
			return errSubscribeProperty
		}
		if p.err != nil {
			return p.err
		}
	}
	if at == len(frame) {
		return errNoFilters // [MQTT-3.10.3-2]
	}
	for at < len(frame) {
		var f []byte
		if f, at, e = bytes16(frame, at); e != nil {
			return e
		}
		if _, e = checkFilter(f); e != nil {
			return e // [MQTT-3.10.3-1]
		}
		if keep {
			u.Filters = append(u.Filters, f)
		}
	}
	return nil
}

// openSubscribe reads what SUBSCRIBE and UNSUBSCRIBE begin with.
func openSubscribe(frame []byte, v herald.Version, kind byte) (id uint16, at int, e *Error) {
	at, padded, e := open(frame)
	switch {
	case e != nil:
		return 0, 0, e
	case frame[0] != kind<<4|0x02: // [MQTT-3.8.1-1], [MQTT-3.10.1-1]
		return 0, 0, errFlags
	case padded && v == herald.V5:
		return 0, 0, errFrameLength
	case len(frame) < at+2:
		return 0, 0, errTruncated
	}
	if id = uint16At(frame, at); id == 0 {
		return 0, 0, errSubscribeID // [MQTT-2.2.1-3], [MQTT-2.3.1-1] (3.1.1)
	}
	return id, at + 2, nil
}
