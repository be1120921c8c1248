package topic

import "hash/maphash"

// heaviest is what a match may weigh to be remembered, in bytes: its topic and
// 8 per node. It bounds a cache of n matches to n * 4 KB in the worst case.
const heaviest = 4096

// Match is what a topic leads to. It does not change, and may be kept and read
// by any goroutine; but only a new call of [Cache.Match] knows of new filters.
type Match[T comparable] struct {
	// Topic is the topic's name, one string for as long as it is remembered.
	Topic string
	// Nodes are the filters that match it, each once, in no particular order.
	// A node may have lost its last subscriber since.
	Nodes []*Node[T]
}

// Cache remembers what topics match. It is for one goroutine at a time: each
// worker has its own.
type Cache[T comparable] struct {
	x       *Index[T]
	max     int
	entries map[string]*entry[T]
	last    *entry[T] // what was asked for last: publishers repeat themselves
	ring    []*entry[T]
	hand    int // the next one in ring to be looked at for eviction

	walk  walk[T]
	nodes []*Node[T]
}

type entry[T comparable] struct {
	Match[T]
	epoch uint64 // of the index, when the match was last known to be good
	stamp stamp
	at    int32 // place in ring
	used  bool  // since the hand last passed
}

// NewCache returns a cache of up to max topics (at least one), which grows as
// it is used.
func (x *Index[T]) NewCache(max int) *Cache[T] {
	if max < 1 {
		max = 1
	}
	return &Cache[T]{x: x, max: max, entries: make(map[string]*entry[T])}
}

// Match finds the filters that match a valid topic name. It sees every
// Subscribe and Unsubscribe that returned before the call. It keeps no
// reference to topic, and allocates nothing if it remembers the topic and no
// filter that could match it has come or gone.
//
// A remembered topic takes one atomic load, of the index's epoch. If the epoch
// has moved, up to ten more tell whether this topic is concerned.
func (c *Cache[T]) Match(topic []byte) *Match[T] {
	epoch := c.x.epoch.Load()
	e := c.last
	if e == nil || e.Topic != string(topic) {
		if e = c.entries[string(topic)]; e == nil {
			return c.learn(topic, epoch, nil)
		}
		c.last = e
	}
	if e.epoch != epoch {
		if c.x.sum(&e.stamp) != e.stamp.sum {
			return c.learn(topic, epoch, e)
		}
		e.epoch = epoch
	}
	if !e.used {
		e.used = true
	}
	return &e.Match
}

// learn looks a topic up in the index and remembers the answer, in place of
// old if that is not nil. The epoch, then the stamp, were read before the
// lookup, so that a change in between makes the answer stale, not wrong.
func (c *Cache[T]) learn(topic []byte, epoch uint64, old *entry[T]) *Match[T] {
	hash := maphash.Bytes(c.x.seed, topic)
	e := &entry[T]{epoch: epoch, stamp: c.x.stampOf(topic, hash)}

	nodes := c.nodes[:0]
	s := c.x.shard(hash)
	s.mu.RLock()
	n := s.nodes[string(topic)]
	s.mu.RUnlock()
	if n != nil {
		nodes = append(nodes, n)
	}
	nodes = c.x.wild.match(topic, &c.walk, nodes)
	if len(nodes) > 0 {
		e.Nodes = append(make([]*Node[T], 0, len(nodes)), nodes...)
	}
	clear(nodes)
	if c.nodes = nodes; cap(nodes) > heaviest {
		c.nodes = nil
	}

	if old != nil {
		e.Topic, e.at, e.used = old.Topic, old.at, true
	} else {
		e.Topic, e.at = string(topic), -1
	}
	if len(topic)+8*len(e.Nodes) <= heaviest {
		c.keep(e)
	} else if old != nil {
		c.forget(old)
	}
	return &e.Match
}

// keep remembers e, if need be instead of a topic that was not asked for since
// the hand last passed. The hand goes a few places at most, so that one call
// stays cheap. A topic that is new counts as not asked for: a stream of topics
// that never come again pushes itself out before it pushes out others.
func (c *Cache[T]) keep(e *entry[T]) {
	switch {
	case e.at >= 0:
	case len(c.ring) < c.max:
		e.at = int32(len(c.ring))
		c.ring = append(c.ring, nil)
	default:
		for range 8 {
			if v := c.ring[c.hand]; v == nil || !v.used {
				break
			}
			c.ring[c.hand].used = false
			c.hand = (c.hand + 1) % len(c.ring)
		}
		e.at = int32(c.hand)
		c.hand = (c.hand + 1) % len(c.ring)
		if v := c.ring[e.at]; v != nil {
			delete(c.entries, v.Topic)
		}
	}
	c.ring[e.at] = e
	c.entries[e.Topic] = e
	c.last = e
}

// forget takes e out and leaves its place in the ring free.
func (c *Cache[T]) forget(e *entry[T]) {
	delete(c.entries, e.Topic)
	c.ring[e.at] = nil
	if c.last == e {
		c.last = nil
	}
}
