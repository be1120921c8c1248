package simulation

import (
	"encoding/binary"
	"fmt"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// packet is a packet as a client sees it.
type packet struct {
	kind        byte
	pid         uint16
	reason      byte
	present     bool // CONNACK
	codes       []byte
	qos         byte // PUBLISH, from here on
	dup, retain bool
	topic       string
	alias       uint16
	identifiers []uint32
	left        uint32 // message expiry interval
	payload     string
}

func (p packet) String() string {
	names := []string{"", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}
	s := names[p.kind]
	switch p.kind {
	case wire.TypePublish:
		s += fmt.Sprintf(" %d QoS %d %q", p.pid, p.qos, p.payload)
		if p.dup {
			s += " DUP"
		}
		if p.retain {
			s += " RETAIN"
		}
	case wire.TypeConnack:
		s += fmt.Sprintf(" present %v, reason %#x", p.present, p.reason)
	default:
		s += fmt.Sprintf(" %d, reason %#x", p.pid, p.reason)
	}
	return s
}

// parse reads the packets that a server has sent, back to back.
func parse(b []byte, v herald.Version) (all []packet, err error) {
	for len(b) > 0 {
		n, err := wire.Split(b, 0)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("not a packet: %x: %w", b, err)
		}
		p, err := parseOne(b[:n], v)
		if err != nil {
			return nil, fmt.Errorf("packet %x: %w", b[:n], err)
		}
		all = append(all, p)
		b = b[n:]
	}
	return all, nil
}

func parseOne(f []byte, v herald.Version) (p packet, err error) {
	p.kind = wire.Type(f[0])
	body := f[1:]
	for body[0]&0x80 != 0 {
		body = body[1:]
	}
	body = body[1:]
	switch p.kind {
	case wire.TypeConnack:
		p.present, p.reason = body[0] == 1, body[1]
	case wire.TypeDisconnect:
		if len(body) > 0 {
			p.reason = body[0]
		}
	case wire.TypeSuback, wire.TypeUnsuback:
		p.pid = binary.BigEndian.Uint16(body)
		if body = body[2:]; v == herald.V5 {
			body = body[1:]
		}
		p.codes = body
	case wire.TypePublish:
		return p, p.publish(f[0], body, v)
	default:
		var a wire.Ack
		err = wire.ParseAck(f, v, &a)
		p.pid, p.reason = a.PacketID, a.Reason
	}
	return p, err
}

func (p *packet) publish(flags byte, b []byte, v herald.Version) error {
	p.qos, p.dup, p.retain = flags>>1&3, flags&8 != 0, flags&1 != 0
	n := int(binary.BigEndian.Uint16(b))
	p.topic, b = string(b[2:2+n]), b[2+n:]
	if p.qos > 0 {
		p.pid, b = binary.BigEndian.Uint16(b), b[2:]
	}
	if v == herald.V5 {
		n, k := uvarint(b)
		props := b[k : k+n]
		b = b[k+n:]
		for len(props) > 0 {
			id := props[0]
			props = props[1:]
			switch id {
			case 0x02:
				p.left, props = binary.BigEndian.Uint32(props), props[4:]
			case 0x0b:
				x, k := uvarint(props)
				p.identifiers, props = append(p.identifiers, uint32(x)), props[k:]
			case 0x23:
				p.alias, props = binary.BigEndian.Uint16(props), props[2:]
			default:
				return fmt.Errorf("unexpected property %#x", id)
			}
		}
	}
	p.payload = string(b)
	return nil
}

func uvarint(b []byte) (x, n int) {
	for shift := 0; ; shift += 7 {
		x |= int(b[n]&0x7f) << shift
		n++
		if b[n-1]&0x80 == 0 {
			return x, n
		}
	}
}

// connectProperties are those of a CONNECT of MQTT 5; what is 0 is left out.
func connectProperties(expiry uint32, receiveMaximum, aliasMaximum uint16) (b []byte) {
	if expiry > 0 {
		b = binary.BigEndian.AppendUint32(append(b, 0x11), expiry)
	}
	if receiveMaximum > 0 {
		b = binary.BigEndian.AppendUint16(append(b, 0x21), receiveMaximum)
	}
	if aliasMaximum > 0 {
		b = binary.BigEndian.AppendUint16(append(b, 0x22), aliasMaximum)
	}
	return b
}
