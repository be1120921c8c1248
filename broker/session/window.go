package session

import (
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// state is how far a delivery has come.
type state uint8

const (
	free      state = iota
	awaited         // was sent over an earlier connection; its entry has not come from the inbox yet
	staged          // has a packet id, which is being stored
	published       // PUBLISH was sent
	receipt         // PUBREC came, which is being stored
	released        // PUBREL was sent
)

// slot is one packet id under way to the client.
type slot struct {
	run    *wire.Run // nil when released or awaited
	g      *Grant
	seq    uint64    // order of sending
	ticket uint64    // staged or receipt: the request that stores it
	id     herald.ID // of the message
	src    herald.SessionID
	i      int32
	pid    uint16
	state  state
	qos    byte
	stored bool // the store has a row for the packet id
	dup    bool // staged: it was sent over an earlier connection
}

// window is the space of packet ids towards the client. A packet id stands at
// its low bits, so neither finding nor freeing one needs a map; an id whose
// place is taken is passed over. It is at most half full.
type window struct {
	slots    []*slot // none nil; length a power of two
	used     int     // slots that are not free
	inflight int     // used, less those that were not sent over this connection yet
	last     uint16  // newest packet id
	seq      uint64
}

// find returns the slot of pid, or nil.
func (w *window) find(pid uint16) *slot {
	if len(w.slots) == 0 {
		return nil
	}
	sl := w.slots[int(pid)&(len(w.slots)-1)]
	if sl.pid != pid || sl.state == free {
		return nil
	}
	return sl
}

func (w *window) next() uint64 {
	w.seq++
	return w.seq
}

// alloc returns the slot of a packet id that is not in use, with pid set. The
// caller makes it other than free.
func (w *window) alloc() *slot {
	if 2*(w.used+1) > len(w.slots) && len(w.slots) < 1<<16 {
		w.grow(max(8, 2*len(w.slots)))
	}
	mask := len(w.slots) - 1
	for {
		w.last++
		if w.last == 0 {
			continue
		}
		if sl := w.slots[int(w.last)&mask]; sl.state == free {
			w.used++
			sl.pid = w.last
			return sl
		}
	}
}

// take returns the slot of the given packet id, as alloc does.
func (w *window) take(pid uint16) *slot {
	for {
		if 2*(w.used+1) <= len(w.slots) || len(w.slots) == 1<<16 {
			sl := w.slots[int(pid)&(len(w.slots)-1)]
			if sl.state == free {
				w.used++
				w.last = max(w.last, pid)
				return sl
			}
			if sl.pid == pid {
				return sl
			}
		}
		w.grow(max(8, 2*len(w.slots)))
	}
}

// grow moves the slots, which others point at, to a longer table.
func (w *window) grow(n int) {
	old := w.slots
	n = min(n, 1<<16)
	w.slots = make([]*slot, n)
	var spare []*slot
	for _, sl := range old {
		if sl.state == free {
			spare = append(spare, sl)
		} else {
			w.slots[int(sl.pid)&(n-1)] = sl
		}
	}
	slab := make([]slot, n-len(old))
	for i, sl := range w.slots {
		if sl != nil {
			continue
		}
		if k := len(spare); k > 0 {
			w.slots[i], spare = spare[k-1], spare[:k-1]
		} else {
			w.slots[i], slab = &slab[0], slab[1:]
		}
	}
}

// release frees a slot.
func (w *window) release(sl *slot) {
	if sl.state != awaited {
		w.inflight--
	}
	w.used--
	sl.state, sl.run, sl.g = free, nil, nil
}

// each calls f for every slot in use, in the order of sending.
func (w *window) each(f func(*slot)) {
	all := make([]*slot, 0, w.used)
	for _, sl := range w.slots {
		if sl.state != free {
			all = append(all, sl)
		}
	}
	slices.SortFunc(all, func(a, b *slot) int {
		if a.seq < b.seq {
			return -1
		}
		return 1
	})
	for _, sl := range all {
		f(sl)
	}
}

// send sends as many of it as there is room for and moves it.from past them.
func (s *Session) send(it *item, env Env, fx *Effects) {
	n := min(int(it.to-it.from), s.room(fx))
	if n <= 0 {
		return
	}
	first := it.run.Messages[it.from]
	qos := min(first.QoS, it.g.QoS)
	if (qos == 1 || !s.durable) && len(s.stage) == 0 && it.pid == 0 && !it.g.Retain && len(it.g.Identifiers) == 0 &&
		s.aliases == nil && it.run.Static(s.p.Version, qos, s.p.MaxPacket) && (first.Expires == 0 || env.Now < first.Expires) {
		s.sendStatic(it, n, qos, fx)
		return
	}
	for it.from < it.to && s.room(fx) > 0 {
		s.sendOne(it, env, fx)
		it.from++
	}
}

// sendStatic is the hot path: n frames are copied as one piece, packet ids put in.
// Cost: BenchmarkDeliver.
func (s *Session) sendStatic(it *item, n int, qos byte, fx *Effects) {
	w := &s.window
	from := int(it.from)
	base := len(fx.Out)
	fx.Out = it.run.AppendStatic(fx.Out, s.p.Version, qos, from, from+n)
	for i := from; i < from+n; i++ {
		sl := w.alloc()
		sl.run, sl.g, sl.i, sl.src, sl.id = it.run, it.g, int32(i), it.src, it.run.Messages[i].ID
		sl.state, sl.qos, sl.stored = published, qos, false
		w.seq++
		sl.seq = w.seq
		it.run.Patch(fx.Out, base, s.p.Version, from, i, sl.pid)
	}
	w.inflight += n
	fx.Delivered += n
	it.from += int32(n)
}

// sendOne sends one message, or stages it, or drops it for a reason.
func (s *Session) sendOne(it *item, env Env, fx *Effects) {
	m := it.run.Messages[it.from]
	qos := min(m.QoS, it.g.QoS)
	resend := it.pid != 0
	if !resend && m.Expires != 0 && env.Now >= m.Expires {
		fx.Expired++
		if qos > 0 {
			s.window.last++ // mosquitto numbers what it queues, and its tests look
		}
		s.settleID(it.src, m.ID, m, fx)
		return
	}
	if qos == 0 {
		if !s.append(m, 0, it.g, 0, false, env, fx) {
			fx.TooLarge++
		} else {
			fx.Delivered++
		}
		s.settleID(it.src, m.ID, m, fx)
		return
	}
	var sl *slot
	if resend {
		if sl = s.window.find(it.pid); sl == nil || sl.state != awaited {
			return
		}
	} else {
		if s.tooLarge(m, qos, it.g) {
			fx.TooLarge++
			s.settleID(it.src, m.ID, m, fx)
			return
		}
		sl = s.window.alloc()
		sl.stored = false
	}
	sl.run, sl.g, sl.i, sl.src, sl.id, sl.qos = it.run, it.g, it.from, it.src, m.ID, qos
	sl.seq = s.window.next()
	s.window.inflight++
	// What is staged is not overtaken, neither by QoS 1 nor by what is sent again
	// [MQTT-4.6.0-1].
	if s.durable && (qos == 2 && !resend || len(s.stage) > 0) {
		sl.state, sl.ticket, sl.dup = staged, 0, resend
		if qos == 2 && !resend {
			s.request(fx)
			sl.ticket, sl.stored = s.ticket, true
			fx.Sent = append(fx.Sent, persistence.Sent{Session: s.id, PacketID: sl.pid, ID: m.ID, Source: sl.src, Step: persistence.Published})
		}
		s.stage = append(s.stage, sl)
		return
	}
	s.publish(sl, resend, env, fx)
}

// publish sends the PUBLISH of a slot.
func (s *Session) publish(sl *slot, dup bool, env Env, fx *Effects) {
	sl.state = published
	m := sl.run.Messages[sl.i]
	if !s.append(m, sl.qos, sl.g, sl.pid, dup, env, fx) {
		// The client takes less than it did: as if it had been sent and
		// acknowledged [MQTT-3.1.2-25].
		fx.TooLarge++
		s.settle(sl, fx)
		s.finish(sl)
		return
	}
	fx.Delivered++
}

// request opens the effects' request to the store. It carries a mark if
// anything has settled, so that a packet id is never used again before the
// store knows that its former message is settled.
func (s *Session) request(fx *Effects) {
	if fx.Ticket != 0 {
		return
	}
	s.ticket++
	fx.Ticket = s.ticket
}

// MarkFor puts a mark into effects that store packet ids: a packet id must not
// be given to another message before the store knows that its former one is
// settled, or a crash would deliver that again. The caller calls it when the
// effects of an input are complete.
func (s *Session) MarkFor(env Env, fx *Effects) {
	if fx.Ticket == 0 || len(s.settled) == 0 {
		return
	}
	m := s.mark(env)
	fx.Mark = &m
}

// Stored tells that the request ticket, and all before it, are stored.
func (s *Session) Stored(ticket uint64, env Env, fx *Effects) {
	s.stored = max(s.stored, ticket)
	if !s.attached {
		return
	}
	n := 0
	for _, sl := range s.stage {
		if sl.ticket > s.stored {
			break
		}
		n++
		if sl.state == receipt {
			sl.state = released
			fx.Out = wire.AppendAck(fx.Out, s.p.Version, wire.TypePubrel, sl.pid, 0)
			continue
		}
		s.publish(sl, sl.dup, env, fx)
	}
	s.stage = s.stage[n:]
	if len(s.stage) == 0 {
		s.stage = nil
	}
	s.Pump(env, fx)
}
