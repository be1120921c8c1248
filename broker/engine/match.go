package engine

import (
	"strings"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// routed is a run with those it is due to.
type routed struct {
	run   *wire.Run
	nodes []topic.Snapshot[*handle] // one filter matches: everybody in it, in place
	to    []due                     // several match, or one is to be left out: the sessions, each once
	from  herald.SessionID
	pids  []uint16 // QoS 2 of a durable session, to be held
	hold  bool
	// epoch is the routing epoch in which it was matched.
	epoch uint32
	// wide: the sessions with an inbox that it is due to, if they are so many that
	// they get it after the acknowledgement (outbox.go).
	wide []due
	// numbered: something is kept of it, so the messages need IDs.
	numbered bool
	// local: it concerns this node only.
	local bool
}

// due is one session that a run is due to.
type due struct {
	h *handle
	g *session.Grant
}

// route finds out who the gathered run is due to and adds it to the shipment.
func (e *Engine) route(c *client, s *scratch) {
	in := &s.in
	qos := in.flags >> 1 & 3
	if reserved(in.topic) {
		e.answer(c, in, qos, wire.ReasonNotAuthorized)
		return
	}
	m := s.cache.Match(in.topic)
	msgs, arena := in.messages(c, m.Topic, e.now())
	run := wire.MakeRun(msgs)
	if in.raw {
		run.Preset(c.version, qos, arena, append([]uint32(nil), in.at...), append([]uint32(nil), in.pid...))
	}
	sh := in.shipment(c)
	sh.runs = append(sh.runs, routed{run: run, from: c.h.id})
	r := &sh.runs[len(sh.runs)-1]
	if qos == 2 && c.core.Durable() {
		r.hold, r.numbered = true, true
		r.pids = make([]uint16, in.n)
		for i := range r.pids {
			r.pids[i] = in.parts[i].pid
		}
	}
	if in.flags&1 != 0 {
		r.numbered = true
		e.number(sh)                                                 // before the match: see retained.go
		sh.batch.Retain = append(sh.batch.Retain, msgs[len(msgs)-1]) // the run's newest; they have one topic
		m = s.cache.Match(in.topic)
	}
	matched := e.match(m, r, &sh.batch)
	if !matched && e.nodes.on() {
		matched = len(e.remoteTargets(s, in.topic)) > 0
	}
	reason := byte(0)
	if !matched && qos == 1 { // not in PUBREC: the publish may come again, and then nobody knows
		reason = wire.ReasonNoSubscribers
	}
	e.answer(c, in, qos, reason)
	sh.weight += len(arena) + in.n*messageWeight
	if qos == 1 {
		sh.unacked += in.n
	}
}

// messageWeight is what a message takes beside its bytes.
const messageWeight = 256

// answer appends the acknowledgements of the gathered run.
func (e *Engine) answer(c *client, in *intake, qos, reason byte) {
	kind := wire.TypePuback
	if qos == 2 {
		kind = wire.TypePubrec
	}
	for i := range in.n {
		in.acks = wire.AppendAck(in.acks, c.version, kind, in.parts[i].pid, reason)
		if reason >= 0x80 && qos == 2 {
			c.core.Release(in.parts[i].pid)
		}
	}
}

// match fills in who the run is due to, and adds the entries of durable
// sessions to the batch. It tells whether anybody has subscribed, be it only the
// publisher, who does not want to hear of it.
func (e *Engine) match(m *topic.Match[*handle], r *routed, b *persistence.Batch) (matched bool) {
	if len(m.Nodes) == 0 {
		return false
	}
	qos := r.run.Messages[0].QoS
	r.epoch = e.epoch.Load()
	var targets []persistence.Target
	if len(m.Nodes) == 1 {
		snap := m.Nodes[0].Subscribers()
		for i := range snap.Chunks() {
			for _, en := range snap.Chunk(i) {
				matched = true
				if en.NoLocal && en.Target.id == r.from {
					continue
				}
				if en.Target.group.Load() != nil {
					r.numbered = true
				}
				if en.QoS > 0 && qos > 0 && en.Target.stored(r.epoch) && (!e.queues.on || e.enqueue(en.Target, r.run.Messages)) {
					targets = append(targets, e.target(en.Target.id, en.Options))
				}
			}
		}
		r.nodes = append(r.nodes, snap)
	} else {
		r.to = e.merge(m, r.from)
		for _, n := range m.Nodes {
			matched = matched || n.Subscribers().Len() > 0
		}
		for _, d := range r.to {
			if d.h.group.Load() != nil {
				r.numbered = true
			}
			if d.g.QoS > 0 && qos > 0 && d.h.stored(r.epoch) && (!e.queues.on || e.enqueue(d.h, r.run.Messages)) {
				targets = append(targets, persistence.Target{Session: d.h.id, QoS: d.g.QoS, Retain: d.g.Retain, Identifiers: d.g.Identifiers})
			}
		}
	}
	if len(targets) > 0 && e.outbox.takes(len(targets), m.Topic) {
		r.numbered = true
		r.wide = e.wide(r)
		b.Spreads = append(b.Spreads, e.outboxSpread(r.run.Messages))
		return matched
	}
	if len(targets) > 0 {
		r.numbered = true
		b.Spreads = append(b.Spreads, persistence.Spread{Messages: r.run.Messages, Targets: targets})
	}
	return matched
}

// target is the entry of one subscription.
func (e *Engine) target(id herald.SessionID, o topic.Options) persistence.Target {
	t := persistence.Target{Session: id, QoS: o.QoS, Retain: o.RetainAsPublished}
	if o.Identifier != 0 {
		t.Identifiers = e.grants.of(o).Identifiers
	}
	return t
}

// merge makes one of overlapping subscriptions of a session: the highest QoS,
// all identifiers [MQTT-3.3.4-2], [MQTT-3.3.4-3], [MQTT-3.3.5-1] (3.1.1).
func (e *Engine) merge(m *topic.Match[*handle], from herald.SessionID) []due {
	var to []due
	at := make(map[*handle]int)
	for _, n := range m.Nodes {
		snap := n.Subscribers()
		for i := range snap.Chunks() {
			for _, en := range snap.Chunk(i) {
				if en.NoLocal && en.Target.id == from {
					continue
				}
				k, ok := at[en.Target]
				if !ok {
					at[en.Target] = len(to)
					to = append(to, due{en.Target, e.grants.of(en.Options)})
					continue
				}
				g := *to[k].g
				g.QoS = max(g.QoS, en.QoS)
				g.Retain = g.Retain || en.RetainAsPublished
				if en.Identifier != 0 {
					g.Identifiers = append(append([]uint32(nil), g.Identifiers...), en.Identifier)
				}
				to[k].g = &g
			}
		}
	}
	return to
}

// routeQoS0 delivers the gathered run at once, on the goroutine that read it.
func (e *Engine) routeQoS0(c *client, w *listen.Worker, s *scratch) {
	in := &s.in
	if reserved(in.topic) {
		return
	}
	m := s.cache.Match(in.topic)
	var run *wire.Run // made only for those who cannot take the frames as they are
	lazy := func() *wire.Run {
		if run == nil {
			msgs, _ := in.messages(c, m.Topic, e.now())
			run = wire.MakeRun(msgs)
		}
		return run
	}
	if in.flags&1 != 0 { // nobody waits for the retained message to be stored
		sh := &shipment{}
		msgs := lazy().Messages
		ids, p := e.flight.begin(e.ids, e.now(), len(msgs))
		for i := range msgs {
			msgs[i].ID = ids.At(i)
		}
		sh.passage = []*passage{p}
		sh.batch.Retain = msgs[len(msgs)-1:]
		m = s.cache.Match(in.topic)
		weight := len(in.frames[:in.at[in.n]]) + in.n*messageWeight
		c.underWay(weight)
		sh.then = func() { c.underWay(-weight) }
		e.ship(sh, w)
	}
	if e.nodes.on() {
		e.forwardQoS0(s, m.Topic, run, c.h.id)
	}
	if len(m.Nodes) == 0 {
		return
	}
	frames := in.frames[:in.at[in.n]]
	longest := uint32(0)
	for i := range in.n {
		longest = max(longest, in.at[i+1]-in.at[i])
	}
	env := e.env()
	one := func(h *handle, g *session.Grant) {
		if gr := h.group.Load(); gr != nil {
			gr.deliver(e, lazy(), g, false, env, w)
			return
		}
		t := h.live.Load()
		if t == nil {
			return
		}
		t.mu.Lock()
		if t.conn != nil {
			s.fx.Out, s.fx.Limit = t.conn.Begin(), 0
			s.fx.Limit = len(s.fx.Out) + t.conn.Room()
			if !in.raw || !t.core.Forward(frames, c.version, in.n, longest, g, &s.fx) {
				t.core.Deliver(lazy(), 0, in.n, g, 0, env, &s.fx)
			}
			t.conn.End(w, s.fx.Out)
			s.fx.Out = nil
			e.account(&s.fx)
		}
		t.mu.Unlock()
	}
	if len(m.Nodes) > 1 {
		for _, d := range e.merge(m, c.h.id) {
			one(d.h, d.g)
		}
		return
	}
	snap := m.Nodes[0].Subscribers()
	for i := range snap.Chunks() {
		for _, en := range snap.Chunk(i) {
			if en.NoLocal && en.Target == c.h {
				continue
			}
			one(en.Target, e.grants.of(en.Options))
		}
	}
}

// reserved tells whether clients may not publish to a topic: $SYS is the
// broker's, and $share is no topic.
func reserved(t []byte) bool {
	return len(t) > 0 && t[0] == '$' && (strings.HasPrefix(string(t), "$SYS/") || string(t) == "$SYS" || strings.HasPrefix(string(t), "$share/"))
}

// grants keeps the grants of subscriptions, which are few: they differ in QoS,
// retain as published and identifier only.
type grants struct {
	plain [3][2]session.Grant
	once  sync.Once
	mu    sync.RWMutex
	ids   map[topic.Options]*session.Grant
}

// of returns the grant of a subscription's options.
func (g *grants) of(o topic.Options) *session.Grant {
	g.once.Do(func() {
		for q := range g.plain {
			g.plain[q] = [2]session.Grant{{QoS: byte(q)}, {QoS: byte(q), Retain: true}}
		}
		g.ids = make(map[topic.Options]*session.Grant)
	})
	r := 0
	if o.RetainAsPublished {
		r = 1
	}
	if o.Identifier == 0 {
		return &g.plain[o.QoS][r]
	}
	o.NoLocal = false
	g.mu.RLock()
	gr := g.ids[o]
	g.mu.RUnlock()
	if gr != nil {
		return gr
	}
	gr = &session.Grant{QoS: o.QoS, Retain: o.RetainAsPublished, Identifiers: []uint32{o.Identifier}}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ids) < 1<<16 { // clients choose the identifiers
		g.ids[o] = gr
	}
	return gr
}
