package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// deliver hands a run to the group; stored: it stands in the group's inbox. QoS 0
// goes to a member at once or nowhere.
func (g *group) deliver(e *Engine, run *wire.Run, gr *session.Grant, stored bool, env session.Env, w *listen.Worker) {
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
	g.core.Deliver(run, 0, len(run.Messages), gr, stored, env)
	g.dealLocked(e, env, w)
}

// wake reads on and deals.
func (g *group) wake(e *Engine, w *listen.Worker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting {
		return
	}
	if !g.loaded {
		if !g.loading {
			g.loading = true
			g.begin(e)
		}
		return
	}
	g.dealLocked(e, e.env(), w)
}

// begin has the group loaded. That may have to wait for other nodes in a cluster.
func (g *group) begin(e *Engine) {
	if e.nodes.on() {
		e.errand(func() { g.load(e) })
	} else {
		e.background(func() { g.load(e) })
	}
}

// load reads what was stored of the group and what its members hold, in the
// background, and has it deal. What becomes of entries meanwhile is noted in early.
func (g *group) load(e *Engine) {
	g.mu.Lock()
	found, members := groupState{held: slices.Clone(g.held)}, g.durableMembers(e)
	g.mu.Unlock()
	err := found.read(e, g.key, g.row.ID, members)
	if err != nil {
		if e.life.Err() == nil {
			e.log.Error("loading a shared group; it is tried again", errField(err))
			time.AfterFunc(readAgain, func() { g.begin(e) })
		}
		return
	}
	e.workers[0].call(func(w *listen.Worker) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.loadLocked(found)
		g.dealLocked(e, e.env(), w)
		dead := make(map[*peer]struct{}) // since it was asked who holds what
		for _, o := range g.out {
			if !e.nodes.Live(o.at.Peer) {
				dead[o.at] = struct{}{}
			}
		}
		for p := range dead {
			e.errand(func() {
				if e.nodes.Over(e.life, p.Peer) == nil {
					e.bereave(p)
				}
			})
		}
	})
}

// groupState is what is known of a group before it deals.
type groupState struct {
	win  persistence.Window
	held []heldBy
}

// read adds what the store knows.
func (s *groupState) read(e *Engine, key string, group herald.SessionID, members []herald.SessionID) (err error) {
	if s.win, err = e.store.Window(e.ctx, group); err != nil {
		return err
	}
	left, err := e.leavers(group)
	if err != nil {
		return err
	}
	for _, id := range members {
		delete(left, id)
	}
	var done []herald.SessionID // leavers that have nothing any more
	all := slices.AppendSeq(members, maps.Keys(left))
	read := func(id herald.SessionID) (persistence.Window, error) { return e.store.Window(e.ctx, id) }
	if e.nodes.on() {
		// Who is connected to a live node has been gone on with there.
		if err := e.identify(e.sharing.atRest(e, key, all)); err != nil {
			return err
		}
		read = e.windowOf
	}
	for _, id := range all {
		win, err := read(id)
		if err != nil {
			return err
		}
		has := slices.ContainsFunc(s.held, func(h heldBy) bool { return h.Session == id })
		for _, sent := range win.Sent {
			if sent.Source == group {
				s.held, has = append(s.held, heldBy{nil, sent}), true
			}
		}
		if _, ok := left[id]; ok && !has {
			done = append(done, id)
		}
	}
	e.forgetLeavers(group, done)
	return nil
}

// loadLocked sets the group to what was found.
func (g *group) loadLocked(found groupState) {
	held := make([]persistence.Sent, len(found.held))
	for i, h := range found.held {
		held[i] = h.Sent
		if h.at != nil && g.out != nil {
			g.deals++
			g.out[h.ID] = outside{h.Session, h.at, g.deals}
		}
	}
	g.core.Load(found.win, held)
	g.held, g.loaded, g.loading = nil, true, false
	for _, f := range g.early {
		f()
	}
	g.early = nil
}

// settledLocked notes that members are done with entries, and backLocked that they
// give entries back.
func (g *group) settledLocked(ids []herald.ID) {
	g.whenLoaded(func() {
		for _, id := range ids {
			g.returned(id)
			g.core.Settled(id)
		}
	})
}

func (g *group) backLocked(ids []herald.ID) {
	g.whenLoaded(func() {
		for _, id := range ids {
			g.returned(id)
		}
		g.core.TakeBack(ids)
	})
}

// whenLoaded calls f, later if the group is not loaded: what was read of its members
// may be older. Those who hold something of a group that does not deal are few.
func (g *group) whenLoaded(f func()) {
	if !g.loaded {
		g.early = append(g.early, f)
		return
	}
	f()
}

// durableMembers are the members that have something in the store.
func (g *group) durableMembers(e *Engine) (ids []herald.SessionID) {
	if e.nodes.on() {
		s := &e.sharing
		s.mu.Lock()
		defer s.mu.Unlock()
		for id := range s.rest[g.key] {
			ids = append(ids, id)
		}
		return ids
	}
	for _, m := range g.members {
		if m.h.durable {
			ids = append(ids, m.h.id)
		}
	}
	return ids
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
	return slices.ContainsFunc(g.members, func(m member) bool { return m.at != nil || m.h.live.Load() != nil })
}

// pick chooses a connected member, or -1. In turn, it looks at members until one
// can take a message; the other strategies look at all of them.
func (g *group) pick(publisher herald.SessionID, qos0 bool) int {
	if g.picker.Strategy == topic.RoundRobin {
		for i := range g.members {
			k := (g.next + i) % len(g.members)
			if m, ok := g.state(k, qos0); ok && !m.Busy {
				g.next = k + 1
				return k
			}
		}
		return -1
	}
	g.list, g.index = g.list[:0], g.index[:0]
	for i := range g.members {
		if m, ok := g.state(i, qos0); ok {
			g.list = append(g.list, m)
			g.index = append(g.index, i)
		}
	}
	if k := g.picker.Pick(g.list, publisher); k >= 0 {
		return g.index[k]
	}
	return -1
}

// state tells how busy member i is; ok: it is connected. One that is busy has the
// group woken when it is not any more: what fills its window may be no message of
// the group's.
func (g *group) state(i int, qos0 bool) (t topic.Member, ok bool) {
	if m := &g.members[i]; m.at != nil {
		return topic.Member{Session: m.h.id, Inflight: m.out, Busy: !qos0 && m.out >= awayLimit}, true
	}
	c := g.members[i].h.live.Load()
	if c == nil {
		return t, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return t, false
	}
	t = topic.Member{
		Session: c.h.id, Inflight: c.core.Inflight(),
		Busy: c.conn.Room() <= 0 || !qos0 && c.core.Free() <= 0,
	}
	if t.Busy && !qos0 && !slices.Contains(c.starving, g) {
		c.starving = append(c.starving, g)
	}
	return t, true
}

// feed wakes the groups that a member kept waiting; its client's lock is held.
func (gs *groups) feed(e *Engine, c *client) {
	hungry := c.starving
	c.starving = nil
	e.workers[0].call(func(w *listen.Worker) {
		for _, g := range hungry {
			g.wake(e, w)
		}
	})
}

// dealTo hands message i of run to member k; false if it has just gone.
func (e *Engine) dealTo(g *group, k int, run *wire.Run, i int, gr *session.Grant, src herald.SessionID, env session.Env, w *listen.Worker) bool {
	if m := &g.members[k]; m.at != nil {
		e.dealAway(g, m, run, i, gr, src)
		return true
	}
	m := g.members[k]
	c := m.h.live.Load()
	if c == nil {
		return false
	}
	s := e.scratch(w)
	c.mu.Lock()
	defer c.unlock(w, s)
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
		arrived := e.nodes.arrivals()
		entries, err := e.store.Inbox(e.ctx, g.row.ID, after, maxID, limit, pageBytes, nil)
		if err != nil {
			if e.ctx.Err() == nil {
				e.log.Error("reading a shared group's queue", errField(err))
			}
			entries = nil
			limit = 0 // not the end: it is asked for again with the next message
		}
		full := len(entries) == limit || weight(entries) >= pageBytes
		var win persistence.Window
		if err == nil && e.nodes.on() {
			// What a dead owner has marked may land late, and takes the place of what told
			// which entries are settled.
			if win, err = e.store.Window(e.ctx, g.row.ID); err != nil && e.ctx.Err() == nil {
				e.log.Error("reading a shared group's mark", errField(err))
			}
			if err != nil {
				entries, full, limit = nil, false, 0
			}
		}
		page := func() {
			e.workers[0].call(func(w *listen.Worker) {
				entries := slices.DeleteFunc(arrived.visible(entries), func(en persistence.Entry) bool { return en.Message.ID <= win.Low })
				if full {
					limit = len(entries) // there may be more
				}
				g.mu.Lock()
				defer g.mu.Unlock()
				g.core.Marked(win.Low)
				g.core.Page(entries, limit)
				g.dealLocked(e, e.env(), w)
			})
		}
		switch {
		case err == nil:
			page()
		case e.life.Err() == nil: // it is asked for again at once
			time.AfterFunc(readAgain, page)
		}
	})
}

// readAgain is when a group's queue is read again after an error.
const readAgain = 500 * time.Millisecond

// restoreForeign fetches the entries of groups' inboxes that a client that has
// come back was sent and has not acknowledged.
func (e *Engine) restoreForeign(c *client, sent []persistence.Sent) {
	core := c.core
	var foreign []persistence.Sent
	for _, s := range sent {
		if s.Source != 0 && s.Step == persistence.Published {
			foreign = append(foreign, s)
		}
	}
	if len(foreign) == 0 {
		return
	}
	e.background(func() {
		lows := make(map[herald.SessionID]herald.ID)
		for _, s := range foreign { // one after the other: they are sent again in their order [MQTT-4.6.0-1]
			entries, err := e.entryOf(s, lows)
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
			if key, ok := e.groups.keyOf(e, s.Source); ok {
				grant = c.shareOf(key, grant)
				if grant.QoS == 0 { // it was begun at more, before the subscription changed
					g := *grant
					g.QoS = 2
					grant = &g
				}
			}
			e.worker(c).call(func(w *listen.Worker) {
				e.step(c, core, w, func(env session.Env, fx *session.Effects) { core.Restore(s.PacketID, m, grant, env, fx) })
			})
		}
	})
}

// entryOf reads the entry of a group's inbox that was sent, if it is there and the group is
// not done with it: what lies behind the group's mark may be there still. lows are the
// marks that have been read.
func (e *Engine) entryOf(s persistence.Sent, lows map[herald.SessionID]herald.ID) ([]persistence.Entry, error) {
	entries, err := e.store.Inbox(e.ctx, s.Source, s.ID-1, s.ID, 1, pageBytes, nil)
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	low, ok := lows[s.Source]
	if !ok { // after the entry: a mark takes the place of what tells that one is settled
		win, err := e.store.Window(e.ctx, s.Source)
		if err != nil {
			return nil, err
		}
		low = win.Low
		lows[s.Source] = low
	}
	if s.ID <= low {
		return nil, nil
	}
	return entries, nil
}

// shareOf is how the client shares a group, or other if it does not.
func (c *client) shareOf(key string, other *session.Grant) *session.Grant {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f, s := range c.subs {
		if k, shared := shareKey(f); shared && k == key {
			return c.e.grants.of(topic.Options{QoS: s.QoS, RetainAsPublished: s.RetainAsPublished, Identifier: s.Identifier})
		}
	}
	return other
}
