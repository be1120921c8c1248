package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// What a node announces. Routes are a set of strings:
//
//	l{filter}  somebody is connected who wants what matches
//	w{filter}  so does a session that ends with its connection, at QoS 1 or 2:
//	           publishers wait until a frame for it is appended
//
// Events tell of what stands in the store as well, for those who have read it:
//
//	s session options filter   a durable session has subscribed
//	u session filter           it has unsubscribed
//	e session                  it has ended
//
// The row is written before the event is announced. So a node that starts reads
// what it has no event of.

const (
	routeLive   = 'l'
	routeWaited = 'w'

	eventSubscribed   = 's'
	eventUnsubscribed = 'u'
	eventEnded        = 'e'
)

// routing is what this node has announced.
type routing struct {
	mu     sync.Mutex // guards below; announcements are made under it
	routes map[string]*announced

	scan scan
}

// announced is a route of this node.
type announced struct {
	n  int             // sessions
	at bridge.Position // of the announcement
}

func (r *routing) init() {
	r.routes = make(map[string]*announced)
	r.scan.init()
}

// want are the routes that a subscription of a connected session needs. Those of
// a shared one are its group's.
func want(id herald.SessionID, durable bool, sub *persistence.Subscription) (routes []string) {
	if _, _, shared, _ := herald.SplitShare(sub.Filter); shared {
		return []string{memberRoute(id, sub)}
	}
	routes = []string{string(routeLive) + sub.Filter}
	if !durable && sub.QoS > 0 {
		routes = append(routes, string(routeWaited)+sub.Filter)
	}
	return routes
}

// announce tells of routes that come and go, and of events. The position is the
// one that everybody has to have applied before a SUBACK; 0: nothing to wait for.
func (e *Engine) announce(add, remove []string, events [][]byte) (bridge.Position, error) {
	if !e.nodes.on() {
		return 0, nil
	}
	r := &e.routing
	r.mu.Lock()
	defer r.mu.Unlock()
	c := bridge.Change{Events: events}
	by := make(map[string]int, len(add)+len(remove)) // how many more sessions want a route
	for _, s := range add {
		by[s]++
	}
	for _, s := range remove {
		by[s]--
	}
	for _, s := range add {
		if r.routes[s] == nil && by[s] > 0 {
			c.Add = append(c.Add, s)
		}
	}
	for _, s := range remove {
		if a := r.routes[s]; a != nil && a.n+by[s] <= 0 {
			c.Remove = append(c.Remove, s)
		}
	}
	slices.Sort(c.Add)
	slices.Sort(c.Remove)
	c.Add, c.Remove = slices.Compact(c.Add), slices.Compact(c.Remove)
	var at bridge.Position
	if len(c.Add)+len(c.Remove)+len(c.Events) > 0 {
		var err error
		if at, err = e.nodes.Announce(c); err != nil { // nothing of it has happened
			return 0, fmt.Errorf("announce routes: %w", err)
		}
	}
	for _, s := range c.Add {
		r.routes[s] = &announced{at: at}
	}
	for s, n := range by {
		if a := r.routes[s]; a != nil {
			if a.n += n; a.n <= 0 {
				delete(r.routes, s)
			}
		}
	}
	for _, s := range add {
		if a := r.routes[s]; a != nil {
			at = max(at, a.at)
		}
	}
	return at, nil
}

// routeWait is how long a SUBACK or CONNACK waits for the other nodes.
const routeWait = 8 * time.Second

// announceFor announces what a client's SUBSCRIBE or UNSUBSCRIBE changes, and
// returns when every live node has applied it.
func (e *Engine) announceFor(c *client, add, remove []string, events [][]byte) error {
	if !e.nodes.on() {
		return nil
	}
	at, err := e.announce(add, remove, events)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.routes = append(c.routes, add...)
	for _, r := range remove {
		if i := slices.Index(c.routes, r); i >= 0 {
			c.routes = slices.Delete(c.routes, i, i+1)
		}
	}
	c.mu.Unlock()
	return e.settledWhile(e.patience(), at)
}

// withdraw takes the routes of a client back whose connection is gone.
func (e *Engine) withdraw(c *client) {
	if !e.nodes.on() {
		return
	}
	c.mu.Lock()
	routes := c.routes
	c.routes = nil
	var keys []string
	for f := range c.subs {
		if key, shared := shareKey(f); shared {
			keys = append(keys, key)
		}
	}
	c.mu.Unlock()
	for _, key := range keys {
		e.absent(c, key)
	}
	if _, err := e.announce(nil, routes, nil); err != nil {
		e.log.Warn("withdrawing routes", errField(err))
	}
}

// announceEnd tells that a durable session has ended.
func (e *Engine) announceEnd(id herald.SessionID, subs map[string]*subscription) {
	if !e.nodes.on() {
		return
	}
	events := make([][]byte, 0, len(subs)+1)
	for f := range subs {
		events = append(events, appendUnsubscribed(id, f))
	}
	if _, err := e.announce(nil, nil, append(events, appendEnded(id))); err != nil {
		e.log.Warn("announcing the end of a session", errField(err))
	}
}

// settledRoutes waits until every live node has applied announcements up to at.
func (e *Engine) settledRoutes(at bridge.Position) error { return e.settledWhile(e.life, at) }

// settledWhile is settledRoutes until ctx ends.
func (e *Engine) settledWhile(ctx context.Context, at bridge.Position) error {
	if !e.nodes.on() || at == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, routeWait)
	defer cancel()
	return e.nodes.Settled(ctx, at)
}

// routesOf are all that a connected session needs; c.mu is held, or the client is
// not known to others yet.
func (c *client) routesOf() (routes []string) {
	for _, s := range c.subs {
		routes = append(routes, want(c.row.ID, c.core.Durable(), &s.Subscription)...)
	}
	return routes
}

func appendSubscribed(id herald.SessionID, sub *persistence.Subscription) []byte {
	b := binary.BigEndian.AppendUint64([]byte{eventSubscribed}, uint64(id))
	flags := sub.QoS & 3
	if sub.NoLocal {
		flags |= 4
	}
	if sub.RetainAsPublished {
		flags |= 8
	}
	b = binary.AppendUvarint(append(b, flags), uint64(sub.Identifier))
	return append(b, sub.Filter...)
}

func appendUnsubscribed(id herald.SessionID, filter string) []byte {
	b := binary.BigEndian.AppendUint64([]byte{eventUnsubscribed}, uint64(id))
	return append(b, filter...)
}

func appendEnded(id herald.SessionID) []byte {
	return binary.BigEndian.AppendUint64([]byte{eventEnded}, uint64(id))
}

// Apply takes an announcement of a peer: the transport's handler.
func (e *Engine) Apply(from bridge.Peer, c bridge.Change) {
	p := e.meet(from)
	for _, s := range c.Add {
		if err := e.addRoute(p, s); err != nil {
			e.badRoute(from, err)
		}
	}
	for _, s := range c.Remove {
		e.removeRoute(p, s)
	}
	for _, b := range c.Events {
		if err := e.event(b); err != nil {
			e.badRoute(from, err)
		}
	}
}

func (e *Engine) badRoute(from bridge.Peer, err error) {
	e.stats.BadFrames.Add(1)
	e.log.Error("an announcement of another node cannot be decoded and is skipped", nodeField(from), errField(err))
}

// Replace takes all the routes of a peer, of which some announcements are
// missing: the transport's handler. What is in the store is read again before
// the peer is told that everything is applied.
func (e *Engine) Replace(from bridge.Peer, routes []string) {
	p := e.meet(from)
	now := make(map[string]struct{}, len(routes))
	for _, s := range routes {
		now[s] = struct{}{}
		if err := e.addRoute(p, s); err != nil {
			e.badRoute(from, err)
		}
	}
	p.mu.Lock()
	var gone []string
	for s := range p.routes {
		if _, ok := now[s]; !ok {
			gone = append(gone, s)
		}
	}
	p.mu.Unlock()
	for _, s := range gone {
		e.removeRoute(p, s)
	}
	if e.routing.scan.later(&e.loaded) {
		return
	}
	for e.life.Err() == nil {
		n, err := e.rescanSubscriptions(e.life)
		if err == nil {
			e.log.Info("announcements were missed; subscriptions read again", nodeField(from), zap.Int("subscriptions", n))
			break
		}
		e.log.Error("reading subscriptions; it is tried again", errField(err))
		select {
		case <-e.quit:
			return
		case <-time.After(time.Second):
		}
	}
	e.lookAll()
}

func (e *Engine) addRoute(p *peer, s string) error {
	if len(s) < 2 || s[0] != routeMember && (s[0] != routeLive && s[0] != routeWaited || !herald.ValidFilter(s[1:])) {
		return errors.New("malformed route")
	}
	p.mu.Lock()
	if _, ok := p.routes[s]; ok || p.over {
		p.mu.Unlock()
		return nil
	}
	p.routes[s] = struct{}{}
	if s[0] != routeMember {
		e.remote.Subscribe(s[1:], p.target(s), topic.Options{})
	}
	p.mu.Unlock()
	if s[0] == routeMember {
		return e.memberCame(p, s)
	}
	return nil
}

func (p *peer) target(route string) *remote {
	if route[0] == routeWaited {
		return p.waited
	}
	return p.live
}

func (e *Engine) removeRoute(p *peer, s string) {
	p.mu.Lock()
	_, ok := p.routes[s]
	delete(p.routes, s)
	if ok && s[0] != routeMember {
		e.remote.Unsubscribe(s[1:], p.target(s))
	}
	p.mu.Unlock()
	if ok && s[0] == routeMember {
		e.memberWent(p, s)
	}
}

// dropRoutes drops all of a peer's.
func (e *Engine) dropRoutes(p *peer) {
	p.mu.Lock()
	routes := make([]string, 0, len(p.routes))
	for s := range p.routes {
		routes = append(routes, s)
	}
	p.mu.Unlock()
	for _, s := range routes {
		e.removeRoute(p, s)
	}
}

// event carries out what another node has done to a durable session.
func (e *Engine) event(b []byte) error {
	r := record.Decoder{B: b}
	kind, id := r.Byte(), herald.SessionID(r.Uint64())
	switch kind {
	case eventSubscribed:
		flags, identifier := r.Byte(), r.Uvarint()
		sub := persistence.Subscription{
			Filter: string(r.B), QoS: min(flags&3, 2), NoLocal: flags&4 != 0, RetainAsPublished: flags&8 != 0, Identifier: uint32(identifier),
		}
		if _, _, _, ok := herald.SplitShare(sub.Filter); r.Err != nil || !ok {
			return errFrame
		}
		e.touch(id, sub.Filter)
		h := e.handleFor(id, true)
		if key, shared := shareKey(sub.Filter); shared {
			e.shares(key, id)
			return nil
		}
		return e.routeTo(h, sub)
	case eventUnsubscribed:
		if r.Err != nil {
			return errFrame
		}
		e.touch(id, string(r.B))
		if key, shared := shareKey(string(r.B)); shared {
			e.unshares(key, id)
		} else if h := e.handle(id); h != nil {
			e.unroute(h, string(r.B))
		}
	case eventEnded:
		if r.Err != nil {
			return errFrame
		}
		e.dropHandle(id)
	case eventGroup, eventGroupEnded:
		key := string(r.B)
		if r.Err != nil || filterOf(key) == key || !herald.ValidFilter(filterOf(key)) {
			return errFrame
		}
		if kind == eventGroup {
			e.learn(key, id)
		} else {
			e.unlearn(key, id)
		}
	default:
		return fmt.Errorf("event of kind %d", kind)
	}
	return nil
}
