package engine

import (
	"errors"
	"fmt"
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
	if e.refused(conn, &con) {
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
func (e *Engine) Connect(conn Conn, name string) (ack Connack, err error) {
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
	if err := e.takeOver(name, con, w); err != nil {
		return Connack{}, err
	}
	if e.cfg.MaxClients > 0 && e.connected() >= e.cfg.MaxClients {
		return Connack{}, ErrBusy
	}

	why := toServe
	if con.Clean {
		why = toEnd
	}
	s, err := e.secure(name, why, conn.Gone)
	if err != nil {
		return Connack{}, err
	}
	defer func() {
		if err != nil && s.moved {
			e.wills.look() // one may have come with the session
		}
	}()
	old, err := s.row()
	exists := err == nil
	if err != nil && !errors.Is(err, herald.ErrNotFound) {
		return Connack{}, err
	}
	if s.moved && exists {
		e.follow()
	}
	if exists && con.Clean && e.nodes.on() && conn.Gone() {
		return Connack{}, errGone // another connection may have gone on with it
	}
	if exists && (con.Clean || old.Expires != 0 && old.Expires <= now) {
		if err := e.endAtRest(old); err != nil {
			return Connack{}, err
		}
		if s.moved && !con.Clean { // its owner was asked for a session that goes on
			e.wills.look()
		}
		exists = false
	}

	var subs func() ([]persistence.Subscription, error)
	if exists {
		subs = e.readAhead(old.ID)
	}

	expiry, granted := e.expiry(con)
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
	if exists && s.died {
		if err := e.nodes.store.Seal(e.ctx, row.ID); err != nil {
			return Connack{}, err
		}
	}
	if s.died {
		e.owners.sealed(name)
	}

	c := &client{
		e: e, name: name, username: string(con.Username), hasUsername: con.HasUsername, version: con.Version, row: row,
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
		c.will = e.newWill(c, con)
		b.Wills = []persistence.Will{*c.will}
	} else if exists {
		b.WillsGone = []herald.SessionID{row.ID}
	}
	// A delayed will that is not due yet is not sent. One that is due, or was to be sent
	// at once, goes before the batch: its row is to go, not that of the will which takes
	// its place.
	pending := e.wills.take(row.ID)
	if pending != nil && (pending.Due <= now || pending.Delay == 0) {
		if err := e.publishWillNow(pending); err != nil {
			e.wills.add(pending)
			return Connack{}, err
		}
		pending = nil
	}
	if !b.Empty() {
		defer func() { e.undoing(name, row, err == nil || !durable) }()
		if err := e.commit(&b); err != nil {
			if pending != nil {
				e.wills.add(pending)
			}
			return Connack{}, err
		}
	}
	// What was not in while the lease ran may not have been seen by who finishes this life:
	// a will, say.
	if e.fenced() {
		return Connack{}, fmt.Errorf("%w: this node's lease has run out", herald.ErrUnavailable)
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
		all, err := subs()
		if err != nil {
			return Connack{}, err
		}
		for _, s := range all {
			c.subs[s.Filter] = &subscription{Subscription: s}
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
	granted.SessionPresent = exists
	return granted, nil
}

// readAhead begins to read a session's subscriptions and returns what waits for them.
// In a cluster that is a round trip, which is under way while the session's row is
// written.
func (e *Engine) readAhead(id herald.SessionID) func() ([]persistence.Subscription, error) {
	if !e.nodes.on() {
		return func() ([]persistence.Subscription, error) { return e.store.Subscriptions(e.ctx, id) }
	}
	var subs []persistence.Subscription
	var err error
	read := make(chan struct{})
	go func() {
		defer close(read)
		subs, err = e.store.Subscriptions(e.ctx, id)
	}()
	return func() ([]persistence.Subscription, error) {
		<-read
		return subs, err
	}
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
	e.endIfBanned(c, w) // since it was accepted
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
// While the store is away, that may be long: then it returns an error.
func (e *Engine) takeOver(name string, con *wire.Connect, w *listen.Worker) error {
	e.clientsMu.RLock()
	old := e.clients[name]
	e.clientsMu.RUnlock()
	if old == nil {
		return nil
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
		e.jobs.run(func() { e.detach(old, con) })
	}
	look := time.NewTicker(takeOverLook)
	defer look.Stop()
	for {
		select {
		case <-old.gone:
			return nil
		case <-look.C:
			if err := e.store.Health(); err != nil {
				return fmt.Errorf("%w: the session cannot be put away: %w", herald.ErrUnavailable, err)
			}
		}
	}
}

// takeOverLook is how often a connection that waits for the one before it looks whether
// that can be put away.
const takeOverLook = 100 * time.Millisecond

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
