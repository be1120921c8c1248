// Package wire turns bytes into MQTT packets and packets into bytes, in place
// and without an allocation per packet.
//
// Reading: [Split] finds where a frame ends; [ParsePublish] and [ParseAck] read
// the data packets that Herald handles itself; [CheckConnect] and [Check]
// verify every other packet of a client completely, so that no decoder behind
// them can meet a malformed one. All of them are total: whatever the bytes are,
// they answer, and they never look beyond the frame. What they return points
// into the frame unless it says otherwise.
//
// Writing: the Append functions encode what a server sends, behind what dst
// holds already.
//
// Where the specification leaves open which reason code names a violation, the
// code is mosquitto's, so that clients see what they are used to.
package wire

import "github.com/herald-mqtt/herald"

// The packet types, as they stand in the upper half of a frame's first byte.
const (
	TypeConnect byte = iota + 1
	TypeConnack
	TypePublish
	TypePuback
	TypePubrec
	TypePubrel
	TypePubcomp
	TypeSubscribe
	TypeSuback
	TypeUnsubscribe
	TypeUnsuback
	TypePingreq
	TypePingresp
	TypeDisconnect
	TypeAuth
)

// Type is the packet type that a frame's first byte tells.
func Type(first byte) byte { return first >> 4 }

// IsData tells whether a frame that begins with this byte is one of the packets
// that carry messages: PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP.
func IsData(first byte) bool { return first>>4-TypePublish <= TypePubcomp-TypePublish }

// The reason codes that this package gives or maps.
const (
	ReasonSuccess          byte = 0x00
	ReasonDisconnectWill   byte = 0x04
	ReasonNoSubscribers    byte = 0x10
	ReasonNoSubscription   byte = 0x11
	ReasonContinueAuth     byte = 0x18
	ReasonReauthenticate   byte = 0x19
	ReasonUnspecified      byte = 0x80
	ReasonMalformed        byte = 0x81
	ReasonProtocol         byte = 0x82
	ReasonImplementation   byte = 0x83
	ReasonVersion          byte = 0x84
	ReasonClientID         byte = 0x85
	ReasonBadLogin         byte = 0x86
	ReasonNotAuthorized    byte = 0x87
	ReasonUnavailable      byte = 0x88
	ReasonBusy             byte = 0x89
	ReasonBanned           byte = 0x8a
	ReasonShuttingDown     byte = 0x8b
	ReasonAuthMethod       byte = 0x8c
	ReasonKeepalive        byte = 0x8d
	ReasonTakenOver        byte = 0x8e
	ReasonFilter           byte = 0x8f
	ReasonTopic            byte = 0x90
	ReasonIDInUse          byte = 0x91
	ReasonIDNotFound       byte = 0x92
	ReasonReceiveMaximum   byte = 0x93
	ReasonTopicAlias       byte = 0x94
	ReasonTooLarge         byte = 0x95
	ReasonRate             byte = 0x96
	ReasonQuota            byte = 0x97
	ReasonAdministrative   byte = 0x98
	ReasonPayloadFormat    byte = 0x99
	ReasonRetain           byte = 0x9a
	ReasonQoS              byte = 0x9b
	ReasonUseAnother       byte = 0x9c
	ReasonServerMoved      byte = 0x9d
	ReasonShared           byte = 0x9e
	ReasonConnectionRate   byte = 0x9f
	ReasonMaximumConnect   byte = 0xa0
	ReasonSubscriptionID   byte = 0xa1
	ReasonWildcardDisabled byte = 0xa2
)

// Error says why a frame is refused. The connection must be closed
// [MQTT-4.8.0-1] (3.1.1), [MQTT-4.13.1-1]; before that, an MQTT 5 client is told
// Reason. Every *Error of this package is one of a fixed set, so an attacker's
// frame costs no allocation.
type Error struct {
	// Reason stands in DISCONNECT, or in CONNACK when it is about a CONNECT.
	Reason byte
	// Text says more, for a log or a reason string. It holds nothing that the
	// client sent.
	Text string
}

func (e *Error) Error() string { return e.Text }

var (
	errIncomplete    = &Error{ReasonMalformed, "frame incomplete"}
	errFrameLength   = &Error{ReasonMalformed, "malformed remaining length"}
	errTooLarge      = &Error{ReasonTooLarge, "packet too large"}
	errFlags         = &Error{ReasonMalformed, "malformed fixed header flags"}
	errType          = &Error{ReasonProtocol, "reserved packet type"}
	errAuthFlags     = &Error{ReasonProtocol, "malformed fixed header flags of an AUTH"}
	errServerOnly    = &Error{ReasonProtocol, "packet that only a server may send"}
	errSecondConnect = &Error{ReasonProtocol, "second CONNECT"}
	errTruncated     = &Error{ReasonMalformed, "packet ends too early"}
	errSurplus       = &Error{ReasonMalformed, "surplus bytes at the end of the packet"}
	errVarint        = &Error{ReasonMalformed, "malformed variable byte integer"}
	errUTF8          = &Error{ReasonMalformed, "malformed UTF-8 string"}
	errTopicEmpty    = &Error{ReasonMalformed, "empty topic name"}
	errTopicWildcard = &Error{ReasonMalformed, "wildcard in a topic name"}
	errTopicLevels   = &Error{ReasonMalformed, "topic name with too many levels"}
	errFilter        = &Error{ReasonMalformed, "malformed topic filter"}
	errShare         = &Error{ReasonProtocol, "malformed filter of a shared subscription"}
	errFilterLevels  = &Error{ReasonMalformed, "topic filter with too many levels"}
	errPacketID      = &Error{ReasonProtocol, "packet identifier 0"}
	errReasonCode    = &Error{ReasonProtocol, "reason code that does not belong to the packet"}

	errPropertyUnknown   = &Error{ReasonMalformed, "unknown property"}
	errPropertyPlace     = &Error{ReasonProtocol, "property that does not belong to the packet"}
	errPropertyDuplicate = &Error{ReasonProtocol, "property included twice"}
	errPropertyValue     = &Error{ReasonProtocol, "property with an invalid value"}
)

// asError turns a nil *Error into a nil error.
func asError(e *Error) error {
	if e == nil {
		return nil
	}
	return e
}

// ConnackCode is what a CONNACK of version v says for an MQTT 5 reason code. ok
// is false if that version has no code for it: then the connection is closed
// without a CONNACK [MQTT-3.2.2-6] (3.1.1).
func ConnackCode(v herald.Version, reason byte) (code byte, ok bool) {
	if v == herald.V5 {
		return reason, true
	}
	switch reason {
	case ReasonSuccess:
		return 0, true
	case ReasonVersion:
		return 1, true
	case ReasonClientID:
		return 2, true
	case ReasonUnspecified, ReasonImplementation, ReasonUnavailable, ReasonBusy, ReasonShuttingDown,
		ReasonQuota, ReasonConnectionRate, ReasonUseAnother, ReasonServerMoved, ReasonMaximumConnect:
		return 3, true
	case ReasonBadLogin:
		return 4, true
	case ReasonNotAuthorized, ReasonBanned:
		return 5, true
	}
	return 0, false
}
