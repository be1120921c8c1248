package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/s2"
)

// An entry of a stream: a header and a run of frames. FORMAT.md has the bytes.
//
//	0         1       2          6
//	+---------+-------+----------+-----------------+---------------------------+
//	| version | flags | checksum | header: uvarints | frames: (length, bytes)*  |
//	+---------+-------+----------+-----------------+---------------------------+
const (
	entryVersion = 1
	entryFixed   = 6

	// field is the name of an entry's only field in its stream.
	field = "e"
)

// The flags of an entry.
const (
	flagCompressed = 1 << iota // the frames are compressed with S2
	flagAnswer                 // the receiver shall say at once where it stands
	flagGap                    // frames behind ack are missing: send them again
	flagRoutes                 // announcements behind routeAck are missing
	flagSnapshot               // first announcements stand in the snapshot
	flagsKnown     = 1<<iota - 1
)

// header is what stands before the frames. Every entry says also where its
// sender stands with what the receiver sends, so that on a busy pair of nodes
// acknowledgements cost nothing of their own.
type header struct {
	flags byte
	from  Peer
	to    uint64 // incarnation that is meant; 0: everybody's
	link  uint64 // numbers the sequences of one sender's incarnation; they rise
	clock uint64

	ackLink   uint64 // of the receiver's frames: has all of this link
	ack       uint64 // up to this
	routeAck  uint64 // has applied the receiver's announcements up to this
	announced uint64 // has announced up to this

	first uint64 // sequence of the first frame, from 1
	count int
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errShort    = errors.New("entry too short")
	errVersion  = errors.New("entry of an unknown version")
	errChecksum = errors.New("entry with a wrong checksum")
	errHeader   = errors.New("entry with a malformed header")
	errFrames   = errors.New("entry with malformed frames")
	errTooLong  = errors.New("entry too long")
)

// appendEntry appends the entry to dst. Frames that together have at least
// compressOver bytes are compressed if that makes them smaller by an eighth;
// scratch is for that, and what it has become is returned. compressOver 0 never
// compresses.
func appendEntry(dst, scratch []byte, h header, frames [][]byte, compressOver int) (entry, scratchOut []byte) {
	start := len(dst)
	h.flags &^= flagCompressed
	h.count = len(frames)
	dst = append(dst, entryVersion, h.flags, 0, 0, 0, 0)
	for _, v := range [...]uint64{uint64(h.from.Node), h.from.Incarnation, h.to, h.link, h.clock,
		h.ackLink, h.ack, h.routeAck, h.announced, h.first, uint64(h.count)} {
		dst = binary.AppendUvarint(dst, v)
	}
	body := len(dst)
	for _, f := range frames {
		dst = binary.AppendUvarint(dst, uint64(len(f)))
		dst = append(dst, f...)
	}
	if raw := len(dst) - body; compressOver > 0 && raw >= compressOver {
		if n := s2.MaxEncodedLen(raw); n > cap(scratch) {
			scratch = make([]byte, n)
		}
		if packed := s2.Encode(scratch[:cap(scratch)], dst[body:]); len(packed) <= raw-raw/8 {
			dst = append(dst[:body], packed...)
			dst[start+1] |= flagCompressed
		}
	}
	seal(dst[start:])
	return dst, scratch
}

// seal writes the checksum, which covers everything but itself.
func seal(entry []byte) []byte {
	sum := crc32.Checksum(entry[entryFixed:], castagnoli)
	binary.BigEndian.PutUint32(entry[2:], crc32.Update(sum, castagnoli, entry[:2]))
	return entry
}

// decodeEntry takes an entry apart. The frames are appended to frames and point
// into data, or into fresh memory if they were compressed. Nothing larger than
// limit is decompressed.
func decodeEntry(data []byte, frames [][]byte, limit int) (h header, _ [][]byte, err error) {
	if len(data) < entryFixed {
		return h, frames, errShort
	}
	if data[0] != entryVersion {
		return h, frames, fmt.Errorf("%w %d", errVersion, data[0])
	}
	sum := crc32.Checksum(data[entryFixed:], castagnoli)
	if crc32.Update(sum, castagnoli, data[:2]) != binary.BigEndian.Uint32(data[2:]) {
		return h, frames, errChecksum
	}
	h.flags = data[1]
	if h.flags&^flagsKnown != 0 {
		return h, frames, errHeader
	}
	var node, count uint64
	rest := data[entryFixed:]
	for _, v := range [...]*uint64{&node, &h.from.Incarnation, &h.to, &h.link, &h.clock,
		&h.ackLink, &h.ack, &h.routeAck, &h.announced, &h.first, &count} {
		var n int
		if *v, n = binary.Uvarint(rest); n <= 0 {
			return h, frames, errHeader
		}
		rest = rest[n:]
	}
	if node > maxNode || h.first+count < h.first {
		return h, frames, errHeader
	}
	h.from.Node = uint16(node)
	if h.flags&flagCompressed != 0 {
		n, err := s2.DecodedLen(rest)
		if err != nil {
			return h, frames, errFrames
		}
		if n > limit {
			return h, frames, errTooLong
		}
		if rest, err = s2.Decode(make([]byte, n), rest); err != nil {
			return h, frames, errFrames
		}
	}
	if count > uint64(len(rest)) { // a frame is a byte at least
		return h, frames, errFrames
	}
	h.count = int(count)
	start := len(frames)
	for range count {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return h, frames[:start], errFrames
		}
		end := n + int(size)
		frames = append(frames, rest[n:end:end])
		rest = rest[end:]
	}
	if len(rest) != 0 {
		return h, frames[:start], errFrames
	}
	return h, frames, nil
}

// change is an announcement in bytes: three lists, each a count and that many
// strings.
func appendChange(dst []byte, c Change) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(c.Add)))
	for _, s := range c.Add {
		dst = binary.AppendUvarint(dst, uint64(len(s)))
		dst = append(dst, s...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.Remove)))
	for _, s := range c.Remove {
		dst = binary.AppendUvarint(dst, uint64(len(s)))
		dst = append(dst, s...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.Events)))
	for _, e := range c.Events {
		dst = binary.AppendUvarint(dst, uint64(len(e)))
		dst = append(dst, e...)
	}
	return dst
}

// decodeChange appends the announcement's parts to those of c. Events point
// into data.
func decodeChange(data []byte, c *Change) error {
	for list := range 3 {
		count, n := binary.Uvarint(data)
		if n <= 0 || count > uint64(len(data)-n) {
			return errFrames
		}
		data = data[n:]
		for range count {
			size, n := binary.Uvarint(data)
			if n <= 0 || size > uint64(len(data)-n) {
				return errFrames
			}
			end := n + int(size)
			switch s := data[n:end:end]; list {
			case 0:
				c.Add = append(c.Add, string(s))
			case 1:
				c.Remove = append(c.Remove, string(s))
			default:
				c.Events = append(c.Events, s)
			}
			data = data[end:]
		}
	}
	if len(data) != 0 {
		return errFrames
	}
	return nil
}
