package simulation

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/herald-mqtt/herald"
)

// message is what somebody publishes. Its payload names it.
type message struct {
	topic, payload string
	qos            byte
	retain         bool
	seq            int
	from           *generation // the order is promised within one session and topic
	handed         int         // how often it was carried to the broker
	ok             bool        // acknowledged
	will           *will
	loose          bool // its order is not promised any more
}

// ledger knows what was promised.
type ledger struct {
	w         *World
	seq       int
	byPayload map[string]*message
	byTopic   map[string][]*message // retained ones, in order
	gens      []*generation
	wills     []*will
	groups    map[string]*group
}

// generation is one session of a client.
type generation struct {
	c      *client
	ended  bool
	expect map[*message]*expectation
	count  map[*message]int    // live arrivals with QoS > 0
	twice  map[*message]int    // those at QoS 2
	fresh  map[*message]lately // those without DUP
	last   map[order]*message
	seen   map[string]int      // topic → highest retained message
	want   map[string]*message // topic → retained message that must come

	mu    sync.Mutex          // guards below
	acked map[*message]lately // acknowledgements that the broker has
}

// lately counts in one life of the process.
type lately struct{ epoch, n int }

func (l lately) in(epoch int) int {
	if l.epoch != epoch {
		return 0
	}
	return l.n
}

type order struct {
	from  *generation
	topic string
	qos   byte // 0: all
}

// expectation is a message that a session must get if it was acknowledged.
type expectation struct {
	filters   []string
	qos       byte
	cancelled bool
}

// group is a shared subscription.
type group struct {
	filter string
	exact  bool // all members are durable and take QoS 2
	expect []*message
	count  map[*message]int
}

// arrival is a PUBLISH that a client has read.
type arrival struct {
	p packet
	m *message
}

// willSpec is what a client's wills are like.
type willSpec struct{ delay uint32 }

// will is that of one connection.
type will struct {
	m         *message
	delay     uint32
	left      time.Time // when its connection ended, for the client
	leftClean bool      // DISCONNECT was sent
	lasting   bool      // the session outlives the connection
	unsure    bool      // CONNACK was not read
	forbidden string    // why it must not be published
	late      bool      // its time had come when its client connected again
	must      bool
	epoch     int
}

// emptied stands for all messages that remove a retained one.
var emptied = &message{seq: -1}

func newLedger(w *World) *ledger {
	return &ledger{w: w, byPayload: map[string]*message{}, byTopic: map[string][]*message{}, groups: map[string]*group{}}
}

func shared(filter string) bool { return strings.HasPrefix(filter, "$share/") }

func matches(filter, topic string) bool {
	_, f, _, _ := herald.SplitShare(filter)
	return herald.Matches(f, topic)
}

func (l *ledger) generation(c *client) *generation {
	g := &generation{
		c: c, expect: map[*message]*expectation{}, count: map[*message]int{}, twice: map[*message]int{}, fresh: map[*message]lately{},
		acked: map[*message]lately{}, last: map[order]*message{}, seen: map[string]int{}, want: map[string]*message{},
	}
	l.gens = append(l.gens, g)
	return g
}

func (g *generation) end() {
	if g != nil {
		g.ended = true
	}
}

// message makes one.
func (l *ledger) message(from *generation, topic string, qos byte, retain, empty bool) *message {
	l.seq++
	m := &message{topic: topic, qos: qos, retain: retain, seq: l.seq, from: from}
	if !empty {
		m.payload = fmt.Sprintf("%s %d", topic, l.seq)
		l.byPayload[m.payload] = m
	}
	if retain {
		l.byTopic[topic] = append(l.byTopic[topic], m)
	}
	return m
}

func (l *ledger) find(p packet) *message {
	if p.payload == "" {
		return emptied
	}
	if m := l.byPayload[p.payload]; m != nil && m.topic == p.topic {
		return m
	}
	return nil
}

// published notes a message that a client is about to send: it is promised to
// those whose subscription was acknowledged.
func (l *ledger) published(m *message) {
	if m.payload == "" { // what it removes may be gone before it was sent to anybody
		for _, g := range l.gens {
			delete(g.want, m.topic)
		}
	}
	if m.qos == 0 || m.payload == "" {
		return
	}
	for _, g := range l.gens {
		if g.ended {
			continue
		}
		var e *expectation
		for _, s := range g.c.subs {
			if !s.active || s.qos == 0 || !matches(s.filter, m.topic) {
				continue
			}
			if shared(s.filter) {
				gr := l.groups[s.filter]
				if len(gr.expect) == 0 || gr.expect[len(gr.expect)-1] != m {
					gr.expect = append(gr.expect, m)
				}
				continue
			}
			if e == nil {
				e = &expectation{}
				g.expect[m] = e
			}
			e.filters = append(e.filters, s.filter)
			e.qos = max(e.qos, s.qos)
		}
	}
}

func (l *ledger) accepted(m *message) { m.ok = true }

// cancel releases the broker from what it owes for a filter.
func (g *generation) cancel(filter string) {
	for _, e := range g.expect {
		for _, f := range e.filters {
			if f == filter {
				e.cancelled = true
			}
		}
	}
	for topic := range g.want {
		if matches(filter, topic) {
			delete(g.want, topic)
		}
	}
}

// retained lists what a subscription made now must bring: the newest retained
// message of each topic, if nothing newer is under way.
func (l *ledger) retained(filter string) (all []*message) {
	if shared(filter) {
		return nil
	}
	for _, ms := range l.byTopic {
		if l.w.fleet != nil && ms[0].from != ms[len(ms)-1].from {
			continue // between sessions at different nodes IDs only suggest an order
		}
		if m := ms[len(ms)-1]; matches(filter, m.topic) && m.ok && m.payload != "" {
			all = append(all, m)
		}
	}
	return all
}

func (g *generation) expectRetained(r *request) {
	if r.sub.qos == 0 {
		return
	}
	for _, m := range r.retained {
		all := g.c.w.ledger.byTopic[m.topic]
		later := all[slices.Index(all, m):]
		if !slices.ContainsFunc(later, func(m *message) bool { return m.payload == "" }) {
			g.want[m.topic] = m
		}
	}
}

// done notes that the broker has a client's acknowledgement.
func (g *generation) done(a *arrival, epoch int) {
	if !a.p.retain {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.acked[a.m] = lately{epoch, g.acked[a.m].in(epoch) + 1}
	}
}

// arrived checks an arrival.
func (g *generation) arrived(a *arrival) error {
	m, p, w := a.m, a.p, g.c.w
	if m == emptied {
		return nil
	}
	if m.will != nil && m.will.forbidden != "" {
		return fmt.Errorf("the will must not be published: %s", m.will.forbidden)
	}
	if m.retain {
		g.seen[m.topic] = max(g.seen[m.topic], m.seq)
	}
	if p.retain {
		if !m.retain {
			return fmt.Errorf("RETAIN set") // [MQTT-3.3.1-12]
		}
		return nil
	}
	if p.qos == 0 {
		return nil
	}
	if gr := g.group(m.topic); gr != nil {
		gr.count[m]++
		if gr.exact && p.qos == 2 && gr.count[m] > 1 {
			return fmt.Errorf("QoS 2 twice to the group")
		}
		return nil
	}
	g.count[m]++
	n := g.count[m]
	if p.qos == 2 {
		g.twice[m]++
	}
	// Where a subscription is changed while a message is under way, one node may send it
	// at the one QoS and the next, after a crash, at the other.
	if p.qos == 2 && n > 1 && (w.fleet == nil || g.twice[m] > 1) {
		return fmt.Errorf("QoS 2 twice")
	}
	copies := max(1, m.handed) // a QoS 1 PUBLISH that came again is another message to the broker
	g.mu.Lock()
	acked := g.acked[m].in(w.epoch)
	g.mu.Unlock()
	if acked >= copies {
		return fmt.Errorf("sent again although it was acknowledged")
	}
	if !p.dup {
		g.fresh[m] = lately{w.epoch, g.fresh[m].in(w.epoch) + 1}
		if g.fresh[m].n > copies {
			return fmt.Errorf("sent again without DUP") // [MQTT-3.3.1-1]
		}
	}
	if n > 1 {
		return nil
	}
	if e := g.expect[m]; e != nil && !e.cancelled {
		k := order{from: m.from, topic: m.topic}
		if w.opts.Shared {
			// What is acknowledged in order is delivered in order, at any QoS. But of
			// what a crash leaves unacknowledged the QoS 2 messages are a prefix, and
			// the QoS 1 messages are another [MQTT-4.6.0-6].
			k.qos = m.qos
		}
		if before := g.last[k]; before != nil && before.seq > m.seq && !m.loose && !before.loose {
			return fmt.Errorf("out of order: %q came before", before.payload)
		}
		g.last[k] = m
	}
	return nil
}

func (g *generation) group(topic string) *group {
	for _, gr := range g.c.w.ledger.groups {
		if matches(gr.filter, topic) {
			return gr
		}
	}
	return nil
}

// newWill makes the will of a connection; it is due to the witness.
func (l *ledger) newWill(c *client) *will {
	w := &will{delay: c.will.delay, epoch: l.w.epoch, lasting: c.lasting}
	w.m = l.message(nil, "w/"+c.name, 2, false, false)
	w.m.will = w
	l.wills = append(l.wills, w)
	return w
}

// decide settles, when a client connects again, which of its wills had to be
// published because their time had come.
func (l *ledger) decide(c *client) {
	for _, w := range c.pendingW {
		at := c.present.noted.Add(time.Duration(w.delay)*time.Second + 2*time.Second)
		late := !c.present.noted.IsZero() && l.w.now().After(at)
		if !w.unsure && !w.leftClean && w.epoch == l.w.epoch && late {
			w.late = true
		}
	}
}

// resumed settles what becomes of the wills of earlier connections.
func (l *ledger) resumed(c *client, present bool) {
	early, _ := l.w.slack()
	if c.expiry > 0 && c.armed != nil && l.w.now().After(c.present.left.Add(time.Duration(c.expiry)*time.Second-early)) {
		// It came back as its session was about to expire: whoever ends sessions may have
		// asked the node for it.
		c.armed.unsure = true
	}
	for _, w := range c.pendingW {
		delay := w.delay
		if c.expiry > 0 {
			delay = min(delay, c.expiry)
		}
		switch {
		case w.late:
			w.must = w.epoch == l.w.epoch
		case w.unsure || w.leftClean:
		case !w.lasting || delay == 0:
			w.must = true
		case present && l.w.now().Before(w.left.Add(time.Duration(delay)*time.Second-early)):
			w.forbidden = "its client came back in time" // [MQTT-3.1.3-9]
		}
	}
	c.pendingW = nil
}

// check tells what is missing when nothing is under way any more.
func (l *ledger) check() error {
	for _, g := range l.gens {
		if g.ended || !g.c.up || g.c.gen != g {
			continue
		}
		for m, e := range g.expect {
			if l.w.fleet != nil && !g.c.lasting && m.qos == 2 && m.handed > 1 {
				// The node that took it in may have died when it had stored it, and not
				// sent it on. Who takes it again knows it, and sends it to nobody.
				continue
			}
			if m.ok && !e.cancelled && g.count[m] == 0 {
				return fmt.Errorf("%s has not got %q (QoS %d, to %v at %d)", g.c.name, m.payload, m.qos, e.filters, e.qos)
			}
		}
		for topic, m := range g.want {
			if g.seen[topic] < m.seq {
				return fmt.Errorf("%s has not got the retained message %q", g.c.name, m.payload)
			}
		}
	}
	for _, gr := range l.groups {
		for _, m := range gr.expect {
			if m.ok && gr.count[m] == 0 {
				return fmt.Errorf("nobody of %s has got %q", gr.filter, m.payload)
			}
		}
	}
	for _, w := range l.wills {
		if n := l.w.clients[0].gen.count[w.m]; w.must && n != 1 {
			return fmt.Errorf("the will %q was published %d times", w.m.payload, n)
		}
	}
	return nil
}

// checkRetained compares what a new subscription to all retained messages got.
func (l *ledger) checkRetained(got map[string]string) error {
	for topic, ms := range l.byTopic {
		from := len(ms) - 1
		for from > 0 && !ms[from].ok {
			from--
		}
		ok := false
		for _, m := range ms[from:] {
			ok = ok || m.payload == got[topic]
		}
		if !ok && !(from == 0 && !ms[0].ok && got[topic] == "") {
			return fmt.Errorf("%q is retained on %s, want %q", got[topic], topic, ms[from].payload)
		}
	}
	return nil
}
