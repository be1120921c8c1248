//go:build linux

package load

import (
	"encoding/binary"
	"errors"
)

// Types of MQTT control packets, as they stand in the first byte.
const (
	typeConnect    = 0x10
	typeConnack    = 0x20
	typePublish    = 0x30
	typePuback     = 0x40
	typePubrec     = 0x50
	typePubrel     = 0x60
	typePubcomp    = 0x70
	typeSubscribe  = 0x80
	typeSuback     = 0x90
	typeDisconnect = 0xe0
)

// payloadMagic starts each payload of the generator, so that a message of
// somebody else on the same topic is not taken for one of ours.
const payloadMagic = 0x4842 // "HB"

var errMalformed = errors.New("malformed packet from the broker")

// A payload:
//
//	0      2           4     8          16         24
//	| magic | topic    | pub | sequence | due (ns) | filling ...
//
// topic is the number of the topic (its low 16 bits), pub the publisher's index
// in it, due the nanoseconds since the start of the run.
func stampPublisher(payload []byte, topic, pub int) {
	binary.BigEndian.PutUint16(payload, payloadMagic)
	binary.BigEndian.PutUint16(payload[2:], uint16(topic))
	binary.BigEndian.PutUint32(payload[4:], uint32(pub))
}

// nextFrame looks at the start of data. size is the length of the first frame
// with its header, or 0 when it is not complete yet; body is where the
// variable header starts.
func nextFrame(data []byte) (body, size int, err error) {
	if len(data) < 2 {
		return 0, 0, nil
	}
	n := int(data[1])
	body = 2
	if n >= 0x80 {
		n &= 0x7f
		for shift := 7; ; shift += 7 {
			if shift > 21 {
				return 0, 0, errMalformed
			}
			if body >= len(data) {
				return 0, 0, nil
			}
			b := data[body]
			body++
			n |= int(b&0x7f) << shift
			if b < 0x80 {
				break
			}
		}
	}
	if len(data) < body+n {
		return body, 0, nil
	}
	return body, body + n, nil
}

// uvarint reads a variable byte integer [MQTT-1.5.5]; n is 0 if it is cut off
// or too long.
func uvarint(b []byte) (v, n int) {
	for n < len(b) && n < 4 {
		v |= int(b[n]&0x7f) << (7 * n)
		n++
		if b[n-1] < 0x80 {
			return v, n
		}
	}
	return 0, 0
}

func appendUvarint(b []byte, v int) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// appendConnect appends a CONNECT with the longest keepalive (18 hours: longer
// than any run, and some brokers refuse 0). A session that is not
// clean never expires; a clean one ends with its connection.
func appendConnect(b []byte, protocol byte, clientID string, clean bool) []byte {
	b = append(b, typeConnect)
	n := 10 + 2 + len(clientID)
	if protocol == 5 {
		n++
		if !clean {
			n += 5
		}
	}
	b = appendUvarint(b, n)
	b = appendString(b, "MQTT")
	flags := byte(0)
	if clean {
		flags = 2
	}
	b = append(b, protocol, flags, 0xff, 0xff)
	if protocol == 5 {
		if clean {
			b = append(b, 0)
		} else {
			b = append(b, 5, 0x11, 0xff, 0xff, 0xff, 0xff) // session expiry: never
		}
	}
	return appendString(b, clientID)
}

func appendSubscribe(b []byte, protocol byte, id uint16, filter string, qos byte) []byte {
	b = append(b, typeSubscribe|2)
	n := 2 + 2 + len(filter) + 1
	if protocol == 5 {
		n++
	}
	b = appendUvarint(b, n)
	b = binary.BigEndian.AppendUint16(b, id)
	if protocol == 5 {
		b = append(b, 0)
	}
	b = appendString(b, filter)
	return append(b, qos)
}

// appendPublish appends a PUBLISH whose payload is payload zero bytes. at is
// where the packet identifier stands (0 at QoS 0) and from where the payload
// starts, both from the start of the frame.
func appendPublish(b []byte, protocol, qos byte, retain bool, topic string, payload int) (_ []byte, at, from int) {
	start := len(b)
	first := byte(typePublish) | qos<<1
	if retain {
		first |= 1
	}
	n := 2 + len(topic) + payload
	if qos > 0 {
		n += 2
	}
	if protocol == 5 {
		n++
	}
	b = appendUvarint(append(b, first), n)
	b = appendString(b, topic)
	if qos > 0 {
		at = len(b) - start
		b = append(b, 0, 0)
	}
	if protocol == 5 {
		b = append(b, 0)
	}
	from = len(b) - start
	return append(b, make([]byte, payload)...), at, from
}

// appendAck appends PUBACK, PUBREC, PUBREL (with its flags) or PUBCOMP.
func appendAck(b []byte, first byte, id uint16) []byte {
	return append(b, first, 2, byte(id>>8), byte(id))
}

// published is a received PUBLISH, pointing into the read buffer.
type published struct {
	qos     byte
	id      uint16
	topic   []byte
	payload []byte
}

// parsePublish reads the variable header and payload of a PUBLISH.
func parsePublish(protocol, first byte, body []byte) (p published, ok bool) {
	if len(body) < 2 {
		return p, false
	}
	at := 2 + int(binary.BigEndian.Uint16(body))
	p.qos = first >> 1 & 3
	if p.qos > 0 {
		if len(body) < at+2 {
			return p, false
		}
		p.topic = body[2:at]
		p.id = binary.BigEndian.Uint16(body[at:])
		at += 2
		if p.id == 0 || p.qos == 3 {
			return p, false
		}
	} else {
		if len(body) < at {
			return p, false
		}
		p.topic = body[2:at]
	}
	if protocol == 5 {
		n, w := uvarint(body[at:])
		if w == 0 || len(body) < at+w+n {
			return p, false
		}
		at += w + n
	}
	p.payload = body[at:]
	return p, true
}

// receiveMaximum finds it among the properties of a CONNACK.
func receiveMaximum(b []byte) (int, error) {
	n, w := uvarint(b)
	if w == 0 || len(b) < w+n {
		return 0, errMalformed
	}
	for b = b[w : w+n]; len(b) > 0; {
		size := 0
		switch b[0] {
		case 0x24, 0x25, 0x28, 0x29, 0x2a:
			size = 1
		case 0x13, 0x21, 0x22:
			size = 2
		case 0x11, 0x27:
			size = 4
		case 0x12, 0x15, 0x16, 0x1a, 0x1c, 0x1f: // a string or bytes
			if len(b) >= 3 {
				size = 2 + int(binary.BigEndian.Uint16(b[1:]))
			}
		case 0x26: // two strings
			if len(b) >= 3 {
				size = 2 + int(binary.BigEndian.Uint16(b[1:]))
			}
			if len(b) >= size+3 {
				size += 2 + int(binary.BigEndian.Uint16(b[size+1:]))
			}
		}
		if size == 0 || len(b) < 1+size {
			return 0, errMalformed
		}
		if b[0] == 0x21 {
			if v := int(binary.BigEndian.Uint16(b[1:])); v > 0 {
				return v, nil
			}
			return 0, errMalformed
		}
		b = b[1+size:]
	}
	return 1<<16 - 1, nil
}
