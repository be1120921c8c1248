package simulation

import (
	"cmp"
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// The slots of a window.
const (
	slotMark int8 = iota
	slotHeld
	slotSent
	slotSettled
)

// intent is what is written down of a batch before it is carried out.
type intent struct {
	b  *persistence.Batch
	ts int64
}

// entry is a row of an inbox; the message of one that stands apart is nil.
type entry struct {
	m           *herald.Message
	qos         byte
	retain      bool
	identifiers []uint32
}

// whole tells whether a batch must be carried out as a whole.
func (s *Shared) whole(b *persistence.Batch) bool {
	accepts := slices.ContainsFunc(b.Held, func(h persistence.Held) bool { return h.ID != 0 })
	wills := len(b.WillsGone) > 0 && s.opts.Bug != bugWillApart
	// What a new subscription is owed, and that it has been given that.
	owed := len(b.Spreads) > 0 && len(b.Subscribe) > 0
	return len(b.Delete) > 0 || (len(b.Spreads) > 0 || len(b.Retain) > 0) && (accepts || wills) || owed
}

func stampsOf(b *persistence.Batch) int {
	return len(b.Held) + len(b.Sent) + len(b.Marks) + len(b.Sessions) + len(b.Subscribe) + len(b.Unsubscribe) +
		len(b.Wills) + len(b.WillsGone) + len(b.Delete) + 1
}

// planner says what of a batch is written when.
type planner struct {
	s        *Shared
	job      *job
	ts       int64 // of the next item
	first    []*write
	rest     []*write
	deletes  []persistence.Session
	deleteAt int64
}

func (p *planner) stamp() int64 {
	p.ts++
	return p.ts - 1
}

// put adds a change to a step: with the others of its partition, unless rows land
// apart.
func (p *planner) put(step *[]*write, at place, ms ...mutation) {
	if !p.s.opts.Apart {
		if i := slices.IndexFunc(*step, func(w *write) bool { return w.place == at }); i >= 0 {
			(*step)[i].muts = append((*step)[i].muts, ms...)
			return
		}
	}
	*step = append(*step, &write{place: at, muts: ms})
}

func (p *planner) window(step *[]*write, id herald.SessionID, slot int8, key int64, ts int64, value any) {
	p.put(step, place{table: tableWindow, a: int64(id)}, mutation{at: column{slot: slot, key: key}, ts: ts, value: value})
}

// idStamp is the timestamp of what a message's ID alone decides.
func idStamp(id herald.ID) int64 {
	return id.Time().UnixMilli()*1000 + int64(id.Node())*1000/(herald.MaxNode+1)
}

func sessionPlace(kind persistence.Kind, name string) place {
	return place{table: tableSession, a: int64(kind), name: name}
}

func subscriptionsOf(id herald.SessionID) place { return place{table: tableSubscription, a: int64(id)} }
func windowOf(id herald.SessionID) place        { return place{table: tableWindow, a: int64(id)} }
func inboxOf(id herald.SessionID) place         { return place{table: tableInbox, a: int64(id)} }

func (p *planner) batch(b *persistence.Batch) {
	for i := range b.Spreads {
		p.spread(&b.Spreads[i])
	}
	for _, m := range b.Retain {
		p.s.saw(m.ID)
		ts := idStamp(m.ID)
		p.put(&p.rest, place{table: tableRetained, name: m.Topic}, mutation{ts: ts, value: m})
		p.put(&p.rest, place{table: tableIndex}, mutation{at: column{name: m.Topic}, ts: ts, value: m})
	}
	for _, h := range b.Held {
		p.s.saw(h.ID)
		p.window(&p.rest, h.Session, slotHeld, int64(h.PacketID), p.stamp(), h.ID)
	}
	for _, t := range b.Sent {
		p.sent(t)
	}
	for _, m := range b.Marks {
		ts := p.stamp()
		m.Above = slices.Clone(m.Above)
		at := windowOf(m.Session)
		set := mutation{at: column{slot: slotMark}, ts: ts, value: m}
		p.put(&p.rest, at, set, mutation{many: &removal{slot: slotSettled, upTo: int64(m.Low), ts: ts}})
		if p.s.opts.Sweep {
			p.job.after = append(p.job.after, func(err error) {
				if err != nil {
					return
				}
				gone := removal{upTo: int64(m.Low), ts: p.s.next(1)}
				p.s.send(&write{place: inboxOf(m.Session), muts: []mutation{{many: &gone}}})
			})
		}
	}
	for _, r := range b.Sessions {
		p.session(r)
	}
	for _, sub := range b.Subscribe {
		p.put(&p.rest, subscriptionsOf(sub.Session), mutation{at: column{name: sub.Filter}, ts: p.stamp(), value: sub.Subscription})
	}
	for _, f := range b.Unsubscribe {
		p.put(&p.rest, subscriptionsOf(f.Session), mutation{at: column{name: f.Filter}, ts: p.stamp()})
	}
	for _, w := range b.Wills {
		p.put(&p.rest, place{table: tableWill}, mutation{at: column{key: int64(w.Session)}, ts: p.stamp(), value: w})
	}
	for _, id := range b.WillsGone {
		p.put(&p.rest, place{table: tableWill}, mutation{at: column{key: int64(id)}, ts: p.stamp()})
	}
	p.deletes, p.deleteAt = b.Delete, p.ts
}

// sent writes the step of a delivery; that an entry is settled, first if it is in
// another's inbox.
func (p *planner) sent(t persistence.Sent) {
	p.s.saw(t.ID)
	ts := p.stamp()
	if t.Step == persistence.Released {
		step := &p.rest
		if t.Source != 0 {
			step = &p.first
		}
		p.window(step, cmp.Or(t.Source, t.Session), slotSettled, int64(t.ID), ts, true)
	}
	p.window(&p.rest, t.Session, slotSent, int64(t.PacketID), ts, t)
}

func (p *planner) session(r persistence.Session) {
	s := p.s
	s.saw(herald.ID(r.ID))
	at := sessionPlace(r.Kind, r.Name)
	ts := p.stamp()
	p.put(&p.rest, at, mutation{ts: ts, value: r})
	key := string(rune(r.Kind)) + r.Name
	s.putting[key] = append(s.putting[key], r.ID)
	p.job.after = append(p.job.after, func(error) {
		ids := s.putting[key]
		i := slices.Index(ids, r.ID)
		if s.putting[key] = slices.Delete(slices.Clone(ids), i, i+1); len(ids) == 1 {
			delete(s.putting, key)
		}
	})
	if r.Expires != 0 {
		p.put(&p.rest, place{table: tableExpiry}, mutation{at: column{slot: int8(r.Kind), key: r.Expires, name: r.Name}, ts: ts, value: true})
	}
}

func (p *planner) spread(sp *persistence.Spread) {
	now := p.s.wall().UnixMilli()
	wide := len(sp.Targets) > p.s.opts.InlineUpTo
	for _, m := range sp.Messages {
		p.s.saw(m.ID)
		if m.Expires != 0 && m.Expires <= now {
			continue
		}
		ts := idStamp(m.ID)
		if wide {
			step := &p.rest
			if p.s.opts.Bug == bugPayload || p.s.cluster { // other nodes read at any time
				step = &p.first
			}
			p.put(step, place{table: tablePayload, a: int64(m.ID)}, mutation{ts: ts, value: m})
		}
		for _, t := range sp.Targets {
			e := entry{m: m, qos: min(t.QoS, m.QoS), retain: t.Retain, identifiers: slices.Clone(t.Identifiers)}
			if wide {
				e.m = nil
			}
			p.put(&p.rest, inboxOf(t.Session), mutation{at: column{key: int64(m.ID)}, ts: ts, value: e})
		}
	}
}

// steps are what is written one after the other.
func (p *planner) steps() []func() []*write {
	steps := []func() []*write{func() []*write { return p.first }, func() []*write { return p.rest }}
	if len(p.deletes) == 0 {
		return steps
	}
	s, del, at := p.s, p.deletes, p.deleteAt
	return append(steps, func() (ws []*write) {
		for i, r := range del {
			ts := at + int64(i)
			gone := func(at place, ts int64) {
				ws = append(ws, &write{place: at, muts: []mutation{{many: &removal{all: true, ts: ts}}}})
			}
			gone(inboxOf(r.ID), max(ts, s.next(1)))
			gone(subscriptionsOf(r.ID), ts)
			gone(windowOf(r.ID), ts)
		}
		return ws
	}, func() (ws []*write) {
		for i, r := range del {
			if ids := s.putting[string(rune(r.Kind))+r.Name]; len(ids) > 0 && ids[len(ids)-1] != r.ID {
				continue
			}
			at0 := sessionPlace(r.Kind, r.Name)
			if got, ok := s.db.oneLocked(at0, column{}).(persistence.Session); ok && got.ID != r.ID {
				continue
			}
			// With the timestamp of what it removes: nobody learns that of a removal, and
			// the clock of who writes the row of the next session may be behind.
			ts := at + int64(i)
			if p := s.db.parts[at0]; p != nil && p.rows[column{}].value != nil {
				ts = p.rows[column{}].ts
			}
			ws = append(ws, &write{place: at0, muts: []mutation{{ts: ts}}})
		}
		return ws
	})
}

// intent has a batch written down before its steps, and forgotten after them.
func (s *Shared) intent(j *job, b *persistence.Batch, ts int64, steps []func() []*write) []func() []*write {
	s.intents++
	at, c := place{table: tableIntent, a: s.run}, column{key: s.intents}
	put := func() []*write {
		return []*write{{place: at, muts: []mutation{{at: c, ts: ts, value: &intent{b, ts}}}}}
	}
	gone := func() { s.send(&write{place: at, muts: []mutation{{at: c, ts: s.next(1)}}}) }
	switch s.opts.Bug {
	case bugIntentEarly:
		return append([]func() []*write{put, func() []*write { gone(); return steps[0]() }}, steps[1:]...)
	case bugRowsFirst:
		steps = append(slices.Clone(steps), put)
	default:
		steps = append([]func() []*write{put}, steps...)
	}
	j.after = append(j.after, func(err error) {
		if err == nil { // else it waits to be finished
			gone()
		}
	})
	return steps
}
