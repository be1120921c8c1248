package conformance

import (
	"encoding/binary"
	"slices"
)

// Control packet types.
const (
	tConnect     = 1
	tConnack     = 2
	tPublish     = 3
	tPuback      = 4
	tPubrec      = 5
	tPubrel      = 6
	tPubcomp     = 7
	tSubscribe   = 8
	tSuback      = 9
	tUnsubscribe = 10
	tUnsuback    = 11
	tPingreq     = 12
	tPingresp    = 13
	tDisconnect  = 14
	tAuth        = 15
)

// Property identifiers of MQTT 5.
const (
	pPayloadFormat   = 0x01
	pExpiry          = 0x02
	pContentType     = 0x03
	pResponseTopic   = 0x08
	pCorrelation     = 0x09
	pSubscriptionID  = 0x0B
	pSessionExpiry   = 0x11
	pAssignedID      = 0x12
	pServerKeepalive = 0x13
	pAuthMethod      = 0x15
	pAuthData        = 0x16
	pProblemInfo     = 0x17
	pWillDelay       = 0x18
	pResponseReq     = 0x19
	pResponseInfo    = 0x1A
	pServerReference = 0x1C
	pReasonString    = 0x1F
	pReceiveMax      = 0x21
	pAliasMax        = 0x22
	pAlias           = 0x23
	pMaxQoS          = 0x24
	pRetainAvailable = 0x25
	pUserProperty    = 0x26
	pMaxPacket       = 0x27
	pWildcardAvail   = 0x28
	pSubIDAvail      = 0x29
	pSharedAvail     = 0x2A
)

func u16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// str is a length-prefixed string or binary field. Nothing checks what is in it.
func str(s string) []byte { return append(u16(uint16(len(s))), s...) }

// varint is a variable byte integer in as few bytes as it takes.
func varint(n int) []byte {
	var out []byte
	for {
		b := byte(n & 0x7f)
		n >>= 7
		if n == 0 {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// packet is a control packet with a right remaining length around any body.
func packet(first byte, body ...[]byte) []byte {
	b := join(body...)
	return join([]byte{first}, varint(len(b)), b)
}

// plist is a property list with its length.
func plist(props ...[]byte) []byte {
	b := join(props...)
	return join(varint(len(b)), b)
}

func prop8(id, v byte) []byte          { return []byte{id, v} }
func prop16(id byte, v uint16) []byte  { return join([]byte{id}, u16(v)) }
func prop32(id byte, v uint32) []byte  { return join([]byte{id}, u32(v)) }
func propVar(id byte, v int) []byte    { return join([]byte{id}, varint(v)) }
func propStr(id byte, s string) []byte { return join([]byte{id}, str(s)) }
func propPair(k, v string) []byte      { return join([]byte{pUserProperty}, str(k), str(v)) }
func versionProps(v Version, p ...[]byte) []byte {
	if v != V5 {
		return nil
	}
	return plist(p...)
}

// will is the will of a CONNECT.
type will struct {
	topic, payload string
	qos            byte
	retain         bool
	props          [][]byte
}

// connect describes a CONNECT; the zero value of a field is what most cases
// want. Fields that end in Raw replace what would be computed.
type connect struct {
	id        string
	keep      bool // clean session 0, or clean start 0 with an hour of expiry unless expiry says otherwise
	resume    bool // clean start 0 and nothing said about expiry
	expiry    uint32
	keepalive uint16
	props     [][]byte
	will      *will
	user      string
	pass      string

	nameRaw  string
	levelRaw byte
	flagsRaw int // XORed onto what is computed
	tailRaw  []byte
}

// bytes is the CONNECT for v.
func (o connect) bytes(v Version) []byte {
	name, level := "MQTT", byte(v)
	if o.nameRaw != "" {
		name = o.nameRaw
	}
	if o.levelRaw != 0 {
		level = o.levelRaw
	}
	var flags byte
	if !o.keep && !o.resume {
		flags |= 0x02
	}
	body := str(o.id)
	if w := o.will; w != nil {
		flags |= 0x04 | w.qos<<3
		if w.retain {
			flags |= 0x20
		}
		body = join(body, versionProps(v, w.props...), str(w.topic), str(w.payload))
	}
	if o.user != "" {
		flags |= 0x80
		body = join(body, str(o.user))
	}
	if o.pass != "" {
		flags |= 0x40
		body = join(body, str(o.pass))
	}
	props := o.props
	switch {
	case o.expiry != 0:
		props = append(props[:len(props):len(props)], prop32(pSessionExpiry, o.expiry))
	case o.keep:
		props = append(props[:len(props):len(props)], prop32(pSessionExpiry, 3600))
	}
	return packet(tConnect<<4, str(name), []byte{level, flags ^ byte(o.flagsRaw)}, u16(o.keepalive),
		versionProps(v, props...), body, o.tailRaw)
}

// publish is a PUBLISH, to send or as it was received.
type publish struct {
	topic    string
	payload  string
	qos      byte
	retain   bool
	dup      bool
	id       uint16
	props    [][]byte // to send
	received []prop   // as received
}

func (p publish) bytes(v Version) []byte {
	first := byte(tPublish<<4) | p.qos<<1
	if p.retain {
		first |= 1
	}
	if p.dup {
		first |= 8
	}
	var id []byte
	if p.qos > 0 {
		id = u16(p.id)
	}
	return packet(first, str(p.topic), id, versionProps(v, p.props...), []byte(p.payload))
}

// filter is one entry of a SUBSCRIBE; opts are the options byte, whose two
// lowest bits are the QoS.
type filter struct {
	filter string
	opts   byte
}

// Subscription options of MQTT 5, besides the QoS.
const (
	noLocal         = 1 << 2
	retainAsPub     = 1 << 3
	retainHandling1 = 1 << 4
	retainHandling2 = 2 << 4
)

func subscribe(v Version, id uint16, props [][]byte, filters ...filter) []byte {
	var body []byte
	for _, f := range filters {
		body = join(body, str(f.filter), []byte{f.opts})
	}
	return packet(tSubscribe<<4|2, u16(id), versionProps(v, props...), body)
}

func unsubscribe(v Version, id uint16, filters ...string) []byte {
	var body []byte
	for _, f := range filters {
		body = join(body, str(f))
	}
	return packet(tUnsubscribe<<4|2, u16(id), versionProps(v), body)
}

// ack is PUBACK, PUBREC, PUBREL or PUBCOMP in its shortest form.
func ack(kind byte, id uint16) []byte {
	first := kind << 4
	if kind == tPubrel {
		first |= 2
	}
	return packet(first, u16(id))
}

// ackReason is an acknowledgement of MQTT 5 with a reason code.
func ackReason(kind byte, id uint16, reason byte) []byte {
	first := kind << 4
	if kind == tPubrel {
		first |= 2
	}
	return packet(first, u16(id), []byte{reason})
}

var (
	pingreq    = []byte{tPingreq << 4, 0}
	disconnect = []byte{tDisconnect << 4, 0}
)

// disconnectWith is a DISCONNECT of MQTT 5 with reason and properties.
func disconnectWith(reason byte, props ...[]byte) []byte {
	return packet(tDisconnect<<4, []byte{reason}, plist(props...))
}
