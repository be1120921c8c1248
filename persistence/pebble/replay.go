package pebble

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/herald-mqtt/herald"
)

// found is a live segment as the start finds it.
type found struct {
	seq     uint64
	prev    uint64 // the segment written before it
	prevEnd int64  // up to where that one counts
}

// recover reads what the journal holds from segment low on, calls f with each
// record of batches in the order in which they were written, and leaves the
// journal ready to rotate into a new segment.
//
// A last record that is not whole was never acknowledged and ends the journal.
// Anything else that is not whole is [herald.ErrCorrupt]: a valid record behind
// a damaged one, a segment that ends before its successor says, a missing one.
func (j *journal) recover(low uint64, f func(seg uint64, off int64, body []byte) error) error {
	names, err := j.fs.List(j.dir)
	if err != nil {
		return err
	}
	var live []uint64
	for _, name := range names {
		seq, isLive, ok := segName(name)
		if !ok {
			continue
		}
		j.nextSeq = max(j.nextSeq, seq+1)
		switch {
		case !isLive:
			j.spare = append(j.spare, seq)
		case seq < low:
			if err := j.free(seq); err != nil {
				return err
			}
		default:
			live = append(live, seq)
		}
	}
	sort.Slice(live, func(a, b int) bool { return live[a] < live[b] })
	used, err := j.survey(live)
	if err != nil {
		return err
	}
	if used, err = j.chain(used, low); err != nil {
		return err
	}
	var buf []byte
	for i, u := range used {
		end := int64(-1)
		if i+1 < len(used) {
			end = used[i+1].prevEnd
		}
		if buf, err = readSegment(j.fs, j.path(liveName(u.seq)), buf); err != nil {
			return err
		}
		from, at, err := j.replay(u.seq, buf, end, f)
		if err != nil {
			return err
		}
		if end < 0 {
			if err := j.harden(u.seq, buf, from, at); err != nil {
				return err
			}
		}
		j.last = &segment{seq: u.seq, end: at}
		j.sealed = append(j.sealed, *j.last)
	}
	// A free file gets another segment's header. If its old name came back after a power
	// loss, that would be damage.
	return j.syncDir()
}

// chain follows the segments from the newest back to low. One that is not on the
// way was begun in vain: its beginning could not be synced and the writer went
// on in another. It holds nothing.
func (j *journal) chain(used []found, low uint64) ([]found, error) {
	var chain []found
	at := len(used) - 1
	for at >= 0 {
		chain = append(chain, used[at])
		p := used[at].prev
		at--
		if p == 0 || p < low {
			break
		}
		for ; at >= 0 && used[at].seq != p; at-- {
			data, err := readSegment(j.fs, j.path(liveName(used[at].seq)), nil)
			if err != nil {
				return nil, err
			}
			if validHeader(data, used[at].seq, 2*page) {
				return nil, fmt.Errorf("journal: %w: %s belongs to no chain", herald.ErrCorrupt, j.path(liveName(used[at].seq)))
			}
			if err := j.free(used[at].seq); err != nil {
				return nil, err
			}
		}
		if at < 0 {
			return nil, fmt.Errorf("journal: %w: %s is missing", herald.ErrCorrupt, j.path(liveName(p)))
		}
	}
	for ; at >= 0; at-- { // begun in vain before the oldest that counts
		if err := j.free(used[at].seq); err != nil {
			return nil, err
		}
	}
	slices.Reverse(chain)
	return chain, nil
}

// free gives the file of a segment that is not needed back.
func (j *journal) free(seq uint64) error {
	if err := j.fs.Rename(j.path(liveName(seq)), j.path(freeName(seq))); err != nil {
		return err
	}
	j.spare = append(j.spare, seq)
	return nil
}

// survey reads the beginnings of the live segments. Those that were prepared
// and never written are freed.
func (j *journal) survey(live []uint64) (used []found, err error) {
	for _, seq := range live {
		path := j.path(liveName(seq))
		head, err := j.readHead(path)
		if err != nil {
			return nil, err
		}
		if err := checkSegmentHeader(head, j.id, seq); err != nil {
			return nil, fmt.Errorf("journal: %s: %w", path, err)
		}
		kind, body, _ := recordAt(head, seq, page)
		if kind == recBegin && len(body) == beginRecSize {
			used = append(used, found{seq: seq, prev: u64At(body, 0), prevEnd: int64(u64At(body, 8))})
			continue
		}
		all, err := readSegment(j.fs, path, nil)
		if err != nil {
			return nil, err
		}
		if at := headerBehind(all, seq, page); at >= 0 {
			return nil, fmt.Errorf("journal: %w: %s, offset %d: damaged record, and a valid one at %d",
				herald.ErrCorrupt, path, page, at)
		}
		if err := j.free(seq); err != nil {
			return nil, err
		}
	}
	return used, nil
}

func (j *journal) readHead(path string) ([]byte, error) {
	f, err := j.fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 2*page)
	n, err := f.ReadAt(head, 0)
	if n < len(head) && err != nil {
		info, serr := f.Stat()
		if serr != nil || info.Size() >= int64(len(head)) {
			return nil, err
		}
	}
	return head[:n], nil
}

// harden writes and syncs the journal's last record, which stands at from, once more.
// Perhaps it never was: the process that wrote it may have been killed before, or
// have been told that the sync failed, and what it left in the page cache is found
// like anything else. From now on it counts, and "begin" of the next segment says so.
func (j *journal) harden(seq uint64, data []byte, from, to int64) error {
	f, err := j.fs.OpenReadWrite(j.path(liveName(seq)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data[from:min(to, int64(len(data)))], from); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// replay calls f with the records of one segment and returns where the last one begins
// and where it ends. end is where its successor says that they end, -1 for the last
// segment.
func (j *journal) replay(seq uint64, data []byte, end int64, f func(seg uint64, off int64, body []byte) error) (from, at int64, err error) {
	from, at = page, 2*page
	for end < 0 || at < end {
		kind, body, next := recordAt(data, seq, at)
		if body == nil || kind != recBatches {
			break
		}
		if err := f(seq, at, body); err != nil {
			return 0, 0, fmt.Errorf("journal: %s, offset %d: %w", j.path(liveName(seq)), at, err)
		}
		from, at = at, next
	}
	if end >= 0 && at != end {
		return 0, 0, fmt.Errorf("journal: %w: %s, offset %d: damaged record; the segment's records go on to %d",
			herald.ErrCorrupt, j.path(liveName(seq)), at, end)
	}
	if end < 0 {
		if behind := headerBehind(data, seq, at); behind >= 0 {
			return 0, 0, fmt.Errorf("journal: %w: %s, offset %d: damaged record, and a valid one at %d",
				herald.ErrCorrupt, j.path(liveName(seq)), at, behind)
		}
	}
	return from, at, nil
}

// position is a place in the journal.
type position struct {
	seg uint64
	off int64
}

func (p position) after(q position) bool {
	return p.seg > q.seg || (p.seg == q.seg && p.off > q.off)
}

func (p position) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, p.seg)
	return binary.BigEndian.AppendUint64(b, uint64(p.off))
}
