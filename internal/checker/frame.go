package checker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Control packet types.
const (
	typeConnect    = 1
	typeConnack    = 2
	typePublish    = 3
	typePuback     = 4
	typePubrec     = 5
	typePubrel     = 6
	typePubcomp    = 7
	typeSubscribe  = 8
	typeSuback     = 9
	typePingreq    = 12
	typePingresp   = 13
	typeDisconnect = 14
)

// Protocol levels as they stand in CONNECT.
const (
	v311 byte = 4
	v5   byte = 5
)

// Property identifiers that the clients use.
const (
	propSessionExpiry  = 0x11
	propSubscriptionID = 0x0B
	propReceiveMaximum = 0x21
	propAliasMaximum   = 0x22
	propTopicAlias     = 0x23
)

// maxFrame bounds what is read from a broker; nothing in a run is larger.
const maxFrame = 1 << 20

var errMalformed = errors.New("malformed packet")

// frame is one control packet as read. body aliases the reader's buffer and is
// valid until the next read.
type frame struct {
	kind  byte
	flags byte
	body  []byte
}

// readFrame reads one packet, growing *buf as needed; the frame's body is a
// part of *buf.
func readFrame(r *bufio.Reader, buf *[]byte) (frame, error) {
	first, err := r.ReadByte()
	if err != nil {
		return frame{}, err
	}
	length, shift := 0, 0
	for {
		b, err := r.ReadByte()
		if err != nil {
			return frame{}, noEOF(err)
		}
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift += 7; shift > 21 {
			return frame{}, fmt.Errorf("%w: remaining length", errMalformed)
		}
	}
	if length > maxFrame {
		return frame{}, fmt.Errorf("%w: %d bytes", errMalformed, length)
	}
	if cap(*buf) < length {
		*buf = make([]byte, length)
	}
	body := (*buf)[:length]
	if _, err := io.ReadFull(r, body); err != nil {
		return frame{}, noEOF(err)
	}
	return frame{kind: first >> 4, flags: first & 0x0f, body: body}, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func appendVarint(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// appendPacket appends the fixed header and body.
func appendPacket(b []byte, first byte, body []byte) []byte {
	b = append(b, first)
	b = appendVarint(b, len(body))
	return append(b, body...)
}

// connectOptions is what CONNECT carries; a zero ReceiveMaximum or
// AliasMaximum is left out.
type connectOptions struct {
	version        byte
	clientID       string
	clean          bool
	username       string
	password       string
	keepAlive      uint16 // seconds
	sessionExpiry  uint32 // seconds, MQTT 5
	receiveMaximum uint16 // MQTT 5
	aliasMaximum   uint16 // MQTT 5
}

func appendConnect(b []byte, o connectOptions) []byte {
	body := appendString(nil, "MQTT")
	var flags byte
	if o.clean {
		flags |= 0x02
	}
	if o.username != "" {
		flags |= 0x80
	}
	if o.password != "" {
		flags |= 0x40
	}
	body = append(body, o.version, flags)
	body = binary.BigEndian.AppendUint16(body, o.keepAlive)
	if o.version == v5 {
		var props []byte
		if o.sessionExpiry != 0 {
			props = append(props, propSessionExpiry)
			props = binary.BigEndian.AppendUint32(props, o.sessionExpiry)
		}
		if o.receiveMaximum != 0 {
			props = append(props, propReceiveMaximum)
			props = binary.BigEndian.AppendUint16(props, o.receiveMaximum)
		}
		if o.aliasMaximum != 0 {
			props = append(props, propAliasMaximum)
			props = binary.BigEndian.AppendUint16(props, o.aliasMaximum)
		}
		body = appendVarint(body, len(props))
		body = append(body, props...)
	}
	body = appendString(body, o.clientID)
	if o.username != "" {
		body = appendString(body, o.username)
	}
	if o.password != "" {
		body = appendString(body, o.password)
	}
	return appendPacket(b, typeConnect<<4, body)
}

// publication is a PUBLISH, ours or the broker's. As parsed, topic and payload
// alias the frame's body.
type publication struct {
	qos     byte
	dup     bool
	retain  bool
	topic   []byte
	id      uint16
	alias   uint16
	subIDs  []int
	payload []byte
}

func appendPublish(b []byte, version byte, p publication) []byte {
	first := byte(typePublish<<4) | p.qos<<1
	if p.dup {
		first |= 0x08
	}
	if p.retain {
		first |= 0x01
	}
	length := 2 + len(p.topic) + len(p.payload)
	if p.qos > 0 {
		length += 2
	}
	var props []byte
	if version == v5 {
		if p.alias != 0 {
			props = append(props, propTopicAlias)
			props = binary.BigEndian.AppendUint16(props, p.alias)
		}
		for _, id := range p.subIDs {
			props = append(props, propSubscriptionID)
			props = appendVarint(props, id)
		}
		length += len(props) + 1 // never 128 bytes of them
	}
	b = append(b, first)
	b = appendVarint(b, length)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.topic)))
	b = append(b, p.topic...)
	if p.qos > 0 {
		b = binary.BigEndian.AppendUint16(b, p.id)
	}
	if version == v5 {
		b = append(b, byte(len(props)))
		b = append(b, props...)
	}
	return append(b, p.payload...)
}

// appendAck appends PUBACK, PUBREC, PUBREL or PUBCOMP. A reason other than 0
// is written to MQTT 5 only.
func appendAck(b []byte, version, kind byte, id uint16, reason byte) []byte {
	first := kind << 4
	if kind == typePubrel {
		first |= 0x02 // [MQTT-3.6.1-1]
	}
	if version == v5 && reason != 0 {
		return append(b, first, 3, byte(id>>8), byte(id), reason)
	}
	return append(b, first, 2, byte(id>>8), byte(id))
}

// subscription is one filter of a SUBSCRIBE.
type subscription struct {
	filter string
	qos    byte
}

// appendSubscribe appends one SUBSCRIBE for all of subs; a subscription
// identifier of 0 is left out.
func appendSubscribe(b []byte, version byte, id uint16, subs []subscription, subID int) []byte {
	body := binary.BigEndian.AppendUint16(nil, id)
	if version == v5 {
		var props []byte
		if subID != 0 {
			props = append(props, propSubscriptionID)
			props = appendVarint(props, subID)
		}
		body = appendVarint(body, len(props))
		body = append(body, props...)
	}
	for _, s := range subs {
		body = appendString(body, s.filter)
		body = append(body, s.qos)
	}
	return appendPacket(b, typeSubscribe<<4|0x02, body)
}

func parsePublish(f frame, version byte) (publication, error) {
	p := publication{
		qos:    f.flags >> 1 & 3,
		dup:    f.flags&0x08 != 0,
		retain: f.flags&0x01 != 0,
	}
	b := f.body
	if len(b) < 2 || p.qos == 3 {
		return p, fmt.Errorf("%w: PUBLISH", errMalformed)
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return p, fmt.Errorf("%w: PUBLISH topic", errMalformed)
	}
	p.topic, b = b[2:2+n], b[2+n:]
	if p.qos > 0 {
		if len(b) < 2 {
			return p, fmt.Errorf("%w: PUBLISH packet identifier", errMalformed)
		}
		p.id, b = binary.BigEndian.Uint16(b), b[2:]
		if p.id == 0 {
			return p, fmt.Errorf("%w: PUBLISH with packet identifier 0", errMalformed)
		}
	}
	if version == v5 {
		rest, err := parseProperties(b, func(id byte, n int) {
			switch id {
			case propTopicAlias:
				p.alias = uint16(n)
			case propSubscriptionID:
				p.subIDs = append(p.subIDs, n)
			}
		})
		if err != nil {
			return p, err
		}
		b = rest
	}
	p.payload = b
	return p, nil
}

// parseAck reads packet identifier and reason of PUBACK, PUBREC, PUBREL and
// PUBCOMP.
func parseAck(f frame, version byte) (id uint16, reason byte, err error) {
	b := f.body
	if len(b) < 2 || version != v5 && len(b) != 2 {
		return 0, 0, fmt.Errorf("%w: acknowledgement of %d bytes", errMalformed, len(b))
	}
	if len(b) > 2 {
		reason = b[2]
	}
	return binary.BigEndian.Uint16(b), reason, nil
}

// connackInfo is what the clients need of a CONNACK.
type connackInfo struct {
	present        bool
	reason         byte
	receiveMaximum int // 65,535 if absent
	aliasMaximum   int
}

func parseConnack(f frame, version byte) (connackInfo, error) {
	info := connackInfo{receiveMaximum: 65535}
	if f.kind != typeConnack || len(f.body) < 2 || f.body[0] > 1 {
		return info, fmt.Errorf("%w: not a CONNACK (type %d)", errMalformed, f.kind)
	}
	info.present, info.reason = f.body[0] == 1, f.body[1]
	if version != v5 || len(f.body) == 2 && info.reason != 0 {
		return info, nil // a broker without MQTT 5 may refuse in the old form
	}
	_, err := parseProperties(f.body[2:], func(id byte, n int) {
		switch id {
		case propReceiveMaximum:
			info.receiveMaximum = n
		case propAliasMaximum:
			info.aliasMaximum = n
		}
	})
	return info, err
}

// parseProperties walks MQTT 5 properties and calls number for each that holds
// one; it returns what follows them.
func parseProperties(b []byte, number func(id byte, n int)) ([]byte, error) {
	length, n := varint(b)
	if n == 0 || len(b) < n+length {
		return nil, fmt.Errorf("%w: property length", errMalformed)
	}
	props, rest := b[n:n+length], b[n+length:]
	for len(props) > 0 {
		id := props[0]
		props = props[1:]
		size, value := 0, 0
		switch id {
		case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A:
			if size = 1; len(props) >= size {
				value = int(props[0])
			}
		case 0x13, propReceiveMaximum, propAliasMaximum, propTopicAlias:
			if size = 2; len(props) >= size {
				value = int(binary.BigEndian.Uint16(props))
			}
		case 0x02, propSessionExpiry, 0x18, 0x27:
			if size = 4; len(props) >= size {
				value = int(binary.BigEndian.Uint32(props))
			}
		case propSubscriptionID:
			if value, size = varint(props); size == 0 {
				return nil, fmt.Errorf("%w: subscription identifier", errMalformed)
			}
		case 0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F:
			size = stringSize(props)
		case 0x26:
			if size = stringSize(props); size <= len(props) {
				size += stringSize(props[size:])
			}
		default:
			return nil, fmt.Errorf("%w: property %#x", errMalformed, id)
		}
		if len(props) < size {
			return nil, fmt.Errorf("%w: property %#x", errMalformed, id)
		}
		number(id, value)
		props = props[size:]
	}
	return rest, nil
}

// stringSize is the size of a length-prefixed value; more than len(b) if b is
// too short.
func stringSize(b []byte) int {
	if len(b) < 2 {
		return len(b) + 2
	}
	return 2 + int(binary.BigEndian.Uint16(b))
}

// varint reads a variable byte integer; size 0 means there is none.
func varint(b []byte) (value, size int) {
	for i := 0; i < len(b) && i < 4; i++ {
		value |= int(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return value, i + 1
		}
	}
	return 0, 0
}
