package pebble

import (
	"bytes"
	"context"

	crdb "github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence/record"
)

// sweep removes from Pebble what nobody will ask for any more.
func (k *keeper) sweep() error {
	for _, f := range []func() error{k.sweepSettled, k.sweepExpired, k.sweepRetained, k.giveBack} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// sweepSettled removes the entries behind the marks that moved. Entries that
// were settled above a mark go when the mark has passed them.
func (k *keeper) sweepSettled() error {
	k.mu.Lock()
	marked := k.marked
	k.marked = nil
	k.mu.Unlock()
	for session, deleted := range marked {
		if err := k.sweepInbox(session, deleted); err != nil {
			// Not forgotten: once more next time.
			for session, deleted := range marked {
				k.settled(session, deleted)
			}
			return err
		}
	}
	return k.sweepPayloads()
}

func (k *keeper) sweepInbox(session herald.SessionID, deleted bool) error {
	low := ^herald.ID(0)
	if !deleted {
		var err error
		if low, _, err = k.s.markOf(session); err != nil {
			return err
		}
	}
	prefix := key1(nil, kInbox, uint64(session))
	end := after(prefix)
	if low != ^herald.ID(0) {
		end = key2(nil, kInbox, uint64(session), uint64(low)+1)
	}
	return k.removeEntries(prefix, end)
}

// removeEntries removes the entries between two keys, with what belongs to them.
func (k *keeper) removeEntries(from, end []byte) error {
	it, err := k.s.db.NewIter(&crdb.IterOptions{LowerBound: from, UpperBound: end})
	if err != nil {
		return err
	}
	defer it.Close()
	ok := it.First()
	for ok {
		b := k.s.db.NewBatch()
		var last []byte
		n := 0
		for ; ok && n < sweepEntries; ok = it.Next() {
			v, err := it.ValueAndErr()
			if err != nil {
				return err
			}
			last = append(last[:0], it.Key()...)
			k.garbage += uint64(len(last) + len(v))
			if err := k.removeParts(b, last, v); err != nil {
				return err
			}
			if n++; n <= fewRows {
				if err := b.Delete(last, nil); err != nil {
					return err
				}
			}
		}
		if n > fewRows {
			if err := b.DeleteRange(from, append(last, 0), nil); err != nil {
				return err
			}
		}
		if err := b.Commit(crdb.NoSync); err != nil {
			return err
		}
		k.s.stats.swept.Add(int64(n))
	}
	return it.Error()
}

// removeParts deletes what belongs to an entry and stands elsewhere.
func (k *keeper) removeParts(b *crdb.Batch, key, v []byte) error {
	pointer, expires, err := record.EntryHead(v)
	if err != nil {
		return err
	}
	session, id := herald.SessionID(u64At(key, 1)), herald.ID(u64At(key, 9))
	if expires != 0 {
		if err := b.Delete(entryExpiryKey(expires, session, id), nil); err != nil {
			return err
		}
	}
	if !pointer {
		return nil
	}
	k.unpointed(id)
	return b.Delete(key2(nil, kPointer, uint64(id), uint64(session)), nil)
}

// minGarbage is worth a compaction.
const minGarbage = 1 << 20

// giveBack has Pebble rewrite the inboxes once most of what they take on disk is
// removed entries: by itself it may keep tens of megabytes of them for ever.
func (k *keeper) giveBack() error {
	if k.garbage < minGarbage || k.compacting.Load() {
		return nil
	}
	from, end := []byte{kInbox}, []byte{kInbox + 1}
	have, err := k.s.db.EstimateDiskUsage(from, end)
	if err != nil {
		return err
	}
	if k.garbage < have/2 {
		return nil
	}
	k.garbage = 0
	k.compacting.Store(true)
	k.s.workers.Add(1)
	go func() { // it may take long, and segments must be released meanwhile
		defer k.s.workers.Done()
		defer k.compacting.Store(false)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-k.s.stop:
			case <-k.s.health.died:
			case <-ctx.Done():
			}
			cancel()
		}()
		for _, kind := range []byte{kInbox, kPayload, kPointer, kEntryExpiry} {
			if err := k.s.db.Compact(ctx, []byte{kind}, []byte{kind + 1}, false); err != nil && ctx.Err() == nil {
				k.s.log.Warn("compaction failed", zap.Error(err))
			}
		}
		k.s.noneSpilled()
	}()
	return nil
}

// noneSpilled looks whether inboxes have nothing in Pebble any more, which makes
// reading and settling them cheaper.
func (s *Store) noneSpilled() {
	s.applying.Lock()
	defer s.applying.Unlock()
	it, err := s.iterate(s.db, []byte{kInbox}, nil)
	if err != nil {
		return
	}
	none := !it.First()
	if it.Close() == nil && none {
		s.spilled.Store(false)
	}
}

// sweepPayloads removes the payload rows that nothing points at any more.
func (k *keeper) sweepPayloads() error {
	k.mu.Lock()
	loose := k.loose
	k.loose = nil
	k.mu.Unlock()
	for id := range loose {
		used, err := k.any(key1(nil, kPointer, uint64(id)))
		if err != nil {
			for id := range loose {
				k.unpointed(id)
			}
			return err
		}
		if !used {
			if err := k.s.db.Delete(key1(nil, kPayload, uint64(id)), crdb.NoSync); err != nil {
				return err
			}
		}
	}
	return nil
}

// any tells whether any key begins with prefix.
func (k *keeper) any(prefix []byte) (bool, error) {
	it, err := k.s.iterate(k.s.db, prefix, nil)
	if err != nil {
		return false, err
	}
	ok := it.First()
	if err := it.Error(); err != nil {
		_ = it.Close()
		return false, err
	}
	return ok, it.Close()
}

// collect returns up to limit keys from from to end.
func (k *keeper) collect(from, end []byte, limit int) ([][]byte, error) {
	it, err := k.s.db.NewIter(&crdb.IterOptions{LowerBound: from, UpperBound: end})
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for ok := it.First(); ok && len(keys) < limit; ok = it.Next() {
		keys = append(keys, bytes.Clone(it.Key()))
	}
	return keys, it.Close()
}

// graceful is the moment up to which what has expired is removed.
func (k *keeper) graceful() uint64 {
	return uint64(max(k.s.opts.Now().Add(-grace).UnixMilli(), 0))
}

// sweepExpired removes entries whose message has expired.
func (k *keeper) sweepExpired() error {
	end := key1(nil, kEntryExpiry, k.graceful())
	for {
		keys, err := k.collect([]byte{kEntryExpiry}, end, sweepEntries)
		if err != nil || len(keys) == 0 {
			return err
		}
		b := k.s.db.NewBatch()
		for _, key := range keys {
			entry := key2(nil, kInbox, u64At(key, 9), u64At(key, 17))
			v, ok, err := k.s.get(entry)
			if err != nil {
				return err
			}
			if ok {
				if err := k.removeParts(b, entry, v); err != nil {
					return err
				}
				if err := b.Delete(entry, nil); err != nil {
					return err
				}
				k.s.stats.expired.Add(1)
			}
			if err := b.Delete(key, nil); err != nil {
				return err
			}
		}
		if err := b.Commit(crdb.NoSync); err != nil {
			return err
		}
		if err := k.sweepPayloads(); err != nil {
			return err
		}
	}
}

// removeRetainedAtOnce bounds the retained messages that are removed while
// commits wait.
const removeRetainedAtOnce = 128

// sweepRetained removes retained messages that have expired.
func (k *keeper) sweepRetained() error {
	end := key1(nil, kRetainExpiry, k.graceful())
	for {
		keys, err := k.collect([]byte{kRetainExpiry}, end, removeRetainedAtOnce)
		if err != nil || len(keys) == 0 {
			return err
		}
		if err := k.removeRetained(keys); err != nil {
			return err
		}
	}
}

func (k *keeper) removeRetained(keys [][]byte) error {
	s := k.s
	s.applying.Lock()
	defer s.applying.Unlock()
	for _, key := range keys {
		row := topicKey(nil, kRetained, string(key[9:]))
		v, ok, err := s.apply.row(row)
		if err != nil {
			return err
		}
		if ok {
			m, err := record.DecodeMessage(v)
			if err != nil {
				return err
			}
			if uint64(m.Expires) == u64At(key, 1) {
				s.apply.deleteRow(row)
				s.apply.count(-1)
				s.stats.expired.Add(1)
			}
		}
		s.apply.delete(key)
	}
	return s.apply.flush()
}

// goneFor is how long the removal of a retained message is remembered.
const goneFor = orphanAge

// sweepGone forgets removals of retained messages that are so old that nothing
// published before them can still come.
func (k *keeper) sweepGone() error {
	limit := herald.IDAt(k.s.opts.Now().Add(-goneFor).UnixMilli())
	return k.pages(kRetainedGone, func(keys [][]byte) error { return k.forgetGone(keys, limit) })
}

// pages has the rows of a kind looked at, some of them at a time.
func (k *keeper) pages(kind byte, look func(keys [][]byte) error) error {
	from := []byte{kind}
	for {
		keys, err := k.collect(from, []byte{kind + 1}, removeRetainedAtOnce*8)
		if err != nil || len(keys) == 0 {
			return err
		}
		from = append(bytes.Clone(keys[len(keys)-1]), 0)
		if err := look(keys); err != nil {
			return err
		}
	}
}

func (k *keeper) forgetGone(keys [][]byte, limit herald.ID) error {
	s := k.s
	s.applying.Lock()
	defer s.applying.Unlock()
	for _, key := range keys {
		v, ok, err := s.apply.row(key)
		if err != nil {
			return err
		}
		if ok && (len(v) != 8 || herald.ID(u64At(v, 0)) < limit) {
			s.apply.deleteRow(key)
		}
	}
	return s.apply.flush()
}
