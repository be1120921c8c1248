// Package model is what a broker must do, as plainly as it can be said, for
// tests that run random histories against a real one.
//
// A test tells a [Model] what clients do, in the order in which the broker has
// done it, and what they received ([Model.Receive], [Model.Ack]). The model
// answers whether that was right, and at any moment when the broker has
// nothing left to do, what should have arrived and has not ([Model.Missing]).
// Time is what [Model.Advance] says; there is no clock and no goroutine.
//
// A message due is one that must arrive, or one that may: QoS 0 while nobody
// is connected or when a connection breaks, what is left for a filter that was
// unsubscribed, a retained message that was replaced before it was sent.
//
// Out of scope: packet identifiers and the steps of QoS 2 (the test's clients
// keep them, and report a QoS 2 message once), receive maximum, queue bounds,
// access, topic aliases, and properties other than those below. Input is what
// a correct client sends: valid names, no-local never on a shared filter.
package model

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/herald-mqtt/herald"
)

const never = math.MaxInt64

// Message is what a client publishes. Payloads that differ make errors clear.
type Message struct {
	Topic, Payload string
	QoS            byte
	Retain         bool
	Expiry         uint32 // message expiry interval, seconds; 0: none
}

// Will is a will with its delay in seconds.
type Will struct {
	Message
	Delay uint32
}

// Connect is a CONNECT that is accepted.
type Connect struct {
	Client  string
	Version herald.Version
	// Clean is Clean Start, or Clean Session before MQTT 5.
	Clean bool
	// Expiry is the session expiry interval in seconds, of MQTT 5.
	Expiry uint32
	Will   *Will
}

// Subscription is one of a SUBSCRIBE; Filter may be a shared one.
type Subscription struct {
	Filter                     string
	QoS                        byte
	NoLocal, RetainAsPublished bool
	RetainHandling             byte
	Identifier                 uint32 // 0: none
}

// Delivery is a PUBLISH as a client receives it.
type Delivery struct {
	Topic, Payload string
	QoS            byte
	Retain         bool
	Identifiers    []uint32 // in any order
	Left           uint32   // message expiry interval, seconds; 0: none
}

// Model is a broker. It is not safe for concurrent use.
type Model struct {
	// Strict: what a publisher sends to one topic arrives in order even if it
	// was sent with different QoS. MQTT asks for that for one QoS only
	// [MQTT-4.6.0-6].
	Strict bool
	// ExpiryV3 is the expiry of sessions of MQTT 3.1.1 without Clean Session,
	// in seconds; 0 is never.
	ExpiryV3 uint32

	now      int64 // milliseconds
	conns    int
	sessions map[string]*session
	groups   map[string]*group
	retained map[string]*message
}

type message struct {
	Message
	publisher string
	expires   int64
}

// item is a message due.
type item struct {
	*message
	grant  Subscription // for a group's item, of whoever takes it
	ids    []uint32
	stored bool // due because it was retained when grant.Filter was subscribed
	must   bool
	// begun: a connection has closed since it was due, so it may have been sent
	// before, and carry DUP.
	begun bool
}

type receipt struct {
	*item
	conn int    // the connection on which it was last received
	from *group // nil: from the session's own
}

type session struct {
	client  string
	version herald.Version
	conn    int // number of the connection; 0: none
	expiry  uint32
	ends    int64 // when the session ends; never while connected
	subs    map[string]Subscription
	due     []*item
	unacked []*receipt
	will    *Will
	willDue int64 // when to publish it; never while connected
}

// group is a shared subscription. It outlives its members: what is left for it
// then may arrive when somebody joins again, or not.
type group struct {
	filter  string
	members map[*session]*member
	due     []*item
}

type member struct {
	Subscription
	left bool // unsubscribed; what was begun may still arrive
}

// New returns a broker without sessions at time 0.
func New() *Model {
	return &Model{sessions: map[string]*session{}, groups: map[string]*group{}, retained: map[string]*message{}}
}

// Connect tells whether there is a session to resume (SessionPresent).
func (m *Model) Connect(c Connect) (present bool) {
	// A client that is connected is disconnected [MQTT-3.1.4-3].
	if s := m.sessions[c.Client]; s != nil && s.conn != 0 {
		m.close(s)
	}
	s := m.sessions[c.Client] // it may have ended with its connection
	if s != nil && c.Clean {
		m.end(s) // [MQTT-3.1.2-4]
		s = nil
	}
	present = s != nil
	if !present {
		s = &session{client: c.Client, subs: map[string]Subscription{}}
		m.sessions[c.Client] = s
	}
	m.conns++
	s.version, s.conn, s.ends = c.Version, m.conns, never
	s.will, s.willDue = c.Will, never // a will that waited is cancelled [MQTT-3.1.3-9]
	if s.expiry = c.Expiry; c.Version != herald.V5 {
		if s.expiry = 0; !c.Clean {
			s.expiry = cmp.Or(m.ExpiryV3, math.MaxUint32)
		}
	}
	return present
}

// Disconnect is a DISCONNECT: it deletes the will [MQTT-3.14.4-3] unless
// withWill (reason 0x04), and may change the session expiry interval.
func (m *Model) Disconnect(client string, withWill bool, expiry *uint32) {
	s := m.sessions[client]
	if !withWill {
		s.will = nil
	}
	if expiry != nil {
		s.expiry = *expiry
	}
	m.close(s)
}

// Drop is the end of a connection without DISCONNECT.
func (m *Model) Drop(client string) { m.close(m.sessions[client]) }

func (m *Model) close(s *session) {
	s.conn = 0
	for _, it := range s.due {
		it.begun = true
		it.must = it.must && min(it.QoS, it.grant.QoS) > 0
	}
	for _, g := range m.groups {
		if mem := g.members[s]; mem != nil {
			for _, it := range g.due {
				it.begun = true
				it.must = it.must && min(it.QoS, mem.QoS) > 0
			}
		}
	}
	if s.will != nil {
		s.willDue = m.now + int64(s.will.Delay)*1000
	}
	if s.expiry != math.MaxUint32 {
		s.ends = m.now + int64(s.expiry)*1000
	}
	m.settle(m.now)
}

// end ends a session: all that is its own goes, a will that waits is published
// [MQTT-3.1.2-8], a shared group takes back what was not acknowledged at QoS 1,
// and loses what was begun at QoS 2 [MQTT-4.8.2-5].
func (m *Model) end(s *session) {
	delete(m.sessions, s.client)
	for _, g := range m.groups {
		if g.members[s] == nil {
			continue
		}
		for _, it := range g.due {
			it.must = it.must && !(it.begun && min(it.QoS, g.members[s].QoS) == 2)
		}
		for _, r := range s.unacked {
			if r.from == g {
				r.must = r.must && r.expires > m.now // it may have expired meanwhile
				g.due = append(g.due, r.item)
			}
		}
		delete(g.members, s)
		g.checkEmpty()
	}
	if s.will != nil {
		m.Publish(s.client, s.will.Message)
	}
}

func (g *group) checkEmpty() {
	for _, mem := range g.members {
		if !mem.left {
			return
		}
	}
	for _, it := range g.due {
		it.must = false
	}
}

// Advance lets the time come to now (milliseconds): sessions end, wills are
// published, messages expire. A broker that looks at its deadlines every so
// often is to be compared in steps in which it looked.
func (m *Model) Advance(now int64) {
	m.settle(now)
	m.now = now
	maps.DeleteFunc(m.retained, func(_ string, x *message) bool { return x.expires <= now })
	// What has expired must not be sent any more [MQTT-3.3.2-5], but what was
	// begun may be finished.
	for _, s := range m.sessions {
		s.due = expire(s.due, now, s.conn != 0)
	}
	for _, g := range m.groups {
		g.due = expire(g.due, now, len(g.members) > 0)
	}
}

func expire(due []*item, now int64, begun bool) []*item {
	return slices.DeleteFunc(due, func(it *item) bool {
		if it.expires > now {
			return false
		}
		it.must = false
		return !begun && !it.begun
	})
}

// settle does what is due by then, earliest first.
func (m *Model) settle(then int64) {
	for {
		var first *session
		at := then + 1
		for _, s := range m.ordered() {
			if t := min(s.ends, s.willDue); s.conn == 0 && t < at {
				first, at = s, t
			}
		}
		if first == nil {
			return
		}
		m.now = at
		if w := first.will; first.willDue <= at && w != nil {
			first.will, first.willDue = nil, never
			m.Publish(first.client, w.Message)
		} else {
			m.end(first)
		}
	}
}

// Subscribe is a SUBSCRIBE of a connected client. It replaces a subscription of
// the same filter [MQTT-3.8.4-3].
func (m *Model) Subscribe(client string, subs ...Subscription) {
	s := m.sessions[client]
	for _, sub := range subs {
		if _, filter, shared, _ := herald.SplitShare(sub.Filter); shared {
			g := m.groups[sub.Filter]
			if g == nil {
				g = &group{filter: filter, members: map[*session]*member{}}
				m.groups[sub.Filter] = g
			}
			g.members[s] = &member{Subscription: sub} // no retained messages
			s.subs[sub.Filter] = sub
			continue
		}
		_, existed := s.subs[sub.Filter]
		s.subs[sub.Filter] = sub
		if sub.RetainHandling == 2 || sub.RetainHandling == 1 && existed { // [MQTT-3.3.1-9] to -11
			continue
		}
		for _, it := range s.due { // sent once more, or still
			it.must = it.must && !(it.stored && it.grant.Filter == sub.Filter)
		}
		for _, topic := range slices.Sorted(maps.Keys(m.retained)) {
			if x := m.retained[topic]; herald.Matches(sub.Filter, topic) {
				s.due = append(s.due, &item{
					message: x, grant: sub, ids: identifiers(sub), stored: true,
					// MQTT does not say whether no-local concerns these.
					must: !(sub.NoLocal && x.publisher == client),
				})
			}
		}
	}
}

// Unsubscribe tells whether there was such a subscription. Nothing new is due
// for it; what is underway may be finished [MQTT-3.10.4-2].
func (m *Model) Unsubscribe(client, filter string) (existed bool) {
	s := m.sessions[client]
	if _, existed = s.subs[filter]; !existed {
		return false
	}
	delete(s.subs, filter)
	if g := m.groups[filter]; g != nil {
		g.members[s].left = true
		g.checkEmpty()
		return true
	}
	for _, it := range s.due {
		if herald.Matches(filter, it.Topic) {
			it.must = false
		}
	}
	return true
}

// Publish is a PUBLISH that the broker accepted from a client, as a will is too;
// "" is the broker itself. A QoS 2 message counts when it is first accepted.
func (m *Model) Publish(publisher string, msg Message) {
	x := &message{Message: msg, publisher: publisher, expires: never}
	if msg.Expiry > 0 {
		x.expires = m.now + int64(msg.Expiry)*1000
	}
	if msg.Retain {
		if m.retained[msg.Topic] = x; msg.Payload == "" { // [MQTT-3.3.1-6]
			delete(m.retained, msg.Topic)
		}
	}
	for _, s := range m.ordered() {
		if msg.Retain {
			for _, it := range s.due { // the one before may have been gone when it was to be sent
				it.must = it.must && !(it.stored && it.Topic == msg.Topic)
			}
		}
		// Overlapping subscriptions give one copy, with the highest QoS
		// [MQTT-3.3.4-2] and all their identifiers [MQTT-3.3.4-3], [MQTT-3.3.4-4].
		var all Subscription
		var ids []uint32
		found := false
		for _, sub := range s.subs {
			if _, _, shared, _ := herald.SplitShare(sub.Filter); shared || !herald.Matches(sub.Filter, msg.Topic) {
				continue
			}
			if sub.NoLocal && publisher == s.client { // [MQTT-3.8.3-3]
				continue
			}
			found = true
			all.QoS = max(all.QoS, sub.QoS)
			all.RetainAsPublished = all.RetainAsPublished || sub.RetainAsPublished
			ids = append(ids, identifiers(sub)...)
		}
		if found {
			slices.Sort(ids)
			s.due = append(s.due, &item{
				message: x, grant: all, ids: ids,
				must: s.conn != 0 || min(msg.QoS, all.QoS) > 0,
			})
		}
	}
	for _, g := range m.groups {
		if !herald.Matches(g.filter, msg.Topic) {
			continue
		}
		it := &item{message: x}
		for s, mem := range g.members {
			it.must = it.must || !mem.left && (s.conn != 0 || min(msg.QoS, mem.QoS) > 0)
		}
		g.due = append(g.due, it)
	}
}

func identifiers(sub Subscription) []uint32 {
	if sub.Identifier == 0 {
		return nil
	}
	return []uint32{sub.Identifier}
}

func (m *Model) ordered() []*session {
	return slices.SortedFunc(maps.Values(m.sessions), func(a, b *session) int { return cmp.Compare(a.client, b.client) })
}

// Sessions returns the clients that have a session, sorted, connected or not.
func (m *Model) Sessions() []string { return slices.Sorted(maps.Keys(m.sessions)) }

// Retained returns the retained messages, by topic.
func (m *Model) Retained() map[string]Message {
	r := map[string]Message{}
	for topic, x := range m.retained {
		r[topic] = x.Message
	}
	return r
}

func (d Delivery) String() string {
	return fmt.Sprintf("%q on %q, QoS %d, retain %v, identifiers %v, expiry %d",
		d.Payload, d.Topic, d.QoS, d.Retain, d.Identifiers, d.Left)
}
