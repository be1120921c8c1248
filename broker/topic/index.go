// Package topic finds the subscribers of a topic.
//
// An [Index] holds one [Node] per filter: filters without wildcards in a map,
// the others in a trie. A node's subscribers are a list that is replaced, never
// changed, so a publish walks a [Snapshot] of it without a lock. Each worker
// asks through a [Cache] of its own, which remembers topic → nodes for as long
// as the set of filters that can match the topic stays the same. A subscriber
// that joins a filter which exists changes a node and no cache.
//
// [Picker] chooses the member of a shared group that gets a message.
package topic

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/herald-mqtt/herald"
)

const (
	shards = 64
	// counters is how many generations there are. A filter that comes or goes
	// makes a cached topic be looked up again for nothing with a chance of
	// about 10 in 65,536.
	counters = 1 << 16
	// prefixLevels is how many levels of a wildcard filter, up to its first
	// wildcard, tell which topics it can match.
	prefixLevels = 8
)

// Options are what a subscription asks for, in 8 bytes.
type Options struct {
	// QoS is the most that is granted: 0, 1 or 2.
	QoS byte
	// NoLocal: what the subscriber itself publishes is not sent to it.
	NoLocal bool
	// RetainAsPublished: the RETAIN flag is sent as it was published.
	RetainAsPublished bool
	// Identifier is the subscription identifier; 0 is none.
	Identifier uint32
}

// Entry is one subscription.
type Entry[T comparable] struct {
	Target T
	Options
}

// Index maps topics to subscribers. T is the handle of a subscriber: a session,
// or a shared group, which is one subscriber. All methods may be called at the
// same time by any number of goroutines, and what a call changed is seen by
// every [Cache.Match] that starts after the call has returned.
//
// It has no bounds of its own: filters are valid ([herald.ValidFilter]), so
// they have at most [herald.MaxLevels] levels, and how many a session may have
// is for the caller to say. Memory follows the largest number of filters that
// there ever were, as Go's maps do not shrink.
type Index[T comparable] struct {
	// Fixed at construction.
	seed  maphash.Seed
	empty *list[T]

	// epoch counts the changes of the set of filters; gens, those of the parts
	// of it (see stamp). A change is visible in the map or trie first, then in
	// gens, then in epoch; who remembers a match reads them in reverse.
	epoch atomic.Uint64
	gens  []atomic.Uint32

	filters, subscriptions atomic.Int64

	exact [shards]shard[T]
	wild  trie[T]
}

// shard holds a part of the filters without wildcards.
type shard[T comparable] struct {
	mu    sync.RWMutex        // no other lock is taken under it
	nodes map[string]*Node[T] // and their lists
	_     [32]byte            // a cache line each
}

// New returns an empty index.
func New[T comparable]() *Index[T] {
	x := &Index[T]{
		seed:  maphash.MakeSeed(),
		empty: new(list[T]),
		gens:  make([]atomic.Uint32, counters),
	}
	for i := range x.exact {
		x.exact[i].nodes = make(map[string]*Node[T])
	}
	x.wild.init()
	return x
}

// Filters is the number of filters that have a subscriber.
func (x *Index[T]) Filters() int { return int(x.filters.Load()) }

// Subscriptions is the number of pairs of filter and subscriber.
func (x *Index[T]) Subscriptions() int { return int(x.subscriptions.Load()) }

// Subscribe subscribes t to a valid filter, or replaces its options if it is
// subscribed (existed). The filter's string is kept if the filter is new;
// [Node.Filter] of the returned node is the one to keep, so that a filter with
// many subscribers has its bytes in memory once.
func (x *Index[T]) Subscribe(filter string, t T, o Options) (n *Node[T], existed bool) {
	e := Entry[T]{Target: t, Options: o}
	if herald.Wildcard(filter) {
		x.wild.mu.Lock()
		defer x.wild.mu.Unlock()
		if n = x.wild.find(filter); n == nil {
			n = newNode(filter, e)
			x.wild.add(n)
			x.changed(filter, +1)
			return n, false
		}
	} else {
		s := x.shard(maphash.String(x.seed, filter))
		s.mu.Lock()
		defer s.mu.Unlock()
		if n = s.nodes[filter]; n == nil {
			n = newNode(filter, e)
			s.nodes[filter] = n
			x.changed(filter, +1)
			return n, false
		}
	}
	existed = n.put(e)
	if !existed {
		x.subscriptions.Add(1)
	}
	return n, existed
}

// Unsubscribe takes t off a filter. existed tells whether it was subscribed.
func (x *Index[T]) Unsubscribe(filter string, t T) (existed bool) {
	var n *Node[T]
	if herald.Wildcard(filter) {
		x.wild.mu.Lock()
		defer x.wild.mu.Unlock()
		n = x.wild.find(filter)
		if existed = n != nil && n.remove(t, x.empty); existed && n.list.Load() == x.empty {
			x.wild.remove(filter)
			x.changed(filter, -1)
			return true
		}
	} else {
		s := x.shard(maphash.String(x.seed, filter))
		s.mu.Lock()
		defer s.mu.Unlock()
		n = s.nodes[filter]
		if existed = n != nil && n.remove(t, x.empty); existed && n.list.Load() == x.empty {
			delete(s.nodes, filter)
			x.changed(filter, -1)
			return true
		}
	}
	if existed {
		x.subscriptions.Add(-1)
	}
	return existed
}

// All calls f for every filter that there is, until it returns false; of those that
// come or go meanwhile, for some. f may change the index. It holds references to a
// part of the filters, at the most to all that have wildcards.
func (x *Index[T]) All(f func(*Node[T]) bool) {
	var nodes []*Node[T]
	for i := range x.exact {
		s := &x.exact[i]
		nodes = nodes[:0]
		s.mu.RLock()
		for _, n := range s.nodes {
			nodes = append(nodes, n)
		}
		s.mu.RUnlock()
		for _, n := range nodes {
			if !f(n) {
				return
			}
		}
	}
	for _, n := range x.wild.all() {
		if !f(n) {
			return
		}
	}
}

func (x *Index[T]) shard(hash uint64) *shard[T] { return &x.exact[hash%shards] }

// changed tells the caches that filter came (+1) or went (-1), with its first
// or last subscriber. It is called under the lock under which that happened:
// were it called after, a second subscriber could find the node, return, and
// be missed by a publisher that has not been told yet.
func (x *Index[T]) changed(filter string, by int64) {
	x.filters.Add(by)
	x.subscriptions.Add(by)
	x.gens[x.generation(filter)].Add(1)
	x.epoch.Add(1)
}

// generation is the counter that stands for the topics which filter can match:
// the one of the topic itself, or the one of its literal levels before the
// first wildcard.
func (x *Index[T]) generation(filter string) uint16 {
	if !herald.Wildcard(filter) {
		return x.exactGeneration(maphash.String(x.seed, filter))
	}
	end, levels := 0, 0
	for i := 0; levels < prefixLevels && filter[i] != '+' && filter[i] != '#'; i++ {
		if filter[i] == '/' {
			end = i
			levels++
		}
	}
	return uint16(maphash.String(x.seed, filter[:end]))
}

// exactGeneration is the counter of a topic whose hash is given. It is seldom
// the one of the same string as a prefix.
func (x *Index[T]) exactGeneration(hash uint64) uint16 { return uint16(hash >> 32) }

// stamp is what was seen of the counters that stand for all filters which can
// match a topic: its own, and those of its first levels. No counter ever goes
// back, so their sum is the same only if each of them is.
type stamp struct {
	sum  uint64
	n    uint8
	gens [prefixLevels + 2]uint16
}

// stampOf finds the counters for a topic, whose hash is given, and reads them.
func (x *Index[T]) stampOf(topic []byte, hash uint64) stamp {
	s := stamp{n: 2}
	s.gens[0] = x.exactGeneration(hash)
	s.gens[1] = uint16(maphash.Bytes(x.seed, nil))
	for i, levels := 0, 0; i <= len(topic) && levels < prefixLevels; i++ {
		if i == len(topic) || topic[i] == '/' {
			s.gens[s.n] = uint16(maphash.Bytes(x.seed, topic[:i]))
			s.n++
			levels++
		}
	}
	s.sum = x.sum(&s)
	return s
}

// sum reads the counters of s.
func (x *Index[T]) sum(s *stamp) (sum uint64) {
	for _, g := range s.gens[:s.n] {
		sum += uint64(x.gens[g].Load())
	}
	return sum
}
