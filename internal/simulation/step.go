package simulation

import (
	"slices"
	"time"
)

// kinds are what a step can be.
var kinds = [...]struct {
	name   string
	weight int
	do     func(*World)
}{
	{"publish", 20, (*World).doPublish},
	{"carry", 30, (*World).doCarry},
	{"read", 30, (*World).doRead},
	{"answer", 25, (*World).doAnswer},
	{"sync", 30, (*World).doSync},
	{"tell", 30, (*World).doTell},
	{"time", 6, (*World).doTime},
	{"connect", 10, (*World).doConnect},
	{"drop", 4, (*World).doDrop},
	{"notice", 4, (*World).doNotice},
	{"subscribe", 5, (*World).doSubscribe},
	{"unsubscribe", 1, (*World).doUnsubscribe},
	{"disconnect", 1, (*World).doDisconnect},
	{"takeover", 1, (*World).doTakeOver},
	{"crash", 2, (*World).crash},
	{"restart", 1, (*World).restart},
}

// step does one thing.
func (w *World) step() {
	sum := 0
	for _, k := range w.weights {
		sum += k
	}
	n := w.rng.IntN(sum)
	for i, k := range w.weights {
		if n -= k; n < 0 {
			kinds[i].do(w)
			return
		}
	}
}

// some returns a client for which ok holds, or nil.
func (w *World) some(ok func(*client) bool) *client {
	var all []*client
	for _, c := range w.clients {
		if ok(c) {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

// few is a small number, mostly.
func (w *World) few() int {
	return 1 + w.rng.IntN(1<<w.rng.IntN(6))
}

func ready(c *client) bool { return c.up && !c.leaving }

func (w *World) doPublish() {
	c := w.some(func(c *client) bool { return ready(c) && c.room() > 0 })
	if c == nil {
		return
	}
	kind := w.rng.IntN(10)
	topic := pick(w.rng, "t/0", "t/1", "t/1")
	if kind < 2 {
		topic = pick(w.rng, "s/0", "s/1")
	}
	retain := kind == 2
	if retain { // one publisher per topic, so that there is a last one
		topic = "r/" + c.name
	}
	qos := byte(1 + w.rng.IntN(2))
	if w.rng.IntN(12) == 0 && !retain && kind >= 2 {
		qos = 0
	}
	if retain { // and of one QoS: a QoS 1 message sent again may come after a newer one of QoS 2
		qos = 1 + c.name[1]%2
	}
	for range min(w.few(), c.room()) {
		if w.rng.IntN(4) == 0 && !retain {
			qos = max(qos, 1)
			qos = 3 - qos
		}
		m := w.ledger.message(c.gen, topic, qos, retain, retain && w.rng.IntN(4) == 0)
		c.publish(m)
		w.logf("%s publishes %q to %s, QoS %d", c.name, m.payload, topic, qos)
		if retain {
			break
		}
	}
}

func (w *World) doCarry() {
	c := w.some(func(c *client) bool { return c.up && len(c.net) > 0 })
	if c == nil {
		return
	}
	n := min(w.few(), len(c.net))
	w.logf("%d of %d packets of %s arrive", n, len(c.net), c.name)
	c.carry(n)
}

func (w *World) doRead() {
	c := w.some(func(c *client) bool { return c.conn != nil && (c.conn.pending.Load() > 0 || c.conn.closed()) })
	if c != nil {
		w.fail(c.read(w.few()))
	}
}

func (w *World) doAnswer() {
	c := w.some(func(c *client) bool { return ready(c) && len(c.owed) > 0 })
	if c != nil {
		c.answer(w.few())
	}
}

func (w *World) doSync() {
	if n, _ := w.store.Queued(); n > 0 {
		k := min(w.few(), n)
		w.logf("%d of %d batches are durable", k, n)
		w.store.Sync(k)
	}
}

func (w *World) doTell() {
	if _, n := w.store.Queued(); n > 0 {
		k := min(w.few(), n)
		w.logf("%d of %d commits are told", k, n)
		w.store.Tell(k)
	}
}

func (w *World) doTime() {
	d := pick(w.rng, time.Millisecond, 50*time.Millisecond, 300*time.Millisecond, 1100*time.Millisecond, 4*time.Second)
	w.logf("%v passes", d)
	time.Sleep(d)
}

func (w *World) doConnect() {
	c := w.some(func(c *client) bool { return c.conn == nil })
	if c != nil {
		w.connect(c)
	}
}

func (w *World) doTakeOver() {
	c := w.some(func(c *client) bool { return c.conn != nil })
	if c != nil {
		w.connect(c)
	}
}

// connect lets a client connect; the first never gives up its session, nor does a
// member of a group in which nothing may be lost: what it was sent at QoS 2 would
// go to nobody else [MQTT-4.8.2-5].
func (w *World) connect(c *client) {
	sub := c.subs["$share/g/s/#"]
	stays := c == w.clients[0] || sub != nil && w.ledger.groups[sub.filter].exact
	clean := !c.durable || !stays && w.rng.IntN(12) == 0
	w.logf("%s connects, clean %v", c.name, clean)
	c.connect(clean)
}

func (w *World) doDrop() {
	c := w.some(func(c *client) bool { return c.conn != nil })
	if c != nil {
		noted := w.rng.IntN(2) == 0
		w.logf("%s loses its connection, noted %v", c.name, noted)
		c.lose(noted)
	}
}

func (w *World) doNotice() {
	c := w.some(func(c *client) bool { return len(c.ghosts) > 0 })
	if c == nil {
		return
	}
	w.logf("a lost connection of %s is noted", c.name)
	if g := c.ghosts[0]; w.rng.IntN(2) == 0 {
		g.bring(input{timeout: true})
	} else {
		g.hangUp()
	}
}

func (w *World) doSubscribe() {
	c := w.some(func(c *client) bool { return ready(c) && len(c.asked) == 0 })
	if c == nil {
		return
	}
	filter := pick(w.rng, "t/#", "t/0", "t/1", "t/+", "r/#", "r/c0", "r/c1")
	qos := byte(w.rng.IntN(3))
	if w.rng.IntN(8) > 0 {
		qos = max(qos, 1)
	}
	if w.rng.IntN(4) == 0 && len(w.ledger.groups) > 0 {
		if sub := c.subs["$share/g/s/#"]; sub != nil && sub.ever {
			return
		}
		gr := w.ledger.groups["$share/g/s/#"]
		if gr.exact && (!c.lasting || c.expiry > 0) {
			return
		}
		filter, qos = gr.filter, gr.qos()
	}
	w.logf("%s subscribes to %s at QoS %d", c.name, filter, qos)
	c.subscribe(filter, qos)
}

func (w *World) doUnsubscribe() {
	c := w.some(func(c *client) bool { return ready(c) && len(c.subs) > 0 && len(c.asked) == 0 })
	if c == nil {
		return
	}
	var filters []string
	for f, s := range c.subs {
		if s.active && f != "w/#" && !(shared(f) && c == w.clients[0]) {
			filters = append(filters, f)
		}
	}
	if len(filters) > 0 {
		slices.Sort(filters)
		f := pick(w.rng, filters...)
		w.logf("%s unsubscribes from %s", c.name, f)
		c.unsubscribe(f)
	}
}

func (w *World) doDisconnect() {
	c := w.some(ready)
	if c != nil {
		w.logf("%s disconnects", c.name)
		c.disconnect()
	}
}
