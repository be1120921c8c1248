package session

import (
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// Puback takes a client's PUBACK. One that belongs to nothing is ignored; ok is
// false if it is not the answer to what was sent under the packet id, which breaks
// the protocol. The caller calls Pump when the packets at hand are through.
func (s *Session) Puback(pid uint16, fx *Effects) (ok bool) {
	sl := s.window.find(pid)
	if sl == nil || !sl.sent() {
		return true
	}
	if sl.qos != 1 {
		return false
	}
	s.settle(sl, fx)
	s.finish(sl)
	return true
}

// sent tells whether the client has something to answer, over this connection.
func (sl *slot) sent() bool { return sl.state >= published }

// Pubrec takes a client's PUBREC, as Puback does.
func (s *Session) Pubrec(pid uint16, reason byte, fx *Effects) (ok bool) {
	sl := s.window.find(pid)
	if sl != nil && sl.sent() && sl.qos != 2 {
		return false
	}
	if sl == nil || sl.qos != 2 || sl.state == awaited || sl.state == staged {
		if reason < 0x80 {
			// [MQTT-4.3.3-4] A client that still holds the packet id is let go.
			fx.Out = wire.AppendAck(fx.Out, s.p.Version, wire.TypePubrel, pid, 0)
		}
		return true
	}
	switch {
	case sl.state == released:
		fx.Out = wire.AppendAck(fx.Out, s.p.Version, wire.TypePubrel, pid, 0)
	case sl.state == receipt:
	case reason >= 0x80: // refused: over [MQTT-4.3.3-4], [MQTT-4.8.2-6]
		s.settle(sl, fx)
		s.finish(sl)
	case s.durable:
		s.settle(sl, fx)
		s.request(fx)
		sl.state, sl.ticket, sl.run, sl.g, sl.stored = receipt, s.ticket, nil, nil, true
		fx.Sent = append(fx.Sent, persistence.Sent{Session: s.id, PacketID: pid, ID: sl.id, Source: sl.src, Step: persistence.Released})
		s.stage = append(s.stage, sl)
	default:
		s.settle(sl, fx)
		sl.state, sl.run, sl.g = released, nil, nil
		fx.Out = wire.AppendAck(fx.Out, s.p.Version, wire.TypePubrel, pid, 0)
	}
	return true
}

// Pubcomp takes a client's PUBCOMP, as Puback does.
func (s *Session) Pubcomp(pid uint16, fx *Effects) (ok bool) {
	sl := s.window.find(pid)
	if sl == nil || !sl.sent() {
		return true
	}
	if sl.state != released {
		return false
	}
	s.finish(sl)
	return true
}

// settle notes that the message of a slot is done with.
func (s *Session) settle(sl *slot, fx *Effects) {
	var m *herald.Message
	if sl.run != nil {
		m = sl.run.Messages[sl.i]
	}
	s.settleID(sl.src, sl.id, m, fx)
}

func (s *Session) settleID(src herald.SessionID, id herald.ID, m *herald.Message, fx *Effects) {
	if s.limit.Counted && src == 0 && m != nil {
		fx.Done++
		fx.DoneBytes += m.Size()
	}
	switch {
	case src != 0:
		fx.Settled = append(fx.Settled, Settled{Source: src, ID: id})
	case s.inbox && id != 0:
		s.settled = append(s.settled, id)
		s.dirty = true
	}
}

// finish frees a slot. The row of its packet id goes with the next mark, never
// before: without the row and without the mark, the entry would look as if it
// had not been sent.
func (s *Session) finish(sl *slot) {
	if sl.stored && s.durable {
		s.done = append(s.done, persistence.Sent{Session: s.id, PacketID: sl.pid, ID: sl.id, Source: sl.src})
		s.dirty = true
	}
	s.window.release(sl)
}

// MarkInto adds the session's mark to b, and the packet ids that it frees, if
// there is anything new to tell.
func (s *Session) MarkInto(env Env, b *persistence.Batch) {
	if !s.inbox || !s.dirty {
		return
	}
	b.Marks = append(b.Marks, s.mark(env))
	for _, d := range s.done {
		// A packet id that is in use again has a row of its own by now.
		if sl := s.window.find(d.PacketID); sl == nil || !sl.stored {
			b.Sent = append(b.Sent, d)
		}
	}
	s.done = nil
	s.dirty = false
}

// Dirty tells whether there is anything new for MarkInto.
func (s *Session) Dirty() bool { return s.inbox && s.dirty }

// mark returns what may be said to be settled.
func (s *Session) mark(env Env) persistence.Mark {
	s.advance(env)
	slices.Sort(s.settled)
	s.settled = slices.Compact(s.settled)
	return persistence.Mark{Session: s.id, Low: s.low, Above: slices.Clone(s.settled)}
}

// advance moves low up to the highest ID that passes neither an entry that is
// not settled nor one that may still come.
func (s *Session) advance(env Env) {
	env = s.capped(env)
	low := env.Closed
	if s.feed.state != live {
		low = min(low, s.feed.pos)
	}
	waits := s.feed.lowest()
	for _, sl := range s.window.slots {
		// Released and receipt are settled, and so is what a group dealt.
		switch {
		case sl.src != 0 || sl.id == 0:
		case sl.state == published || sl.state == staged:
			low = min(low, sl.id-1)
		case sl.state == awaited: // it waits, or has not been read
			waits = min(waits, sl.id)
		}
	}
	s.overdue = waits <= low
	s.low = max(s.low, min(low, waits-1))
	s.settled = slices.DeleteFunc(s.settled, func(id herald.ID) bool { return id <= s.low })
	if s.feed.state == live {
		s.feed.forget(env.Closed)
	}
}

// Distrust keeps the session from believing in closed time above what it is now,
// until Trust: messages may stand in its inbox, or come to stand there, that
// nobody will deliver. Meanwhile it takes from its inbox what lies below closed
// time, and nothing else: what is delivered could be ahead of what is missing.
func (s *Session) Distrust(env Env) { s.ceiling = max(env.Closed, 1) }

// Trust ends that: everything from now on is delivered. The session looks at its
// inbox once more.
func (s *Session) Trust(env Env, fx *Effects) {
	if s.ceiling == 0 {
		return
	}
	if s.attached && s.inbox {
		s.feed.look(s, s.capped(env))
	}
	s.ceiling = 0
	s.Pump(env, fx)
}

func (s *Session) capped(env Env) Env {
	if s.ceiling != 0 {
		env.Closed = min(env.Closed, s.ceiling)
	}
	return env
}

// Held tells whether the client's QoS 2 packet id is taken by a PUBLISH that
// was not released [MQTT-4.3.3-10].
func (s *Session) Held(pid uint16) bool { return s.held.has(pid) }

// Hold takes it.
func (s *Session) Hold(pid uint16) { s.held.add(pid) }

// Release gives it back and tells whether it was taken.
func (s *Session) Release(pid uint16) bool { return s.held.remove(pid) }

// Holding is how many are taken.
func (s *Session) Holding() int { return s.held.n }

// pidSet is a set of packet ids, in pages of 1,024.
type pidSet struct {
	pages [64]*[16]uint64
	n     int
}

func (p *pidSet) has(pid uint16) bool {
	pg := p.pages[pid>>10]
	return pg != nil && pg[pid>>6&15]&(1<<(pid&63)) != 0
}

func (p *pidSet) add(pid uint16) {
	pg := p.pages[pid>>10]
	if pg == nil {
		pg = new([16]uint64)
		p.pages[pid>>10] = pg
	}
	if pg[pid>>6&15]&(1<<(pid&63)) == 0 {
		pg[pid>>6&15] |= 1 << (pid & 63)
		p.n++
	}
}

func (p *pidSet) remove(pid uint16) bool {
	if !p.has(pid) {
		return false
	}
	p.pages[pid>>10][pid>>6&15] &^= 1 << (pid & 63)
	p.n--
	return true
}
