package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// What a group's owner deals to members at other nodes, and what comes back.

// dealAway sends message i of run to a member at another node.
func (e *Engine) dealAway(g *group, m *member, run *wire.Run, i int, gr *session.Grant, src herald.SessionID) {
	msg := run.Messages[i]
	qos := min(m.g.QoS, gr.QoS)
	var done func(error)
	if src != 0 {
		m.out++
		g.deals++
		g.out[msg.ID] = outside{m.h.id, m.at, g.deals}
		done = surely
	}
	m.at.send(appendDeal(nil, src, g.epoch, m.h.id, qos, m.g.Retain && gr.Retain, m.g.Identifiers, msg), done, 0)
}

// dealt delivers what the owner of a group has dealt to a client here.
func (e *Engine) dealt(p *peer, f *frame, w *listen.Worker) {
	if f.group != 0 && !e.sharing.deals(f.group, dealer{p.Peer, f.epoch}) {
		return // its life is over, and who owns the group now deals it, if it has to be
	}
	m := f.messages[0]
	delivered := false
	if h := e.memberHere(f.group, f.session); h != nil {
		if c := h.live.Load(); c != nil {
			e.step(c, c.core, w, func(env session.Env, fx *session.Effects) {
				if key, ok := e.groups.keyOf(e, f.group); ok && c.subs[herald.SharePrefix+key] == nil {
					return // it has just left: see leaver.go
				}
				delivered = true
				if f.group != 0 && (f.grant.QoS == 0 || m.QoS == 0) {
					fx.Settled = append(fx.Settled, session.Settled{Source: f.group, ID: m.ID})
				}
				c.core.Deliver(wire.MakeRun(f.messages), 0, 1, f.grant, f.group, env, fx)
			})
		}
	}
	if !delivered && f.group != 0 {
		p.send(appendDone(nil, f.group, nil, []herald.ID{m.ID}), surely, 0)
	}
}

// memberHere finds a session that shares a group (0: any) and is connected here; its
// handle is not known otherwise if it ends with its connection. To one that has left the
// group nothing more is dealt: see leaver.go.
func (e *Engine) memberHere(group, id herald.SessionID) *handle {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	if key, ok := s.keys[group]; ok {
		return s.here[key][id]
	}
	for _, members := range s.here {
		if h := members[id]; h != nil {
			return h
		}
	}
	return nil
}

// tellOwner tells the owner of a group what became of entries that clients here had.
func (e *Engine) tellOwner(group herald.SessionID, settled, back []herald.ID) {
	s := &e.sharing
	s.mu.Lock()
	to, ok := s.dealers[group].Peer, s.dealers[group].epoch != 0
	key := s.keys[group]
	s.mu.Unlock()
	if !ok || to != e.nodes.self && !e.nodes.Live(to) {
		e.surely("looking for the owner of a shared group", group, func() error {
			c, err := e.nodes.store.Claimed(e.life, persistence.Group, key)
			if err == nil {
				to = ownerOf(c)
			}
			return err
		})
	}
	if to == e.nodes.self {
		e.done(group, settled, back)
		return
	}
	if e.nodes.Live(to) {
		e.meet(to).send(appendDone(nil, group, settled, back), surely, 0)
	}
}

// outside is who has an entry that was dealt to another node, where it was then, and
// which of the group's deals that was.
type outside struct {
	who  herald.SessionID
	at   *peer
	deal uint64
}

// estates are what was dealt to sessions of which somebody has to find out what became
// of it.
type estates map[herald.SessionID]map[herald.ID]outside

// surely makes a frame wait for Redis rather than be lost.
func surely(error) {}

// doneAt takes what another node tells of entries that its clients had. If it is dead,
// what the store knows counts: see bereave.
func (e *Engine) doneAt(p *peer, f *frame) {
	if !e.sharing.mourned(p.Peer) {
		e.done(f.group, f.settled, f.back)
	}
}

// done takes what became of entries that members had.
func (e *Engine) done(id herald.SessionID, settled, back []herald.ID) {
	g := e.groups.find(id)
	if g == nil {
		return // it has another owner, who has asked
	}
	g.mu.Lock()
	g.settledLocked(settled)
	g.backLocked(back)
	g.mu.Unlock()
	e.groups.wakeSoon(e, g)
}

// returned notes that a member at another node has one less; g.mu is held.
func (g *group) returned(id herald.ID) {
	o, ok := g.out[id]
	if !ok {
		return
	}
	delete(g.out, id)
	for i := range g.members {
		if m := &g.members[i]; m.h.id == o.who && m.out > 0 {
			m.out--
		}
	}
}

// bereave takes back what members had who were connected to a node that is dead,
// but for what a durable one has begun at QoS 2 and goes on with.
func (e *Engine) bereave(p *peer) {
	e.sharing.mourn(p.Peer)
	for _, g := range e.groups.all() {
		g.mu.Lock()
		g.members = slices.DeleteFunc(g.members, func(m member) bool { return m.at == p })
		of := make(estates)
		for id, o := range g.out {
			if e.sharing.mourned(o.at.Peer) { // what was begun at one that died before may have ended at p
				if of[o.who] == nil {
					of[o.who] = make(map[herald.ID]outside)
				}
				of[o.who][id] = o
			}
		}
		g.mu.Unlock()
		if len(of) > 0 {
			e.errand(func() { e.inherit(g, of) })
		}
	}
}

// inherit finds out what became of entries whose members' node died before it could
// tell. It asks until the store answers.
func (e *Engine) inherit(g *group, of estates) {
	err := e.identify(slices.Collect(maps.Keys(of)))
	if err == nil {
		for who, had := range of {
			settled, back, e1 := e.leftBy(g.row.ID, who, slices.Collect(maps.Keys(had)))
			if e1 != nil {
				err = e1
				continue
			}
			e.inherited(g, had, settled, back)
			delete(of, who)
		}
	}
	if err != nil && e.life.Err() == nil {
		e.log.Error("reading what members had begun; it is tried again", errField(err))
		time.AfterFunc(readAgain, func() { e.errand(func() { e.inherit(g, of) }) })
	}
}

// inherited takes what became of entries that somebody had, unless others have told
// meanwhile: they may be somebody else's by now.
func (e *Engine) inherited(g *group, had map[herald.ID]outside, settled, back []herald.ID) {
	g.mu.Lock()
	same := func(ids []herald.ID) []herald.ID {
		return slices.DeleteFunc(ids, func(id herald.ID) bool { return g.out[id] != had[id] })
	}
	g.settledLocked(same(settled))
	g.backLocked(same(back))
	g.mu.Unlock()
	e.groups.wakeSoon(e, g)
}

// leftBy tells which entries of a group a session that was identified is done with, of
// those that it had, and which it has not begun and never will. The group's queue is read
// last: what has left the session's window by then, because it was acknowledged, does not
// stand in it any more.
func (e *Engine) leftBy(group, who herald.SessionID, ids []herald.ID) (settled, back []herald.ID, err error) {
	has, err := e.windowOf(who)
	if err != nil {
		return nil, nil, err
	}
	ids = slices.Clone(ids)
	slices.Sort(ids)
	stands, err := e.standing(group, ids)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		i := slices.IndexFunc(has.Sent, func(s persistence.Sent) bool { return s.Source == group && s.ID == id })
		switch {
		case !stands[id], i >= 0 && has.Sent[i].Step == persistence.Released:
			settled = append(settled, id)
		case i < 0:
			back = append(back, id)
		}
	}
	return settled, back, nil
}

// standing tells which of these IDs, by rising ID, stand in a queue.
func (e *Engine) standing(queue herald.SessionID, ids []herald.ID) (map[herald.ID]bool, error) {
	stands := make(map[herald.ID]bool)
	for after, last := ids[0]-1, ids[len(ids)-1]; after < last; {
		entries, err := e.store.Inbox(e.life, queue, after, last, standingPage, pageBytes, nil)
		if err != nil {
			return nil, err
		}
		for i := range entries {
			after = entries[i].Message.ID
			stands[after] = true
		}
		if len(entries) < standingPage && weight(entries) < pageBytes {
			break
		}
	}
	return stands, nil
}

// standingPage is how many entries are read at a time to see which there are.
const standingPage = 512
