package engine

import (
	"errors"
	"slices"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
)

// groups are the shared subscriptions of this node. A group whose members are
// all ephemeral lives as long as it has members; one that ever had a durable
// member, or is configured to be durable, has an inbox and lives on for
// shared.expiry after its last member left.
type groups struct {
	joins  claims // of keys: one at a time joins or leaves a group; others are not held up
	byName map[string]*group
	byID   map[herald.SessionID]*group
	lookup sync.RWMutex // guards the maps
}

// group is one shared subscription: {name}/{filter}.
type group struct {
	key    string // name and filter
	filter string
	h      *handle
	epoch  uint64 // of a cluster: of this node's claim

	mu      sync.Mutex // guards below; taken before client.mu
	core    *session.Group
	row     persistence.Session
	members []member
	picker  topic.Picker
	next    int // round robin: where the next turn begins
	loaded  bool
	loading bool
	early   []func()              // what became of entries before it was loaded, in its order
	waiting bool                  // of a cluster: not to be loaded yet (sharing.go)
	held    []heldBy              // what connected members hold, until it is loaded
	out     map[herald.ID]outside // dealt to members at other nodes
	deals   uint64                // how many were
	list    []topic.Member        // of deal, kept for its memory
	index   []int
}

// durable tells whether the group has an inbox.
func (g *group) durable() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Durable()
}

// member is a session that shares a subscription.
type member struct {
	h   *handle
	g   *session.Grant
	at  *peer // the node that it is connected to; nil: this one
	out int   // of one at another node: what it has under way
}

func (gs *groups) init() {
	gs.joins.m = make(map[string]*claim)
	gs.byName = make(map[string]*group)
	gs.byID = make(map[herald.SessionID]*group)
}

func (gs *groups) find(id herald.SessionID) *group {
	gs.lookup.RLock()
	defer gs.lookup.RUnlock()
	return gs.byID[id]
}

// all returns the groups there are.
func (gs *groups) all() []*group {
	gs.lookup.RLock()
	defer gs.lookup.RUnlock()
	out := make([]*group, 0, len(gs.byName))
	for _, g := range gs.byName {
		out = append(out, g)
	}
	return out
}

// join adds a session to a group, which is made if there is none. It may block
// for the store.
func (gs *groups) join(e *Engine, name, filter string, h *handle, o topic.Options) error {
	key := name + "/" + filter
	defer gs.joins.lock(key)()
	g := gs.byKey(key)
	if g == nil {
		var err error
		if g, err = gs.open(e, key, filter, h.durable || e.durableGroup(name, key)); err != nil {
			return err
		}
	} else if h.durable && !g.durable() {
		if err := gs.harden(e, g); err != nil {
			return err
		}
	}
	m := member{h: h, g: e.grants.of(o)}
	g.mu.Lock()
	if i := slices.IndexFunc(g.members, func(m member) bool { return m.h == h }); i >= 0 {
		g.members[i] = m
	} else {
		g.members = append(g.members, m)
	}
	row := g.row
	g.row.Expires = 0
	g.mu.Unlock()
	if row.Expires == 0 {
		return nil
	}
	row.Expires = 0
	return e.commit(&persistence.Batch{Sessions: []persistence.Session{row}})
}

// durableGroup tells whether configuration makes a group durable.
func (e *Engine) durableGroup(name, key string) bool {
	return slices.Contains(e.cfg.Shared.Durable, name) || slices.Contains(e.cfg.Shared.Durable, key)
}

// open makes a group, from its row if it has one.
func (gs *groups) open(e *Engine, key, filter string, durable bool) (*group, error) {
	g := &group{key: key, filter: filter}
	g.picker.Strategy = e.cfg.Shared.Strategy
	row, err := e.store.Session(e.ctx, persistence.Group, key)
	switch {
	case err == nil:
		g.row, durable = row, true
	case !errors.Is(err, herald.ErrNotFound):
		return nil, err
	default:
		g.row = persistence.Session{ID: e.newSessionID(), Kind: persistence.Group, Name: key, ExpiryInterval: never, Connected: e.now()}
		if durable {
			if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{g.row}}); err != nil {
				return nil, err
			}
		}
	}
	g.core = session.NewGroup(g.row.ID, durable)
	g.core.Keep(e.cfg.Memory)
	g.loaded = !durable
	gs.publish(e, g, durable)
	return g, nil
}

// publish makes the group known to the index.
func (gs *groups) publish(e *Engine, g *group, durable bool) {
	if g.h == nil {
		g.h = &handle{id: g.row.ID, durable: durable}
	}
	gs.lookup.Lock()
	gs.byName[g.key], gs.byID[g.row.ID] = g, g
	gs.lookup.Unlock()
	g.h.group.Store(g)
	e.index.Subscribe(g.filter, g.h, groupOptions)
}

// harden gives an ephemeral group an inbox, from a routing epoch on, as a slow
// ephemeral session gets one (deliver.go: spill).
func (gs *groups) harden(e *Engine, g *group) error {
	if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{g.row}}); err != nil {
		return err
	}
	g.mu.Lock()
	g.core.MakeDurable(e.env())
	g.mu.Unlock()
	e.giveInbox(g.h)
	return nil
}

// leave takes a session out of a group.
func (gs *groups) leave(e *Engine, name, filter string, h *handle) {
	key := name + "/" + filter
	defer gs.joins.lock(key)()
	g := gs.byKey(key)
	if g == nil {
		return
	}
	g.mu.Lock()
	g.members = slices.DeleteFunc(g.members, func(m member) bool { return m.h == h })
	last, durable := len(g.members) == 0, g.core.Durable()
	expires := last && durable && g.row.Expires == 0
	if expires {
		g.row.Expires = e.now() + e.cfg.Shared.Expiry.Milliseconds()
	}
	row := g.row
	g.mu.Unlock()
	switch {
	case expires:
		if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{row}}); err != nil {
			e.log.Error("storing a shared group", errField(err))
		}
	case last && !durable:
		gs.remove(e, g)
	case !last:
		gs.wakeSoon(e, g)
	}
}

// wakeSoon lets a group deal on a worker: a member for which it may have waited
// is gone.
func (gs *groups) wakeSoon(e *Engine, g *group) {
	e.workers[0].call(func(w *listen.Worker) { g.wake(e, w) })
}

// left wakes the groups of a client whose connection has ended.
func (gs *groups) left(e *Engine, subs []persistence.Subscription) {
	for _, s := range subs {
		if name, filter, shared, _ := herald.SplitShare(s.Filter); shared {
			if g := gs.byKey(name + "/" + filter); g != nil {
				gs.wakeSoon(e, g)
			}
		}
	}
}

func (gs *groups) remove(e *Engine, g *group) {
	e.index.Unsubscribe(g.filter, g.h)
	g.h.group.Store(nil)
	gs.lookup.Lock()
	delete(gs.byName, g.key)
	delete(gs.byID, g.row.ID)
	gs.lookup.Unlock()
}

// expire ends groups that have had no member for too long.
func (gs *groups) expire(e *Engine, row persistence.Session) error {
	defer gs.joins.lock(row.Name)()
	if g := gs.byKey(row.Name); g != nil {
		g.mu.Lock()
		busy := len(g.members) > 0
		g.mu.Unlock()
		if busy {
			return nil
		}
		gs.remove(e, g)
	}
	if err := e.commit(&persistence.Batch{Delete: []persistence.Session{row}}); err != nil {
		return err
	}
	if e.nodes.on() {
		e.unlearn(row.Name, row.ID)
		if _, err := e.announce(nil, nil, [][]byte{appendGroup(eventGroupEnded, row.ID, row.Name)}); err != nil {
			e.log.Warn("announcing the end of a shared group", errField(err))
		}
	}
	return nil
}

// joined lets groups deal to a client that has come or has joined one.
func (gs *groups) joined(e *Engine, c *client, w *listen.Worker) {
	c.mu.Lock()
	var shared []string
	if c.conn != nil {
		for f := range c.subs {
			if name, filter, is, _ := herald.SplitShare(f); is {
				shared = append(shared, name+"/"+filter)
			}
		}
	}
	c.mu.Unlock()
	for _, key := range shared {
		if g := gs.byKey(key); g != nil {
			g.wake(e, w)
		}
	}
}

// settle notes, soon, that members are done with entries, and deals on. It is
// called with a client's lock held, so it only hands over.
func (gs *groups) settle(e *Engine, done []session.Settled) {
	if len(done) == 0 {
		return
	}
	done = gs.ours(e, slices.Clone(done), false)
	if len(done) == 0 {
		return
	}
	e.workers[0].call(func(w *listen.Worker) {
		var touched []*group
		for _, d := range done {
			if g := gs.find(d.Source); g != nil {
				g.mu.Lock()
				g.settledLocked([]herald.ID{d.ID})
				g.mu.Unlock()
				if !slices.Contains(touched, g) {
					touched = append(touched, g)
				}
			}
		}
		for _, g := range touched {
			g.wake(e, w)
		}
	})
}

// begun tells of entries that a member, or who was one, was sent, and has not acknowledged, which
// go back to their groups (QoS 1) and which go to nobody else (QoS 2).
func (gs *groups) begun(e *Engine, id herald.SessionID, held []session.Settled, subs []persistence.Subscription) (back, settled []session.Settled) {
	for _, h := range held {
		key, ok := gs.keyOf(e, h.Source)
		if !ok {
			continue
		}
		qos, shares := byte(0), false
		for _, s := range subs {
			if k, shared := shareKey(s.Filter); shared && k == key {
				qos, shares = s.QoS, true
			}
		}
		if !shares { // it has left
			if left, err := e.leavers(h.Source); err == nil {
				qos = left[id]
			}
		}
		entries, err := e.store.Inbox(e.ctx, h.Source, h.ID-1, h.ID, 1, pageBytes, nil)
		if err == nil && len(entries) == 1 && min(qos, entries[0].QoS) == 2 {
			settled = append(settled, h)
		} else {
			back = append(back, h)
		}
	}
	return back, settled
}

// ours keeps what concerns groups of this node, and tells the owners of the others.
// It does not block.
func (gs *groups) ours(e *Engine, done []session.Settled, back bool) []session.Settled {
	if !e.nodes.on() {
		return done
	}
	others := make(map[herald.SessionID][]herald.ID)
	done = slices.DeleteFunc(done, func(d session.Settled) bool {
		if gs.find(d.Source) != nil {
			return false
		}
		others[d.Source] = append(others[d.Source], d.ID)
		return true
	})
	for id, ids := range others {
		e.errand(func() {
			if back {
				e.tellOwner(id, nil, ids)
			} else {
				e.tellOwner(id, ids, nil)
			}
		})
	}
	return done
}

// keyOf is the key of a group.
func (gs *groups) keyOf(e *Engine, id herald.SessionID) (string, bool) {
	if g := gs.find(id); g != nil {
		return g.key, true
	}
	if !e.nodes.on() {
		return "", false
	}
	e.sharing.mu.Lock()
	defer e.sharing.mu.Unlock()
	key, ok := e.sharing.keys[id]
	return key, ok
}

// takeBack gives groups back what a session had of theirs and has not begun.
func (gs *groups) takeBack(e *Engine, back []session.Settled) {
	if back = gs.ours(e, back, true); len(back) == 0 {
		return
	}
	bySource := make(map[herald.SessionID][]herald.ID)
	for _, b := range back {
		bySource[b.Source] = append(bySource[b.Source], b.ID)
	}
	w := listen.NewWorker()
	for src, ids := range bySource {
		if g := gs.find(src); g != nil {
			g.mu.Lock()
			g.backLocked(ids)
			g.mu.Unlock()
			g.wake(e, w)
		}
	}
	w.Flush()
}
