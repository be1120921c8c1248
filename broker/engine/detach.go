package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// How a session loses its connection, and ends.

// Goodbye is the DISCONNECT for a client whose connection the broker is about to
// close: nothing before CONNACK [MQTT-3.14.0-1].
func (e *Engine) Goodbye(conn Conn, reason byte, elsewhere string) []byte {
	c, _ := conn.User().(*client)
	if c == nil || !c.attached.Load() {
		return nil
	}
	return wire.AppendDisconnect(nil, c.version, reason, "", elsewhere)
}

// Disconnected carries out a client's DISCONNECT: the session is put away before
// it returns, however long the connection takes to close. It returns an error if
// the client broke the protocol.
func (e *Engine) Disconnected(conn Conn, reason byte, expiry uint32, hasExpiry bool) error {
	c, _ := conn.User().(*client)
	if c == nil {
		return nil
	}
	c.mu.Lock()
	if hasExpiry && c.row.ExpiryInterval == 0 && expiry > 0 {
		c.mu.Unlock()
		return errExpiry // [MQTT-3.14.2-2]
	}
	if e.cfg.ExpiryMax > 0 {
		expiry = min(expiry, e.cfg.ExpiryMax)
	}
	c.ending.clean = reason != wire.ReasonDisconnectWill // [MQTT-3.14.4-3]
	c.ending.expiry, c.ending.hasExpiry = expiry, hasExpiry
	c.mu.Unlock()
	e.detach(c, nil)
	return nil
}

// abandon puts a session away whose connection is being closed by the broker,
// without waiting for the peer to see it, nor for the store.
func (e *Engine) abandon(conn Conn) {
	c, _ := conn.User().(*client)
	if c == nil || e.stopping.Load() {
		return // Closed comes
	}
	e.jobs.run(func() {
		e.detach(c, nil)
	})
}

var errExpiry = &wire.Error{Reason: wire.ReasonProtocol, Text: "session expiry interval set in DISCONNECT after 0 in CONNECT"}

// Closed is the end of a connection: the listener's handler.
func (e *Engine) Closed(conn Conn) {
	if c, _ := conn.User().(*client); c != nil {
		e.detach(c, nil)
	}
}

// detach takes a client's connection away from its session, once. takeOver is
// the CONNECT of the connection that takes its place, or nil.
func (e *Engine) detach(c *client, takeOver *wire.Connect) {
	c.mu.Lock()
	if c.conn == nil {
		c.mu.Unlock()
		return
	}
	// From here on deliveries pass the session by, while settleDown may wait for
	// a commit: the mark must not pass what is delivered meanwhile.
	env := e.env()
	c.conn = nil
	c.h.live.CompareAndSwap(c, nil)
	ending := c.ending
	c.mu.Unlock()
	c.pmu.Lock()
	c.in = nil
	c.pmu.Unlock()
	// What is being taken in at this moment counts. Were it not waited for, the
	// client's next connection could find a QoS 2 packet id free whose PUBLISH is
	// about to be committed, or be overtaken by what it sent before.
	c.reading.lock()
	c.ended = true
	c.reading.unlock()
	c.settleDown()
	e.putAway(c, env, ending, takeOver)
	e.clientsMu.Lock()
	if e.clients[c.name] == c {
		delete(e.clients, c.name)
	}
	e.clientsMu.Unlock()
	close(c.gone)
}

// putAway stores what is left of a session without a connection, or ends it,
// and sees to its will. env is of the moment when deliveries stopped.
func (e *Engine) putAway(c *client, env session.Env, ending disconnect, takeOver *wire.Connect) {
	now := env.Now // the commits that were waited for since do not count
	defer e.withdraw(c)
	row := c.row
	if ending.hasExpiry {
		row.ExpiryInterval = ending.expiry
	}
	ends := row.ExpiryInterval == 0 || takeOver != nil && takeOver.Clean
	will := c.will
	if will != nil && ending.clean {
		will = nil // [MQTT-3.14.4-3]
	}
	var b persistence.Batch
	if c.will != nil && will == nil {
		b.WillsGone = append(b.WillsGone, c.h.id)
	}
	delay := uint32(0)
	if will != nil {
		if delay = will.Delay; ends {
			delay = 0
		} else {
			delay = min(delay, row.ExpiryInterval)
		}
		if takeOver != nil && delay > 0 && !takeOver.Clean {
			will = nil // resumed before the delay has passed [MQTT-3.1.3-9]
			b.WillsGone = append(b.WillsGone, c.h.id)
		}
	}
	c.mu.Lock()
	var back, settled, unknown []session.Settled
	c.detachCore(func(b *persistence.Batch) {
		back = c.core.Detach(env, b)
		if ends {
			var more []session.Settled
			more, settled, unknown = c.core.Unacknowledged()
			back = append(back, more...)
		}
	}, &b)
	subs := make([]persistence.Subscription, 0, len(c.subs))
	for _, s := range c.subs {
		subs = append(subs, s.Subscription)
	}
	c.mu.Unlock()
	defer func() {
		more, over := e.groups.begun(e, c.h.id, unknown, subs)
		e.groups.settle(e, append(settled, over...))
		e.groups.takeBack(e, append(back, more...))
		e.groups.left(e, subs)
	}()
	if !ends {
		row.Disconnected = now
		row.Expires = 0
		if row.ExpiryInterval != never {
			row.Expires = now + int64(row.ExpiryInterval)*1000
		}
		b.Sessions = append(b.Sessions, row)
		if will != nil && delay > 0 {
			will.Due = now + int64(delay)*1000
			b.Wills = append(b.Wills, *will)
		}
	}
	if will != nil && will.Due == 0 {
		// Before the session's row is written: who goes on with the session is ahead of
		// that, and so is its next will of the removal of this one.
		e.surely("publishing a will", c.h.id, func() error { return e.publishWillNow(will) })
	}
	if e.nodes.on() {
		e.nodes.store.Observe(e.flight.newest()) // who reads the row is ahead of it: see follow
	}
	if !b.Empty() {
		e.commitSurely(&b, "putting a session away", c.h.id)
	}
	if will != nil && will.Due != 0 { // not before its row is there, which goes when it is published
		e.wills.add(will)
	}
	if ends {
		e.endClient(c, row)
		return
	}
	e.handlesMu.Lock()
	if len(c.subs) == 0 && c.h.live.Load() == nil {
		delete(e.handles, c.h.id)
	}
	e.handlesMu.Unlock()
}

// endClient ends the session of a client whose connection is gone.
func (e *Engine) endClient(c *client, row persistence.Session) {
	defer e.changing(c.h.id, slices.Collect(maps.Keys(c.subs)))()
	for filter := range c.subs {
		e.unroute(c.h, filter)
	}
	if c.core.Durable() {
		defer e.announceEnd(row.ID, c.subs)
	}
	if c.core.Durable() || c.spilled {
		if err := e.commit(&persistence.Batch{Delete: []persistence.Session{row}}); err != nil {
			e.log.Error("ending a session", sessionField(row.ID), errField(err))
		}
	}
	e.dropHandle(row.ID)
	e.queues.forget(row.ID)
	e.unclaim(c)
}

// endAtRest ends a session that nobody is connected to.
func (e *Engine) endAtRest(row persistence.Session) error {
	subs, err := e.store.Subscriptions(e.ctx, row.ID)
	if err != nil {
		return err
	}
	win, err := e.store.Window(e.ctx, row.ID)
	if err != nil {
		return err
	}
	// A will whose delay has not passed is sent when the session ends
	// [MQTT-3.1.3-9].
	if will := e.wills.take(row.ID); will != nil {
		replaced, err := e.replaced(will)
		if err != nil {
			e.wills.add(will)
			return err
		}
		if !replaced {
			e.publishWill(will)
		}
	}
	if err := e.commit(&persistence.Batch{Delete: []persistence.Session{row}}); err != nil {
		return err
	}
	h := e.handleFor(row.ID, true)
	ended := make(map[string]*subscription, len(subs))
	for _, sub := range subs {
		e.touch(row.ID, sub.Filter)
		e.unroute(h, sub.Filter)
		ended[sub.Filter] = nil
	}
	e.announceEnd(row.ID, ended)
	var held []session.Settled
	for _, s := range win.Sent {
		if s.Source != 0 && s.Step == persistence.Published {
			held = append(held, session.Settled{Source: s.Source, ID: s.ID})
		}
	}
	back, settled := e.groups.begun(e, row.ID, held, subs)
	e.groups.settle(e, settled)
	e.groups.takeBack(e, back)
	e.dropHandle(row.ID)
	e.queues.forget(row.ID)
	return nil
}

// commitSurely commits a batch, however long the store is away: without it what a
// member has of a shared group would be nobody's. It gives up when the engine stops.
func (e *Engine) commitSurely(b *persistence.Batch, what string, id herald.SessionID) {
	e.surely(what, id, func() error { return e.commit(b) })
}

// surely does something with the store until it succeeds, or the engine stops.
func (e *Engine) surely(what string, id herald.SessionID, f func() error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := f()
		if err == nil {
			return
		}
		if wait == 50*time.Millisecond {
			e.log.Error(what, sessionField(id), errField(err))
		}
		select {
		case <-e.life.Done():
			return
		case <-time.After(wait):
		}
	}
}
