package pebble

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/herald-mqtt/herald"
)

// journal is the write-ahead log of the whole store: records are overwritten
// into segment files whose blocks exist already, because overwriting and
// syncing is several times cheaper than appending, which changes the file's
// metadata with every sync.
//
// A failed write or sync ends the use of the segment: what the kernel has of it
// is not known any more. The next segment's "begin" says up to where the
// earlier one counts, so a record that was not acknowledged never comes back
// behind one that was.
type journal struct {
	// Fixed at construction.
	fs       vfs.FS
	dir      string
	id       storeID
	segBytes int64

	// Owned by the writer.
	cur  *segment // nil: none, or it must not be written any more
	last *segment // the one before cur

	mu      sync.Mutex // guards below
	changed sync.Cond  // ready or sealed changed
	ready   *segment   // prepared, for the next rotation
	wanted  bool       // the preparer should make one
	prepErr error      // why it could not
	sealed  []segment  // written, still needed; by rising seq; files closed
	blocked error      // why the keeper cannot release sealed ones
	spare   []uint64   // names of free files
	nextSeq uint64
	size    int64 // of the next segment: it grows up to segBytes, so that a store with little to do stays small
	closed  bool
}

// errBlocked tells that the journal has grown to its bound, because Pebble does
// not take what would let segments go.
var errBlocked = fmt.Errorf("%w: journal is full", herald.ErrUnavailable)

// firstSegment is the size of the first segment of a run.
const firstSegment = 1 << 20

func newJournal(fs vfs.FS, dir string, id storeID, segBytes int64) *journal {
	j := &journal{fs: fs, dir: dir, id: id, segBytes: segBytes, nextSeq: 1, size: min(firstSegment, segBytes)}
	j.changed.L = &j.mu
	return j
}

func (j *journal) path(name string) string { return j.fs.PathJoin(j.dir, name) }

// fits tells whether a record of n bytes, header included, has room in the
// current segment. One too large for any segment has room in a fresh one.
func (j *journal) fits(n int) bool {
	if j.cur == nil {
		return false
	}
	return j.cur.end == 2*page || j.cur.end+int64(n) <= j.cur.size
}

// write writes and syncs one record, whose header has room at the start of rec.
// rec is padded in place: a page's first write covers it whole, so that the
// kernel does not have to read it from the disk first.
func (j *journal) write(rec []byte, kind byte) ([]byte, error) {
	c := j.cur
	sealRecord(rec, kind, c.seq, c.end)
	next := align(c.end+int64(len(rec)), recAlign)
	pad := int(align(next, page) - c.end - int64(len(rec)))
	for range pad {
		rec = append(rec, 0)
	}
	if _, err := c.f.WriteAt(rec, c.end); err != nil {
		return rec, fmt.Errorf("write %s: %w", liveName(c.seq), err)
	}
	if err := c.f.SyncData(); err != nil {
		return rec, fmt.Errorf("sync %s: %w", liveName(c.seq), err)
	}
	c.end = next
	return rec, nil
}

// rotate makes a fresh segment the current one. It waits for one, and while
// too many sealed ones wait for the checkpointer.
func (j *journal) rotate(maxSealed int) error {
	j.mu.Lock()
	j.prepErr = nil // of some time ago; the preparer waits for that
	j.changed.Broadcast()
	for !j.closed && (j.ready == nil && j.prepErr == nil || len(j.sealed) >= maxSealed && j.blocked == nil) {
		if j.ready == nil && !j.wanted {
			j.wanted = true
			j.changed.Broadcast()
		}
		j.changed.Wait()
	}
	var err error
	switch {
	case j.closed:
		err = herald.ErrClosed
	case len(j.sealed) >= maxSealed:
		err = fmt.Errorf("%w: %w", errBlocked, j.blocked)
	case j.ready == nil:
		err = j.prepErr
	}
	if err != nil {
		j.mu.Unlock()
		return err
	}
	next := j.ready
	j.ready, j.wanted = nil, true
	if j.cur != nil { // it is full
		j.size = min(2*max(j.size, j.cur.size), j.segBytes)
	}
	j.changed.Broadcast()
	j.mu.Unlock()

	var prev segment
	if j.cur != nil {
		j.seal()
	}
	if j.last != nil {
		prev = *j.last
	}
	j.cur = next
	next.end = page
	rec := make([]byte, recHeader, 2*page)
	rec = binary.BigEndian.AppendUint64(rec, prev.seq)
	rec = binary.BigEndian.AppendUint64(rec, uint64(prev.end))
	if _, err := j.write(rec, recBegin); err != nil {
		j.abandon()
		return err
	}
	next.end = 2 * page
	return nil
}

// seal ends the use of the current segment.
func (j *journal) seal() {
	c := j.cur
	_ = c.f.Close() // everything that counts was synced
	j.cur, j.last = nil, &segment{seq: c.seq, end: c.end, size: c.size}
	j.mu.Lock()
	j.sealed = append(j.sealed, *j.last)
	j.changed.Broadcast()
	j.mu.Unlock()
}

// abandon gives up the current segment after a failed write: what was synced
// before counts, nothing else.
func (j *journal) abandon() {
	if j.cur.end > page {
		j.seal()
		return
	}
	// Not even its beginning was written: as if it had never been. It is spare when it
	// has its name for good, not before: the preparer would make a file of that name,
	// this one would replace it, and what is written then would be in no folder; or the
	// old name would come back after a power loss, with another segment's header.
	c := j.cur
	_ = c.f.Close()
	j.cur = nil
	if j.fs.Rename(j.path(liveName(c.seq)), j.path(freeName(c.seq))) != nil || j.syncDir() != nil {
		return // found again at the next start
	}
	j.mu.Lock()
	j.spare = append(j.spare, c.seq)
	j.mu.Unlock()
}

// prepare is the body of the preparer: it keeps one segment ready until the
// journal is closed.
func (j *journal) prepare() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for !j.closed {
		if !j.wanted || j.ready != nil || j.prepErr != nil {
			j.changed.Wait()
			continue
		}
		seq, spare, size := j.nextSeq, uint64(0), j.size
		j.nextSeq++
		if n := len(j.spare); n > 0 {
			spare, j.spare = j.spare[n-1], j.spare[:n-1]
		}
		j.mu.Unlock()
		seg, err := j.make(seq, spare, size)
		j.mu.Lock()
		switch {
		case err != nil:
			j.prepErr = err
		case j.closed:
			_ = seg.f.Close()
		default:
			j.ready, j.wanted = seg, false
		}
		j.changed.Broadcast()
	}
}

// make prepares a segment: blocks allocated and written, header synced, name
// durable. Until it has its name, it is free for whoever finds it.
func (j *journal) make(seq, spare uint64, size int64) (*segment, error) {
	free := freeName(seq)
	if spare != 0 {
		free = freeName(spare)
	}
	f, err := j.fs.OpenReadWrite(j.path(free), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			_ = f.Close()
			_ = j.fs.Remove(j.path(free))
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	have := info.Size() / page * page
	if have < size {
		zeros := make([]byte, min(zeroStep, size-have))
		for at := have; at < size; at += zeroStep {
			if _, err := f.WriteAt(zeros[:min(zeroStep, size-at)], at); err != nil {
				return nil, err
			}
		}
	}
	head := make([]byte, page)
	appendSegmentHeader(head[:0], j.id, seq)
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := j.fs.Rename(j.path(free), j.path(liveName(seq))); err != nil {
		return nil, err
	}
	if err := j.syncDir(); err != nil {
		_ = j.fs.Rename(j.path(liveName(seq)), j.path(free))
		return nil, err
	}
	ok = true
	return &segment{seq: seq, f: f, size: max(size, have), end: page}, nil
}

func (j *journal) syncDir() error { return syncDir(j.fs, j.dir) }

// release frees the sealed segments up to seq and returns how many: their files
// are kept for reuse up to a few, and removed beyond that or if they grew.
func (j *journal) release(seq uint64) int {
	const maxSpare = 2
	j.mu.Lock()
	var gone []segment
	for len(j.sealed) > 0 && j.sealed[0].seq <= seq {
		gone = append(gone, j.sealed[0])
		j.sealed = j.sealed[1:]
	}
	spares := len(j.spare)
	j.mu.Unlock()
	var spare []uint64
	for _, s := range gone {
		live, free := j.path(liveName(s.seq)), j.path(freeName(s.seq))
		if spares+len(spare) >= maxSpare || s.end > j.segBytes {
			_ = j.fs.Remove(live) // found again at the next start if it fails
		} else if j.fs.Rename(live, free) == nil {
			spare = append(spare, s.seq)
		}
	}
	j.mu.Lock()
	j.spare = append(j.spare, spare...)
	j.changed.Broadcast()
	j.mu.Unlock()
	return len(gone)
}

// block tells the writer that sealed segments cannot be released now, and why;
// nil that they can again.
func (j *journal) block(err error) {
	j.mu.Lock()
	j.blocked = err
	j.changed.Broadcast()
	j.mu.Unlock()
}

// oldSegment is the newest sealed segment that has keep bytes of sealed ones
// behind it, or half of the sealed ones that there may be; 0 if there is none.
func (j *journal) oldSegment(keep int64) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := len(j.sealed) - 1; i >= 0; i-- {
		if keep <= 0 || len(j.sealed)-1-i >= maxSealedSegments/2 {
			return j.sealed[i].seq
		}
		keep -= j.sealed[i].end
	}
	return 0
}

// shut wakes everybody who waits. The writer has ended.
func (j *journal) shut() {
	j.mu.Lock()
	j.closed = true
	j.changed.Broadcast()
	j.mu.Unlock()
}

// close releases the files. Writer and preparer have ended.
func (j *journal) close() {
	if j.cur != nil {
		_ = j.cur.f.Close()
		j.cur = nil
	}
	if j.ready != nil {
		_ = j.ready.f.Close()
		j.ready = nil
	}
}
