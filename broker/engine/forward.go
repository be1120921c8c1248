package engine

import (
	"strings"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/broker/wire"
)

// nodeTarget is a node that a run goes to, and whether somebody there has to have it
// before it is acknowledged.
type nodeTarget struct {
	peer *peer
	wait bool
}

// remoteTargets finds the nodes that a topic goes to, into s.targets.
func (e *Engine) remoteTargets(s *scratch, name []byte) []nodeTarget {
	to := s.targets[:0]
	if e.remote.Filters() > 0 {
		if s.remote == nil {
			s.remote = e.remote.NewCache(topicCache)
		}
		for _, n := range s.remote.Match(name).Nodes {
			snap := n.Subscribers()
			for i := range snap.Chunks() {
				for _, en := range snap.Chunk(i) {
					to = addTarget(to, en.Target)
				}
			}
		}
	}
	s.targets = to
	return to
}

func addTarget(to []nodeTarget, r *remote) []nodeTarget {
	for i := range to {
		if to[i].peer == r.peer {
			to[i].wait = to[i].wait || r.wait
			return to
		}
	}
	return append(to, nodeTarget{r.peer, r.wait})
}

// forward sends a run of a shipment to the nodes where somebody wants it; whom
// says to whose sessions there. The shipment is not acknowledged before the frames
// that matter to sessions without an inbox are appended.
func (e *Engine) forward(sh *shipment, r *routed, whom byte, s *scratch) {
	if !e.nodes.on() || r.local {
		return
	}
	msgs := r.run.Messages
	if strings.HasPrefix(msgs[0].Topic, "$SYS/") {
		return // each node's own
	}
	to := e.remoteTargets(s, []byte(msgs[0].Topic))
	if len(to) == 0 {
		return
	}
	if msgs[0].ID == 0 && msgs[0].QoS > 0 {
		whom = toLive // it stands in no inbox
	}
	var frame []byte
	for _, t := range to {
		// A shipment that nothing held up waits for nobody who came while it was being
		// delivered: he has not got his SUBACK.
		wait := t.wait && msgs[0].QoS > 0 && whom&toLive != 0 && sh.appends.Load() > 0
		if frame == nil {
			frame = appendPublish(nil, msgs, r.from, whom)
		}
		if !wait {
			t.peer.send(frame, nil, msgs[len(msgs)-1].ID)
			continue
		}
		sh.appends.Add(1)
		t.peer.send(frame, func(err error) {
			if err != nil {
				sh.lost.Store(true)
			}
			if sh.appends.Add(-1) == 0 {
				e.worker(sh.from).put(sh)
			}
		}, msgs[len(msgs)-1].ID)
	}
}

// waits tells whether any run of a shipment has to be appended to another node's
// stream before it is acknowledged.
func (e *Engine) waits(sh *shipment, s *scratch) bool {
	if !e.nodes.on() || e.remote.Filters() == 0 {
		return false
	}
	for i := range sh.runs {
		for _, t := range e.remoteTargets(s, []byte(sh.runs[i].run.Messages[0].Topic)) {
			if t.wait {
				return true
			}
		}
	}
	return false
}

// forwardQoS0 sends a run that nobody keeps, straight from the read if run is nil.
func (e *Engine) forwardQoS0(s *scratch, name string, run *wire.Run, from herald.SessionID) {
	to := e.remoteTargets(s, []byte(name))
	if len(to) == 0 {
		return
	}
	var frame []byte
	if run != nil {
		frame = appendPublish(nil, run.Messages, from, toAll)
	} else {
		frame = s.in.appendPublish(nil, name, from, e.now())
	}
	for _, t := range to {
		t.peer.send(frame, nil, 0)
	}
}

// Receive takes frames of a peer: the transport's handler.
func (e *Engine) Receive(from bridge.Peer, frames [][]byte) {
	p := e.meet(from)
	for at := 0; at < len(frames); at++ {
		e.guard("receive", func() {
			for ; at < len(frames); at++ {
				e.receive(p, frames[at])
			}
			e.receiver.Flush()
		})
		if at < len(frames) {
			p.missed = true
		}
	}
	for _, begin := range p.requests {
		begin()
	}
	p.requests = nil
}

func (e *Engine) receive(p *peer, b []byte) {
	w := e.receiver
	f, err := decodeFrame(b)
	if err != nil {
		p.missed = true
		e.stats.BadFrames.Add(1)
		e.log.Error("a frame of another node cannot be decoded and is skipped", nodeField(p.Peer), errField(err))
		return
	}
	switch f.kind {
	case framePublish:
		e.arrive(p, &f, w)
	case frameClosed, frameLook:
		if f.kind == frameLook || p.missed {
			p.missed = false
			w.Flush()
			e.look(p, f.id)
			return
		}
		p.reach(f.id)
		e.nodes.sum()
	case frameKick:
		e.kick(f.name)
	case frameBans:
		e.bans.look()
	case frameAsk:
		// Where the clock stands still, because it was ahead of the time of day, closed
		// time would not get there: an ID of this node may be below one of its millisecond.
		e.ids.ObserveAll(f.id)
		p.wants(f.id)
	case frameRelease:
		e.release(p, &f)
	case frameWithdraw:
		e.owners.withdrawn(p.Peer, f.request)
	case frameReady:
		e.owners.ready(f.request)
	case frameGranted:
		if !e.owners.answered(f.request, f.epoch) && f.epoch != 0 {
			e.wills.look() // nobody waits for the session any more
		}
	case frameDeal:
		e.dealt(p, &f, w)
	case frameDone:
		e.doneAt(p, &f)
	case frameAskHeld:
		if !e.sharing.deals(f.group, dealer{p.Peer, f.epoch}) {
			break
		}
		p.send(appendHeld(nil, f.request, f.group, e.heldHere(f.group)), surely, 0)
	case frameHeld:
		e.sharing.mu.Lock()
		ch := e.sharing.asking[f.request]
		e.sharing.mu.Unlock()
		if ch != nil {
			select {
			case ch <- heldAnswer{p.Peer, f.held}:
			default:
			}
		}
	}
}

// arrive delivers what a peer has forwarded to those who are connected here.
func (e *Engine) arrive(p *peer, f *frame, w *listen.Worker) {
	s := e.scratch(w)
	msgs := f.messages
	e.stats.Forwarded.Add(int64(len(msgs)))
	if f.whom&toDurable != 0 && msgs[0].ID != 0 {
		p.came(msgs)
	}
	r := routed{run: wire.MakeRun(msgs), from: f.from, epoch: e.epoch.Load()}
	// Frames that come after their time: the sessions with an inbox have looked.
	stale := p.stale(msgs[len(msgs)-1].ID)
	if !stale && p.stale(msgs[0].ID) {
		for i := range msgs { // half of it: one by one
			one := *f
			one.messages = msgs[i : i+1]
			e.arrive(p, &one, w)
		}
		return
	}
	m := s.cache.Match([]byte(msgs[0].Topic))
	env := e.env()
	one := func(h *handle, g *grantOf) {
		kept := h.durable && g.QoS > 0 && msgs[0].QoS > 0
		switch {
		case kept && (stale || msgs[0].ID == 0 || f.whom&toDurable == 0):
		case !kept && f.whom&toLive == 0:
		default:
			e.deliverTo(h, &r, g, env, w, s)
		}
	}
	e.eachMatch(m, f.from, one)
}

// eachMatch calls f for every session and group that a topic goes to here, once.
func (e *Engine) eachMatch(m *topic.Match[*handle], from herald.SessionID, f func(*handle, *grantOf)) {
	if len(m.Nodes) > 1 {
		for _, d := range e.merge(m, from) {
			f(d.h, d.g)
		}
		return
	}
	for _, n := range m.Nodes {
		snap := n.Subscribers()
		for i := range snap.Chunks() {
			for _, en := range snap.Chunk(i) {
				if en.NoLocal && en.Target.id == from {
					continue
				}
				f(en.Target, e.grants.of(en.Options))
			}
		}
	}
}

// Gap tells that frames of a peer may be missing: the transport's handler, called
// between those before and those behind. The sessions look at their inboxes before
// they believe that what the peer has closed is all here.
func (e *Engine) Gap(from bridge.Peer) { e.meet(from).missed = true }

// Lost tells that Redis may have lost what it had acknowledged. The bridge makes
// it good; sessions look at their inboxes meanwhile.
func (e *Engine) Lost(reason error) {
	e.log.Warn("redis has lost something; sessions look at their queues", errField(reason))
	e.background(e.lookAll)
}
