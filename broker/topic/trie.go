package topic

import (
	"bytes"
	"strings"
	"sync"
)

// trie holds the filters with wildcards, level by level. Its edges stand in
// one map, which costs a branch with one child, the usual kind, no more than
// its place there.
//
// A match visits those branches that exist: for a topic of n levels at most
// 2^n, and never more than there are. To make a match visit k branches, a
// client must hold filters that end in about k of them.
type trie[T comparable] struct {
	mu    sync.RWMutex // guards all below and the lists of the nodes; no other lock is taken under it
	root  *branch[T]
	edges map[edge[T]]*branch[T] // every level but "+" and "#"
}

// edge is a literal level below a branch.
type edge[T comparable] struct {
	from  *branch[T]
	level string
}

// branch stands for the first levels of some filters: 32 bytes.
type branch[T comparable] struct {
	plus *branch[T] // one level further, "+"
	end  *Node[T]   // the filter of just these levels
	hash *Node[T]   // the filter of these levels and "#"
	kids int32      // literal levels below
}

// pinned is the length of filter from which a level gets a copy of its own:
// an edge may outlive the filter that it came with, and must not keep up to
// 64 KB of it alive.
const pinned = 128

func (t *trie[T]) init() {
	t.root = new(branch[T])
	t.edges = make(map[edge[T]]*branch[T])
}

// find returns the node of a filter, or nil. The caller holds mu.
func (t *trie[T]) find(filter string) *Node[T] {
	b := t.root
	for rest, more := filter, true; more && b != nil; {
		var level string
		switch level, rest, more = strings.Cut(rest, "/"); level {
		case "#":
			return b.hash
		case "+":
			b = b.plus
		default:
			b = t.edges[edge[T]{b, level}]
		}
	}
	if b == nil {
		return nil
	}
	return b.end
}

// add puts in a node whose filter is not there. The caller holds mu.
func (t *trie[T]) add(n *Node[T]) {
	b := t.root
	for rest, more := n.filter, true; more; {
		var level string
		switch level, rest, more = strings.Cut(rest, "/"); level {
		case "#":
			b.hash = n
			return
		case "+":
			if b.plus == nil {
				b.plus = new(branch[T])
			}
			b = b.plus
		default:
			next := t.edges[edge[T]{b, level}]
			if next == nil {
				if len(n.filter) > pinned {
					level = strings.Clone(level)
				}
				next = new(branch[T])
				t.edges[edge[T]{b, level}] = next
				b.kids++
			}
			b = next
		}
	}
	b.end = n
}

// all returns every node.
func (t *trie[T]) all() (nodes []*Node[T]) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	along := func(b *branch[T]) {
		for ; b != nil; b = b.plus {
			if b.end != nil {
				nodes = append(nodes, b.end)
			}
			if b.hash != nil {
				nodes = append(nodes, b.hash)
			}
		}
	}
	along(t.root)
	for _, b := range t.edges {
		along(b)
	}
	return nodes
}

// remove takes out a filter that is there, and the branches that it leaves
// bare. The caller holds mu.
func (t *trie[T]) remove(filter string) {
	path := make([]edge[T], 0, 16)
	b := t.root
	last := &b.end
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "#" {
			last = &b.hash
			break
		}
		path = append(path, edge[T]{b, level})
		if level == "+" {
			b = b.plus
		} else {
			b = t.edges[edge[T]{b, level}]
		}
		last = &b.end
	}
	*last = nil
	for i := len(path) - 1; i >= 0 && *b == (branch[T]{}); i-- {
		e := path[i]
		b = e.from
		if e.level == "+" {
			b.plus = nil
		} else {
			delete(t.edges, e)
			b.kids--
		}
	}
}

// walk is what a match needs besides the trie; it is kept for the next one.
type walk[T comparable] struct {
	now, next []*branch[T]
}

// match appends the nodes of all filters that match a topic to nodes. "#"
// matches its parent level, so it is taken at every branch that is reached,
// the last one included [MQTT-4.7.1-2]. A topic that begins with "$" is not
// matched by a wildcard in the first level [MQTT-4.7.2-1].
func (t *trie[T]) match(topic []byte, w *walk[T], nodes []*Node[T]) []*Node[T] {
	t.mu.RLock()
	defer t.mu.RUnlock()
	now, next := append(w.now[:0], t.root), w.next[:0]
	dollar := len(topic) > 0 && topic[0] == '$'
	for rest, more := topic, true; more && len(now) > 0; dollar = false {
		var level []byte
		level, rest, more = bytes.Cut(rest, []byte{'/'})
		for _, b := range now {
			if b.hash != nil && !dollar {
				nodes = append(nodes, b.hash)
			}
			if b.plus != nil && !dollar {
				next = append(next, b.plus)
			}
			if b.kids > 0 {
				if k := t.edges[edge[T]{b, string(level)}]; k != nil {
					next = append(next, k)
				}
			}
		}
		now, next = next, now[:0]
	}
	for _, b := range now {
		if b.end != nil {
			nodes = append(nodes, b.end)
		}
		if b.hash != nil {
			nodes = append(nodes, b.hash)
		}
	}
	w.keep(now, next)
	return nodes
}

// keep keeps the buffers of a match unless it was an uncommonly wide one.
func (w *walk[T]) keep(now, next []*branch[T]) {
	const most = 4096
	if cap(now) > most || cap(next) > most {
		now, next = nil, nil
	}
	w.now, w.next = now[:0], next[:0]
}
