package engine

import (
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// deliver hands the runs of a shipment to the sessions that are connected here.
func (e *Engine) deliver(sh *shipment, w *listen.Worker) {
	if len(sh.runs) == 0 {
		return
	}
	s := e.scratch(w)
	env := e.env()
	for i := range sh.runs {
		r := &sh.runs[i]
		for _, snap := range r.nodes {
			for k := range snap.Chunks() {
				for _, en := range snap.Chunk(k) {
					if en.NoLocal && en.Target.id == r.from {
						continue
					}
					e.deliverTo(en.Target, r, e.grants.of(en.Options), env, w, s)
				}
			}
		}
		for _, d := range r.to {
			e.deliverTo(d.h, r, d.g, env, w, s)
		}
		if r.wide != nil {
			e.forward(sh, r, toLive, s) // the rest when it stands in the inboxes
		} else {
			e.forward(sh, r, toAll, s)
		}
	}
}

// deliverTo hands a run to one session or group.
func (e *Engine) deliverTo(h *handle, r *routed, g *session.Grant, env session.Env, w *listen.Worker, s *scratch) {
	if r.wide != nil && h.stored(r.epoch) {
		return // it is the outbox's
	}
	run := r.run
	if gr := h.group.Load(); gr != nil {
		gr.deliver(e, run, g, h.stored(r.epoch), env, w)
		return
	}
	c := h.live.Load()
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.unlock(w, s)
	if c.conn == nil {
		return
	}
	fx := c.begin(s)
	if h.stored(r.epoch) {
		c.core.Deliver(run, 0, len(run.Messages), g, 0, env, fx)
	} else {
		c.core.DeliverLive(run, 0, len(run.Messages), g, env, fx)
	}
	e.end(c, env, w, s)
}

// begin opens the effects of an input to the client's session; c.mu is held and
// the client connected.
func (c *client) begin(s *scratch) *session.Effects {
	fx := &s.fx
	fx.Out = c.conn.Begin()
	fx.Limit = len(fx.Out) + c.conn.Room()
	s.open, s.began = true, fx.Out
	return fx
}

// end carries the effects out; c.mu is held.
func (e *Engine) end(c *client, env session.Env, w *listen.Worker, s *scratch) {
	fx := &s.fx
	c.conn.End(w, fx.Out)
	fx.Out, s.open, s.began = nil, false, nil
	if fx.Ticket != 0 {
		c.core.MarkFor(env, fx)
		e.storeSent(c, fx)
	}
	if fx.Read {
		e.readInbox(c, fx)
	}
	if fx.Tidy {
		fx.Tidy = false
		b := &persistence.Batch{Lazy: true}
		if c.core.MarkInto(env, b); !b.Empty() {
			e.store.Commit(b, nil)
		}
	}
	if fx.Spill {
		fx.Spill = false
		if e.nodes.on() {
			fx.Full = true // its inbox would have to be known to every node
		} else {
			e.spill(c)
		}
	}
	if len(fx.Settled) > 0 {
		e.groups.settle(e, fx.Settled)
		fx.Settled = fx.Settled[:0]
	}
	if fx.Done > 0 {
		e.queues.settled(c.h.id, fx.Done, fx.DoneBytes)
		fx.Done, fx.DoneBytes = 0, 0
	}
	if fx.Full {
		fx.Full = false
		conn := c.conn
		conn.CloseAfter(w, wire.AppendDisconnect(nil, c.version, wire.ReasonQuota, "", ""))
		e.abandon(conn)
	}
	e.account(fx)
	if len(c.starving) > 0 && c.core.Free() > 0 && c.conn.Room() > 0 {
		e.groups.feed(e, c)
	}
	if len(c.retained) > 0 && c.core.Wants() {
		e.moreRetained(c)
	}
}

// account adds up what was counted.
func (e *Engine) account(fx *session.Effects) {
	if fx.Delivered > 0 {
		e.stats.Sent.Add(int64(fx.Delivered))
	}
	if fx.Dropped|fx.Expired|fx.TooLarge|fx.Overflow != 0 {
		e.stats.DroppedQoS0.Add(int64(fx.Dropped))
		e.stats.Expired.Add(int64(fx.Expired))
		e.stats.TooLarge.Add(int64(fx.TooLarge))
		e.stats.QueueFull.Add(int64(fx.Overflow))
		fx.Dropped, fx.Expired, fx.TooLarge, fx.Overflow = 0, 0, 0, 0
	}
	fx.Delivered = 0
}

// spill gives an ephemeral session an inbox, because it is too slow for what
// comes; c.mu is held. Its row has it ended should the process die.
func (e *Engine) spill(c *client) {
	c.spilled = true
	row := c.row
	row.ExpiryInterval = 0
	core := c.core
	e.store.Commit(&persistence.Batch{Sessions: []persistence.Session{row}}, func(err error) {
		if err != nil {
			e.worker(c).call(func(w *listen.Worker) { c.fail(wire.ReasonBusy, w) })
			return
		}
		e.background(func() {
			e.giveInbox(c.h)
			e.flight.pass(e.ctx)
			e.worker(c).call(func(w *listen.Worker) {
				e.step(c, core, w, func(session.Env, *session.Effects) { core.Spilled() })
			})
		})
	})
}

// giveInbox begins a routing epoch from which on what is due to h goes into an
// inbox.
func (e *Engine) giveInbox(h *handle) {
	e.spillMu.Lock()
	defer e.spillMu.Unlock()
	epoch := e.epoch.Load() + 1
	h.spilled.Store(epoch)
	e.epoch.Store(epoch)
}

// storeSent commits packet ids before what waits for them is sent.
func (e *Engine) storeSent(c *client, fx *session.Effects) {
	b := &persistence.Batch{Sent: append([]persistence.Sent(nil), fx.Sent...)}
	if fx.Mark != nil {
		b.Marks = []persistence.Mark{*fx.Mark}
	}
	ticket := fx.Ticket
	fx.Sent, fx.Mark, fx.Ticket = fx.Sent[:0], nil, 0
	core := c.core
	e.store.Commit(b, func(err error) {
		e.worker(c).call(func(w *listen.Worker) {
			if err != nil {
				c.fail(wire.ReasonBusy, w)
				return
			}
			e.step(c, core, w, func(env session.Env, fx *session.Effects) { core.Stored(ticket, env, fx) })
		})
	})
}

// step gives a session one input, if it is still that of the client's
// connection.
func (e *Engine) step(c *client, core *session.Session, w *listen.Worker, f func(session.Env, *session.Effects)) {
	s := e.scratch(w)
	c.mu.Lock()
	defer c.unlock(w, s)
	if c.conn == nil || c.core != core {
		return
	}
	env := e.env()
	fx := c.begin(s)
	f(env, fx)
	e.end(c, env, w, s)
}

// readInbox reads the page that a session asked for, in the background.
func (e *Engine) readInbox(c *client, fx *session.Effects) {
	after, limit := fx.After, fx.ReadLimit
	fx.Read = false
	core := c.core
	e.background(func() {
		arrived := e.nodes.arrivals()
		entries, err := e.store.Inbox(e.ctx, core.ID(), after, maxID, limit, pageBytes, nil)
		full := len(entries) == limit || weight(entries) >= pageBytes
		e.worker(c).call(func(w *listen.Worker) {
			if err != nil {
				e.log.Error("reading a queue", sessionField(core.ID()), errField(err))
				c.fail(wire.ReasonUnspecified, w)
				return
			}
			entries, short := arrived.visible(entries), limit
			if full {
				short = len(entries) // there may be more
			}
			e.step(c, core, w, func(env session.Env, fx *session.Effects) { core.Page(entries, short, env, fx) })
		})
	})
}

// pageBytes bounds what one page of a queue weighs.
const pageBytes = 1 << 20

func weight(entries []persistence.Entry) (n int) {
	for i := range entries {
		n += entries[i].Message.Size()
	}
	return n
}

// lockAcks opens the effects of acknowledgements that the client sends; it
// tells whether the client is still there.
func (e *Engine) lockAcks(c *client, s *scratch) bool {
	c.mu.Lock()
	if c.conn == nil {
		c.mu.Unlock()
		return false
	}
	c.begin(s)
	return true
}

// unlockAcks carries them out.
func (e *Engine) unlockAcks(c *client, w *listen.Worker, s *scratch) {
	defer c.unlock(w, s)
	env := e.env()
	c.core.Pump(env, &s.fx)
	e.end(c, env, w, s)
}

// acknowledged takes one acknowledgement.
func (c *client) acknowledged(a *wire.Ack, fx *session.Effects) error {
	ok := true
	switch a.Type {
	case wire.TypePuback:
		ok = c.core.Puback(a.PacketID, fx)
	case wire.TypePubrec:
		ok = c.core.Pubrec(a.PacketID, a.Reason, fx)
	case wire.TypePubcomp:
		ok = c.core.Pubcomp(a.PacketID, fx)
	}
	if !ok {
		return errWrongAck
	}
	return nil
}

var errWrongAck = &wire.Error{Reason: wire.ReasonProtocol, Text: "acknowledgement that does not belong to the publish"}

// Drained goes on with what a slow connection held up: the listener's handler.
func (e *Engine) Drained(conn Conn, w *listen.Worker) {
	c, _ := conn.User().(*client)
	if c == nil {
		return
	}
	e.step(c, c.core, w, func(env session.Env, fx *session.Effects) { c.core.Pump(env, fx) })
}
