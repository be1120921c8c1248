package session

import (
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// Group is the machine of a shared subscription: the queue of a group and who
// holds what of it. It deals; the members' sessions send. It is pure, as
// [Session] is.
type Group struct {
	id      herald.SessionID
	durable bool

	feed    feed
	back    queue // taken back from members, dealt before all else
	dealt   map[herald.ID]dealt
	settled []herald.ID
	low     herald.ID
	dirty   bool
	stale   bool // the page that was asked for begins behind what has to be read again
}

// dealt is an entry that a member holds. run is nil if it was dealt before the
// group was loaded.
type dealt struct {
	run    *wire.Run
	i      int32
	g      *Grant
	member herald.SessionID
}

// NewGroup returns a group. A durable one begins with Load.
func NewGroup(id herald.SessionID, durable bool) *Group {
	g := &Group{id: id, durable: durable, dealt: make(map[herald.ID]dealt), feed: feed{mem: defaults}}
	if !durable {
		g.feed.state = live
	}
	return g
}

// ID is the identity of the group's queue.
func (g *Group) ID() herald.SessionID { return g.id }

// Durable tells whether the group has an inbox.
func (g *Group) Durable() bool { return g.durable }

// Load sets the group to what was stored of it, w, and of its members, who hold
// held.
func (g *Group) Load(w persistence.Window, held []persistence.Sent) {
	g.low = w.Low
	g.settled = append(g.settled, w.Above...)
	g.feed.restart(w.Low, w.Above)
	for _, h := range held {
		if h.ID <= w.Low {
			continue
		}
		g.feed.skip(h.ID)
		if h.Step == persistence.Released {
			g.settled = append(g.settled, h.ID)
		} else {
			g.dealt[h.ID] = dealt{member: h.Session}
		}
	}
}

// Marked tells that the store knows all up to low as done with: an earlier owner of the
// group has said so, and it was not known when the group was loaded.
func (g *Group) Marked(low herald.ID) { g.low = max(g.low, low) }

// MakeDurable gives a group that had none an inbox; what it holds stays in
// memory, and so does what is delivered as not stored. Nothing that is in the
// inbox already is read.
func (g *Group) MakeDurable(env Env) {
	if !g.durable {
		g.durable = true
		g.feed.pos = env.Closed
	}
}

// Deliver hands messages from..to of run to the group; stored tells whether they
// stand in its inbox, from which it may read them later.
func (g *Group) Deliver(run *wire.Run, from, to int, gr *Grant, stored bool, env Env) {
	it := item{run: run, g: gr, from: int32(from), to: int32(to)}
	if g.durable && stored && !g.feed.admit(&it, g, env) {
		return
	}
	g.feed.push(it)
}

// Look has the group look at its inbox again, as [Session.Look] does.
func (g *Group) Look(env Env) {
	if g.durable {
		g.feed.look(g, env)
	}
}

// Read asks for a page if the group could use one.
func (g *Group) Read(env Env, fx *Effects) {
	if g.durable && g.feed.hungry() {
		g.feed.read(env, fx)
	}
}

// Page brings what was asked for.
func (g *Group) Page(entries []persistence.Entry, limit int) {
	switch f := &g.feed; {
	case f.state != loading:
	case g.stale:
		g.stale = false
		f.state, f.aside, f.asideN, f.overflow = lagging, nil, 0, false
	default:
		f.page(entries, limit, func(herald.ID) uint16 { return 0 })
	}
}

// Next returns what is to be dealt next: message i of run; ok is false if there
// is nothing.
func (g *Group) Next(env Env) (run *wire.Run, i int, gr *Grant, ok bool) {
	for {
		it := g.head()
		if it == nil {
			return nil, 0, nil, false
		}
		if m := it.run.Messages[it.from]; m.Expires != 0 && env.Now >= m.Expires {
			g.take()
			g.settle(m.ID)
			continue
		}
		return it.run, int(it.from), it.g, true
	}
}

func (g *Group) head() *item {
	if g.back.n > 0 {
		return g.back.front()
	}
	if g.feed.pending.n > 0 {
		return g.feed.pending.front()
	}
	return nil
}

// take takes the head off.
func (g *Group) take() (it item) {
	q := &g.back
	if q.n == 0 {
		q = &g.feed.pending
	}
	h := q.front()
	it = *h
	h.from++
	if q == &g.feed.pending {
		g.feed.took(h, 1)
	}
	if h.from == h.to {
		q.pop()
	}
	return it
}

// Dealt notes that a member got what Next returned.
func (g *Group) Dealt(member herald.SessionID) {
	it := g.take()
	g.dealt[it.run.Messages[it.from].ID] = dealt{run: it.run, i: it.from, g: it.g, member: member}
}

// Settled tells that a member is done with an entry.
func (g *Group) Settled(id herald.ID) {
	if _, ok := g.dealt[id]; ok {
		delete(g.dealt, id)
		g.settle(id)
	}
}

func (g *Group) settle(id herald.ID) {
	if g.durable {
		g.settled = append(g.settled, id)
		g.dirty = true
	}
}

// TakeBack takes entries from a member whose session has ended; they are dealt
// again, before all else. Those dealt before the group was loaded are read
// again.
func (g *Group) TakeBack(ids []herald.ID) {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	for _, id := range ids {
		d, ok := g.dealt[id]
		if !ok {
			continue
		}
		delete(g.dealt, id)
		if d.run != nil {
			g.back.push(item{run: d.run, g: d.g, from: d.i, to: d.i + 1})
			continue
		}
		g.rewind(id)
	}
}

// rewind has the entry id read again.
func (g *Group) rewind(id herald.ID) {
	f := &g.feed
	if f.state == live || f.pos >= id {
		pos := min(f.pos, id-1)
		if f.state == live {
			pos = id - 1
		}
		if g.stale = f.state == loading; !g.stale {
			f.state = lagging
		}
		f.pos = pos
		f.aside, f.asideN, f.overflow = nil, 0, false
		g.eachHeld(f.skip)
		f.pending.each(func(it *item) {
			for i := it.from; i < it.to; i++ {
				f.skip(it.run.Messages[i].ID)
			}
		})
	}
	delete(f.seen, id)
}

func (g *Group) marked() herald.ID { return g.low }

// eachHeld implements holder.
func (g *Group) eachHeld(f func(herald.ID)) {
	for id := range g.dealt {
		f(id)
	}
	g.back.each(func(it *item) { f(it.run.Messages[it.from].ID) })
	for _, id := range g.settled {
		f(id)
	}
}

// Dirty tells whether there is anything new for MarkInto.
func (g *Group) Dirty() bool { return g.durable && g.dirty }

// Pending is how many messages wait in memory.
func (g *Group) Pending() int { return g.feed.count + g.back.n }

// MarkInto adds the group's mark to b if there is anything new.
func (g *Group) MarkInto(env Env, b *persistence.Batch) {
	if !g.Dirty() {
		return
	}
	g.dirty = false
	low := env.Closed
	if g.feed.state != live {
		low = min(low, g.feed.pos)
	}
	for id := range g.dealt {
		low = min(low, id-1)
	}
	g.back.each(func(it *item) { low = min(low, it.run.Messages[it.from].ID-1) })
	low = max(min(low, g.feed.lowest()-1), g.low)
	g.low = low
	g.settled = slices.DeleteFunc(g.settled, func(id herald.ID) bool { return id <= low })
	slices.Sort(g.settled)
	g.settled = slices.Compact(g.settled)
	if g.feed.state == live {
		g.feed.forget(env.Closed)
	}
	b.Marks = append(b.Marks, persistence.Mark{Session: g.id, Low: low, Above: slices.Clone(g.settled)})
}
