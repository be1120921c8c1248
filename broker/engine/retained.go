package engine

import (
	"errors"
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// Nothing is missed between a subscription's retained messages and its live ones:
// a publish with RETAIN gets its ID before it is matched, a subscription takes
// upTo after it is routed. So a message below upTo is stored when all that was
// under way then is through, and is sent as retained; one above has met the
// subscription.

// retainedJob is a wildcard subscription whose retained messages are being sent:
// some at a time, as the client takes them, so that neither memory nor others
// notice how many there are.
type retainedJob struct {
	sub   *subscription
	after string    // topics up to here were sent
	upTo  herald.ID // later ones came as publishes
	busy  bool      // a chunk is on its way
}

// retainedChunk is how many are read at once.
const (
	retainedChunk = 64
	retainedBytes = 256 << 10
)

// sendRetained sends the retained messages of new subscriptions.
func (e *Engine) sendRetained(c *client, subs []*subscription, upTo herald.ID, w *listen.Worker) {
	var exact []*subscription
	var topics []string
	for _, sub := range subs {
		if e.sys.matches(sub.Filter) {
			e.sendSys(c, sub, w)
		}
		if herald.Wildcard(sub.Filter) {
			c.mu.Lock()
			c.retained = append(c.retained, &retainedJob{sub: sub, upTo: upTo})
			e.moreRetained(c)
			c.mu.Unlock()
			continue
		}
		exact = append(exact, sub)
		topics = append(topics, sub.Filter)
	}
	found, err := e.retainedOf(topics)
	if err != nil { // it would miss them
		e.log.Error("reading retained messages", errField(err))
		c.fail(wire.ReasonBusy, w)
		return
	}
	for i, sub := range exact {
		var due []*herald.Message
		if m := found[i]; m != nil && m.ID < upTo && (m.Expires == 0 || m.Expires > e.now()) {
			due = []*herald.Message{m}
		}
		var row *persistence.Subscription
		if sub.RetainedUpTo != 0 { // a crash until now would have had it sent with the next connection
			done := sub.Subscription
			done.RetainedAfter, done.RetainedUpTo = "", 0
			row = &done
		}
		if len(due) > 0 || row != nil {
			e.giveRetained(c, sub, due, row)
		}
	}
}

// retainedOf reads the retained messages of topics: nil where there is none.
func (e *Engine) retainedOf(topics []string) ([]*herald.Message, error) {
	if r, ok := e.store.(persistence.RetainedReader); ok && len(topics) > 1 {
		return r.RetainedOf(e.ctx, topics)
	}
	found := make([]*herald.Message, len(topics))
	for i, topic := range topics {
		m, err := e.store.Retained(e.ctx, topic)
		switch {
		case err == nil:
			found[i] = m
		case !errors.Is(err, herald.ErrNotFound):
			return nil, err
		}
	}
	return found, nil
}

// resumeRetained goes on where the connection before was cut; c.mu is held.
func (e *Engine) resumeRetained(c *client) {
	for _, sub := range c.subs {
		if sub.RetainedUpTo != 0 {
			c.retained = append(c.retained, &retainedJob{sub: sub, after: sub.RetainedAfter, upTo: sub.RetainedUpTo})
		}
	}
	e.moreRetained(c)
}

// moreRetained reads the next chunk of the client's first job in the background;
// c.mu is held.
func (e *Engine) moreRetained(c *client) {
	if len(c.retained) == 0 || c.retained[0].busy || c.conn == nil || c.conn.Room() <= 0 {
		return
	}
	j := c.retained[0]
	j.busy = true
	e.background(func() {
		msgs, more, err := e.store.ScanRetained(e.ctx, j.sub.Filter, j.after, retainedChunk, retainedBytes, nil)
		if err != nil {
			if e.ctx.Err() == nil {
				e.log.Error("reading retained messages", errField(err))
			}
			w := listen.NewWorker()
			c.fail(wire.ReasonUnspecified, w)
			w.Flush()
			return
		}
		now := e.now()
		due := msgs[:0:0]
		for _, m := range msgs {
			if m.ID < j.upTo && (m.Expires == 0 || m.Expires > now) {
				due = append(due, m)
			}
		}
		if len(msgs) > 0 {
			j.after = msgs[len(msgs)-1].Topic
		}
		next := func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			j.busy = false
			if !more {
				for i := range c.retained {
					if c.retained[i] == j {
						c.retained = append(c.retained[:i:i], c.retained[i+1:]...)
						break
					}
				}
			}
			if c.conn != nil && c.core.Wants() {
				e.moreRetained(c)
			}
		}
		sub := j.sub.Subscription
		sub.RetainedAfter, sub.RetainedUpTo = j.after, j.upTo
		if !more {
			sub.RetainedAfter, sub.RetainedUpTo = "", 0
		}
		if len(due) == 0 && more {
			next()
			return
		}
		e.giveRetainedThen(c, j.sub, due, &sub, next)
	})
}

func (e *Engine) giveRetained(c *client, sub *subscription, msgs []*herald.Message, row *persistence.Subscription) {
	e.giveRetainedThen(c, sub, msgs, row, nil)
}

// giveRetainedThen delivers retained messages for a subscription and calls then
// on a worker. For a durable session they go through its inbox, under IDs of
// their own, and row, if there is one, notes in the same commit how far it is.
func (e *Engine) giveRetainedThen(c *client, sub *subscription, msgs []*herald.Message, row *persistence.Subscription, then func()) {
	g := &session.Grant{QoS: sub.QoS, Retain: true}
	if sub.Identifier != 0 {
		g.Identifiers = []uint32{sub.Identifier}
	}
	copies := make([]herald.Message, len(msgs))
	ptrs := make([]*herald.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = *m
		copies[i].Retain = true
		ptrs[i] = &copies[i]
	}
	durable := c.core.Durable() && sub.QoS > 0
	if durable {
		// What is sent at QoS 0 does not go through the inbox.
		var low []*herald.Message
		high := ptrs[:0:0]
		for _, m := range ptrs {
			if m.QoS == 0 {
				low = append(low, m)
			} else {
				high = append(high, m)
			}
		}
		if len(low) > 0 {
			e.runTo(c, wire.MakeRun(low), g, nil)
		}
		ptrs = high
	}
	if !durable {
		for _, m := range ptrs {
			m.ID = 0 // none of an inbox: were the session given one meanwhile, its mark would not pass it
		}
		e.runTo(c, wire.MakeRun(ptrs), g, then)
		return
	}
	sh := new(shipment)
	sh.then = func() {
		if sh.err != nil { // it comes back for them: how far it was is stored
			w := listen.NewWorker()
			c.fail(wire.ReasonBusy, w)
			w.Flush()
			return
		}
		if then != nil {
			then()
		}
	}
	if len(ptrs) > 0 {
		ids, p := e.flight.begin(e.ids, e.now(), len(ptrs))
		for i := range ptrs {
			ptrs[i].ID = ids.At(i)
		}
		sh.passage = []*passage{p}
		sh.batch.Spreads = []persistence.Spread{{Messages: ptrs, Targets: []persistence.Target{{
			Session: c.h.id, QoS: sub.QoS, Retain: true, Identifiers: g.Identifiers,
		}}}}
		sh.runs = []routed{{run: wire.MakeRun(ptrs), to: []due{{c.h, g}}, local: true}}
	}
	if row != nil {
		sh.batch.Subscribe = []persistence.SubscriptionOf{{Session: c.h.id, Subscription: *row}}
		sh.batch.Lazy = len(ptrs) == 0 && row.RetainedUpTo == 0 // else the next chunk waits for it
	}
	if sh.batch.Empty() {
		if then != nil {
			e.worker(c).call(func(*listen.Worker) { then() })
		}
		return
	}
	// Unsubscribe and the end of the connection come before, and nothing is sent,
	// or after.
	c.mu.Lock()
	if c.conn != nil && c.subs[sub.Filter] == sub {
		if row != nil { // how far it is, for one that takes its place
			sub.RetainedAfter, sub.RetainedUpTo = row.RetainedAfter, row.RetainedUpTo
		}
		e.store.Commit(&sh.batch, func(err error) {
			sh.err = err
			e.worker(nil).put(sh)
		})
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	for _, p := range sh.passage {
		e.flight.finish(p)
	}
	if then != nil { // others wait behind it
		e.worker(c).call(func(*listen.Worker) { then() })
	}
}

// replaceRetained ends the job of a subscription, if it has one, because fresh
// takes its place; nil: it goes. One that is not to get the retained messages
// only because the filter was there before gets those that are still due
// [MQTT-3.3.1-10]. c.mu is held.
func (c *client) replaceRetained(filter string, fresh *subscription, wants bool) {
	i := slices.IndexFunc(c.retained, func(j *retainedJob) bool { return j.sub.Filter == filter })
	if i < 0 {
		return
	}
	old := c.retained[i]
	c.retained = slices.Delete(slices.Clone(c.retained), i, i+1)
	if fresh == nil || wants || fresh.RetainHandling != 1 {
		return
	}
	if c.core.Durable() && old.sub.QoS > 0 && old.sub.RetainedUpTo == 0 {
		return // all are on their way
	}
	if !c.core.Durable() || old.sub.QoS == 0 {
		c.retained = append(c.retained, old)
		return
	}
	job := &retainedJob{sub: fresh, after: old.sub.RetainedAfter, upTo: old.upTo}
	fresh.RetainedAfter, fresh.RetainedUpTo = job.after, job.upTo
	c.retained = append(c.retained, job)
}

// runTo delivers messages of one run, each with its own QoS, to one client.
func (e *Engine) runTo(c *client, run *wire.Run, g *session.Grant, then func()) {
	core := c.core
	e.worker(c).call(func(w *listen.Worker) {
		e.step(c, core, w, func(env session.Env, fx *session.Effects) {
			fx.Limit += 2 * retainedBytes // a chunk is asked for when there is room, and goes out whole
			core.DeliverMixed(run, g, env, fx)
		})
		if then != nil {
			then()
		}
	})
}
