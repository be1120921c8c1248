package wire

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
)

// AppendUvarint appends n, at most [MaxRemaining], as a variable byte integer in
// the fewest bytes that hold it [MQTT-1.5.5-1].
func AppendUvarint(dst []byte, n uint32) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

// appendString appends s, at most 65,535 bytes, behind its length.
func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, byte(len(s)>>8), byte(len(s)))
	return append(dst, s...)
}

// AppendAck appends a PUBACK, PUBREC, PUBREL or PUBCOMP: without properties, and
// without reason where it is 0x00 or the version knows none, so that it is four
// bytes long nearly always.
func AppendAck(dst []byte, v herald.Version, kind byte, id uint16, reason byte) []byte {
	first := kind << 4
	if kind == TypePubrel {
		first |= 0x02 // [MQTT-3.6.1-1]
	}
	if v != herald.V5 || reason == ReasonSuccess {
		return append(dst, first, 2, byte(id>>8), byte(id))
	}
	return append(dst, first, 3, byte(id>>8), byte(id), reason)
}

// AppendSuback appends a SUBACK with a reason code per filter, in their order
// [MQTT-3.8.4-6]. Before MQTT 5 all failures are 0x80 [MQTT-3.9.3-2] (3.1.1).
func AppendSuback(dst []byte, v herald.Version, id uint16, codes []byte) []byte {
	dst = appendCoded(dst, v, TypeSuback, id, len(codes))
	if v == herald.V5 {
		return append(dst, codes...)
	}
	for _, c := range codes {
		dst = append(dst, min(c, 0x80))
	}
	return dst
}

// AppendUnsuback appends an UNSUBACK: with a reason code per filter, in their
// order [MQTT-3.11.3-2], in MQTT 5; with the packet id alone before.
func AppendUnsuback(dst []byte, v herald.Version, id uint16, codes []byte) []byte {
	if v != herald.V5 {
		codes = nil
	}
	return append(appendCoded(dst, v, TypeUnsuback, id, len(codes)), codes...)
}

// appendCoded appends what SUBACK and UNSUBACK begin with; n codes follow.
func appendCoded(dst []byte, v herald.Version, kind byte, id uint16, n int) []byte {
	n += 2
	if v == herald.V5 {
		n++
	}
	dst = append(dst, kind<<4)
	dst = AppendUvarint(dst, uint32(n))
	dst = append(dst, byte(id>>8), byte(id))
	if v == herald.V5 {
		dst = append(dst, 0)
	}
	return dst
}

// AppendPingresp appends a PINGRESP.
func AppendPingresp(dst []byte) []byte { return append(dst, TypePingresp<<4, 0) }

// maxText bounds reason strings and server references, so that a packet with
// them stays small whatever they come from.
const maxText = 1024

// clip cuts s to at most maxText bytes, at the end of a character.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// AppendDisconnect appends a DISCONNECT that a server sends: nothing before
// MQTT 5, which has none. text is the reason string, server the server reference;
// either may be empty. A packet that has nothing but a reason to say is three
// bytes long. The caller sees to the client's maximum packet size by leaving text
// out [MQTT-3.14.2-3].
func AppendDisconnect(dst []byte, v herald.Version, reason byte, text, server string) []byte {
	if v != herald.V5 {
		return dst
	}
	if reason == ReasonUnavailable { // one of CONNACK only (MQTT 5, table 2-6)
		reason = ReasonBusy
	}
	text, server = clip(text), clip(server)
	n := textSize(text) + textSize(server)
	if n == 0 {
		return append(dst, TypeDisconnect<<4, 1, reason)
	}
	dst = append(dst, TypeDisconnect<<4)
	dst = AppendUvarint(dst, uint32(1+uvarintLen(n)+n))
	dst = append(dst, reason)
	dst = AppendUvarint(dst, uint32(n))
	dst = appendText(dst, propReasonString, text)
	return appendText(dst, propServerReference, server)
}

// textSize is the size of a text property, 0 for none.
func textSize(s string) int {
	if s == "" {
		return 0
	}
	return 3 + len(s)
}

// appendText appends a text property, if there is text.
func appendText(dst []byte, id byte, s string) []byte {
	if s == "" {
		return dst
	}
	return appendString(append(dst, id), s)
}

// ConnackProperties are the properties of a CONNACK. What is left zero is not
// sent; then the default of MQTT holds, which the comments name.
type ConnackProperties struct {
	HasSessionExpiry  bool   // what the client asked for
	SessionExpiry     uint32 // seconds
	ReceiveMaximum    uint16 // 65,535
	HasMaximumQoS     bool   // 2
	MaximumQoS        byte
	NoRetain          bool   // retained messages are served
	MaximumPacketSize uint32 // bytes; no bound
	AssignedClientID  string
	TopicAliasMaximum uint16 // 0
	ReasonString      string
	NoWildcards       bool // wildcard subscriptions are served
	NoIdentifiers     bool // subscription identifiers are served
	NoShared          bool // shared subscriptions are served
	HasKeepalive      bool // what the client asked for
	Keepalive         uint16
	ResponseInfo      string
	ServerReference   string
	AuthMethod        string
	AuthData          []byte
}

// AppendConnack appends a CONNACK. Before MQTT 5 the reason becomes one of the
// return codes of [ConnackCode]; if there is none, or v is 0, nothing is appended
// and the connection is closed without an answer. Session present goes with
// success only [MQTT-3.2.2-6], [MQTT-3.2.2-4] (3.1.1). p may be nil.
//
// The packet is built behind dst; with capacity there, nothing is allocated.
func AppendConnack(dst []byte, v herald.Version, sessionPresent bool, reason byte, p *ConnackProperties) []byte {
	code, ok := ConnackCode(v, reason)
	if !ok || v == 0 {
		return dst
	}
	var present byte
	if sessionPresent && code == 0 {
		present = 1
	}
	if v != herald.V5 {
		return append(dst, TypeConnack<<4, 2, present, code)
	}
	if p == nil {
		return append(dst, TypeConnack<<4, 3, present, code, 0)
	}
	// The properties are written where they stand if both lengths take one byte,
	// and moved on if they take more.
	start := len(dst)
	dst = append(dst, TypeConnack<<4, 0, present, code, 0)
	body := len(dst)
	dst = p.append(dst)
	n := len(dst) - body
	lengths := uvarintLen(n) + uvarintLen(2+uvarintLen(n)+n)
	if lengths > 2 {
		for range lengths - 2 {
			dst = append(dst, 0)
		}
		copy(dst[body+lengths-2:], dst[body:body+n])
	}
	head := AppendUvarint(append(dst[:start], TypeConnack<<4), uint32(2+uvarintLen(n)+n))
	AppendUvarint(append(head, present, code), uint32(n))
	return dst
}

// append appends the properties that are set.
func (p *ConnackProperties) append(dst []byte) []byte {
	if p.HasSessionExpiry {
		dst = binary.BigEndian.AppendUint32(append(dst, propSessionExpiry), p.SessionExpiry)
	}
	dst = appendText(dst, propAssignedClientID, p.AssignedClientID)
	if p.HasKeepalive {
		dst = appendNonZero(dst, propServerKeepalive, p.Keepalive, true)
	}
	dst = appendText(dst, propAuthMethod, p.AuthMethod)
	if len(p.AuthData) > 0 {
		dst = appendString(append(dst, propAuthData), p.AuthData)
	}
	dst = appendText(dst, propResponseInfo, clip(p.ResponseInfo))
	dst = appendText(dst, propServerReference, clip(p.ServerReference))
	dst = appendText(dst, propReasonString, clip(p.ReasonString))
	dst = appendNonZero(dst, propReceiveMaximum, p.ReceiveMaximum, false)
	dst = appendNonZero(dst, propTopicAliasMaximum, p.TopicAliasMaximum, false)
	if p.HasMaximumQoS && p.MaximumQoS < 2 {
		dst = append(dst, propMaximumQoS, p.MaximumQoS)
	}
	if p.MaximumPacketSize > 0 {
		dst = binary.BigEndian.AppendUint32(append(dst, propMaximumPacketSize), p.MaximumPacketSize)
	}
	for _, f := range [...]struct {
		set bool
		id  byte
	}{
		{p.NoRetain, propRetainAvailable},
		{p.NoWildcards, propWildcardAvailable},
		{p.NoIdentifiers, propIdentifiersAvailable},
		{p.NoShared, propSharedAvailable},
	} {
		if f.set {
			dst = append(dst, f.id, 0)
		}
	}
	return dst
}

func appendNonZero(dst []byte, id byte, n uint16, zero bool) []byte {
	if n == 0 && !zero {
		return dst
	}
	return append(dst, id, byte(n>>8), byte(n))
}
