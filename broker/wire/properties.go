package wire

import "encoding/binary"

// The property identifiers of MQTT 5, beside those that stand in run.go.
const (
	propPayloadFormat        = 0x01
	propContentType          = 0x03
	propResponseTopic        = 0x08
	propCorrelationData      = 0x09
	propSessionExpiry        = 0x11
	propAssignedClientID     = 0x12
	propServerKeepalive      = 0x13
	propAuthMethod           = 0x15
	propAuthData             = 0x16
	propRequestProblemInfo   = 0x17
	propWillDelay            = 0x18
	propRequestResponseInfo  = 0x19
	propResponseInfo         = 0x1a
	propServerReference      = 0x1c
	propReasonString         = 0x1f
	propReceiveMaximum       = 0x21
	propTopicAliasMaximum    = 0x22
	propMaximumQoS           = 0x24
	propRetainAvailable      = 0x25
	propUser                 = 0x26
	propMaximumPacketSize    = 0x27
	propWildcardAvailable    = 0x28
	propIdentifiersAvailable = 0x29
	propSharedAvailable      = 0x2a

	propCount = 0x2b
)

// The data types of properties.
const (
	kindNone byte = iota
	kindByte
	kindUint16
	kindUint32
	kindUvarint
	kindText
	kindBinary
	kindPair
)

var propKind = [propCount]byte{
	propPayloadFormat:          kindByte,
	propMessageExpiry:          kindUint32,
	propContentType:            kindText,
	propResponseTopic:          kindText,
	propCorrelationData:        kindBinary,
	propSubscriptionIdentifier: kindUvarint,
	propSessionExpiry:          kindUint32,
	propAssignedClientID:       kindText,
	propServerKeepalive:        kindUint16,
	propAuthMethod:             kindText,
	propAuthData:               kindBinary,
	propRequestProblemInfo:     kindByte,
	propWillDelay:              kindUint32,
	propRequestResponseInfo:    kindByte,
	propResponseInfo:           kindText,
	propServerReference:        kindText,
	propReasonString:           kindText,
	propReceiveMaximum:         kindUint16,
	propTopicAliasMaximum:      kindUint16,
	propTopicAlias:             kindUint16,
	propMaximumQoS:             kindByte,
	propRetainAvailable:        kindByte,
	propUser:                   kindPair,
	propMaximumPacketSize:      kindUint32,
	propWildcardAvailable:      kindByte,
	propIdentifiersAvailable:   kindByte,
	propSharedAvailable:        kindByte,
}

// Sets of properties that a client may send, bit = identifier.
const (
	willProperties = 1<<propPayloadFormat | 1<<propMessageExpiry | 1<<propContentType |
		1<<propResponseTopic | 1<<propCorrelationData | 1<<propUser | 1<<propWillDelay
	publishProperties = 1<<propPayloadFormat | 1<<propMessageExpiry | 1<<propContentType |
		1<<propResponseTopic | 1<<propCorrelationData | 1<<propUser | 1<<propTopicAlias
	connectProperties = 1<<propSessionExpiry | 1<<propReceiveMaximum | 1<<propMaximumPacketSize |
		1<<propTopicAliasMaximum | 1<<propRequestResponseInfo | 1<<propRequestProblemInfo |
		1<<propUser | 1<<propAuthMethod | 1<<propAuthData
	ackProperties         = 1<<propReasonString | 1<<propUser
	subscribeProperties   = 1<<propSubscriptionIdentifier | 1<<propUser
	unsubscribeProperties = 1 << propUser
	disconnectProperties  = 1<<propSessionExpiry | 1<<propReasonString | 1<<propServerReference | 1<<propUser
	authProperties        = 1<<propAuthMethod | 1<<propAuthData | 1<<propReasonString | 1<<propUser
)

// properties walks over a block of properties and verifies it on the way.
type properties struct {
	b       []byte
	at      int
	seen    uint64
	allowed uint64
	err     *Error

	// What next found.
	start int    // where its identifier stands in b
	id    byte   // its identifier
	num   uint32 // an integer's value
	data  []byte // a string, binary data, or the name of a user property
}

// block cuts the properties at b[at:] out, without their length.
func block(b []byte, at int) (props []byte, next int, e *Error) {
	if at < len(b) && b[at] == 0 {
		return b[at+1 : at+1 : at+1], at + 1, nil
	}
	n, at, e := uvarint(b, at)
	if e != nil {
		return nil, 0, e
	}
	if int(n) > len(b)-at {
		return nil, 0, errTruncated
	}
	next = at + int(n)
	return b[at:next:next], next, nil
}

// next goes on to the next property. It is false at the end, and at an error.
func (p *properties) next() bool {
	if p.at >= len(p.b) {
		return false
	}
	p.start = p.at
	p.id = p.b[p.at]
	if p.id >= propCount || propKind[p.id] == kindNone {
		return p.fail(errPropertyUnknown)
	}
	at, rest := p.at+1, len(p.b)-p.at-1
	switch kind := propKind[p.id]; kind {
	case kindByte:
		if rest < 1 {
			return p.fail(errTruncated)
		}
		p.num = uint32(p.b[at])
		p.at = at + 1
	case kindUint16:
		if rest < 2 {
			return p.fail(errTruncated)
		}
		p.num = uint32(uint16At(p.b, at))
		p.at = at + 2
	case kindUint32:
		if rest < 4 {
			return p.fail(errTruncated)
		}
		p.num = binary.BigEndian.Uint32(p.b[at:])
		p.at = at + 4
	case kindUvarint:
		var e *Error
		if p.num, p.at, e = uvarint(p.b, at); e != nil {
			return p.fail(e)
		}
	default:
		var e *Error
		if p.data, p.at, e = bytes16(p.b, at); e != nil {
			return p.fail(e)
		}
		if kind != kindBinary && !validText(p.data) {
			return p.fail(errUTF8)
		}
		if kind == kindPair {
			var value []byte
			if value, p.at, e = bytes16(p.b, p.at); e != nil {
				return p.fail(e)
			}
			if !validText(value) {
				return p.fail(errUTF8)
			}
		}
	}
	bit := uint64(1) << p.id
	if p.allowed&bit == 0 {
		return p.fail(errPropertyPlace)
	}
	if p.seen&bit != 0 && p.id != propUser {
		return p.fail(errPropertyDuplicate)
	}
	p.seen |= bit
	return true
}

func (p *properties) fail(e *Error) bool {
	p.err = e
	return false
}

// has tells whether the property was met.
func (p *properties) has(id byte) bool { return p.seen&(1<<id) != 0 }

// checkBlock verifies the properties at b[at:], of which nothing but their being
// allowed matters, and which must end the packet.
func checkBlock(b []byte, at int, allowed uint64) *Error {
	props, next, e := block(b, at)
	if e != nil {
		return e
	}
	if next != len(b) {
		return errSurplus
	}
	p := properties{b: props, allowed: allowed}
	for p.next() {
	}
	return p.err
}
