package engine

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// Shared groups of a cluster. Every group has an inbox, and every node has the
// group in its index, so that its publishes get there. One node owns the group, by a
// claim like that of a session: the first that a member connects to. It deals to
// members wherever they are connected; they are known by routes:
//
//	m{session}{how}{key}  a member is connected
//
// and by events:
//
//	g{group}{key}         a group has been made
//	d{group}{key}         a group has ended
//
// A member's node says what became of what it was dealt.

const (
	routeMember = 'm'

	eventGroup      = 'g'
	eventGroupEnded = 'd'

	// awayLimit is how many messages a member at another node may have under way.
	awayLimit = 64
	// heldWait is how long a new owner waits for what members at other nodes hold.
	heldWait = 10 * time.Second
)

// sharing is what a node knows of the cluster's groups.
type sharing struct {
	mu sync.Mutex // guards below; no other lock is taken under it
	// ids and keys name the groups there are, rest their durable members, connected
	// or not, away the members that are connected to other nodes.
	ids     map[string]herald.SessionID
	keys    map[herald.SessionID]string
	rest    map[string]map[herald.SessionID]struct{}
	away    map[string]map[attachment]member
	here    map[string]map[herald.SessionID]*handle // members that are connected to this node
	dealers map[herald.SessionID]dealer             // the last owner of a group that was heard of
	asking  map[uint64]chan heldAnswer
	request uint64
	naming  gate                        // held while rows are read for names; taken before mu
	names   map[herald.SessionID]string // of durable members, those that are known; "": there is no row
	over    map[uint16]uint64           // by node: up to which life it is over
	joining map[attendance]struct{}     // whose subscriptions are not known to everybody yet
	pursued map[string]struct{}         // keys of groups of which it is being found out who owns them
}

// attendance is a session that shares a group.
type attendance struct {
	key     string
	session herald.SessionID
}

// attachment is a session's connection to another node, as that one has announced it: who
// has moved may seem to be connected to two, or to one and here, for a moment.
type attachment struct {
	session herald.SessionID
	at      *peer
}

type heldAnswer struct {
	from bridge.Peer
	held []persistence.Sent
}

// heldBy is what connected members hold of a group, and at which node; nil: here.
type heldBy struct {
	at *peer
	persistence.Sent
}

func (s *sharing) init() {
	s.ids = make(map[string]herald.SessionID)
	s.keys = make(map[herald.SessionID]string)
	s.rest = make(map[string]map[herald.SessionID]struct{})
	s.away = make(map[string]map[attachment]member)
	s.here = make(map[string]map[herald.SessionID]*handle)
	s.dealers = make(map[herald.SessionID]dealer)
	s.asking = make(map[uint64]chan heldAnswer)
	s.naming, s.names = newGate(), make(map[herald.SessionID]string)
	s.over = make(map[uint16]uint64)
	s.joining = make(map[attendance]struct{})
	s.pursued = make(map[string]struct{})
}

// learn puts a group into the index.
func (e *Engine) learn(key string, id herald.SessionID) {
	s := &e.sharing
	s.mu.Lock()
	known := s.ids[key] == id
	s.ids[key], s.keys[id] = id, key
	s.mu.Unlock()
	if !known && e.groups.find(id) == nil {
		e.index.Subscribe(filterOf(key), e.handleFor(id, true), groupOptions)
	}
}

var groupOptions = topic.Options{QoS: 2, RetainAsPublished: true}

// filterOf is the filter of a group's key.
func filterOf(key string) string {
	for i := range len(key) {
		if key[i] == '/' {
			return key[i+1:]
		}
	}
	return key
}

// unlearn takes a group that has ended out of it.
func (e *Engine) unlearn(key string, id herald.SessionID) {
	s := &e.sharing
	s.mu.Lock()
	if s.ids[key] == id {
		delete(s.ids, key)
	}
	delete(s.keys, id)
	s.mu.Unlock()
	if h := e.handle(id); h != nil {
		e.index.Unsubscribe(filterOf(key), h)
		e.dropHandle(id)
	}
}

// shares notes that a durable session has subscribed to a group, wherever it is.
func (e *Engine) shares(key string, id herald.SessionID) {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rest[key] == nil {
		s.rest[key] = make(map[herald.SessionID]struct{})
	}
	s.rest[key][id] = struct{}{}
}

// unshares notes that it has unsubscribed, or ended.
func (e *Engine) unshares(key string, id herald.SessionID) {
	s := &e.sharing
	s.mu.Lock()
	delete(s.rest[key], id)
	if len(s.rest[key]) == 0 {
		delete(s.rest, key)
	}
	s.mu.Unlock()
	e.groups.emptied(e, key)
}

// memberRoute announces a connected member.
func memberRoute(id herald.SessionID, sub *persistence.Subscription) string {
	b := binary.BigEndian.AppendUint64([]byte{routeMember}, uint64(id))
	how := sub.QoS & 3
	if sub.RetainAsPublished {
		how |= 8
	}
	b = binary.AppendUvarint(append(b, how), uint64(sub.Identifier))
	name, filter, _, _ := herald.SplitShare(sub.Filter)
	return string(b) + name + "/" + filter
}

// parseMember takes one apart.
func (e *Engine) parseMember(route string) (key string, id herald.SessionID, g *session.Grant, err error) {
	r := record.Decoder{B: []byte(route[1:])}
	id = herald.SessionID(r.Uint64())
	how, identifier := r.Byte(), r.Uvarint()
	key = string(r.B)
	if r.Err != nil || !herald.ValidFilter(filterOf(key)) || filterOf(key) == key {
		return "", 0, nil, errors.New("malformed member")
	}
	return key, id, e.grants.of(topic.Options{QoS: min(how&3, 2), RetainAsPublished: how&8 != 0, Identifier: uint32(identifier)}), nil
}

// memberCame and memberWent carry out a peer's routes.
func (e *Engine) memberCame(p *peer, route string) error {
	key, id, g, err := e.parseMember(route)
	if err != nil {
		return err
	}
	m := member{h: &handle{id: id}, g: g, at: p}
	s := &e.sharing
	s.mu.Lock()
	if s.away[key] == nil {
		s.away[key] = make(map[attachment]member)
	}
	s.away[key][attachment{id, p}] = m
	s.mu.Unlock()
	if gr := e.groups.byKey(key); gr != nil {
		gr.enter(m)
		e.groups.wakeSoon(e, gr)
	}
	return nil
}

func (e *Engine) memberWent(p *peer, route string) {
	key, id, _, err := e.parseMember(route)
	if err != nil {
		return
	}
	s := &e.sharing
	s.mu.Lock()
	if delete(s.away[key], attachment{id, p}); len(s.away[key]) == 0 {
		delete(s.away, key)
	}
	s.mu.Unlock()
	if gr := e.groups.byKey(key); gr != nil {
		gr.exit(id, p)
		e.reenter(gr, id)
		e.groups.wakeSoon(e, gr)
	}
	e.groups.emptied(e, key)
}

func (gs *groups) byKey(key string) *group {
	gs.lookup.RLock()
	defer gs.lookup.RUnlock()
	return gs.byName[key]
}

// enter adds a member, or replaces it; but who is connected here stays so, whatever
// another node has announced before or since: see reenter.
func (g *group) enter(m member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.members, func(o member) bool { return o.h.id == m.h.id })
	switch {
	case i < 0:
		g.members = append(g.members, m)
	case m.at == nil || g.members[i].at != nil:
		m.out = g.members[i].out
		g.members[i] = m
	}
}

// reenter makes a session that has gone from one node a member where else it is
// connected, if it is.
func (e *Engine) reenter(g *group, id herald.SessionID) {
	g.mu.Lock()
	is := slices.ContainsFunc(g.members, func(m member) bool { return m.h.id == id })
	g.mu.Unlock()
	if is {
		return
	}
	e.enterAway(g, func(a attachment) bool { return a.session == id })
}

// enterAway adds the members at other nodes that is holds of. Their routes may go at the
// same time.
func (e *Engine) enterAway(g *group, is func(attachment) bool) {
	s := &e.sharing
	s.mu.Lock()
	var there []member
	for a, m := range s.away[g.key] {
		if is(a) {
			there = append(there, m)
		}
	}
	s.mu.Unlock()
	for _, m := range there {
		g.enter(m)
		s.mu.Lock()
		_, ok := s.away[g.key][attachment{m.h.id, m.at}]
		s.mu.Unlock()
		if !ok {
			g.exit(m.h.id, m.at)
		}
	}
}

// exit takes a member out that was connected to p; nil: here.
func (g *group) exit(id herald.SessionID, p *peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = slices.DeleteFunc(g.members, func(m member) bool { return m.h.id == id && m.at == p })
}

// attend makes a connected client a member of a group of the cluster: the group is
// there, somebody owns it. It may block for the store.
func (e *Engine) attend(c *client, key string, sub *persistence.Subscription) error {
	gs := &e.groups
	defer gs.joins.lock(key)()
	if !e.sharing.come(c, key) {
		return nil
	}
	if err := gs.ensure(e, key, c.core.Durable()); err != nil {
		return err
	}
	if g := gs.byKey(key); g != nil {
		e.enterHere(g, c, sub)
		gs.wakeSoon(e, g)
	}
	return nil
}

// come notes that a client is connected here, unless it has gone meanwhile: absent comes
// after its connection was taken from it, once.
func (s *sharing) come(c *client, key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[key] == nil {
		s.here[key] = make(map[herald.SessionID]*handle)
	}
	s.here[key][c.h.id] = c.h
	if c.core.Durable() {
		s.names[c.h.id] = c.name
	}
	return true
}

// join is attend for a client that subscribes: it is a member when the subscription is
// known to everybody (joined). Whoever owns the group next has to know who may have
// something of it.
func (e *Engine) join(c *client, key string, sub *persistence.Subscription) error {
	s := &e.sharing
	s.mu.Lock()
	s.joining[attendance{key, c.h.id}] = struct{}{}
	s.mu.Unlock()
	return e.attend(c, key, sub)
}

// joined makes a client a member of the groups of subscriptions that everybody knows.
func (e *Engine) joined(c *client, subs []persistence.Subscription) {
	for i := range subs {
		key, shared := shareKey(subs[i].Filter)
		if !shared || !e.nodes.on() {
			continue
		}
		s := &e.sharing
		s.mu.Lock()
		delete(s.joining, attendance{key, c.h.id})
		s.mu.Unlock()
		if g := e.groups.byKey(key); g != nil {
			e.enterHere(g, c, &subs[i])
		}
	}
}

// enterHere adds a client of this node, which may go at the same time: it must not stand
// in the way of where it is connected next.
func (e *Engine) enterHere(g *group, c *client, sub *persistence.Subscription) {
	s := &e.sharing
	s.mu.Lock()
	_, joining := s.joining[attendance{g.key, c.h.id}]
	s.mu.Unlock()
	if joining {
		return
	}
	g.enter(member{h: c.h, g: e.grants.of(topic.Options{QoS: sub.QoS, RetainAsPublished: sub.RetainAsPublished, Identifier: sub.Identifier})})
	s.mu.Lock()
	here := s.here[g.key][c.h.id] == c.h
	s.mu.Unlock()
	if !here {
		g.exit(c.h.id, nil)
		e.reenter(g, c.h.id)
	}
}

// absent takes a client out whose connection is gone, or that has unsubscribed.
func (e *Engine) absent(c *client, key string) {
	s := &e.sharing
	s.mu.Lock()
	if delete(s.here[key], c.h.id); len(s.here[key]) == 0 {
		delete(s.here, key)
	}
	delete(s.joining, attendance{key, c.h.id})
	s.mu.Unlock()
	if g := e.groups.byKey(key); g != nil {
		g.exit(c.h.id, nil)
		e.reenter(g, c.h.id)
		e.groups.wakeSoon(e, g)
	}
	e.groups.emptied(e, key)
}

func nameOf(key string) string { return key[:len(key)-len(filterOf(key))-1] }

func appendGroup(kind byte, id herald.SessionID, key string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{kind}, uint64(id)), key...)
}

// emptied lets a group of this node expire that has no member any more, and keeps
// one that has.
func (gs *groups) emptied(e *Engine, key string) {
	g := gs.byKey(key)
	if g == nil {
		return
	}
	e.errand(func() {
		defer gs.joins.lock(key)()
		s := &e.sharing
		s.mu.Lock()
		empty := len(s.rest[key]) == 0 && len(s.away[key]) == 0 && len(s.here[key]) == 0
		s.mu.Unlock()
		g.mu.Lock()
		row := g.row
		if empty == (row.Expires != 0) {
			g.mu.Unlock()
			return
		}
		row.Expires = 0
		if empty {
			row.Expires = e.now()
			if row.ExpiryInterval == never {
				row.Expires += e.cfg.Shared.Expiry.Milliseconds()
			}
		}
		g.row = row
		g.mu.Unlock()
		if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{row}}); err != nil {
			e.log.Error("storing a shared group", errField(err))
		}
	})
}

// attendAll makes a client that has come a member of the groups that it shares.
func (e *Engine) attendAll(c *client) error {
	if !e.nodes.on() {
		return nil
	}
	c.mu.Lock()
	subs := make([]persistence.Subscription, 0, len(c.subs))
	for _, s := range c.subs {
		subs = append(subs, s.Subscription)
	}
	c.mu.Unlock()
	for i := range subs {
		if key, shared := shareKey(subs[i].Filter); shared {
			if err := e.attend(c, key, &subs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// shareKey is the key of the group that a filter names; shared is false for any
// other filter.
func shareKey(filter string) (key string, shared bool) {
	name, f, shared, _ := herald.SplitShare(filter)
	return name + "/" + f, shared
}
