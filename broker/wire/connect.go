package wire

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
)

// Connect is a CONNECT. Its slices point into the frame, but for WillProperties.
type Connect struct {
	// Version is the version in which the client is to be answered, also when
	// CheckConnect says an error: 0 if it has shown nothing that would make it an
	// MQTT client, so that the connection is closed without a word.
	Version   herald.Version
	Clean     bool
	Keepalive uint16 // seconds, 0 for none
	ClientID  []byte // may be empty

	HasUsername, HasPassword bool
	Username, Password       []byte

	// Properties are all CONNECT properties as they stand in the frame, without
	// their length; nil before MQTT 5. What follows is in them.
	Properties       []byte
	HasSessionExpiry bool
	SessionExpiry    uint32 // seconds; 0 if absent
	ReceiveMaximum   uint16 // 65,535 if absent [MQTT-3.1.2-24]
	// MaximumPacketSize is what the client takes, in bytes; 0 for no bound.
	MaximumPacketSize   uint32
	TopicAliasMaximum   uint16
	RequestProblemInfo  bool // true if absent
	RequestResponseInfo bool
	// HasAuth tells that the client asked for enhanced authentication.
	HasAuth    bool
	AuthMethod []byte
	AuthData   []byte

	HasWill       bool
	WillQoS       byte
	WillRetain    bool
	WillTopic     []byte
	WillPayload   []byte
	WillDelay     uint32 // seconds
	HasWillExpiry bool
	WillExpiry    uint32 // seconds
	// WillProperties are what goes into the PUBLISH as it is: all will properties
	// but delay and message expiry. They point into the frame only if nothing had
	// to be cut out.
	WillProperties []byte
}

var (
	errNotConnect    = &Error{ReasonProtocol, "first packet is not a CONNECT"}
	errProtocolName  = &Error{ReasonVersion, "unknown protocol name"}
	errProtocolLevel = &Error{ReasonVersion, "unsupported protocol level"}
	errConnectFlags  = &Error{ReasonMalformed, "malformed connect flags"}
	errPasswordAlone = &Error{ReasonMalformed, "password without a user name"}
	errClientIDEmpty = &Error{ReasonClientID, "empty client identifier"}
	errAuthDataAlone = &Error{ReasonProtocol, "authentication data without a method"}
	errWillTopic     = &Error{ReasonTopic, "invalid will topic"}
)

// The connect flags.
const (
	flagReserved = 1 << iota
	flagClean
	flagWill
	_
	_
	flagWillRetain
	flagPassword
	flagUsername
)

// CheckConnect reads and verifies the first frame of a client. With an error,
// which is an *Error, c.Version tells how to answer: [AppendConnack] with
// c.Version and the error's reason writes what may be said, which is nothing
// where the version has no code for it.
//
// MQTT 3.1 is held to its own rules where they are laxer: the flags of the fixed
// header and the reserved connect flag mean nothing, and a user name or password
// that was announced may be missing at the end of the packet.
func CheckConnect(frame []byte) (c Connect, err error) {
	return c, asError(c.parse(frame))
}

func (c *Connect) parse(frame []byte) *Error {
	at, padded, e := open(frame)
	if e != nil {
		return e
	}
	if frame[0]>>4 != TypeConnect {
		return errNotConnect // [MQTT-3.1.0-1]
	}
	name, at, e := bytes16(frame, at)
	if e != nil {
		return e
	}
	level := byte(herald.V311)
	switch string(name) {
	case "MQTT":
	case "MQIsdp":
		level = byte(herald.V31)
	default:
		return errProtocolName // [MQTT-3.1.2-1]
	}
	if len(frame) < at+4 {
		return errTruncated
	}
	switch {
	case frame[at] == level || frame[at] == byte(herald.V5) && level == byte(herald.V311):
		c.Version = herald.Version(frame[at])
	default:
		c.Version = herald.V311 // every client knows its CONNACK; mosquitto and EMQX do the same
		return errProtocolLevel // [MQTT-3.1.2-2]
	}
	if c.Version != herald.V31 && frame[0] != TypeConnect<<4 {
		return errFlags // [MQTT-2.2.2-2] (3.1.1), [MQTT-2.1.3-1]
	}
	flags := frame[at+1]
	if e = checkConnectFlags(flags, c.Version); e != nil {
		return e
	}
	c.Clean = flags&flagClean != 0
	c.Keepalive = uint16At(frame, at+2)
	at += 4
	c.ReceiveMaximum = 65535
	c.RequestProblemInfo = true
	if c.Version == herald.V5 {
		if padded {
			return errFrameLength // [MQTT-1.5.5-1]
		}
		if at, e = c.properties(frame, at); e != nil {
			return e
		}
	}
	return c.payload(frame, at, flags)
}

func checkConnectFlags(flags byte, v herald.Version) *Error {
	if flags&flagReserved != 0 && v != herald.V31 {
		return errConnectFlags // [MQTT-3.1.2-3]
	}
	qos := flags >> 3 & 3
	if qos == 3 {
		return errConnectFlags // [MQTT-3.1.2-12], [MQTT-3.1.2-14] (3.1.1)
	}
	if flags&flagWill == 0 && (qos != 0 || flags&flagWillRetain != 0) {
		return errConnectFlags // [MQTT-3.1.2-11], [MQTT-3.1.2-13]
	}
	if v != herald.V5 && flags&flagPassword != 0 && flags&flagUsername == 0 {
		return errPasswordAlone // [MQTT-3.1.2-22] (3.1.1)
	}
	return nil
}

func (c *Connect) properties(frame []byte, at int) (next int, e *Error) {
	if c.Properties, next, e = block(frame, at); e != nil {
		return 0, e
	}
	p := properties{b: c.Properties, allowed: connectProperties}
	for p.next() {
		switch p.id {
		case propSessionExpiry:
			c.SessionExpiry, c.HasSessionExpiry = p.num, true
		case propReceiveMaximum:
			if c.ReceiveMaximum = uint16(p.num); p.num == 0 {
				return 0, errPropertyValue
			}
		case propMaximumPacketSize:
			if c.MaximumPacketSize = p.num; p.num == 0 {
				return 0, errPropertyValue
			}
		case propTopicAliasMaximum:
			c.TopicAliasMaximum = uint16(p.num)
		case propRequestResponseInfo:
			if c.RequestResponseInfo = p.num == 1; p.num > 1 {
				return 0, errPropertyValue
			}
		case propRequestProblemInfo:
			if c.RequestProblemInfo = p.num == 1; p.num > 1 {
				return 0, errPropertyValue
			}
		case propAuthMethod:
			c.AuthMethod, c.HasAuth = p.data, true
		case propAuthData:
			c.AuthData = p.data
		}
	}
	if p.err == nil && p.has(propAuthData) && !c.HasAuth {
		return 0, errAuthDataAlone
	}
	return next, p.err
}

func (c *Connect) payload(frame []byte, at int, flags byte) (e *Error) {
	if c.ClientID, at, e = bytes16(frame, at); e != nil {
		return e // [MQTT-3.1.3-3]
	}
	if !plain(c.ClientID) && !cleanText(c.ClientID) { // [MQTT-3.1.3-4]
		return errUTF8
	}
	if len(c.ClientID) == 0 && c.Version != herald.V5 && (!c.Clean || c.Version == herald.V31) {
		return errClientIDEmpty // [MQTT-3.1.3-8] (3.1.1)
	}
	if flags&flagWill != 0 {
		if at, e = c.will(frame, at, flags); e != nil {
			return e
		}
	}
	missing := c.Version == herald.V31
	if flags&flagUsername != 0 && (at < len(frame) || !missing) {
		if c.Username, at, e = bytes16(frame, at); e != nil {
			return e // [MQTT-3.1.2-17], [MQTT-3.1.2-19] (3.1.1)
		}
		if !plain(c.Username) && !cleanText(c.Username) {
			return errUTF8 // [MQTT-3.1.3-12]
		}
		c.HasUsername = true
	}
	if flags&flagPassword != 0 && (at < len(frame) || !missing) {
		if c.Password, at, e = bytes16(frame, at); e != nil {
			return e // [MQTT-3.1.2-19], [MQTT-3.1.2-21] (3.1.1)
		}
		c.HasPassword = true
	}
	if at != len(frame) {
		return errSurplus // [MQTT-3.1.2-16], [MQTT-3.1.2-18]
	}
	return nil
}

func (c *Connect) will(frame []byte, at int, flags byte) (next int, e *Error) {
	c.HasWill = true
	c.WillQoS = flags >> 3 & 3
	c.WillRetain = flags&flagWillRetain != 0
	var raw []byte
	delayAt, expiryAt := -1, -1
	if c.Version == herald.V5 {
		if raw, at, e = block(frame, at); e != nil {
			return 0, e
		}
		p := properties{b: raw, allowed: willProperties}
		for p.next() {
			switch p.id {
			case propWillDelay:
				c.WillDelay, delayAt = p.num, p.start
			case propMessageExpiry:
				c.WillExpiry, c.HasWillExpiry, expiryAt = p.num, true, p.start
			default:
				if e = p.checkMessage(); e != nil {
					return 0, e
				}
			}
		}
		if p.err != nil {
			return 0, p.err
		}
	}
	if c.WillTopic, at, e = bytes16(frame, at); e != nil {
		return 0, e // [MQTT-3.1.2-9]
	}
	if e = checkTopic(c.WillTopic); e != nil {
		if e == errUTF8 {
			return 0, e // [MQTT-3.1.3-11], [MQTT-3.1.3-10] (3.1.1)
		}
		return 0, errWillTopic
	}
	if c.WillPayload, at, e = bytes16(frame, at); e != nil {
		return 0, e
	}
	c.WillProperties = raw
	if delayAt >= 0 || expiryAt >= 0 {
		c.WillProperties = appendWithout(nil, raw, delayAt, 5, expiryAt, 5)
	}
	return at, nil
}

// DropUserProperties takes the user properties out of Properties.
func (c *Connect) DropUserProperties() {
	var kept []byte
	p := properties{b: c.Properties, allowed: connectProperties}
	for p.next() {
		if p.id != propUser {
			kept = append(kept, p.b[p.start:p.at]...)
		}
	}
	c.Properties = kept
}

// AppendConnect appends a CONNECT that says what c says, in c.Version. The will
// gets WillProperties, delay and expiry, the packet gets Properties as they are.
//
// It is also how a CONNECT is made fit for a server that is stricter than MQTT:
// mochi refuses a will with an empty payload and an empty password. Clear HasWill
// (the engine keeps the will), and HasPassword if the password is empty, and
// mochi accepts whatever CheckConnect accepted.
func AppendConnect(dst []byte, c *Connect) []byte {
	name := "MQTT"
	if c.Version == herald.V31 {
		name = "MQIsdp"
	}
	n := 2 + len(name) + 4 + 2 + len(c.ClientID)
	var flags byte
	if c.Clean {
		flags |= flagClean
	}
	if c.HasUsername {
		flags |= flagUsername
		n += 2 + len(c.Username)
	}
	if c.HasPassword {
		flags |= flagPassword
		n += 2 + len(c.Password)
	}
	will := len(c.WillProperties)
	if c.WillDelay > 0 {
		will += 5
	}
	if c.HasWillExpiry {
		will += 5
	}
	if c.HasWill {
		flags |= flagWill | c.WillQoS<<3
		if c.WillRetain {
			flags |= flagWillRetain
		}
		n += 2 + len(c.WillTopic) + 2 + len(c.WillPayload)
	}
	if c.Version == herald.V5 {
		n += uvarintLen(len(c.Properties)) + len(c.Properties)
		if c.HasWill {
			n += uvarintLen(will) + will
		}
	}
	dst = append(dst, TypeConnect<<4)
	dst = AppendUvarint(dst, uint32(n))
	dst = appendString(dst, name)
	dst = append(dst, byte(c.Version), flags, byte(c.Keepalive>>8), byte(c.Keepalive))
	if c.Version == herald.V5 {
		dst = AppendUvarint(dst, uint32(len(c.Properties)))
		dst = append(dst, c.Properties...)
	}
	dst = appendString(dst, c.ClientID)
	if c.HasWill {
		if c.Version == herald.V5 {
			dst = AppendUvarint(dst, uint32(will))
			if c.WillDelay > 0 {
				dst = binary.BigEndian.AppendUint32(append(dst, propWillDelay), c.WillDelay)
			}
			if c.HasWillExpiry {
				dst = binary.BigEndian.AppendUint32(append(dst, propMessageExpiry), c.WillExpiry)
			}
			dst = append(dst, c.WillProperties...)
		}
		dst = appendString(dst, c.WillTopic)
		dst = appendString(dst, c.WillPayload)
	}
	if c.HasUsername {
		dst = appendString(dst, c.Username)
	}
	if c.HasPassword {
		dst = appendString(dst, c.Password)
	}
	return dst
}
