package pebble

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats are counters since the store was opened.
type Stats struct {
	Batches       int64         // committed
	Failed        int64         // batches whose commit failed
	Groups        int64         // records of the journal, one fsync each
	JournalBytes  int64         // written to the journal
	SyncTotal     time.Duration // spent writing and syncing groups
	SyncLast      time.Duration
	SyncHistogram [32]int64 // [i]: groups that took less than 2^i µs, and not less than 2^(i-1)

	TailEntries     int64 // entries of inboxes in memory
	Spilled         int64 // entries written to Pebble
	Swept           int64 // settled entries removed from Pebble
	Expired         int64 // expired entries and retained messages removed
	Segments        int64 // sealed journal segments that are still needed
	SegmentsFreed   int64
	DatabaseErrors  int64  // errors in Pebble's background
	DatabaseBytes   uint64 // on disk
	RetainedCount   int64
	DiskAvailable   uint64 // bytes, when last looked; 0 if unknown
	CheckpointsLast time.Duration
}

type stats struct {
	batches, failed, groups, bytes   atomic.Int64
	syncTotal, syncLast              atomic.Int64
	sync                             [32]atomic.Int64
	spilled, swept, expired, freed   atomic.Int64
	backgroundErrors, lastCheckpoint atomic.Int64
	available                        atomic.Uint64
}

func (s *stats) group(batches, bytes int, took time.Duration) {
	s.batches.Add(int64(batches))
	s.groups.Add(1)
	s.bytes.Add(int64(bytes))
	s.syncTotal.Add(int64(took))
	s.syncLast.Store(int64(took))
	s.sync[min(bits.Len64(uint64(took.Microseconds())), len(s.sync)-1)].Add(1)
}

// Stats returns the counters. They are read one after the other.
func (s *Store) Stats() Stats {
	st := &s.stats
	out := Stats{
		Batches: st.batches.Load(), Failed: st.failed.Load(), Groups: st.groups.Load(), JournalBytes: st.bytes.Load(),
		SyncTotal: time.Duration(st.syncTotal.Load()), SyncLast: time.Duration(st.syncLast.Load()),
		Spilled: st.spilled.Load(), Swept: st.swept.Load(), Expired: st.expired.Load(), SegmentsFreed: st.freed.Load(),
		DatabaseErrors: st.backgroundErrors.Load(), DiskAvailable: st.available.Load(),
		CheckpointsLast: time.Duration(st.lastCheckpoint.Load()), RetainedCount: s.retained.Load(),
	}
	for i := range st.sync {
		out.SyncHistogram[i] = st.sync[i].Load()
	}
	s.tails.mu.Lock()
	out.TailEntries = int64(s.tails.entries)
	s.tails.mu.Unlock()
	s.journal.mu.Lock()
	out.Segments = int64(len(s.journal.sealed))
	s.journal.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.health.fatal() == nil {
		out.DatabaseBytes = s.db.Metrics().DiskSpaceUsage()
	}
	return out
}
