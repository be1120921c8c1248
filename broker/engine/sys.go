package engine

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
)

// sysTree is the $SYS tree under mosquitto's names. It stands in memory only:
// its values are retained for whoever subscribes, and worthless after a restart.
type sysTree struct {
	mu      sync.Mutex
	values  map[string]string
	started time.Time
	last    time.Time
	rates   []rate
}

// rate is a load: an average per minute over 1, 5 and 15 minutes.
type rate struct {
	name string
	read func(*Engine) int64
	old  int64
	avg  [3]float64
}

var rateMinutes = [3]float64{1, 5, 15}

func (t *sysTree) init() {
	t.values = make(map[string]string)
	t.rates = []rate{
		{name: "messages/received", read: func(e *Engine) int64 { return e.stats.Received.Load() }},
		{name: "messages/sent", read: func(e *Engine) int64 { return e.stats.Sent.Load() }},
		{name: "publish/received", read: func(e *Engine) int64 { return e.stats.Received.Load() }},
		{name: "publish/sent", read: func(e *Engine) int64 { return e.stats.Sent.Load() }},
		{name: "publish/dropped", read: func(e *Engine) int64 { return e.dropped() }},
		{name: "bytes/received", read: func(e *Engine) int64 { return e.cfg.Network().BytesIn }},
		{name: "bytes/sent", read: func(e *Engine) int64 { return e.cfg.Network().BytesOut }},
		{name: "connections", read: func(e *Engine) int64 { return e.cfg.Network().Accepted }},
		{name: "sockets", read: func(e *Engine) int64 { return e.cfg.Network().Accepted }},
	}
}

func (e *Engine) dropped() int64 {
	return e.stats.DroppedQoS0.Load() + e.stats.Expired.Load() + e.stats.TooLarge.Load() + e.stats.QueueFull.Load()
}

func (t *sysTree) start(e *Engine) {
	now := time.Now()
	t.mu.Lock()
	t.started, t.last = now, now
	t.mu.Unlock()
	if e.cfg.SysInterval > 0 {
		t.update(e, now, 0)
	}
}

// tick publishes what changed if the interval is over.
func (t *sysTree) tick(e *Engine, now time.Time) {
	t.mu.Lock()
	since := now.Sub(t.last)
	t.mu.Unlock()
	if e.cfg.SysInterval <= 0 || since < e.cfg.SysInterval {
		return
	}
	t.update(e, now, since)
}

func (t *sysTree) update(e *Engine, now time.Time, since time.Duration) {
	v := e.sysValues(now, t.started)
	t.mu.Lock()
	t.last = now
	for i := range t.rates {
		r := &t.rates[i]
		n := r.read(e)
		if since > 0 {
			perMinute := float64(n-r.old) / since.Minutes()
			for k, m := range rateMinutes {
				decay := math.Exp(-since.Minutes() / m)
				r.avg[k] = perMinute + decay*(r.avg[k]-perMinute)
			}
		}
		r.old = n
		for k, m := range rateMinutes {
			v[fmt.Sprintf("load/%s/%dmin", r.name, int(m))] = strconv.FormatFloat(r.avg[k], 'f', 2, 64)
		}
	}
	var changed []string
	for k, val := range v {
		k = "$SYS/broker/" + k
		if t.values[k] != val {
			t.values[k] = val
			changed = append(changed, k)
		}
	}
	t.mu.Unlock()
	sort.Strings(changed)
	for _, k := range changed {
		e.publishOwn(&herald.Message{Topic: k, Payload: []byte(v[k[len("$SYS/broker/"):]]), QoS: 0}, new(shipment))
	}
}

// sysValues are the values, without "$SYS/broker/".
func (e *Engine) sysValues(now, started time.Time) map[string]string {
	s, net := &e.stats, e.cfg.Network()
	e.clientsMu.RLock()
	connected := len(e.clients)
	e.clientsMu.RUnlock()
	e.handlesMu.RLock()
	durable := len(e.handles)
	e.handlesMu.RUnlock()
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	return map[string]string{
		"version":                    e.cfg.Version,
		"timestamp":                  started.UTC().Format(time.RFC3339),
		"uptime":                     fmt.Sprintf("%d seconds", int(now.Sub(started).Seconds())),
		"clients/connected":          n(int64(connected)),
		"clients/total":              n(int64(max(connected, durable))),
		"clients/disconnected":       n(int64(max(0, durable-connected))),
		"clients/maximum":            n(s.ClientsMaximum.Load()),
		"clients/expired":            n(s.SessionsExpired.Load()),
		"messages/received":          n(s.Received.Load()),
		"messages/sent":              n(s.Sent.Load()),
		"publish/messages/received":  n(s.Received.Load()),
		"publish/messages/sent":      n(s.Sent.Load()),
		"publish/messages/dropped":   n(e.dropped()),
		"bytes/received":             n(net.BytesIn),
		"bytes/sent":                 n(net.BytesOut),
		"retained messages/count":    n(e.store.RetainedCount()),
		"subscriptions/count":        n(int64(e.index.Subscriptions())),
		"shared_subscriptions/count": n(int64(len(e.groups.all()))),
		"store/messages/count":       n(e.store.RetainedCount()),
	}
}

// matches tells whether a filter could reach into $SYS.
func (t *sysTree) matches(filter string) bool {
	return len(filter) > 0 && filter[0] == '$'
}

// sendSys sends the present values that match a new subscription.
func (e *Engine) sendSys(c *client, sub *subscription, _ *listen.Worker) {
	e.sys.mu.Lock()
	var msgs []*herald.Message
	for k, v := range e.sys.values {
		if herald.Matches(sub.Filter, k) {
			msgs = append(msgs, &herald.Message{Topic: k, Payload: []byte(v), Retain: true})
		}
	}
	e.sys.mu.Unlock()
	if len(msgs) == 0 {
		return
	}
	sort.Slice(msgs, func(i, j int) bool { return msgs[i].Topic < msgs[j].Topic })
	g := &session.Grant{QoS: 0, Retain: true}
	if sub.Identifier != 0 {
		g.Identifiers = []uint32{sub.Identifier}
	}
	e.runTo(c, wire.MakeRun(msgs), g, nil)
}
