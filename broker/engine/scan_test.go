package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
)

// shelf is a store of subscriptions and groups. Scans show what stands there when they
// begin; what happens while they run is called before each of their rows.
type shelf struct {
	persistence.Cluster
	subs     map[subscriptionKey]bool
	groups   map[herald.SessionID]string
	meantime func()
}

func (s *shelf) ScanSubscriptions(_ context.Context, f func(herald.SessionID, persistence.Subscription) error) error {
	var all []subscriptionKey
	for k := range s.subs {
		all = append(all, k)
	}
	for _, k := range all {
		s.meantime()
		if err := f(k.session, persistence.Subscription{Filter: k.filter}); err != nil {
			return err
		}
	}
	s.meantime()
	return nil
}

func (s *shelf) ScanSessions(_ context.Context, f func(persistence.Session) error) error {
	for id, key := range s.groups {
		if err := f(persistence.Session{ID: id, Kind: persistence.Group, Name: key}); err != nil {
			return err
		}
	}
	s.meantime()
	return nil
}

// onShelf is an engine of a cluster on such a store, that has read it.
func onShelf(s *shelf) *Engine {
	e := bare(&carrier{up: true})
	e.store, e.nodes.store = s, s
	e.index, e.remote = topic.New[*handle](), topic.New[*remote]()
	e.handles = make(map[herald.SessionID]*handle)
	e.sharing.init()
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.life, e.endLife = context.WithCancel(e.ctx)
	e.errands = make(chan struct{}, errandSlots)
	e.workers = []*worker{}
	e.loaded.Store(true)
	return e
}

// known are the durable subscriptions that the engine knows, and its groups.
func known(e *Engine) (all []string) {
	e.index.All(func(n *topic.Node[*handle]) bool {
		subs := n.Subscribers()
		for k := range subs.Chunks() {
			for _, en := range subs.Chunk(k) {
				all = append(all, fmt.Sprint(en.Target.id, " ", n.Filter()))
			}
		}
		return true
	})
	for key, ids := range e.durableMembers() {
		for _, id := range ids {
			all = append(all, fmt.Sprint(id, " ", herald.SharePrefix+key))
		}
	}
	slices.Sort(all)
	return all
}

func (s *shelf) wanted() (all []string) {
	for k := range s.subs {
		all = append(all, fmt.Sprint(k.session, " ", k.filter))
	}
	for id, key := range s.groups {
		all = append(all, fmt.Sprint(id, " ", filterOf(key)))
	}
	slices.Sort(all)
	return all
}

// After announcements were missed a node knows what is in the store, however much of
// it changes while it looks: what was missed comes or goes, and nothing that is
// younger than what it reads does either.
func TestMissedAnnouncements(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		s := &shelf{subs: make(map[subscriptionKey]bool), groups: make(map[herald.SessionID]string)}
		e := onShelf(s)
		peer := bridge.Peer{Node: 2, Incarnation: 1}
		filters := []string{"a", "a/b", "+/b", "#", "$share/g/a", "$share/g/#"}
		type pending struct {
			k    subscriptionKey
			done func()
			add  bool
		}
		var open []pending // changes of this node's own sessions, routed and not stored
		// change is one of another node's (announced, or missed) or of this one's.
		change := func(heard bool) {
			k := subscriptionKey{herald.SessionID(1 + r.IntN(3)), filters[r.IntN(len(filters))]}
			if slices.ContainsFunc(open, func(p pending) bool { return p.k == k }) {
				return
			}
			add := r.IntN(2) == 0
			if heard && r.IntN(3) == 0 {
				h := e.handleFor(k.session, true)
				done := e.changing(k.session, []string{k.filter})
				if add {
					if err := e.routeTo(h, persistence.Subscription{Filter: k.filter}); err != nil {
						t.Fatal(err)
					}
				} else {
					e.unroute(h, k.filter)
				}
				open = append(open, pending{k, done, add})
				return
			}
			event := appendUnsubscribed(k.session, k.filter)
			if delete(s.subs, k); add {
				s.subs[k] = true
				event = appendSubscribed(k.session, &persistence.Subscription{Filter: k.filter})
			}
			if heard {
				e.Apply(peer, bridge.Change{Events: [][]byte{event}})
			}
		}
		group := func(heard bool) {
			id, key, kind := herald.SessionID(1000+r.IntN(1<<40)), "g/a", byte(eventGroup)
			if len(s.groups) > 0 {
				kind = eventGroupEnded
				for id = range s.groups {
					delete(s.groups, id)
				}
			} else {
				s.groups[id] = key
			}
			if heard {
				e.Apply(peer, bridge.Change{Events: [][]byte{appendGroup(kind, id, key)}})
			}
		}
		settle := func() {
			if len(open) == 0 {
				return
			}
			p := open[0]
			open = open[1:]
			if delete(s.subs, p.k); p.add {
				s.subs[p.k] = true
			}
			p.done()
		}
		for range 3 {
			for range 20 {
				change(r.IntN(3) > 0)
				if r.IntN(4) == 0 {
					settle()
				}
			}
			group(r.IntN(2) == 0)
			s.meantime = func() {
				switch r.IntN(3) {
				case 0:
					change(true)
				case 1:
					settle()
				}
			}
			e.Replace(peer, nil)
			for len(open) > 0 {
				settle()
			}
			if got, want := known(e), s.wanted(); !slices.Equal(got, want) {
				t.Fatalf("seed %d: the node knows %q, the store has %q", seed, got, want)
			}
		}
		e.endLife()
		e.jobs.end()
	}
}

// Announcements that are missed while a node that starts reads the store for the first
// time have it read once more: it may have read before them.
func TestMissedWhileStarting(t *testing.T) {
	k := subscriptionKey{1, "a"}
	s := &shelf{subs: map[subscriptionKey]bool{{2, "b"}: true}}
	e := onShelf(s)
	e.loaded.Store(false)
	read := 0
	s.meantime = func() {
		if read++; read == 2 { // the row of 2 was read
			s.subs[k] = true
			e.Replace(bridge.Peer{Node: 2, Incarnation: 1}, nil)
		}
	}
	if _, err := e.scanSubscriptions(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := known(e), s.wanted(); !slices.Equal(got, want) {
		t.Errorf("the node knows %q, the store has %q", got, want)
	}
	if !e.loaded.Load() {
		t.Error("the node does not know that it is loaded")
	}
}
