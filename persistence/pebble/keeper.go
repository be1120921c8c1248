package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	crdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence/record"
)

// keeper is the housekeeping goroutine: it moves entries out of journal
// segments that have grown old, so that these can be written again; removes
// what is settled or expired; and watches the space on the disk.
type keeper struct {
	// Fixed at construction.
	s    *Store
	wake chan struct{}

	// Owned by the goroutine.
	swept   time.Time
	orphans time.Time
	paid    map[herald.ID]struct{} // payload rows that this checkpoint wrote
	garbage uint64                 // bytes of entries removed since the last compaction

	compacting atomic.Bool

	mu     sync.Mutex                // guards below; a leaf
	marked map[herald.SessionID]bool // sessions whose mark moved since the last sweep; true: deleted
	loose  map[herald.ID]struct{}    // payload rows that may have no pointer any more
}

const (
	// keepSealed is how many full segments of full size have their entries in
	// memory.
	keepSealed = 2
	// spillItems and spillBytes bound what is moved while commits wait.
	spillItems = 256
	spillBytes = 128 << 10
	// sweepEntries bounds one batch of deletions.
	sweepEntries = 4096
	// grace is how long what has expired is kept: clocks differ.
	grace = time.Minute
	// orphanAge is how old a session must be before rows without it count as
	// left over.
	orphanAge   = time.Hour
	orphansWait = 5 * time.Minute
)

func (k *keeper) init(s *Store) {
	k.s = s
	k.wake = make(chan struct{}, 1)
	k.swept, k.orphans = time.Now(), time.Now().Add(orphansWait-orphanAge)
	k.poke()
}

// poke has the keeper look at the journal.
func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// settled tells that entries of a session in Pebble may be settled now; all of
// them if it was deleted.
func (k *keeper) settled(session herald.SessionID, deleted bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.marked == nil {
		k.marked = make(map[herald.SessionID]bool)
	}
	if deleted || !k.marked[session] {
		k.marked[session] = deleted
	}
}

// unpointed tells that an entry that pointed at a payload row is gone.
func (k *keeper) unpointed(id herald.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loose == nil {
		k.loose = make(map[herald.ID]struct{})
	}
	k.loose[id] = struct{}{}
}

// run is the body of the goroutine.
func (k *keeper) run() {
	tick := time.NewTicker(min(time.Second, k.s.opts.SweepInterval))
	defer tick.Stop()
	for {
		select {
		case <-k.s.stop:
			return
		case <-k.s.health.died:
			k.s.journal.block(k.s.health.fatal())
			<-k.s.stop
			return
		case <-k.wake:
		case <-tick.C:
			k.watchDisk()
		}
		if err := k.keep(); err != nil {
			k.s.journal.block(err)
			k.s.log.Warn("housekeeping failed", zap.Error(err))
			continue
		}
		k.s.journal.block(nil)
	}
}

// keep does what is due.
func (k *keeper) keep() error {
	if seg := k.s.journal.oldSegment(keepSealed * k.s.opts.SegmentBytes); seg != 0 {
		if err := k.checkpoint(seg); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	now := time.Now()
	if now.Sub(k.swept) >= k.s.opts.SweepInterval {
		k.swept = now
		if err := k.sweep(); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	if now.Sub(k.orphans) >= orphanAge {
		k.orphans = now
		if err := k.sweepOrphans(); err != nil {
			return fmt.Errorf("sweep what was left over: %w", err)
		}
	}
	return nil
}

// checkpoint makes the segments up to seg superfluous, and releases them.
func (k *keeper) checkpoint(seg uint64) error {
	s, start := k.s, time.Now()
	if err := k.spill(seg); err != nil {
		return err
	}
	// A mark in those segments is known to the sweep from the journal only.
	if err := k.sweepSettled(); err != nil {
		return err
	}
	b := s.db.NewBatch()
	defer b.Close()
	if err := errors.Join(
		b.Set(metaLow, binary.BigEndian.AppendUint64(nil, seg+1), nil),
		b.Set(metaMaxID, binary.BigEndian.AppendUint64(nil, s.maxID.Load()), nil),
		b.Commit(crdb.NoSync),
	); err != nil {
		return err
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.stats.freed.Add(int64(s.journal.release(seg)))
	s.stats.lastCheckpoint.Store(int64(time.Since(start)))
	return nil
}

// spill writes the unsettled entries of segments up to seg to Pebble. It goes in
// small steps, between which groups are applied.
func (k *keeper) spill(seg uint64) error {
	sessions := k.s.tails.old(seg)
	k.paid = make(map[herald.ID]struct{})
	for len(sessions) > 0 {
		// A mutex is not fair within a millisecond.
		for k.s.applier.Load() > 0 {
			runtime.Gosched()
		}
		// Pebble's memory is bounded: whoever fills it waits until tables can be written.
		if _, err := k.s.health.flushing(); err != nil {
			return err
		}
		rest, err := k.spillSome(sessions, seg)
		if err != nil {
			return err
		}
		sessions = rest
	}
	return nil
}

// moved are items of one session that are on their way to Pebble.
type moved struct {
	session herald.SessionID
	items   []item
}

// spillSome moves entries of the first of sessions, and returns those that
// still have some.
func (k *keeper) spillSome(sessions []herald.SessionID, seg uint64) ([]herald.SessionID, error) {
	s := k.s
	s.applying.Lock()
	defer s.applying.Unlock()
	b := s.db.NewBatch()
	defer b.Close()
	var done []moved
	for n := 0; n < spillItems && b.Len() < spillBytes && len(sessions) > 0; {
		items, rest := s.tails.peek(sessions[0], seg, min(64, spillItems-n), nil)
		if len(items) > 0 {
			if err := k.spillItems(b, sessions[0], items); err != nil {
				return sessions, err
			}
			// They are forgotten only once they are in Pebble: a reader looks
			// into the tail first.
			done = append(done, moved{sessions[0], items})
		}
		n += len(items) + 1
		if rest {
			// The same session again, behind these.
			break
		}
		sessions = sessions[1:]
	}
	if !b.Empty() {
		s.spilled.Store(true)
		if err := b.Commit(crdb.NoSync); err != nil {
			return sessions, err
		}
	}
	for _, m := range done {
		s.tails.forget(m.session, m.items)
	}
	return sessions, nil
}

// spillItems puts items of a session into b, as far as anybody needs them.
func (k *keeper) spillItems(b *crdb.Batch, session herald.SessionID, items []item) error {
	s := k.s
	if _, closer, err := s.db.Get(key1(nil, kSessionID, uint64(session))); errors.Is(err, crdb.ErrNotFound) {
		return nil // the session is gone
	} else if err != nil {
		return err
	} else if err := closer.Close(); err != nil {
		return err
	}
	low, above, err := s.markOf(session)
	if err != nil {
		return err
	}
	now := s.opts.Now().UnixMilli()
	var key, val []byte
	for i := range items {
		it := &items[i]
		if it.id <= low || contains(above, it.id) {
			continue
		}
		if it.msg.Expires != 0 && it.msg.Expires <= now {
			s.stats.expired.Add(1)
			continue
		}
		key = key2(key[:0], kInbox, uint64(session), uint64(it.id))
		val = record.AppendExpiringEntry(val[:0], it.msg, it.how.qos, it.how.retain, it.how.ids, it.how.wide)
		if err := b.Set(key, val, nil); err != nil {
			return err
		}
		if it.msg.Expires != 0 {
			if err := b.Set(entryExpiryKey(it.msg.Expires, session, it.id), nil, nil); err != nil {
				return err
			}
		}
		s.stats.spilled.Add(1)
		if !it.how.wide {
			continue
		}
		if err := b.Set(key2(nil, kPointer, uint64(it.id), uint64(session)), nil, nil); err != nil {
			return err
		}
		if _, ok := k.paid[it.id]; ok {
			continue
		}
		k.paid[it.id] = struct{}{}
		val = record.AppendMessage(append(val[:0], record.V1), it.msg, nil)
		if err := b.Set(key1(nil, kPayload, uint64(it.id)), val, nil); err != nil {
			return err
		}
	}
	return nil
}

// markOf reads a session's mark; zero if there is none.
func (s *Store) markOf(session herald.SessionID) (low herald.ID, above []herald.ID, err error) {
	v, ok, err := s.get(windowKey(nil, session, partMark))
	if err != nil || !ok {
		return 0, nil, err
	}
	d := record.Decoder{B: v}
	d.Version()
	low, above = d.Mark()
	return low, above, d.Err
}

// contains tells whether id is among ids, which rise.
func contains(ids []herald.ID, id herald.ID) bool {
	for _, v := range ids {
		if v >= id {
			return v == id
		}
	}
	return false
}

// watchDisk stops commits while there is less space than Pebble needs to tidy
// up: a database that cannot write its own tables is worse off than one that
// takes nothing new.
func (k *keeper) watchDisk() {
	s := k.s
	usage, err := s.opts.FS.GetDiskUsage(s.dir)
	if err != nil || s.opts.ReserveBytes < 0 {
		if err != nil && !errors.Is(err, vfs.ErrUnsupported) {
			s.log.Warn("cannot tell how much space is left", zap.Error(err))
		}
		s.health.setFull(nil) // the next commit finds out
		return
	}
	s.stats.available.Store(usage.AvailBytes)
	reserve := uint64(s.opts.ReserveBytes)
	switch {
	case usage.AvailBytes < reserve:
		if !s.health.isFull() {
			s.log.Error("disk full, nothing is committed", zap.Uint64("available", usage.AvailBytes), zap.Uint64("needed", reserve))
		}
		s.health.setFull(fmt.Errorf("%w: disk full: %d bytes left, %d are needed", herald.ErrUnavailable, usage.AvailBytes, reserve))
	case usage.AvailBytes >= reserve+reserve/4 && s.health.isFull():
		s.log.Info("there is space again", zap.Uint64("available", usage.AvailBytes))
		s.health.setFull(nil)
	}
}
