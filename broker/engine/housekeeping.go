package engine

import (
	"context"
	"errors"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

const maxID = herald.ID(math.MaxUint64)

const (
	// tick is how often expiry is looked at.
	tick = 250 * time.Millisecond
	// markEvery is how often low-water marks are saved: what a session was sent
	// and has acknowledged within this time may be sent again after a crash, at
	// QoS 1.
	markEvery = time.Second
	// expireAtOnce bounds the sessions that end in one go.
	expireAtOnce = 256
)

// background runs f on a goroutine of its own, of which a bounded number run at
// the same time.
func (e *Engine) background(f func()) {
	e.jobs.run(func() {
		e.slots <- struct{}{}
		defer func() { <-e.slots }()
		e.guard("background", f)
	})
}

// backgroundSlots bounds the reads of queues and retained messages that go on at
// the same time, so that they leave room for what is live.
const backgroundSlots = 16

// load reads what must be known before the first connection: subscriptions, and
// what a crash left connected.
func (e *Engine) load(ctx context.Context) error {
	started := e.now()
	n, err := e.scanSubscriptions(ctx)
	if err != nil {
		return err
	}
	left := 0
	if !e.nodes.on() { // else whoever found the last life dead has seen to it
		if left, err = e.loadSessions(ctx, started); err != nil {
			return err
		}
	}
	e.loaded.Store(true)
	if err := e.recoverOutbox(ctx); err != nil {
		return err
	}
	e.log.Info("sessions loaded", zap.Int("subscriptions", n), zap.Int("were_connected", left),
		zap.Int64("ms", e.now()-started))
	return nil
}

// loadSessions sees to what a crash left connected: it tells how many.
func (e *Engine) loadSessions(ctx context.Context, started int64) (int, error) {
	wills, err := e.store.Wills(ctx, math.MaxInt64, true, math.MaxInt)
	if err != nil {
		return 0, err
	}
	of := sessionsOf(wills)
	var b persistence.Batch
	if err := e.store.ScanSessions(ctx, func(s persistence.Session) error {
		of.see(s)
		if s.Kind == persistence.Client && s.Disconnected == 0 {
			b.Sessions = append(b.Sessions, disconnected(s, started))
		}
		if s.Kind == persistence.Client {
			e.queues.begin(s.ID, s.Name, false)
		}
		if s.Kind == persistence.Group {
			return e.groups.restore(e, s)
		}
		return nil
	}); err != nil {
		return 0, err
	}
	// Clients that were connected when the process died have lost their
	// connection without a DISCONNECT [MQTT-3.1.2-8].
	for i := range wills {
		w := &wills[i]
		if w.Due == 0 {
			w.Due = of.due(w, started)
			b.Wills = append(b.Wills, *w)
		}
		e.wills.add(w)
	}
	if !b.Empty() {
		if err := e.commit(&b); err != nil {
			return 0, err
		}
	}
	return len(b.Sessions), nil
}

// restore makes a stored group known although no member may be left.
func (gs *groups) restore(e *Engine, row persistence.Session) error {
	defer gs.joins.lock(row.Name)()
	if gs.byKey(row.Name) != nil {
		return nil
	}
	for i := 0; i < len(row.Name); i++ {
		if row.Name[i] == '/' {
			_, err := gs.open(e, row.Name, row.Name[i+1:], true)
			return err
		}
	}
	return nil
}

// housekeep does what time asks for, until Stop.
func (e *Engine) housekeep() {
	t := time.NewTicker(tick)
	defer t.Stop()
	marked := time.Now()
	e.sys.start(e)
	for {
		select {
		case <-e.quit:
			e.mark()
			return
		case now := <-t.C:
			wall := e.now()
			e.wills.publishDue(e, wall)
			if e.leads() {
				e.expireSessions(wall)
			}
			e.adoptOrphans(wall)
			e.adoptStray(wall)
			if now.Sub(marked) >= markEvery {
				marked = now
				e.mark()
			}
			e.sys.tick(e, now)
		}
	}
}

// mark saves the low-water marks of the sessions that moved.
func (e *Engine) mark() {
	e.clientsMu.RLock()
	cs := make([]*client, 0, len(e.clients))
	for _, c := range e.clients {
		if c.core.Durable() || c.h.spilled.Load() != 0 {
			cs = append(cs, c)
		}
	}
	e.clientsMu.RUnlock()
	for _, c := range cs {
		c.mu.Lock()
		blocked := c.conn != nil && c.core.Blocked()
		if c.conn != nil && c.core.Dirty() {
			// Under the lock: what the session stores next must come after it.
			b := &persistence.Batch{Lazy: true}
			c.core.MarkInto(e.env(), b)
			e.store.Commit(b, nil)
		}
		c.mu.Unlock()
		if blocked {
			core := c.core
			e.worker(c).call(func(w *listen.Worker) { e.step(c, core, w, core.Pump) })
		}
	}
	for _, g := range e.groups.all() {
		g.mu.Lock()
		if g.core.Dirty() {
			b := &persistence.Batch{Lazy: true}
			g.core.MarkInto(e.env(), b)
			e.store.Commit(b, nil)
		}
		g.mu.Unlock()
	}
}

// expireSessions ends sessions whose time has run out [MQTT-3.1.2-23].
func (e *Engine) expireSessions(now int64) {
	for {
		rows, err := e.store.ExpiredSessions(e.ctx, now, expireAtOnce)
		if err != nil || len(rows) == 0 {
			return
		}
		n := 0
		for _, row := range rows {
			if row.Kind == persistence.Group {
				err = e.groups.expire(e, row)
			} else {
				err = e.expireClient(row, now)
			}
			switch {
			case errors.Is(err, errStays):
			case err != nil:
				e.log.Error("ending a session", sessionField(row.ID), errField(err))
				return
			default:
				e.stats.SessionsExpired.Add(1)
				n++
			}
		}
		if n < expireAtOnce {
			return
		}
	}
}

// expireClient ends one, unless its client has just come back (errStays).
func (e *Engine) expireClient(row persistence.Session, now int64) error {
	unlock := e.claims.lock(row.Name)
	defer unlock()
	over := func() (again persistence.Session, ok bool) {
		again, err := e.store.Session(e.ctx, persistence.Client, row.Name)
		return again, err == nil && again.ID == row.ID && again.Expires != 0 && again.Expires <= now
	}
	if _, ok := over(); !ok {
		return errStays
	}
	looked := time.Now()
	stays := func() bool { // while its owner does not answer
		if time.Since(looked) < time.Second {
			return false
		}
		_, ok := over()
		looked = time.Now()
		return !ok
	}
	k := ownerKey{persistence.Client, row.Name}
	moved := e.nodes.on() && !e.owners.owns(k)
	if _, err := e.claim(e.ctx, k, toExpire, stays); errors.Is(err, errGone) {
		return errStays
	} else if err != nil {
		return err
	}
	again, ok := over()
	if !ok {
		if moved {
			e.wills.look()
		}
		return errStays
	}
	if err := e.endAtRest(again); err != nil {
		return err
	}
	e.owners.sealed(row.Name) // there is nothing left to be sealed
	return nil
}

// expired tells, for another node that wants to end a session of this one, whether its
// time has run out for this node, too. That may know of clocks that are ahead of its own.
// The name's lock is held.
func (e *Engine) expired(name string) (bool, error) {
	if e.connectedAs(name) { // what its row says now is of before, or is about to be
		return false, nil
	}
	row, err := e.store.Session(e.life, persistence.Client, name)
	if errors.Is(err, herald.ErrNotFound) {
		return true, nil
	}
	now := max(e.now(), e.Clock().Time().UnixMilli())
	return row.Expires != 0 && row.Expires <= now, err
}

// publishOwn publishes a message that no client is waiting to have acknowledged,
// in a shipment that may hold more.
func (e *Engine) publishOwn(m *herald.Message, sh *shipment) {
	run := wire.MakeRun([]*herald.Message{m})
	r := routed{run: run, from: m.Publisher}
	ids, p := e.flight.begin(e.ids, e.now(), 1)
	m.ID = ids.At(0)
	sh.passage = []*passage{p}
	match := e.index.NewCache(1).Match([]byte(m.Topic))
	e.match(match, &r, &sh.batch)
	if m.Retain {
		sh.batch.Retain = []*herald.Message{m}
	}
	sh.runs = []routed{r}
	if sh.batch.Empty() {
		e.worker(nil).call(func(w *listen.Worker) {
			e.deliver(sh, w)
			e.landed(sh)
		})
		return
	}
	e.store.Commit(&sh.batch, func(err error) {
		sh.err = err
		e.worker(nil).put(sh)
	})
}
