package engine

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
)

// Reading all subscriptions from the store: when the node starts, and when
// announcements of another node were missed. What changes meanwhile is newer than
// what is read; scan knows of it.
type scan struct {
	mu      sync.Mutex // guards below; taken before sharing.mu and the index's own
	running bool
	missed  bool // announcements were, while the first scan ran
	// changed meanwhile: what is read of these may be older than what is known.
	changed map[subscriptionKey]struct{}
	// changing are being written: those for which that has not ended are changed for
	// a scan that begins now, too.
	changing map[subscriptionKey]int
}

type subscriptionKey struct {
	session herald.SessionID
	filter  string
}

func (s *scan) init() { s.changing = make(map[subscriptionKey]int) }

func (s *scan) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.changed = true, make(map[subscriptionKey]struct{}, len(s.changing))
	for k := range s.changing {
		s.changed[k] = struct{}{}
	}
}

func (s *scan) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.changed = false, nil
}

// later has the first scan done once more if it is not over; then it returns true.
func (s *scan) later(loaded *atomic.Bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if loaded.Load() {
		return false
	}
	s.missed = true
	return true
}

// over ends the first scan, unless it has to be done once more.
func (s *scan) over(loaded *atomic.Bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missed {
		s.missed = false
		return false
	}
	loaded.Store(true)
	return true
}

// unless calls f if the subscription was not changed since the scan began, and before
// any change that comes.
func (s *scan) unless(k subscriptionKey, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.changed[k]; !ok {
		f()
	}
}

// touch notes that a subscription is about to change in the index as it has changed
// in the store.
func (e *Engine) touch(id herald.SessionID, filter string) {
	s := &e.routing.scan
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		s.changed[subscriptionKey{id, filter}] = struct{}{}
	}
}

// changing notes that subscriptions of a session are about to change, first in the
// index and then in the store; done: they have. It is called before the first of the
// two.
func (e *Engine) changing(id herald.SessionID, filters []string) (done func()) {
	if !e.nodes.on() || len(filters) == 0 {
		return func() {}
	}
	s := &e.routing.scan
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range filters {
		k := subscriptionKey{id, f}
		s.changing[k]++
		if s.running {
			s.changed[k] = struct{}{}
		}
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range filters {
			k := subscriptionKey{id, f}
			if s.changing[k]--; s.changing[k] <= 0 {
				delete(s.changing, k)
			}
		}
	}
}

// scanSubscriptions reads all subscriptions into the index when the node starts.
func (e *Engine) scanSubscriptions(ctx context.Context) (n int, err error) {
	for {
		if n, err = e.readSubscriptions(ctx, nil); err != nil || !e.nodes.on() || e.routing.scan.over(&e.loaded) {
			return n, err
		}
	}
}

// rescanSubscriptions reads all subscriptions again, and takes out of the index what
// is in it and not in the store: an UNSUBSCRIBE, or the end of a session or group, was
// missed.
func (e *Engine) rescanSubscriptions(ctx context.Context) (n int, err error) {
	return e.readSubscriptions(ctx, &stored{seed: maphash.MakeSeed(), subs: make(map[uint64]struct{})})
}

// stored is what a scan has found. Of subscriptions it holds hashes: two that are the
// same let a subscription stay that should go, until the next scan.
type stored struct {
	seed   maphash.Seed
	subs   map[uint64]struct{}
	groups map[herald.SessionID]string // that were known before and are not found yet
}

func (s *stored) hash(id herald.SessionID, filter string) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	h.Write(b[:])
	h.WriteString(filter)
	return h.Sum64()
}

func (s *stored) has(id herald.SessionID, filter string) bool {
	_, ok := s.subs[s.hash(id, filter)]
	return ok
}

// readSubscriptions reads all subscriptions, and groups, into the index. If found is
// given, what is not among them is taken out.
func (e *Engine) readSubscriptions(ctx context.Context, found *stored) (n int, err error) {
	s := &e.routing.scan
	s.begin()
	defer s.end()
	err = e.store.ScanSubscriptions(ctx, func(id herald.SessionID, sub persistence.Subscription) (err error) {
		if _, ok := leaver(sub.Filter); ok {
			return nil
		}
		n++
		if found != nil {
			found.subs[found.hash(id, sub.Filter)] = struct{}{}
		}
		s.unless(subscriptionKey{id, sub.Filter}, func() {
			if key, shared := shareKey(sub.Filter); shared && e.nodes.on() {
				e.shares(key, id)
				return
			}
			err = e.routeTo(e.handleFor(id, true), sub)
		})
		return err
	})
	if err != nil || !e.nodes.on() {
		return n, err
	}
	if found != nil {
		found.groups = e.knownGroups()
	}
	err = e.store.ScanSessions(ctx, func(s persistence.Session) error {
		if s.Kind == persistence.Group && filterOf(s.Name) != s.Name {
			e.learn(s.Name, s.ID)
			if found != nil {
				delete(found.groups, s.ID)
			}
		}
		return nil
	})
	if err == nil && found != nil {
		e.dropUnfound(found)
	}
	return n, err
}

// knownGroups are those of other nodes, which were all in the store before they were
// known.
func (e *Engine) knownGroups() map[herald.SessionID]string {
	s := &e.sharing
	s.mu.Lock()
	known := maps.Clone(s.keys)
	s.mu.Unlock()
	maps.DeleteFunc(known, func(id herald.SessionID, _ string) bool { return e.groups.find(id) != nil })
	return known
}

// dropUnfound takes out of the index what a scan has not found. What has changed since
// the scan began stays: it is younger than what was read.
func (e *Engine) dropUnfound(found *stored) {
	s := &e.routing.scan
	for id, key := range found.groups {
		e.unlearn(key, id)
	}
	e.index.All(func(n *topic.Node[*handle]) bool {
		subs := n.Subscribers()
		for k := range subs.Chunks() {
			for _, en := range subs.Chunk(k) {
				if h := en.Target; h.durable && h.group.Load() == nil && !found.has(h.id, n.Filter()) && !e.isGroup(h.id) {
					s.unless(subscriptionKey{h.id, n.Filter()}, func() { e.index.Unsubscribe(n.Filter(), h) })
				}
			}
		}
		return e.life.Err() == nil
	})
	for key, ids := range e.durableMembers() {
		for _, id := range ids {
			if filter := herald.SharePrefix + key; !found.has(id, filter) {
				s.unless(subscriptionKey{id, filter}, func() { e.unshares(key, id) })
			}
		}
	}
}

// isGroup tells whether an entry of the index stands for a group of another node.
func (e *Engine) isGroup(id herald.SessionID) bool {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.keys[id]
	return ok
}

// durableMembers are the durable members of all groups of the cluster.
func (e *Engine) durableMembers() map[string][]herald.SessionID {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string][]herald.SessionID, len(s.rest))
	for key, ids := range s.rest {
		for id := range ids {
			all[key] = append(all[key], id)
		}
	}
	return all
}
