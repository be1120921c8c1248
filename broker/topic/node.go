package topic

import (
	"slices"
	"sync/atomic"
)

const (
	// chunkSize is how many entries stand side by side: 2 KB of them.
	chunkSize = 128
	// branchSize is how many full chunks a branch of the list holds.
	branchSize = 64
	// From lookupFrom subscribers on a node remembers where each one stands;
	// below lookupUntil it forgets again. In between, the last state holds.
	lookupFrom  = 256
	lookupUntil = 64
)

// Node is one filter with its subscribers: 48 bytes, beside the filter's own,
// while there is one subscriber that has not changed its options. It lives
// until its last subscriber goes; a filter that comes back gets a new node.
//
// Methods may be called by any number of goroutines.
type Node[T comparable] struct {
	// Fixed at construction.
	filter string
	first  [1]Entry[T]

	// list is nil as long as first is all there is. It is written under the
	// lock of the shard or trie that holds the node.
	list atomic.Pointer[list[T]]
	// lookup is where each target stands; guarded by the same lock.
	lookup map[T]uint32
}

// list is a version of a node's subscribers. Nothing that its slices show is
// ever written again; what lies behind their ends belongs to the newest
// version only. So one more subscriber is written in place behind the end of
// tail, and costs a new list header. A version that is made shorter has its
// slices' capacity cut, so that the next one to grow takes new memory.
//
// The obvious way, a copy of all entries per change, needs 8 TB of copying for
// a million subscribers that come one after another.
type list[T comparable] struct {
	full [][][]Entry[T] // branches of full chunks: all but the last hold branchSize
	tail []Entry[T]     // the rest, 1 to chunkSize entries; none only in the empty list
}

// Snapshot is the subscribers of a node at one moment. It does not change.
type Snapshot[T comparable] struct {
	full [][][]Entry[T]
	tail []Entry[T]
}

func newNode[T comparable](filter string, e Entry[T]) *Node[T] {
	return &Node[T]{filter: filter, first: [1]Entry[T]{e}}
}

// Filter is the node's filter.
func (n *Node[T]) Filter() string { return n.filter }

// Subscribers returns the subscribers of this moment: one atomic load.
func (n *Node[T]) Subscribers() Snapshot[T] {
	if l := n.list.Load(); l != nil {
		return Snapshot[T]{l.full, l.tail}
	}
	return Snapshot[T]{nil, n.first[:]}
}

// Chunks is how many runs of entries there are.
func (s Snapshot[T]) Chunks() int {
	if len(s.tail) == 0 {
		return 0
	}
	return fullChunks(s.full) + 1
}

// Chunk is the i-th run of entries, 0 ≤ i < Chunks: 1 to 128 of them, in no
// particular order, to be read only. A target stands in one place of one chunk.
func (s Snapshot[T]) Chunk(i int) []Entry[T] {
	if b := i / branchSize; b < len(s.full) && i%branchSize < len(s.full[b]) {
		return s.full[b][i%branchSize]
	}
	return s.tail
}

// Len is how many subscribers there are.
func (s Snapshot[T]) Len() int { return fullChunks(s.full)*chunkSize + len(s.tail) }

func fullChunks[T comparable](full [][][]Entry[T]) int {
	if len(full) == 0 {
		return 0
	}
	return (len(full)-1)*branchSize + len(full[len(full)-1])
}

// put adds e, or replaces the options that its target has (existed). The
// caller holds the node's lock.
func (n *Node[T]) put(e Entry[T]) (existed bool) {
	s := n.Subscribers()
	if at, ok := n.position(s, e.Target); ok {
		if s.at(at) != e {
			n.store(s.replaced(at, e))
		}
		return true
	}
	if n.lookup != nil {
		n.lookup[e.Target] = uint32(s.Len())
	}
	s = s.appended(e)
	if n.lookup == nil && s.Len() >= lookupFrom {
		n.lookup = make(map[T]uint32, 2*lookupFrom)
		at := uint32(0)
		for i := range s.Chunks() {
			for j := range s.Chunk(i) {
				n.lookup[s.Chunk(i)[j].Target] = at
				at++
			}
		}
	}
	n.store(s)
	return false
}

// remove takes t out: the last entry takes its place. A node whose last
// subscriber goes has empty as its list. The caller holds the node's lock.
func (n *Node[T]) remove(t T, empty *list[T]) (existed bool) {
	s := n.Subscribers()
	at, ok := n.position(s, t)
	if !ok {
		return false
	}
	if s.Len() == 1 {
		n.list.Store(empty)
		return true
	}
	last := s.Len() - 1
	moved := s.at(last)
	if at != last {
		s = s.replaced(at, moved)
	}
	n.store(s.shortened())
	if n.lookup != nil {
		n.lookup[moved.Target] = uint32(at)
		delete(n.lookup, t)
		if last < lookupUntil {
			n.lookup = nil
		}
	}
	return true
}

func (n *Node[T]) store(s Snapshot[T]) { n.list.Store(&list[T]{s.full, s.tail}) }

// position is where t stands.
func (n *Node[T]) position(s Snapshot[T], t T) (at int, ok bool) {
	if n.lookup != nil {
		p, ok := n.lookup[t]
		return int(p), ok
	}
	for i := range s.Chunks() {
		for j := range s.Chunk(i) {
			if s.Chunk(i)[j].Target == t {
				return i*chunkSize + j, true
			}
		}
	}
	return 0, false
}

func (s Snapshot[T]) at(i int) Entry[T] { return s.Chunk(i / chunkSize)[i%chunkSize] }

// appended is s, which must be the newest version, with e behind it.
func (s Snapshot[T]) appended(e Entry[T]) Snapshot[T] {
	if len(s.tail) < chunkSize {
		s.tail = append(s.tail, e)
		return s
	}
	k := len(s.full)
	if k == 0 || len(s.full[k-1]) == branchSize {
		s.full = append(s.full[:k:k], [][]Entry[T]{s.tail})
	} else {
		s.full = slices.Clone(s.full)
		s.full[k-1] = append(s.full[k-1], s.tail)
	}
	s.tail = append(make([]Entry[T], 0, chunkSize), e)
	return s
}

// replaced is s with another i-th entry.
func (s Snapshot[T]) replaced(i int, e Entry[T]) Snapshot[T] {
	c, j := i/chunkSize, i%chunkSize
	if c == fullChunks(s.full) {
		s.tail = slices.Clone(s.tail)
		s.tail[j] = e
		return s
	}
	b, c := c/branchSize, c%branchSize
	s.full = slices.Clone(s.full)
	s.full[b] = slices.Clone(s.full[b])
	s.full[b][c] = slices.Clone(s.full[b][c])
	s.full[b][c][j] = e
	return s
}

// shortened is s, of two entries or more, without its last one.
func (s Snapshot[T]) shortened() Snapshot[T] {
	if n := len(s.tail) - 1; n > 0 {
		s.tail = s.tail[:n:n]
		return s
	}
	k := len(s.full) - 1
	b := s.full[k]
	s.tail = b[len(b)-1]
	if len(b) == 1 {
		s.full = s.full[:k:k]
		return s
	}
	s.full = slices.Clone(s.full)
	s.full[k] = b[: len(b)-1 : len(b)-1]
	return s
}
