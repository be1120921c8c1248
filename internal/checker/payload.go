package checker

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
)

// A payload:
//
//	0        2          4      6          14     22         n-4     n
//	+--------+----------+------+----------+------+----------+-------+
//	| "HC"   |publisher |topic | sequence | run  | filler   | CRC-C |
//	+--------+----------+------+----------+------+----------+-------+
//
// big-endian; the filler repeats the low byte of the sequence plus position.
const (
	payloadHeader = 22
	payloadMin    = payloadHeader + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errCorrupted = errors.New("corrupted")

// label identifies a publish.
type label struct {
	publisher uint16
	topic     uint16
	seq       uint64
	run       uint64
}

// appendPayload appends a payload of size bytes, at least payloadMin.
func appendPayload(b []byte, l label, size int) []byte {
	start := len(b)
	b = append(b, 'H', 'C')
	b = binary.BigEndian.AppendUint16(b, l.publisher)
	b = binary.BigEndian.AppendUint16(b, l.topic)
	b = binary.BigEndian.AppendUint64(b, l.seq)
	b = binary.BigEndian.AppendUint64(b, l.run)
	for i := payloadHeader; i < size-4; i++ {
		b = append(b, byte(l.seq)+byte(i))
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parsePayload(b []byte) (label, error) {
	if len(b) < payloadMin || b[0] != 'H' || b[1] != 'C' {
		return label{}, errCorrupted
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return label{}, errCorrupted
	}
	return label{
		publisher: binary.BigEndian.Uint16(b[2:]),
		topic:     binary.BigEndian.Uint16(b[4:]),
		seq:       binary.BigEndian.Uint64(b[6:]),
		run:       binary.BigEndian.Uint64(b[14:]),
	}, nil
}

// matches says whether a filter without "$share" matches a topic that does
// not start with "$".
func matches(filter, topic string) bool {
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fmore || !tmore {
			return fmore == tmore || !tmore && frest == "#"
		}
		filter, topic = frest, trest
	}
}
