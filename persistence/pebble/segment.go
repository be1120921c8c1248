package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/herald-mqtt/herald"
)

// A segment is one file of the journal. FORMAT.md draws it.
//
//	page 0   header: magic, format, store, sequence, checksum
//	page 1   record "begin": which segment was written before, and how far
//	...      one record per commit group, then zeros or what an earlier use left
//
// A record's header is checked with the segment's sequence and the record's
// place, so nothing that an earlier use of the file left behind passes for a
// record, and so a valid header proves that everything before it was synced:
// one record is written and synced before the next one is begun.
const (
	page         = 4096
	segMagic     = "HERALDJ1"
	segFormat    = 1
	segHeader    = 8 + 4 + 16 + 8 + 4
	recHeader    = 16
	recAlign     = 16
	maxRecord    = 1 << 30 // a batch that needs more is refused
	liveSuffix   = ".jnl"
	freeSuffix   = ".free"
	zeroStep     = 1 << 20
	recBegin     = 1
	recBatches   = 2
	beginRecSize = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type storeID [16]byte

// segment is an open segment, or a closed one that is still needed.
type segment struct {
	seq  uint64
	f    vfs.File
	size int64 // of the file, when it was prepared
	end  int64 // behind the last record that was synced
}

func liveName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, liveSuffix) }
func freeName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, freeSuffix) }

// segName takes a file name apart; ok is false for files of other kinds.
func segName(name string) (seq uint64, live, ok bool) {
	base, live := strings.CutSuffix(name, liveSuffix)
	if !live {
		if base, ok = strings.CutSuffix(name, freeSuffix); !ok {
			return 0, false, false
		}
	}
	if len(base) != 16 {
		return 0, false, false
	}
	if _, err := fmt.Sscanf(base, "%016x", &seq); err != nil {
		return 0, false, false
	}
	return seq, live, true
}

func appendSegmentHeader(b []byte, id storeID, seq uint64) []byte {
	start := len(b)
	b = append(b, segMagic...)
	b = binary.BigEndian.AppendUint32(b, segFormat)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, seq)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// checkSegmentHeader tells whether b begins with the header of segment seq of
// this store.
func checkSegmentHeader(b []byte, id storeID, seq uint64) error {
	if len(b) < segHeader || string(b[:8]) != segMagic {
		return fmt.Errorf("%w: not a journal segment", herald.ErrCorrupt)
	}
	sum := segHeader - 4
	if crc32.Checksum(b[:sum], castagnoli) != binary.BigEndian.Uint32(b[sum:]) {
		return fmt.Errorf("%w: header of the segment is damaged", herald.ErrCorrupt)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v > segFormat {
		return fmt.Errorf("%w: journal format %d, this release reads up to %d", herald.ErrSchemaNewer, v, segFormat)
	}
	if storeID(b[12:28]) != id {
		return fmt.Errorf("%w: segment of another store", herald.ErrCorrupt)
	}
	if got := binary.BigEndian.Uint64(b[28:]); got != seq {
		return fmt.Errorf("%w: segment says it is %d", herald.ErrCorrupt, got)
	}
	return nil
}

// headSum covers what is in a record's header, and its place.
func headSum(h []byte, seq uint64, off int64) uint32 {
	var b [28]byte
	copy(b[:12], h[:12])
	binary.BigEndian.PutUint64(b[12:], seq)
	binary.BigEndian.PutUint64(b[20:], uint64(off))
	return crc32.Checksum(b[:], castagnoli)
}

// sealRecord fills in the header, for which rec has room at its start.
//
//	0       4      5         8          12         16
//	+-------+------+---------+----------+----------+------
//	| length| kind | 0       | sum body | sum head | body
//	+-------+------+---------+----------+----------+------
func sealRecord(rec []byte, kind byte, seq uint64, off int64) {
	body := rec[recHeader:]
	binary.BigEndian.PutUint32(rec, uint32(len(body)))
	rec[4], rec[5], rec[6], rec[7] = kind, 0, 0, 0
	binary.BigEndian.PutUint32(rec[8:], crc32.Checksum(body, castagnoli))
	binary.BigEndian.PutUint32(rec[12:], headSum(rec, seq, off))
}

// validHeader tells whether a record's header stands at off of a segment.
func validHeader(data []byte, seq uint64, off int64) bool {
	if off+recHeader > int64(len(data)) {
		return false
	}
	h := data[off : off+recHeader]
	if h[4] == 0 || h[4] > recBatches || h[5]|h[6]|h[7] != 0 {
		return false
	}
	return binary.BigEndian.Uint32(h[12:]) == headSum(h, seq, off)
}

// recordAt returns the record at off, and where the next one would begin; body
// is nil if there is no valid one.
func recordAt(data []byte, seq uint64, off int64) (kind byte, body []byte, next int64) {
	if !validHeader(data, seq, off) {
		return 0, nil, off
	}
	h := data[off : off+recHeader]
	n := int64(binary.BigEndian.Uint32(h))
	if off+recHeader+n > int64(len(data)) {
		return 0, nil, off
	}
	body = data[off+recHeader : off+recHeader+n : off+recHeader+n]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(h[8:]) {
		return 0, nil, off
	}
	return h[4], body, align(off+recHeader+n, recAlign)
}

// headerBehind finds a valid record header behind off, or returns -1. One there
// proves that what stands at off was whole once.
func headerBehind(data []byte, seq uint64, off int64) int64 {
	for at := off + recAlign; at+recHeader <= int64(len(data)); at += recAlign {
		if validHeader(data, seq, at) {
			return at
		}
	}
	return -1
}

func align(n, to int64) int64 { return (n + to - 1) / to * to }

// readSegment reads a whole segment into buf, which it grows as needed.
func readSegment(fs vfs.FS, path string, buf []byte) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := int(info.Size())
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	got, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buf[:got], nil
}
