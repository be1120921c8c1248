package engine

import (
	"context"
	"errors"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// Who owns a shared group, and how a node comes by the claim.

// ensure sees to it that a group is there and owned by a live node: by this one, if
// by nobody. The key is locked. Whoever may have the claim, because no answer came or
// the group could not be opened, goes on until it deals or somebody else does: to the
// others it is the owner.
func (gs *groups) ensure(e *Engine, key string, durable bool) error {
	if gs.byKey(key) != nil {
		return nil
	}
	claimed, err := gs.claim(e, key, durable)
	if claimed && err != nil && gs.byKey(key) == nil {
		e.pursue(key, durable)
	}
	return err
}

// claim is ensure without what is done after an error. claimed: the claim may be this
// node's.
func (gs *groups) claim(e *Engine, key string, durable bool) (claimed bool, err error) {
	k := ownerKey{persistence.Group, key}
	ctx, cancel := context.WithTimeout(e.life, claimWait)
	defer cancel()
	for {
		old, err := e.nodes.store.Claimed(ctx, k.kind, k.name)
		if err != nil {
			return claimed, err
		}
		last := ownerOf(old)
		switch {
		case last == e.nodes.self && old.Epoch != 0:
			return true, gs.own(e, key, durable, old.Epoch)
		case old.Epoch != 0 && e.nodes.Live(last):
			return false, gs.wait(ctx, e, key)
		case old.Epoch != 0:
			if err := e.nodes.Over(ctx, last); err != nil {
				return claimed, err
			}
		}
		claimed = true
		if _, _, err := e.nodes.store.Claim(ctx, k.kind, k.name, old, e.nodes.self.Node, e.nodes.self.Incarnation); err != nil {
			return claimed, err
		}
	}
}

// pursue has ensure called for a group until it knows who owns it.
func (e *Engine) pursue(key string, durable bool) {
	s := &e.sharing
	s.mu.Lock()
	_, busy := s.pursued[key]
	s.pursued[key] = struct{}{}
	s.mu.Unlock()
	if busy {
		return
	}
	e.jobs.run(func() {
		again := time.NewTimer(pursueEvery)
		defer again.Stop()
		for {
			select {
			case <-e.life.Done():
				return
			case <-again.C:
			}
			var err error
			e.guard("claiming a shared group", func() { err = e.electKey(key, durable) })
			if err == nil {
				break
			}
			e.log.Warn("claiming a shared group; it is tried again", errField(err))
			again.Reset(pursueEvery)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.pursued, key)
	})
}

// pursueEvery is how often a node tries to find out whether a group is its own.
const pursueEvery = 200 * time.Millisecond

// wait returns when a group that another node owns is in the index here: the owner
// may be about to make it.
func (gs *groups) wait(ctx context.Context, e *Engine, key string) error {
	for {
		s := &e.sharing
		s.mu.Lock()
		_, ok := s.ids[key]
		s.mu.Unlock()
		if ok {
			return nil
		}
		row, err := e.store.Session(ctx, persistence.Group, key)
		switch {
		case err == nil:
			e.learn(key, row.ID)
			return nil
		case !errors.Is(err, herald.ErrNotFound):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(closeEvery):
		}
	}
}

// own opens a group that this node has claimed. Its key is locked.
func (gs *groups) own(e *Engine, key string, durable bool, epoch uint64) error {
	row, err := e.store.Session(e.life, persistence.Group, key)
	switch {
	case errors.Is(err, herald.ErrNotFound):
		row = persistence.Session{ID: e.newSessionID(), Kind: persistence.Group, Name: key, Connected: e.now()}
		if durable || e.durableGroup(nameOf(key), key) {
			row.ExpiryInterval = never // shared.expiry after its last member left
		}
		if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{row}}); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	g := &group{key: key, filter: filterOf(key), row: row, waiting: true, epoch: epoch}
	e.sharing.deals(row.ID, dealer{e.nodes.self, epoch})
	g.picker.Strategy = e.cfg.Shared.Strategy
	g.core = session.NewGroup(row.ID, true)
	g.core.Keep(e.cfg.Memory)
	g.out = make(map[herald.ID]outside)
	s := &e.sharing
	s.mu.Lock()
	s.ids[key], s.keys[row.ID] = row.ID, key
	s.mu.Unlock()
	// As it stood in the index while others owned it: what was routed then and is delivered
	// later comes to this group, which may not read its queue again.
	g.h = e.handleFor(row.ID, true)
	gs.publish(e, g, true)
	e.enterAway(g, func(attachment) bool { return true }) // those of later routes enter by themselves
	at, err := e.announce([]string{string(routeLive) + g.filter}, nil, [][]byte{appendGroup(eventGroup, row.ID, key)})
	if err != nil {
		e.log.Warn("announcing a shared group", errField(err))
	}
	e.errand(func() { gs.start(e, g, at) })
	// A SUBACK that comes from it waits for everybody to have the group.
	return e.settledWhile(e.patience(), at)
}
