package engine

import (
	"errors"
	"math"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// never is the session expiry interval that does not end.
const never = math.MaxUint32

// Connack is what a client's CONNACK says.
type Connack struct {
	SessionPresent bool
	// SessionExpiry is told if it is not what the client asked for.
	HasSessionExpiry bool
	SessionExpiry    uint32
}

// ErrBusy is returned by Connect when there are too many clients.
var ErrBusy = errors.New("engine: too many clients")

// Accept looks at a CONNECT before its client is authenticated. It tells the
// keepalive to grant, in seconds, and whether that is not what was asked for;
// ok is false if the client was refused and told.
func (e *Engine) Accept(conn Conn) (keepalive uint16, override, ok bool) {
	con, err := wire.CheckConnect(conn.Connect())
	if err != nil {
		conn.Shutdown()
		return 0, false, false
	}
	if e.diverted(conn, &con) {
		return 0, false, false
	}
	if con.HasAuth { // no method is known [MQTT-4.12.0-1]
		conn.CloseAfter(nil, wire.AppendConnack(nil, con.Version, false, wire.ReasonAuthMethod, nil))
		return 0, false, false
	}
	if con.HasWill && con.WillQoS > e.cfg.MaxQoS {
		conn.CloseAfter(nil, wire.AppendConnack(nil, con.Version, false, wire.ReasonQoS, nil))
		return 0, false, false
	}
	if con.HasWill && reserved(con.WillTopic) {
		conn.CloseAfter(nil, wire.AppendConnack(nil, con.Version, false, wire.ReasonNotAuthorized, nil))
		return 0, false, false
	}
	keepalive = con.Keepalive
	if m := e.cfg.MaxKeepalive; m > 0 && (keepalive == 0 || keepalive > m) {
		keepalive = m
	}
	conn.SetKeepalive(time.Duration(keepalive) * time.Second)
	return keepalive, keepalive != con.Keepalive, true
}

// Connect claims the session of the authenticated client whose id is name and
// whose CONNECT conn holds: it takes it from an older connection, which gets 0x8E
// [MQTT-3.1.4-3], loads it or makes a new one, and attaches it to conn. It
// blocks for the store. After it, the caller sends CONNACK and calls
// Established. An error is ErrBusy or wraps herald.ErrUnavailable.
func (e *Engine) Connect(conn Conn, name string) (Connack, error) {
	if e.refusing.Load() {
		return Connack{}, herald.ErrUnavailable
	}
	con0, err := wire.CheckConnect(conn.Connect())
	if err != nil {
		return Connack{}, err
	}
	con := &con0
	now := e.now() // a client that came in time is in time, however long the store takes
	unlock := e.claims.lock(name)
	defer unlock()
	w := listen.NewWorker()
	defer w.Flush()
	e.takeOver(name, con, w)
	if e.cfg.MaxClients > 0 && e.connected() >= e.cfg.MaxClients {
		return Connack{}, ErrBusy
	}

	died, err := e.secure(name)
	if err != nil {
		return Connack{}, err
	}
	old, err := e.store.Session(e.ctx, persistence.Client, name)
	exists := err == nil
	if err != nil && !errors.Is(err, herald.ErrNotFound) {
		return Connack{}, err
	}
	if exists && (con.Clean || old.Expires != 0 && old.Expires <= now) {
		if err := e.endAtRest(old); err != nil {
			return Connack{}, err
		}
		exists = false
	}

	expiry, ack := e.expiry(con)
	durable := exists || expiry > 0
	row := persistence.Session{Kind: persistence.Client, Name: name}
	if exists {
		row = old
	} else {
		row.ID = e.newSessionID()
	}
	row.Version, row.ExpiryInterval, row.Expires = con.Version, expiry, 0
	row.Epoch++
	row.Connected, row.Disconnected = now, 0
	row.Node, row.Life = e.nodes.self.Node, e.nodes.self.Incarnation
	if exists && died {
		if err := e.nodes.store.Seal(e.ctx, row.ID); err != nil {
			return Connack{}, err
		}
	}

	c := &client{
		e: e, name: name, version: con.Version, row: row,
		lane: uint32(row.ID ^ row.ID>>22), conn: conn, in: conn,
		core: session.New(row.ID, durable),
		subs: make(map[string]*subscription),
		gone: make(chan struct{}), reading: newGate(),
	}
	var b persistence.Batch
	if durable {
		b.Sessions = []persistence.Session{row}
	}
	if con.HasWill {
		c.will = e.newWill(c, con, now)
		b.Wills = []persistence.Will{*c.will}
	} else if exists {
		b.WillsGone = []herald.SessionID{row.ID}
	}
	// A delayed will that is not due yet is not sent. One that is due goes before
	// the batch: its row is to go, not that of the will which takes its place.
	pending := e.wills.take(row.ID)
	if pending != nil && pending.Due <= now {
		e.publishWill(pending)
		pending = nil
	}
	if !b.Empty() {
		if err := e.commit(&b); err != nil {
			if pending != nil {
				e.wills.add(pending)
			}
			return Connack{}, err
		}
	}
	if durable {
		c.h = e.handleFor(row.ID, true)
	} else {
		c.h = &handle{id: row.ID}
	}
	c.core.Bound(e.cfg.Queue.sessionLimit())
	c.core.Keep(e.cfg.Memory)
	if durable {
		e.queues.begin(row.ID, name, !exists)
	}
	if exists {
		if err := e.loadSubscriptions(c); err != nil {
			return Connack{}, err
		}
	}
	if exists && e.nodes.on() {
		c.core.Distrust(e.env())
		c.routes = c.routesOf()
		at, err := e.announce(c.routes, nil, nil)
		if err != nil {
			return Connack{}, err
		}
		defer e.trusts.add(c, at)
	}
	e.clientsMu.Lock()
	e.clients[name] = c
	e.stats.ClientsMaximum.Store(max(e.stats.ClientsMaximum.Load(), int64(len(e.clients))))
	e.clientsMu.Unlock()
	conn.SetUser(c)
	ack.SessionPresent = exists
	return ack, nil
}

// expiry is the session expiry interval that a client gets.
func (e *Engine) expiry(con *wire.Connect) (uint32, Connack) {
	if con.Version != herald.V5 {
		switch {
		case con.Clean:
			return 0, Connack{}
		case e.cfg.ExpiryV3 == 0:
			return never, Connack{}
		}
		return e.cfg.ExpiryV3, Connack{}
	}
	x := con.SessionExpiry
	if e.cfg.ExpiryMax > 0 && x > e.cfg.ExpiryMax { // [MQTT-3.2.2-17]
		return e.cfg.ExpiryMax, Connack{HasSessionExpiry: true, SessionExpiry: e.cfg.ExpiryMax}
	}
	return x, Connack{}
}

// Established starts a session after its CONNACK was sent: from here on it is
// delivered to.
func (e *Engine) Established(conn Conn) {
	c, _ := conn.User().(*client)
	if c == nil {
		conn.CloseAfter(nil, nil) // it was told why
		return
	}
	con, err := wire.CheckConnect(conn.Connect())
	if err != nil {
		conn.Shutdown()
		return
	}
	conn.ReleaseConnect()
	p := session.Params{
		Version: c.version, ReceiveMaximum: e.cfg.ReceiveMaximum,
		MaxPacket: con.MaximumPacketSize, AliasMaximum: con.TopicAliasMaximum,
	}
	if con.Version == herald.V5 {
		p.ReceiveMaximum = min(p.ReceiveMaximum, int(con.ReceiveMaximum))
	}
	var win persistence.Window
	if c.core.Durable() {
		if win, err = e.store.Window(e.ctx, c.h.id); err != nil {
			w := listen.NewWorker()
			c.fail(wire.ReasonUnspecified, w)
			w.Flush()
			return
		}
	}
	w := listen.NewWorker()
	e.begin(c, p, win, w)
	if err := e.attendAll(c); err != nil {
		e.log.Warn("joining shared groups", errField(err))
		c.fail(wire.ReasonUnavailable, w)
	}
	e.groups.joined(e, c, w)
	w.Flush()
}

// begin attaches a session to its connection: it resends what was under way, and
// publishes find it from here on.
func (e *Engine) begin(c *client, p session.Params, win persistence.Window, w *listen.Worker) {
	s := e.scratch(w)
	c.mu.Lock()
	defer c.unlock(w, s)
	if c.conn == nil {
		return
	}
	c.attached.Store(true)
	c.h.live.Store(c)
	env := e.env()
	fx := c.begin(s)
	c.core.Attach(p, win, env, fx)
	e.end(c, env, w, s)
	if len(win.Sent) > 0 {
		e.restoreForeign(c, win.Sent)
	}
	e.resumeRetained(c)
}

// takeOver puts an older connection of the client away and waits until all that
// it had under way is committed.
func (e *Engine) takeOver(name string, con *wire.Connect, w *listen.Worker) {
	e.clientsMu.RLock()
	old := e.clients[name]
	e.clientsMu.RUnlock()
	if old == nil {
		return
	}
	old.mu.Lock()
	conn := old.conn
	if conn != nil {
		old.ending.takenOver = true
	}
	old.mu.Unlock()
	if conn != nil {
		e.stats.TakeOvers.Add(1)
		var goodbye []byte // nothing comes before CONNACK [MQTT-3.14.0-1]
		if old.attached.Load() {
			goodbye = wire.AppendDisconnect(nil, old.version, wire.ReasonTakenOver, "", "")
		}
		conn.CloseAfter(w, goodbye)
		w.Flush()
		e.detach(old, con)
	}
	<-old.gone
}

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
	e.bg.Add(1)
	go func() {
		defer e.bg.Done()
		e.detach(c, nil)
	}()
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
		more, over := e.groups.begun(e, unknown, subs)
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
	if !b.Empty() {
		e.commitSurely(&b, "putting a session away", c.h.id)
	}
	switch {
	case will == nil:
	case will.Due != 0: // not before its row is there, which goes when it is published
		e.wills.add(will)
	default:
		e.publishWill(will)
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
	for _, sub := range c.subs {
		e.touch(c.h.id, sub.Filter)
		e.unroute(c.h, sub.Filter)
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
		e.publishWill(will)
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
	back, settled := e.groups.begun(e, held, subs)
	e.groups.settle(e, settled)
	e.groups.takeBack(e, back)
	e.dropHandle(row.ID)
	e.queues.forget(row.ID)
	return nil
}

// commitSurely commits a batch, however long the store is away: without it what a
// member has of a shared group would be nobody's. It gives up when the engine stops.
func (e *Engine) commitSurely(b *persistence.Batch, what string, id herald.SessionID) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := e.commit(b)
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

// commit commits a batch and waits for it.
func (e *Engine) commit(b *persistence.Batch) error {
	done := make(chan error, 1)
	e.store.Commit(b, func(err error) { done <- err })
	return <-done
}

// Malformed answers a client that broke the protocol: the listener's handler.
func (e *Engine) Malformed(conn Conn, w *listen.Worker, err *wire.Error) {
	e.stats.Rejected.Add(1)
	var b []byte
	if v := conn.Version(); v == 0 {
		// Who sends a malformed CONNECT may be no MQTT client at all. Like
		// mosquitto and EMQX, Herald says nothing then; it does when the client
		// can do something about it.
		frame := conn.Connect()
		if frame != nil && (err.Reason == wire.ReasonVersion || err.Reason == wire.ReasonClientID) {
			con, _ := wire.CheckConnect(frame)
			b = wire.AppendConnack(nil, con.Version, false, err.Reason, nil)
		}
	} else {
		b = wire.AppendDisconnect(nil, v, err.Reason, "", "")
	}
	conn.CloseAfter(w, b)
	e.abandon(conn)
}

// Timeout ends a connection that was silent for too long: the listener's
// handler.
func (e *Engine) Timeout(conn Conn, w *listen.Worker) {
	conn.CloseAfter(w, wire.AppendDisconnect(nil, conn.Version(), wire.ReasonKeepalive, "", ""))
	e.abandon(conn)
}
