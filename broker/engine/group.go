package engine

import (
	"errors"
	"slices"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// groups are the shared subscriptions of this node. A group whose members are
// all ephemeral lives as long as it has members; one that ever had a durable
// member, or is configured to be durable, has an inbox and lives on for
// shared.expiry after its last member left.
type groups struct {
	mu     sync.Mutex // serialises joining and leaving
	byName map[string]*group
	byID   map[herald.SessionID]*group
	lookup sync.RWMutex // guards the maps
}

// group is one shared subscription: {name}/{filter}.
type group struct {
	key    string // name and filter
	filter string
	h      *handle // guarded by groups.mu; replaced when the group gets durable

	mu      sync.Mutex // guards below; taken before client.mu
	core    *session.Group
	row     persistence.Session
	members []member
	picker  topic.Picker
	next    int // round robin: where the next turn begins
	loaded  bool
	list    []topic.Member // of deal, kept for its memory
	index   []int
}

// member is a session that shares a subscription.
type member struct {
	h *handle
	g *session.Grant
}

func (gs *groups) init() {
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
	gs.mu.Lock()
	defer gs.mu.Unlock()
	key := name + "/" + filter
	g := gs.byName[key]
	if g == nil {
		var err error
		if g, err = gs.open(e, key, filter, h.durable || e.durableGroup(name, key)); err != nil {
			return err
		}
	} else if h.durable && !g.h.durable {
		if err := gs.harden(e, g); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := member{h: h, g: e.grants.of(o)}
	if i := slices.IndexFunc(g.members, func(m member) bool { return m.h == h }); i >= 0 {
		g.members[i] = m
		return nil
	}
	g.members = append(g.members, m)
	if g.row.Expires != 0 {
		g.row.Expires = 0
		return e.commit(&persistence.Batch{Sessions: []persistence.Session{g.row}})
	}
	return nil
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
	g.loaded = !durable
	gs.publish(e, g, durable)
	return g, nil
}

// publish makes the group known to the index.
func (gs *groups) publish(e *Engine, g *group, durable bool) {
	g.h = &handle{id: g.row.ID, group: g, durable: durable}
	gs.lookup.Lock()
	gs.byName[g.key], gs.byID[g.row.ID] = g, g
	gs.lookup.Unlock()
	e.index.Subscribe(g.filter, g.h, topic.Options{QoS: 2, RetainAsPublished: true})
}

// harden gives an ephemeral group an inbox.
func (gs *groups) harden(e *Engine, g *group) error {
	if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{g.row}}); err != nil {
		return err
	}
	old := g.h
	gs.publish(e, g, true)
	e.index.Unsubscribe(g.filter, old)
	g.mu.Lock()
	g.core.MakeDurable(e.env())
	g.mu.Unlock()
	return nil
}

// leave takes a session out of a group.
func (gs *groups) leave(e *Engine, name, filter string, h *handle) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.byName[name+"/"+filter]
	if g == nil {
		return
	}
	g.mu.Lock()
	g.members = slices.DeleteFunc(g.members, func(m member) bool { return m.h == h })
	last, durable := len(g.members) == 0, g.core.Durable()
	if last && durable && g.row.Expires == 0 {
		g.row.Expires = e.now() + e.cfg.Shared.Expiry.Milliseconds()
		if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{g.row}}); err != nil {
			e.log.Error("storing a shared group", errField(err))
		}
	}
	g.mu.Unlock()
	if last && !durable {
		gs.remove(e, g)
	}
}

func (gs *groups) remove(e *Engine, g *group) {
	e.index.Unsubscribe(g.filter, g.h)
	gs.lookup.Lock()
	delete(gs.byName, g.key)
	delete(gs.byID, g.row.ID)
	gs.lookup.Unlock()
}

// expire ends groups that have had no member for too long.
func (gs *groups) expire(e *Engine, row persistence.Session) error {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g := gs.byName[row.Name]; g != nil {
		g.mu.Lock()
		busy := len(g.members) > 0
		g.mu.Unlock()
		if busy {
			return nil
		}
		gs.remove(e, g)
	}
	return e.commit(&persistence.Batch{Delete: []persistence.Session{row}})
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
		gs.lookup.RLock()
		g := gs.byName[key]
		gs.lookup.RUnlock()
		if g != nil {
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
	done = slices.Clone(done)
	e.workers[0].call(func(w *listen.Worker) {
		var touched []*group
		for _, d := range done {
			if g := gs.find(d.Source); g != nil {
				g.mu.Lock()
				g.core.Settled(d.ID)
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

// begun tells of entries that a member was sent, and has not acknowledged, which
// go back to their groups (QoS 1) and which go to nobody else (QoS 2).
func (gs *groups) begun(e *Engine, held []session.Settled, subs []persistence.Subscription) (back, settled []session.Settled) {
	for _, h := range held {
		g := gs.find(h.Source)
		if g == nil {
			continue
		}
		qos := byte(0)
		for _, s := range subs {
			if name, filter, shared, _ := herald.SplitShare(s.Filter); shared && name+"/"+filter == g.key {
				qos = s.QoS
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

// takeBack gives groups back what a session had of theirs and has not begun.
func (gs *groups) takeBack(e *Engine, back []session.Settled) {
	if len(back) == 0 {
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
			g.core.TakeBack(ids)
			g.mu.Unlock()
			g.wake(e, w)
		}
	}
	w.Flush()
}

// deliver hands a run to the group. QoS 0 goes to a member at once or nowhere.
func (g *group) deliver(e *Engine, run *wire.Run, gr *session.Grant, env session.Env, w *listen.Worker, s *scratch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if run.Messages[0].QoS == 0 {
		for i, m := range run.Messages {
			if k := g.pick(m.Publisher, true); k >= 0 {
				e.dealTo(g, k, run, i, gr, 0, env, w)
			} else {
				e.stats.DroppedQoS0.Add(1)
			}
		}
		return
	}
	g.core.Deliver(run, 0, len(run.Messages), gr, env)
	g.dealLocked(e, env, w)
}

// wake reads on and deals.
func (g *group) wake(e *Engine, w *listen.Worker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.loaded {
		if err := g.loadLocked(e); err != nil {
			e.log.Error("loading a shared group", errField(err))
			return
		}
	}
	g.dealLocked(e, e.env(), w)
}

// loadLocked reads what was stored of the group and what its members hold.
func (g *group) loadLocked(e *Engine) error {
	win, err := e.store.Window(e.ctx, g.row.ID)
	if err != nil {
		return err
	}
	var held []persistence.Sent
	for _, m := range g.members {
		if !m.h.durable {
			continue
		}
		mw, err := e.store.Window(e.ctx, m.h.id)
		if err != nil {
			return err
		}
		for _, s := range mw.Sent {
			if s.Source == g.row.ID {
				held = append(held, s)
			}
		}
	}
	g.core.Load(win, held)
	g.loaded = true
	return nil
}

// dealLocked deals what waits to the members that can take it.
func (g *group) dealLocked(e *Engine, env session.Env, w *listen.Worker) {
	if !g.loaded {
		return
	}
	for {
		run, i, gr, ok := g.core.Next(env)
		if !ok {
			break
		}
		k := g.pick(run.Messages[i].Publisher, false)
		if k < 0 {
			break
		}
		g.core.Dealt(g.members[k].h.id)
		if !e.dealTo(g, k, run, i, gr, g.row.ID, env, w) {
			g.core.TakeBack([]herald.ID{run.Messages[i].ID})
		}
	}
	var fx session.Effects
	if g.online() {
		if g.core.Read(env, &fx); fx.Read {
			e.readGroup(g, fx.After, fx.ReadLimit)
		}
	}
}

// online tells whether a member is connected.
func (g *group) online() bool {
	return slices.ContainsFunc(g.members, func(m member) bool { return m.h.live.Load() != nil })
}

// pick chooses a connected member, or -1. In turn, it looks at members until one
// can take a message; the other strategies look at all of them.
func (g *group) pick(publisher herald.SessionID, qos0 bool) int {
	if g.picker.Strategy == topic.RoundRobin {
		for i := range g.members {
			k := (g.next + i) % len(g.members)
			if m, ok := g.members[k].state(qos0); ok && !m.Busy {
				g.next = k + 1
				return k
			}
		}
		return -1
	}
	g.list, g.index = g.list[:0], g.index[:0]
	for i := range g.members {
		if m, ok := g.members[i].state(qos0); ok {
			g.list = append(g.list, m)
			g.index = append(g.index, i)
		}
	}
	if k := g.picker.Pick(g.list, publisher); k >= 0 {
		return g.index[k]
	}
	return -1
}

// state tells how busy a member is; ok: it is connected.
func (m *member) state(qos0 bool) (t topic.Member, ok bool) {
	c := m.h.live.Load()
	if c == nil {
		return t, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return t, false
	}
	return topic.Member{
		Session: c.h.id, Inflight: c.core.Inflight(),
		Busy: c.conn.Room() <= 0 || !qos0 && c.core.Free() <= 0,
	}, true
}

// dealTo hands message i of run to member k; false if it has just gone.
func (e *Engine) dealTo(g *group, k int, run *wire.Run, i int, gr *session.Grant, src herald.SessionID, env session.Env, w *listen.Worker) bool {
	m := g.members[k]
	c := m.h.live.Load()
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return false
	}
	grant := m.g
	if gr.QoS < grant.QoS || !gr.Retain && grant.Retain {
		limited := *grant
		limited.QoS = min(limited.QoS, gr.QoS)
		limited.Retain = limited.Retain && gr.Retain
		grant = &limited
	}
	s := e.scratch(w)
	fx := c.begin(s)
	if src != 0 && (grant.QoS == 0 || run.Messages[i].QoS == 0) {
		fx.Settled = append(fx.Settled, session.Settled{Source: src, ID: run.Messages[i].ID})
	}
	c.core.Deliver(run, i, i+1, grant, src, env, fx)
	e.end(c, env, w, s)
	return true
}

// readGroup reads a page of a group's inbox in the background.
func (e *Engine) readGroup(g *group, after herald.ID, limit int) {
	e.background(func() {
		entries, err := e.store.Inbox(e.ctx, g.row.ID, after, maxID, limit, pageBytes, nil)
		if err != nil {
			if e.ctx.Err() == nil {
				e.log.Error("reading a shared group's queue", errField(err))
			}
			entries = nil
			limit = 0 // not the end: it is asked for again with the next message
		} else if len(entries) < limit && weight(entries) >= pageBytes {
			limit = len(entries)
		}
		e.workers[0].call(func(w *listen.Worker) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.core.Page(entries, limit)
			g.dealLocked(e, e.env(), w)
		})
	})
}

// restoreForeign fetches the entries of groups' inboxes that a client that has
// come back was sent and has not acknowledged.
func (e *Engine) restoreForeign(c *client, sent []persistence.Sent) {
	core := c.core
	for _, s := range sent {
		if s.Source == 0 || s.Step != persistence.Published {
			continue
		}
		e.background(func() {
			entries, err := e.store.Inbox(e.ctx, s.Source, s.ID-1, s.ID, 1, pageBytes, nil)
			if err != nil {
				if e.ctx.Err() == nil {
					e.log.Error("reading a shared group's queue", errField(err))
				}
				return
			}
			var m *herald.Message
			grant := &session.Grant{QoS: 2, Retain: true}
			if len(entries) == 1 {
				m = entries[0].Message
			}
			if g := e.groups.find(s.Source); g != nil {
				g.mu.Lock()
				if i := slices.IndexFunc(g.members, func(m member) bool { return m.h == c.h }); i >= 0 {
					grant = g.members[i].g
				}
				g.mu.Unlock()
			}
			e.worker(c).call(func(w *listen.Worker) {
				e.step(c, core, w, func(env session.Env, fx *session.Effects) { core.Restore(s.PacketID, m, grant, env, fx) })
			})
		})
	}
}
