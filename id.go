package herald

import (
	"sync/atomic"
	"time"
)

// ID orders messages. IDs of one node only rise.
//
//	 63                                22 21        12 11          0
//	+------------------------------------+------------+-------------+
//	| milliseconds since 2026-01-01 UTC  | node       | sequence    |
//	+------------------------------------+------------+-------------+
//	  42 bits, until the year 2165         10 bits      12 bits
//
// 0 is no ID.
type ID uint64

const (
	idNodeBits = 10
	idSeqBits  = 12
	// MaxNode is the largest node number.
	MaxNode = 1<<idNodeBits - 1
)

// Epoch is where the milliseconds of an ID begin.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const epochMillis = 1767225600000

// Time tells when the ID was made, by the hybrid clock, to the millisecond.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(id>>(idNodeBits+idSeqBits)) + epochMillis).UTC()
}

// Node tells which node made the ID.
func (id ID) Node() uint16 { return uint16(id>>idSeqBits) & MaxNode }

// IDAt is the smallest ID of the given moment (Unix milliseconds).
func IDAt(unixMilli int64) ID {
	if unixMilli <= epochMillis {
		return 0
	}
	return ID(unixMilli-epochMillis) << (idNodeBits + idSeqBits)
}

// IDs makes IDs for one node. It is a hybrid logical clock: it follows the
// wall clock, never runs backwards, and runs ahead of it by a millisecond for
// every 4,096 IDs made within one. Safe for concurrent use.
type IDs struct {
	node ID
	last atomic.Uint64 // milliseconds<<12 | sequence, of the last ID given out
}

// NewIDs returns a source of IDs for node (0 to [MaxNode]) that gives out
// nothing at or below floor, the highest ID known from before.
func NewIDs(node uint16, floor ID) *IDs {
	s := &IDs{node: ID(node&MaxNode) << idSeqBits}
	s.last.Store(uint64(floor>>(idNodeBits+idSeqBits))<<idSeqBits | uint64(floor&(1<<idSeqBits-1)))
	return s
}

// Next reserves n consecutive places (n ≥ 1) at the given wall clock time (Unix
// milliseconds) and returns the first; [IDs.At] gives the others.
func (s *IDs) Next(unixMilli int64, n int) Reserved {
	var now uint64
	if unixMilli > epochMillis {
		now = uint64(unixMilli-epochMillis) << idSeqBits
	}
	for {
		last := s.last.Load()
		first := max(last+1, now)
		if first == 0 {
			first = 1
		}
		if s.last.CompareAndSwap(last, first+uint64(n)-1) {
			return Reserved{first: first, node: s.node}
		}
	}
}

// Observe keeps the clock from running behind an ID that another node made.
func (s *IDs) Observe(id ID) {
	seen := uint64(id>>(idNodeBits+idSeqBits)) << idSeqBits
	for {
		last := s.last.Load()
		if last >= seen || s.last.CompareAndSwap(last, seen) {
			return
		}
	}
}

// ObserveAll is Observe for who must give out nothing at or below id from now on,
// whichever node made it.
func (s *IDs) ObserveAll(id ID) {
	seen := uint64(id>>(idNodeBits+idSeqBits))<<idSeqBits | (1<<idSeqBits - 1)
	for {
		last := s.last.Load()
		if last >= seen || s.last.CompareAndSwap(last, seen) {
			return
		}
	}
}

// Floor is the lowest ID of the millisecond of id.
func (id ID) Floor() ID { return id &^ (1<<(idNodeBits+idSeqBits) - 1) }

// Now is an ID that lies at or above all that was given out or observed, and is
// given to nobody.
func (s *IDs) Now(unixMilli int64) ID {
	last := s.last.Load()
	if unixMilli > epochMillis {
		last = max(last, uint64(unixMilli-epochMillis)<<idSeqBits)
	}
	return ID(last>>idSeqBits)<<(idNodeBits+idSeqBits) | MaxNode<<idSeqBits | ID(last&(1<<idSeqBits-1))
}

// Reserved is a run of IDs.
type Reserved struct {
	first uint64
	node  ID
}

// At is the i-th ID of the run.
func (r Reserved) At(i int) ID {
	v := r.first + uint64(i)
	return ID(v>>idSeqBits)<<(idNodeBits+idSeqBits) | r.node | ID(v&(1<<idSeqBits-1))
}
