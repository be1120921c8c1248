package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// frame is a control packet as it was received.
type frame struct {
	first byte
	body  []byte
}

func (f frame) kind() byte { return f.first >> 4 }

func (f frame) String() string {
	names := []string{"reserved", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
		"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}
	b, more := f.body, ""
	if len(b) > 64 {
		b, more = b[:64], "..."
	}
	return fmt.Sprintf("%s %02x [% x%s]", names[f.kind()], f.first, b, more)
}

// prop is a property as it was received.
type prop struct {
	id    byte
	num   uint32 // of numeric ones
	text  string // of strings and binary data; the name of a pair
	value string // of a pair
}

// find returns the properties with an id.
func find(props []prop, id byte) []prop {
	var out []prop
	for _, p := range props {
		if p.id == id {
			out = append(out, p)
		}
	}
	return out
}

// number returns the value of a numeric property and whether it is there.
func number(props []prop, id byte) (uint32, bool) {
	if f := find(props, id); len(f) > 0 {
		return f[0].num, true
	}
	return 0, false
}

// reader takes a body apart and remembers the first thing that is wrong.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("the packet ends too early")

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		if r.err == nil {
			r.err = errShort
		}
		r.b = nil
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() byte    { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) bin() string { return string(r.take(int(r.u16()))) }

// str reads a string and checks it: [MQTT-1.5.4-1], [MQTT-1.5.4-2].
func (r *reader) str() string {
	s := r.bin()
	if r.err == nil && (!utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0) {
		r.err = fmt.Errorf("string %q is not valid UTF-8 [MQTT-1.5.4-1]", s)
	}
	return s
}

// varint reads a variable byte integer and checks that it is as short as it
// can be [MQTT-1.5.5-1].
func (r *reader) varint() int {
	n := 0
	for i := range 4 {
		b := r.u8()
		n |= int(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			if i > 0 && b == 0 && r.err == nil {
				r.err = errors.New("a variable byte integer is longer than it needs to be [MQTT-1.5.5-1]")
			}
			return n
		}
	}
	if r.err == nil {
		r.err = errors.New("a variable byte integer does not end")
	}
	return 0
}

// Kinds of property values.
const (
	kByte = iota
	kTwo
	kFour
	kVar
	kStr
	kBin
	kPair
)

// propKinds has what a server may send, and in which packets (by type).
var propKinds = map[byte]struct {
	kind  int
	types []byte
}{
	pPayloadFormat:   {kByte, []byte{tPublish}},
	pExpiry:          {kFour, []byte{tPublish}},
	pContentType:     {kStr, []byte{tPublish}},
	pResponseTopic:   {kStr, []byte{tPublish}},
	pCorrelation:     {kBin, []byte{tPublish}},
	pSubscriptionID:  {kVar, []byte{tPublish}},
	pAlias:           {kTwo, []byte{tPublish}},
	pSessionExpiry:   {kFour, []byte{tConnack}}, // not in a server's DISCONNECT [MQTT-3.14.2-2]
	pAssignedID:      {kStr, []byte{tConnack}},
	pServerKeepalive: {kTwo, []byte{tConnack}},
	pAuthMethod:      {kStr, []byte{tConnack, tAuth}},
	pAuthData:        {kBin, []byte{tConnack, tAuth}},
	pResponseInfo:    {kStr, []byte{tConnack}},
	pServerReference: {kStr, []byte{tConnack, tDisconnect}},
	pReceiveMax:      {kTwo, []byte{tConnack}},
	pAliasMax:        {kTwo, []byte{tConnack}},
	pMaxQoS:          {kByte, []byte{tConnack}},
	pRetainAvailable: {kByte, []byte{tConnack}},
	pMaxPacket:       {kFour, []byte{tConnack}},
	pWildcardAvail:   {kByte, []byte{tConnack}},
	pSubIDAvail:      {kByte, []byte{tConnack}},
	pSharedAvail:     {kByte, []byte{tConnack}},
	pReasonString: {kStr, []byte{tConnack, tPuback, tPubrec, tPubrel, tPubcomp, tSuback, tUnsuback,
		tDisconnect, tAuth}},
	pUserProperty: {kPair, []byte{tConnack, tPublish, tPuback, tPubrec, tPubrel, tPubcomp, tSuback, tUnsuback,
		tDisconnect, tAuth}},
}

// props reads a property list and checks that each belongs into a packet of
// that type, and stands there once unless it may repeat.
func (r *reader) props(kind byte) []prop {
	in := &reader{b: r.take(r.varint())}
	var out []prop
	for in.err == nil && len(in.b) > 0 {
		p := prop{id: in.u8()}
		known, ok := propKinds[p.id]
		if !ok || !slices.Contains(known.types, kind) {
			in.err = fmt.Errorf("property 0x%02x does not belong into a packet of type %d from a server", p.id, kind)
			break
		}
		if p.id != pUserProperty && p.id != pSubscriptionID && len(find(out, p.id)) > 0 {
			in.err = fmt.Errorf("property 0x%02x stands there twice", p.id)
		}
		switch known.kind {
		case kByte:
			p.num = uint32(in.u8())
		case kTwo:
			p.num = uint32(in.u16())
		case kFour:
			p.num = in.u32()
		case kVar:
			p.num = uint32(in.varint())
		case kStr:
			p.text = in.str()
		case kBin:
			p.text = in.bin()
		case kPair:
			p.text, p.value = in.str(), in.str()
		}
		out = append(out, p)
	}
	if r.err == nil {
		r.err = in.err
	}
	return out
}

// answer is any packet from the server but PUBLISH, decoded.
type answer struct {
	kind    byte
	id      uint16
	reason  byte   // of all but SUBACK, UNSUBACK and PINGRESP; the return code in 3.1.1
	codes   []byte // of SUBACK and UNSUBACK
	present bool   // session present, of CONNACK
	props   []prop
}

// The reason codes that MQTT 5 lists for each packet that a server sends.
var reasons = map[byte][]byte{
	tConnack: {0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97,
		0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F}, // [MQTT-3.2.2-8]
	tPuback:   {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},          // [MQTT-3.4.2-1]
	tPubrec:   {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},          // [MQTT-3.5.2-1]
	tPubrel:   {0x00, 0x92},                                                    // [MQTT-3.6.2-1]
	tPubcomp:  {0x00, 0x92},                                                    // [MQTT-3.7.2-1]
	tSuback:   {0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2}, // [MQTT-3.9.3-2]
	tUnsuback: {0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91},                      // [MQTT-3.11.3-2]
	tDisconnect: {0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96,
		0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2}, // [MQTT-3.14.2-1]
	tAuth: {0x00, 0x18}, // [MQTT-3.15.2-1]
}

// decode takes a packet apart and checks everything that the specification
// asks of a server's packet by itself.
func decode(v Version, f frame) (answer, publish, error) {
	if f.kind() == tPublish {
		p, err := decodePublish(v, f)
		return answer{}, p, err
	}
	a := answer{kind: f.kind()}
	flags := byte(0)
	if a.kind == tPubrel {
		flags = 2
	}
	if f.first&0x0f != flags {
		return a, publish{}, fmt.Errorf("flags %04b [MQTT-2.1.3-1]", f.first&0x0f)
	}
	r := &reader{b: f.body}
	switch a.kind {
	case tConnack:
		b := r.u8()
		if b > 1 {
			return a, publish{}, fmt.Errorf("CONNACK flags %02x [MQTT-3.2.2-1]", b)
		}
		a.present, a.reason = b == 1, r.u8()
		if v == V5 {
			a.props = r.props(a.kind)
		}
	case tPuback, tPubrec, tPubrel, tPubcomp:
		a.id = r.u16()
		if v == V5 && len(r.b) > 0 {
			a.reason = r.u8()
			if len(r.b) > 0 {
				a.props = r.props(a.kind)
			}
		}
	case tSuback, tUnsuback:
		a.id = r.u16()
		if v == V5 {
			a.props = r.props(a.kind)
		}
		if v == V5 || a.kind == tSuback {
			a.codes = r.take(len(r.b))
		}
	case tPingresp:
	case tDisconnect, tAuth:
		if v != V5 {
			return a, publish{}, errors.New("a 3.1.1 server sends no such packet")
		}
		if len(r.b) > 0 {
			a.reason = r.u8()
			if len(r.b) > 0 {
				a.props = r.props(a.kind)
			}
		}
	default:
		return a, publish{}, errors.New("only a client sends this packet")
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	if r.err == nil {
		r.err = checkReasons(v, a)
	}
	return a, publish{}, r.err
}

func checkReasons(v Version, a answer) error {
	codes := a.codes
	if codes == nil {
		codes = []byte{a.reason}
	}
	allowed, ok := reasons[a.kind]
	if v != V5 {
		switch a.kind {
		case tConnack:
			allowed, ok = []byte{0, 1, 2, 3, 4, 5}, true
		case tSuback:
			allowed, ok = []byte{0, 1, 2, 0x80}, true // [MQTT-3.9.3-2]
		default:
			ok = false
		}
	}
	for _, c := range codes {
		if ok && !slices.Contains(allowed, c) {
			return fmt.Errorf("reason code 0x%02x is not listed for this packet", c)
		}
	}
	return nil
}

func decodePublish(v Version, f frame) (publish, error) {
	p := publish{qos: f.first >> 1 & 3, retain: f.first&1 != 0, dup: f.first&8 != 0}
	r := &reader{b: f.body}
	p.topic = r.str()
	if p.qos > 0 {
		p.id = r.u16()
	}
	if v == V5 {
		p.received = r.props(tPublish)
	}
	p.payload = string(r.take(len(r.b)))
	switch alias, has := number(p.received, pAlias); {
	case r.err != nil:
	case p.qos == 3:
		r.err = errors.New("QoS 3 [MQTT-3.3.1-4]")
	case p.qos == 0 && p.dup:
		r.err = errors.New("DUP at QoS 0 [MQTT-3.3.1-2]")
	case p.qos > 0 && p.id == 0:
		r.err = errors.New("packet id 0 [MQTT-2.2.1-4]")
	case strings.ContainsAny(p.topic, "+#"):
		r.err = errors.New("wildcard in the topic name [MQTT-3.3.2-2]")
	case has && alias == 0:
		r.err = errors.New("topic alias 0 [MQTT-3.3.2-8]")
	case p.topic == "" && !has:
		r.err = errors.New("no topic name [MQTT-4.7.3-1]")
	}
	return p, r.err
}
