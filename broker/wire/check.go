package wire

import "github.com/herald-mqtt/herald"

var (
	errAuthVersion = &Error{ReasonProtocol, "AUTH before MQTT 5"}
	errAuthMethod  = &Error{ReasonProtocol, "AUTH without an authentication method"}
	errPing        = &Error{ReasonMalformed, "PINGREQ with a body"}
)

// clientDisconnects are the reasons that a client may give [MQTT-3.14.2-1].
var clientDisconnects = reasonSet(ReasonSuccess, ReasonDisconnectWill, ReasonUnspecified, ReasonMalformed,
	ReasonProtocol, ReasonImplementation, ReasonTopic, ReasonReceiveMaximum, ReasonTopicAlias, ReasonTooLarge,
	ReasonRate, ReasonQuota, ReasonAdministrative, ReasonPayloadFormat)

// Check verifies a whole frame that a client sends after its CONNECT, of any
// type. What it accepts, any decoder can be given. An error is an *Error.
func Check(frame []byte, v herald.Version) error {
	if len(frame) == 0 {
		return errIncomplete
	}
	if !flagsOK[frame[0]] {
		return badFirst(frame[0])
	}
	switch Type(frame[0]) {
	case TypeConnect:
		return errSecondConnect // [MQTT-3.1.0-2]
	case TypePublish:
		var p Publish
		return ParsePublish(frame, v, &p)
	case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
		var a Ack
		return ParseAck(frame, v, &a)
	case TypeSubscribe:
		var s Subscribe
		return asError(s.parse(frame, v, false))
	case TypeUnsubscribe:
		var u Unsubscribe
		return asError(u.parse(frame, v, false))
	case TypePingreq:
		return asError(checkPing(frame))
	case TypeDisconnect:
		_, _, _, err := ParseDisconnect(frame, v)
		return err
	case TypeAuth:
		return asError(checkAuth(frame, v))
	}
	return errServerOnly
}

func checkPing(frame []byte) *Error {
	at, padded, e := open(frame)
	if e == nil && (at != len(frame) || padded) {
		e = errPing
	}
	return e
}

// ParseDisconnect reads and verifies a whole DISCONNECT of a client. expiry, in
// seconds, replaces the session expiry interval of CONNECT if hasExpiry; that it
// may not raise it from 0 [MQTT-3.14.2-2] is for the caller to see to. An error
// is an *Error.
func ParseDisconnect(frame []byte, v herald.Version) (reason byte, expiry uint32, hasExpiry bool, err error) {
	at, padded, e := open(frame)
	switch {
	case e != nil:
	case frame[0] != TypeDisconnect<<4:
		e = errFlags // [MQTT-3.14.1-1]
	case padded:
		e = errFrameLength
	case at == len(frame):
		return ReasonSuccess, 0, false, nil
	case v != herald.V5:
		e = errSurplus
	case !clientDisconnects.has(frame[at]):
		e = errReasonCode
	case at+1 == len(frame):
		return frame[at], 0, false, nil
	}
	if e != nil {
		return 0, 0, false, e
	}
	reason = frame[at]
	b, next, e := block(frame, at+1)
	if e == nil && next != len(frame) {
		e = errSurplus
	}
	if e != nil {
		return 0, 0, false, e
	}
	p := properties{b: b, allowed: disconnectProperties}
	for p.next() {
		if p.id == propSessionExpiry {
			expiry, hasExpiry = p.num, true
		}
	}
	if p.err != nil {
		return 0, 0, false, p.err
	}
	return reason, expiry, hasExpiry, nil
}

// checkAuth verifies an AUTH: only in MQTT 5, with a reason that a client may
// give [MQTT-3.15.2-1], and with an authentication method.
func checkAuth(frame []byte, v herald.Version) *Error {
	if v != herald.V5 {
		return errAuthVersion
	}
	at, padded, e := open(frame)
	switch {
	case e != nil:
		return e
	case padded:
		return errFrameLength
	case at == len(frame):
		return errReasonCode // it means 0x00, which only a server says
	case frame[at] != ReasonContinueAuth && frame[at] != ReasonReauthenticate:
		return errReasonCode
	case at+1 == len(frame):
		return errAuthMethod
	}
	b, next, e := block(frame, at+1)
	if e != nil {
		return e
	}
	if next != len(frame) {
		return errSurplus
	}
	p := properties{b: b, allowed: authProperties}
	for p.next() {
	}
	if p.err == nil && !p.has(propAuthMethod) {
		return errAuthMethod
	}
	return p.err
}
