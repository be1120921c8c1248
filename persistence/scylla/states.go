package scylla

import (
	"sync"

	"github.com/maypok86/otter/v2"

	"github.com/herald-mqtt/herald"
)

// An inbox lies in partitions by the time in the IDs of its entries: coarse ones
// of 2^26 ms (18 h 38 min), numbered from the beginning of time; and, once a node
// has put very many entries into one, fine ones of 2^16 ms (65 s). Fine bucket f is
// partition -(f+1), and the coarse partition that it belongs to has a row with
// that "ID" for each: the directory.
const (
	coarseShift = 22 + 26
	fineShift   = 22 + 16
)

func coarse(id herald.ID) int64 { return int64(id >> coarseShift) }
func fine(id herald.ID) int64   { return int64(id >> fineShift) }

// states is what a store remembers of sessions, for as long as it has room. All
// of it can be forgotten: then a little more is read or written than necessary.
type states struct {
	of *otter.Cache[herald.SessionID, *state]
}

// maxStates bounds what is remembered.
const maxStates = 100_000

func (s *states) init() {
	s.of = otter.Must(&otter.Options[herald.SessionID, *state]{MaximumSize: maxStates})
}

func (s *states) get(id herald.SessionID) *state {
	if st, ok := s.of.GetIfPresent(id); ok {
		return st
	}
	st, _ := s.of.SetIfAbsent(id, &state{sweptCoarse: -1, settled: true})
	return st
}

// state is what is remembered of one session.
type state struct {
	mu sync.Mutex // guards below
	// The newest coarse bucket of its inbox, how many entries this store has put
	// there, and the fine ones whose directory row is in.
	newest  int64
	entries int
	fines   map[int64]bool
	// settled: its window may hold settled entries below the next mark.
	settled bool
	// How far settled buckets were removed, or are being.
	sweptCoarse, sweptFine int64
}

// settles notes that a settled entry is written to the window.
func (st *state) settles() {
	st.mu.Lock()
	st.settled = true
	st.mu.Unlock()
}

// mayForget tells whether a mark has settled entries to remove.
func (st *state) mayForget() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	v := st.settled
	st.settled = false
	return v
}

// behind tells whether a mark leaves buckets behind that can be removed.
func (st *state) behind(s herald.SessionID, low herald.ID, split int) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.sweptCoarse < 0 {
		st.sweptCoarse = birth(s)
	}
	c, f := coarse(low), fine(low)
	if c <= st.sweptCoarse && (st.entries <= split || f <= st.sweptFine) {
		return false
	}
	st.sweptCoarse, st.sweptFine = max(c, st.sweptCoarse), max(f, st.sweptFine)
	return true
}

// bucket chooses the partition for an entry and adds its directory row if it may
// be missing.
func (p *plan) bucket(s herald.SessionID, id herald.ID) int64 {
	st := p.s.states.get(s)
	c := coarse(id)
	st.mu.Lock()
	defer st.mu.Unlock()
	if c > st.newest {
		st.newest, st.entries, st.fines = c, 0, nil
	}
	if c < st.newest {
		return c
	}
	if st.entries++; st.entries <= p.s.opts.SplitAfter {
		return c
	}
	f := fine(id)
	bucket := -(f + 1)
	if !st.fines[f] {
		p.add(putInbox, part{partInbox, int64(s), c}, 0, int64(s), c, bucket, []byte{}, int32(0), idStamp(id))
		p.after = append(p.after, func(err error) {
			if err == nil {
				st.known(c, f)
			}
		})
	}
	return bucket
}

// known notes that a fine bucket's directory row is in.
func (st *state) known(c, f int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.newest != c {
		return
	}
	if st.fines == nil {
		st.fines = make(map[int64]bool)
	}
	st.fines[f] = true
}
