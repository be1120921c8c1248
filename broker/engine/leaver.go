package engine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Who leaves a shared group goes on with what it was dealt [MQTT-4.8.2-5]. After a
// crash that stands in its window; which windows are to be looked into, the group's
// members tell, and, of those who left, rows of the group's own: subscriptions of the
// group's session to
//
//	NUL left/ session, 16 hexadecimal digits
//
// which no client can make. Such a row is written before the member's subscription
// goes, and removed when the group is loaded and the session has nothing of it.
const leaverPrefix = "\x00left/"

func leaverFilter(id herald.SessionID) string {
	return fmt.Sprintf("%s%016x", leaverPrefix, uint64(id))
}

// leaver is who a row stands for; ok is false for a subscription.
func leaver(filter string) (id herald.SessionID, ok bool) {
	hex, ok := strings.CutPrefix(filter, leaverPrefix)
	n, err := strconv.ParseUint(hex, 16, 64)
	return herald.SessionID(n), ok && err == nil
}

// leaving are the rows of groups that a durable client has left with something of
// theirs. Nothing more is dealt to it.
func (c *client) leaving(subs []persistence.Subscription) (rows []persistence.SubscriptionOf) {
	for i := range subs {
		key, shared := shareKey(subs[i].Filter)
		if !shared {
			continue
		}
		id, ok := c.e.groupID(key)
		if !ok {
			continue
		}
		c.mu.Lock()
		holds := c.core.Durable() && len(c.core.HeldOf(id)) > 0
		c.mu.Unlock()
		if holds {
			rows = append(rows, persistence.SubscriptionOf{Session: id, Subscription: persistence.Subscription{Filter: leaverFilter(c.h.id), QoS: subs[i].QoS}})
		}
	}
	return rows
}

// groupID is the identity of a group that has an inbox.
func (e *Engine) groupID(key string) (id herald.SessionID, ok bool) {
	if g := e.groups.byKey(key); g != nil {
		return g.row.ID, g.durable()
	}
	e.sharing.mu.Lock()
	defer e.sharing.mu.Unlock()
	id, ok = e.sharing.ids[key]
	return id, ok
}

// leavers are those of a group, and the QoS that they had.
func (e *Engine) leavers(group herald.SessionID) (map[herald.SessionID]byte, error) {
	subs, err := e.store.Subscriptions(e.ctx, group)
	if err != nil {
		return nil, err
	}
	left := make(map[herald.SessionID]byte, len(subs))
	for i := range subs {
		if id, ok := leaver(subs[i].Filter); ok {
			left[id] = subs[i].QoS
		}
	}
	return left, nil
}

// forgetLeavers removes rows that are not needed any more.
func (e *Engine) forgetLeavers(group herald.SessionID, ids []herald.SessionID) {
	if len(ids) == 0 {
		return
	}
	b := &persistence.Batch{Lazy: true}
	for _, id := range ids {
		b.Unsubscribe = append(b.Unsubscribe, persistence.FilterOf{Session: group, Filter: leaverFilter(id)})
	}
	e.store.Commit(b, nil)
}
