// Package session is the session machine: what is due to one client, in which
// order, under which packet ids, and what the client has been told. It is
// pure: inputs in, effects out. It has no clock, goroutine, socket or store,
// and its caller sees to it that one goroutine at a time is inside.
//
// Outbound, a message goes through these places, always forwards:
//
//	inbox (store) ─ page ┐
//	                     ├─► pending ─► window (packet id) ─► settled ─► mark
//	live (memory) ───────┘                │
//	                                      └ staged: QoS 2 of a durable session
//	                                        waits for its packet id to be stored
//
// A durable session that keeps up is fed from memory; one that falls behind,
// or has just come back, reads its inbox page by page until it has caught up
// (feed.go).
package session

import (
	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// Grant is how a session wants what matches one of its subscriptions, or
// several at once. It does not change once it was handed in.
type Grant struct {
	// QoS is the most that is granted.
	QoS byte
	// Retain: RETAIN is passed on as published.
	Retain bool
	// Identifiers go with every message [MQTT-3.3.4-3].
	Identifiers []uint32
}

// Env is what the moment knows.
type Env struct {
	// Now is Unix milliseconds.
	Now int64
	// Closed is the ID at or below which nothing will be delivered any more
	// that has not been.
	Closed herald.ID
}

// Effects are what an input brought about. Out goes to the connection; the
// rest is to be carried out by the caller.
type Effects struct {
	// Out is appended to. No message is added once it is longer than Limit.
	Out   []byte
	Limit int
	// Sent must be committed; when that is done, Stored(Ticket) goes on. Mark
	// goes into the same commit if it is there.
	Sent   []persistence.Sent
	Mark   *persistence.Mark
	Ticket uint64
	// Tidy: much has settled, so MarkInto should be called now rather than in
	// its time, or the store keeps what nobody needs any more.
	Tidy bool
	// Spill: more waits than memory should hold, and the session has no inbox.
	// It should get one, and Spilled be called when nothing is under way any
	// more that was routed before.
	Spill bool
	// Settled are entries of groups' inboxes that are done with.
	Settled []Settled
	// Read asks for Page with what stands in the inbox behind After, at most
	// ReadLimit entries.
	Read      bool
	After     herald.ID
	ReadLimit int
	// Counts of what was not delivered, by reason.
	Expired, TooLarge, Dropped, Overflow int
	// Done and DoneBytes are what has settled, if that is counted.
	Done, DoneBytes int
	// Full: the connection is to be closed, because the queue is full.
	Full bool
	// Delivered counts PUBLISHes that were sent.
	Delivered int
}

// Settled tells that the entry ID of Source's inbox is done with.
type Settled struct {
	Source herald.SessionID
	ID     herald.ID
}

// Limits of what one session may hold in memory; see [Memory].
const (
	maxPending      = 4096
	maxPendingBytes = 4 << 20
	pageEntries     = 512
	maxSettled      = 16384
	// maxAliases bounds the topic aliases towards one client, which may take
	// 65,535 and have that many topics kept in memory for it.
	maxAliases = 64
)

// Params is what a connection brings.
type Params struct {
	Version herald.Version
	// ReceiveMaximum is how many QoS 1 and 2 PUBLISHes may be unacknowledged
	// [MQTT-3.3.4-9].
	ReceiveMaximum int
	// MaxPacket is the longest packet that the client takes, 0 for any.
	MaxPacket uint32
	// AliasMaximum is how many topic aliases the client takes.
	AliasMaximum uint16
}

// Session is the machine. The zero Session is not usable; see [New].
type Session struct {
	// Fixed at construction.
	id      herald.SessionID
	durable bool

	// inbox: the session has one in the store. Durable sessions always do, an
	// ephemeral one from Spilled on.
	inbox    bool
	spilling bool
	limit    Limit
	// ceiling caps closed time, as long as it is not 0: see Trust.
	ceiling herald.ID

	// Of the connection; meaningful while attached.
	attached bool
	p        Params
	aliases  map[string]uint16

	window window
	feed   feed
	stage  []*slot // allocated, waiting for the store before they are sent, in order
	ticket uint64  // of the newest request to store
	stored uint64  // up to which requests are stored

	settled []herald.ID // above low, in the order in which they settled
	tidyAt  int         // length of settled at which it is tidied up next
	done    []persistence.Sent
	low     herald.ID // last mark
	overdue bool      // what holds the mark back waits to be sent
	dirty   bool      // there is something to mark

	held pidSet // QoS 2 packet ids of the client's own publishes
}

// New returns a session without a connection.
func New(id herald.SessionID, durable bool) *Session {
	return &Session{id: id, durable: durable, inbox: durable, feed: feed{mem: defaults}}
}

// ID is the session's identity.
func (s *Session) ID() herald.SessionID { return s.id }

// Durable tells whether the session outlives its connection.
func (s *Session) Durable() bool { return s.durable }

// Attached tells whether a connection is attached.
func (s *Session) Attached() bool { return s.attached }

// Attach gives the session its connection. w is what was stored of it; a new
// session has an empty one. What was under way is resent: PUBRELs at once,
// PUBLISHes with their packet ids as their entries come from the inbox
// [MQTT-4.4.0-1].
func (s *Session) Attach(p Params, w persistence.Window, env Env, fx *Effects) {
	s.attached, s.p = true, p
	if s.p.ReceiveMaximum < 1 {
		s.p.ReceiveMaximum = 1
	}
	s.p.AliasMaximum = min(p.AliasMaximum, maxAliases)
	if p.AliasMaximum > 0 {
		s.aliases = make(map[string]uint16)
	}
	for _, h := range w.Held {
		if h.ID != 0 {
			s.held.add(h.PacketID)
		}
	}
	s.low = w.Low
	s.settled = append(s.settled, w.Above...)
	s.feed.restart(w.Low, w.Above)
	settled := make(map[herald.ID]bool, len(w.Above))
	for _, id := range w.Above {
		settled[id] = true
	}
	for _, r := range w.Sent {
		own := r.Source == 0
		switch {
		case r.Step == persistence.Released:
			sl := s.window.take(r.PacketID)
			*sl = slot{pid: r.PacketID, id: r.ID, src: r.Source, seq: s.window.next(), qos: 2, state: released, stored: true}
			if own {
				if r.ID > w.Low && !settled[r.ID] {
					s.settle(sl, fx)
				}
				s.feed.skip(r.ID)
			}
			s.window.inflight++
			fx.Out = wire.AppendAck(fx.Out, p.Version, wire.TypePubrel, r.PacketID, 0)
		case own && (r.ID <= w.Low || settled[r.ID]):
			// Its acknowledgement was marked; only its row was left behind.
			s.done = append(s.done, persistence.Sent{Session: s.id, PacketID: r.PacketID, ID: r.ID})
			s.dirty = true
		default:
			sl := s.window.take(r.PacketID)
			*sl = slot{pid: r.PacketID, id: r.ID, src: r.Source, state: awaited, stored: true}
		}
	}
	if s.durable {
		s.read(env, fx)
	} else {
		s.feed.state = live
	}
}

// Detach takes the connection away. What it adds to b must be committed before
// the session is loaded again. The entries of groups' inboxes that it returns
// were not begun and go back to their groups. The machine is not used any more
// after it, but for Unacknowledged.
func (s *Session) Detach(env Env, b *persistence.Batch) (back []Settled) {
	s.attached = false
	s.MarkInto(env, b) // frees packet ids that may be in use again below
	s.window.each(func(sl *slot) {
		switch {
		case sl.state == staged && sl.ticket == 0 && !sl.dup && sl.src != 0:
			back = append(back, Settled{Source: sl.src, ID: sl.id})
		case s.durable && sl.state == staged && sl.src != 0:
			// Nobody knows whether it was stored; the group counts on it.
			b.Sent = append(b.Sent, persistence.Sent{Session: s.id, PacketID: sl.pid, ID: sl.id, Source: sl.src, Step: persistence.Published})
		case s.durable && sl.state == receipt:
			// The mark says that it is settled, and whether this was stored nobody knows:
			// the client is to get its PUBREL.
			b.Sent = append(b.Sent, persistence.Sent{Session: s.id, PacketID: sl.pid, ID: sl.id, Source: sl.src, Step: persistence.Released})
		case s.durable && sl.state == published && !sl.stored:
			sl.stored = true
			b.Sent = append(b.Sent, persistence.Sent{Session: s.id, PacketID: sl.pid, ID: sl.id, Source: sl.src, Step: persistence.Published})
		}
	})
	s.feed.pending.each(func(it *item) {
		if it.src == 0 || it.pid != 0 {
			return
		}
		for i := it.from; i < it.to; i++ {
			back = append(back, Settled{Source: it.src, ID: it.run.Messages[i].ID})
		}
	})
	return back
}

// Unacknowledged returns the entries of groups' inboxes that a session which
// ends holds: back go to other members, settled were begun at QoS 2 and go to
// nobody else [MQTT-4.8.2-4], [MQTT-4.8.2-5]; of unknown it has not seen since
// it came back which of both they are. What Detach returned is not among them.
func (s *Session) Unacknowledged() (back, settled, unknown []Settled) {
	s.window.each(func(sl *slot) {
		e := Settled{Source: sl.src, ID: sl.id}
		switch {
		case sl.src == 0 || sl.state == released || sl.state == receipt:
		case sl.state == awaited:
			unknown = append(unknown, e)
		case sl.state == staged && !sl.dup: // it was not begun
			if sl.ticket != 0 {
				back = append(back, e)
			}
		case sl.qos == 2:
			settled = append(settled, e)
		default:
			back = append(back, e)
		}
	})
	return back, settled, unknown
}

// Deliver hands messages from..to of run, which match subscriptions of the
// session as g says, to it. src is 0, or the group that deals them.
func (s *Session) Deliver(run *wire.Run, from, to int, g *Grant, src herald.SessionID, env Env, fx *Effects) {
	if !s.attached || from >= to {
		return
	}
	if g.QoS == 0 || run.Messages[from].QoS == 0 {
		s.deliver0(run, from, to, g, env, fx)
		return
	}
	it := item{run: run, g: g, src: src, from: int32(from), to: int32(to)}
	if s.inbox && src == 0 && (s.ceiling != 0 || !s.feed.admit(&it, s, env)) {
		return
	}
	s.accept(it, env, fx)
}

// DeliverLive is Deliver for messages that do not stand in the session's inbox:
// it has none, or had none when they were routed.
func (s *Session) DeliverLive(run *wire.Run, from, to int, g *Grant, env Env, fx *Effects) {
	switch {
	case !s.attached || from >= to:
	case g.QoS == 0 || run.Messages[from].QoS == 0:
		s.deliver0(run, from, to, g, env, fx)
	default:
		s.accept(item{run: run, g: g, from: int32(from), to: int32(to)}, env, fx)
	}
}

// accept sends an item, or as much of it as may be sent, and lets the rest wait.
func (s *Session) accept(it item, env Env, fx *Effects) {
	if s.feed.pending.n == 0 && len(s.stage) == 0 {
		s.send(&it, env, fx)
	}
	if it.from < it.to {
		s.feed.push(it)
	}
	if !s.inbox && s.full() {
		s.overflow(fx)
	}
	if !s.inbox && !s.spilling && (s.feed.count > 2*s.feed.mem.Pending || s.feed.bytes > 2*s.feed.mem.Bytes) {
		s.spilling, fx.Spill = true, true
	}
}

// Spilled gives an ephemeral session that asked for it an inbox, because too
// much waits for it in memory: from the next message on that was routed to the
// inbox, it may leave there what it cannot send.
func (s *Session) Spilled() { s.inbox = true }

// room is how many more QoS > 0 messages may be sent now.
func (s *Session) room(fx *Effects) int {
	if len(fx.Out) > fx.Limit || len(s.settled) >= s.feed.mem.Settled && !s.overdue {
		return 0
	}
	return s.p.ReceiveMaximum - s.window.inflight
}

// Pump sends what waits and may be sent, and asks for more of the inbox when
// little is left.
func (s *Session) Pump(env Env, fx *Effects) {
	if !s.attached {
		return
	}
	if n := len(s.settled); n > s.tidyAt || n >= s.feed.mem.Settled {
		s.advance(env)
		if n > s.tidyAt || len(s.settled) < n {
			s.tidyAt = max(s.feed.mem.Settled/16, 2*len(s.settled))
			fx.Tidy = s.inbox
		}
	}
	for s.feed.pending.n > 0 && s.room(fx) > 0 {
		it := s.feed.pending.front()
		before := it.from
		s.send(it, env, fx)
		s.feed.took(it, int(it.from-before))
		if it.from < it.to {
			break
		}
		s.feed.pending.pop()
	}
	if s.ceiling != 0 && env.Closed <= s.feed.open {
		return // nothing more may be taken yet
	}
	if s.feed.hungry() || s.Blocked() && s.feed.behind(s.capped(env)) {
		s.read(env, fx)
	}
}

// Blocked tells whether nothing is sent because so much has settled above what
// has not. If that is for want of closed time, no acknowledgement ends it, so
// Pump must be called now and then.
func (s *Session) Blocked() bool { return s.attached && len(s.settled) >= s.feed.mem.Settled }

// Wants tells whether the session could take messages at once: what waits is
// little and the window is open.
func (s *Session) Wants() bool {
	return s.attached && s.feed.count == 0 && s.feed.state == live && s.window.inflight < s.p.ReceiveMaximum
}

// Free is how many QoS > 0 messages the session could send at once.
func (s *Session) Free() int {
	if !s.attached || s.feed.count > 0 {
		return 0
	}
	return s.p.ReceiveMaximum - s.window.inflight
}

// Pending is how many messages wait in memory.
func (s *Session) Pending() int { return s.feed.count }

// Inflight is how many packet ids are under way to the client.
func (s *Session) Inflight() int { return s.window.inflight }

// HeldOf are the entries of a group's inbox that the session has and is not done
// with.
func (s *Session) HeldOf(group herald.SessionID) (ids []herald.ID) {
	for _, sl := range s.window.slots {
		if sl.src == group && sl.state != free && sl.state != released && sl.state != receipt {
			ids = append(ids, sl.id)
		}
	}
	s.feed.pending.each(func(it *item) {
		if it.src == group && it.pid == 0 {
			for i := it.from; i < it.to; i++ {
				ids = append(ids, it.run.Messages[i].ID)
			}
		}
	})
	return ids
}

// Forward sends n frames of QoS 0 and version v as they are, if that is what
// the session wants and the client takes; longest is the length of the longest.
// The caller has made sure that RETAIN is clear and nothing in them is the
// publisher's alone.
func (s *Session) Forward(frames []byte, v herald.Version, n int, longest uint32, g *Grant, fx *Effects) bool {
	if !s.attached || v != s.p.Version || len(g.Identifiers) > 0 || s.aliases != nil || !s.fits(int(longest)) {
		return false
	}
	if len(fx.Out) > fx.Limit {
		fx.Dropped += n
		return true
	}
	fx.Out = append(fx.Out, frames...)
	fx.Delivered += n
	return true
}

// DeliverMixed is Deliver for a run whose messages differ in topic and QoS, none
// of which stands in the session's inbox.
func (s *Session) DeliverMixed(run *wire.Run, g *Grant, env Env, fx *Effects) {
	if !s.attached {
		return
	}
	for i, m := range run.Messages {
		if g.QoS == 0 || m.QoS == 0 {
			s.deliver0(run, i, i+1, g, env, fx)
			continue
		}
		s.feed.push(item{run: run, g: g, from: int32(i), to: int32(i + 1)})
	}
	s.Pump(env, fx)
}

// Restore brings the entry of a group's inbox that was sent over an earlier
// connection under packet id pid, and how the session shares the group; m is nil
// if there is none any more.
func (s *Session) Restore(pid uint16, m *herald.Message, g *Grant, env Env, fx *Effects) {
	sl := s.window.find(pid)
	if !s.attached || sl == nil || sl.state != awaited || sl.src == 0 {
		return
	}
	if m == nil {
		s.orphan(sl, fx)
		return
	}
	s.feed.push(item{run: wire.MakeRun([]*herald.Message{m}), g: g, src: sl.src, to: 1, pid: pid})
	s.Pump(env, fx)
}
