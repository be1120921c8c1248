package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// How a node comes to own a shared group: from here on it is its dealer.

// start lets a group deal when everything that is published for it comes here, what
// was published before can be read, and it is known who holds what.
func (gs *groups) start(e *Engine, g *group, at bridge.Position) {
	for e.settledRoutes(at) != nil {
		if e.stopping.Load() {
			return
		}
	}
	if !e.nodes.passed(e.quit, e.Clock()) {
		return
	}
	for !e.stopping.Load() {
		held, err := gs.askHeld(e, g)
		if err == nil {
			g.mu.Lock()
			g.held, g.waiting = held, false
			g.mu.Unlock()
			gs.wakeSoon(e, g)
			return
		}
		e.log.Warn("starting a shared group", errField(err))
		select {
		case <-e.quit:
		case <-time.After(time.Second):
		}
	}
}

// dealer is who owns a group, under which epoch of its claim.
type dealer struct {
	bridge.Peer
	epoch uint64
}

// deals tells whether d may deal for a group: nobody is known to have owned it since. What
// a dead owner has sent may come late, when the next one was told already who holds what.
func (s *sharing) deals(group herald.SessionID, d dealer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.epoch < s.dealers[group].epoch {
		return false
	}
	s.dealers[group] = d
	return true
}

// askHeld collects what connected members hold of a group, here and elsewhere.
func (gs *groups) askHeld(e *Engine, g *group) ([]heldBy, error) {
	s := &e.sharing
	answers := make(chan heldAnswer, herald.MaxNode+1)
	s.mu.Lock()
	s.request++
	request := s.request
	s.asking[request] = answers
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.asking, request)
		s.mu.Unlock()
	}()
	open := make(map[bridge.Peer]struct{})
	for _, p := range e.nodes.peers() {
		if e.nodes.Live(p.Peer) {
			open[p.Peer] = struct{}{}
			p.send(appendAskHeld(nil, request, g.row.ID, g.epoch), surely, 0)
		}
	}
	var held []heldBy
	for _, h := range e.heldHere(g.row.ID) {
		held = append(held, heldBy{nil, h})
	}
	deadline := time.After(heldWait)
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for len(open) > 0 {
		select {
		case a := <-answers:
			if _, ok := open[a.from]; ok {
				delete(open, a.from)
				p := e.meet(a.from)
				for _, h := range a.held {
					held = append(held, heldBy{p, h})
				}
			}
		case <-look.C:
			for p := range open {
				if !e.nodes.Live(p) {
					delete(open, p)
				}
			}
		case <-deadline:
			return nil, herald.ErrUnavailable
		case <-e.quit:
			return nil, herald.ErrClosed
		}
	}
	return held, nil
}

// heldHere is what clients of this node hold of a group.
func (e *Engine) heldHere(group herald.SessionID) (held []persistence.Sent) {
	e.clientsMu.RLock()
	cs := make([]*client, 0, len(e.clients))
	for _, c := range e.clients {
		cs = append(cs, c)
	}
	e.clientsMu.RUnlock()
	for _, c := range cs {
		c.mu.Lock()
		for _, id := range c.core.HeldOf(group) {
			held = append(held, persistence.Sent{Session: c.h.id, ID: id, Source: group, Step: persistence.Published})
		}
		c.mu.Unlock()
	}
	return held
}

// elect has this node own the groups that have members here and no live owner, and
// tries until it knows of each who does.
func (e *Engine) elect() {
	for !e.electOnce() {
		select {
		case <-e.life.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (e *Engine) electOnce() (all bool) {
	s := &e.sharing
	s.mu.Lock()
	keys := make([]string, 0, len(s.here))
	for key := range s.here {
		keys = append(keys, key)
	}
	s.mu.Unlock()
	var failed atomic.Bool
	var wait sync.WaitGroup
	slots := make(chan struct{}, electAtOnce)
	for _, key := range keys {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if err := e.electKey(key, false); err != nil && e.life.Err() == nil {
				e.log.Warn("claiming a shared group; it is tried again", errField(err))
				failed.Store(true)
			}
		})
	}
	wait.Wait()
	return !failed.Load()
}

// electAtOnce is how many groups are claimed at the same time, so that one whose owner
// is slow does not hold up the others.
const electAtOnce = 16

func (e *Engine) electKey(key string, durable bool) error {
	gs := &e.groups
	unlock := gs.joins.lock(key)
	err := gs.ensure(e, key, durable)
	unlock()
	if err != nil {
		return err
	}
	if g := gs.byKey(key); g != nil {
		e.rejoin(g)
	}
	return nil
}

// rejoin makes the members that are connected here members of a group that this
// node has come to own.
func (e *Engine) rejoin(g *group) {
	e.clientsMu.RLock()
	cs := make([]*client, 0, len(e.clients))
	for _, c := range e.clients {
		cs = append(cs, c)
	}
	e.clientsMu.RUnlock()
	for _, c := range cs {
		c.mu.Lock()
		var sub *subscription
		if c.conn != nil {
			for f, s := range c.subs {
				if name, filter, shared, _ := herald.SplitShare(f); shared && name+"/"+filter == g.key {
					sub = s
				}
			}
		}
		c.mu.Unlock()
		if sub != nil {
			e.enterHere(g, c, &sub.Subscription)
		}
	}
	e.groups.wakeSoon(e, g)
}
