package engine

import (
	"net"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

func sessionField(id herald.SessionID) zap.Field { return zap.Uint64("session", uint64(id)) }
func errField(err error) zap.Field               { return zap.Error(err) }

// Subscribe carries out a client's SUBSCRIBE and answers it. It blocks for the
// store: SUBACK goes out when the subscriptions are stored and routed.
func (e *Engine) Subscribe(conn Conn, req *wire.Subscribe) {
	c, _ := conn.User().(*client)
	if c == nil {
		conn.Shutdown()
		return
	}
	w := listen.NewWorker()
	defer w.Flush()
	codes := make([]byte, len(req.Filters))
	fresh := make([]*subscription, len(req.Filters))
	existed := make([]bool, len(req.Filters))
	var b persistence.Batch
	release, ok := c.intake()
	if !ok {
		return
	}
	defer release()
	c.mu.Lock()
	retained := false
	var add, remove []string
	var events [][]byte
	last := make(map[string]int, len(req.Filters)) // where the request has a filter last
	have := len(c.subs)
	for i, f := range req.Filters {
		filter := string(f.Filter)
		if code := e.mayRead(conn, filter); code != 0 {
			codes[i] = code
			continue
		}
		old := c.subs[filter]
		if j, ok := last[filter]; ok {
			old = fresh[j]
		}
		if old == nil {
			if e.cfg.MaxSubscriptions > 0 && have >= e.cfg.MaxSubscriptions {
				codes[i] = wire.ReasonQuota
				e.stats.OverSubscribed.Add(1)
				continue
			}
			have++
		}
		last[filter] = i
		sub := &subscription{Subscription: persistence.Subscription{
			Filter: filter, QoS: min(f.QoS, e.cfg.MaxQoS), NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished,
			RetainHandling: f.RetainHandling, Identifier: req.Identifier,
		}}
		codes[i] = sub.QoS
		existed[i] = old != nil
		wants := e.wantsRetained(sub, existed[i], f.Shared)
		c.replaceRetained(filter, sub, wants)
		if wants {
			retained = true
			if sub.QoS > 0 && c.core.Durable() {
				sub.RetainedUpTo = maxID // lowered when the first are sent, 0 when all are
			}
		}
		fresh[i] = sub
	}
	var routed []persistence.Subscription // copies: retained messages may be on their way for one
	var filters []string
	for i, sub := range fresh {
		if sub == nil || last[sub.Filter] != i {
			continue // refused, or the request has the filter again
		}
		if old := c.subs[sub.Filter]; old != nil {
			remove = append(remove, want(c.h.id, c.core.Durable(), &old.Subscription)...)
		}
		add = append(add, want(c.h.id, c.core.Durable(), &sub.Subscription)...)
		c.subs[sub.Filter] = sub
		routed = append(routed, sub.Subscription)
		filters = append(filters, sub.Filter)
		if c.core.Durable() {
			b.Subscribe = append(b.Subscribe, persistence.SubscriptionOf{Session: c.h.id, Subscription: sub.Subscription})
			events = append(events, appendSubscribed(c.h.id, &sub.Subscription))
		}
	}
	c.mu.Unlock()
	// The highest QoS first: a publish that comes between two of them gets what the
	// request as a whole grants it [MQTT-3.3.5-1].
	slices.SortStableFunc(routed, func(a, b persistence.Subscription) int { return int(b.QoS) - int(a.QoS) })
	defer e.changing(c.h.id, filters)()
	for _, sub := range routed {
		if err := e.routeTo(c.h, sub); err != nil {
			e.log.Error("making a shared group", errField(err))
			if e.nodes.on() { // it would get nothing
				c.fail(wire.ReasonUnavailable, w)
				return
			}
		}
		// Whoever made the group has announced it, and may not know yet that everybody has
		// taken that in, or have failed to: the SUBACK waits for all of them to know it.
		if key, shared := shareKey(sub.Filter); shared && e.nodes.on() {
			if id, ok := e.groupID(key); ok {
				events = append(events, appendGroup(eventGroup, id, key))
			}
		}
	}
	if !b.Empty() {
		if err := e.commit(&b); err != nil {
			e.log.Error("storing subscriptions", errField(err))
			c.fail(wire.ReasonBusy, w)
			return
		}
	}
	if err := e.announceFor(c, add, remove, events); err != nil {
		e.log.Warn("other nodes have not taken a subscription in", errField(err))
		c.fail(wire.ReasonUnavailable, w)
		return
	}
	e.joined(c, routed)
	release()
	conn.End(w, wire.AppendSuback(conn.Begin(), c.version, req.PacketID, codes))
	e.groups.joined(e, c, w)
	if !retained {
		return
	}
	w.Flush()         // SUBACK waits for no retained message
	upTo := e.newID() // what is retained later comes as a publish
	e.flight.pass(e.ctx)
	if e.nodes.on() {
		upTo = e.Clock()
		e.nodes.passed(e.quit, upTo)
	}
	var wanting []*subscription
	for i, sub := range fresh {
		if sub != nil && e.wantsRetained(sub, existed[i], req.Filters[i].Shared) {
			wanting = append(wanting, sub)
		}
	}
	e.sendRetained(c, wanting, upTo, w)
}

// wantsRetained tells whether a subscription gets retained messages
// [MQTT-3.3.1-9], [MQTT-3.3.1-10], [MQTT-3.3.1-11]; a shared one never does
// [MQTT-4.8.2-?].
func (e *Engine) wantsRetained(sub *subscription, existed, shared bool) bool {
	return !shared && (sub.RetainHandling == 0 || sub.RetainHandling == 1 && !existed)
}

// Unsubscribe carries out a client's UNSUBSCRIBE and answers it.
func (e *Engine) Unsubscribe(conn Conn, req *wire.Unsubscribe) {
	c, _ := conn.User().(*client)
	if c == nil {
		conn.Shutdown()
		return
	}
	w := listen.NewWorker()
	defer w.Flush()
	codes := make([]byte, len(req.Filters))
	var b persistence.Batch
	var gone []string
	release, ok := c.intake()
	if !ok {
		return
	}
	defer release()
	var remove []string
	var events [][]byte
	var left []persistence.Subscription
	c.mu.Lock()
	for i, f := range req.Filters {
		filter := string(f)
		sub := c.subs[filter]
		if sub == nil {
			codes[i] = wire.ReasonNoSubscription
			if _, _, _, valid := herald.SplitShare(filter); valid && c.core.Durable() && e.nodes.on() {
				// A node that died may have removed its row and told nobody.
				gone = append(gone, filter)
				events = append(events, appendUnsubscribed(c.h.id, filter))
			}
			continue
		}
		remove = append(remove, want(c.h.id, c.core.Durable(), &sub.Subscription)...)
		delete(c.subs, filter)
		left = append(left, sub.Subscription)
		c.replaceRetained(filter, nil, false)
		gone = append(gone, filter)
		if c.core.Durable() {
			b.Unsubscribe = append(b.Unsubscribe, persistence.FilterOf{Session: c.h.id, Filter: filter})
			events = append(events, appendUnsubscribed(c.h.id, filter))
		}
	}
	c.mu.Unlock()
	defer e.changing(c.h.id, gone)()
	for _, filter := range gone {
		e.unroute(c.h, filter)
	}
	var err error
	if rows := c.leaving(left); len(rows) > 0 {
		err = e.commit(&persistence.Batch{Subscribe: rows})
	}
	if !b.Empty() {
		if err == nil {
			err = e.commit(&b)
		}
		if err != nil {
			e.log.Error("removing subscriptions", errField(err))
			c.fail(wire.ReasonBusy, w)
			return
		}
	}
	if err := e.announceFor(c, nil, remove, events); err != nil {
		c.fail(wire.ReasonUnavailable, w)
		return
	}
	conn.End(w, wire.AppendUnsuback(conn.Begin(), c.version, req.PacketID, codes))
}

// mayRead refuses filters that a client may not use: 0 is granted.
func (e *Engine) mayRead(conn Conn, filter string) byte {
	_, f, _, ok := herald.SplitShare(filter)
	if !ok {
		return wire.ReasonFilter
	}
	if (f == "$SYS" || strings.HasPrefix(f, "$SYS/")) && !loopback(conn.RemoteAddr()) {
		return wire.ReasonNotAuthorized
	}
	return 0
}

func loopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// routeTo puts a subscription into the index.
func (e *Engine) routeTo(h *handle, sub persistence.Subscription) error {
	o := topic.Options{
		QoS: sub.QoS, NoLocal: sub.NoLocal, RetainAsPublished: sub.RetainAsPublished, Identifier: sub.Identifier,
	}
	name, filter, shared, _ := herald.SplitShare(sub.Filter)
	if shared && e.nodes.on() {
		key := name + "/" + filter
		if h.durable {
			e.shares(key, h.id)
		}
		if c := h.live.Load(); c != nil {
			return e.join(c, key, &sub)
		}
		return nil
	}
	if shared {
		return e.groups.join(e, name, filter, h, o)
	}
	e.index.Subscribe(sub.Filter, h, o)
	return nil
}

// unroute takes a subscription out of the index.
func (e *Engine) unroute(h *handle, f string) {
	name, filter, shared, _ := herald.SplitShare(f)
	if shared && e.nodes.on() {
		key := name + "/" + filter
		if h.durable {
			e.unshares(key, h.id)
		}
		if c := h.live.Load(); c != nil {
			e.absent(c, key)
		}
		return
	}
	if shared {
		e.groups.leave(e, name, filter, h)
		return
	}
	e.index.Unsubscribe(f, h)
}
