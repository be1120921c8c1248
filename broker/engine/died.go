package engine

import (
	"errors"
	"fmt"
	"math"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Died finishes what a node had begun whose lease has run out: for the membership,
// which calls it on one of the survivors, or on two at once. An error has it called
// again.
func (e *Engine) Died(m persistence.Member) error {
	if !e.loaded.Load() {
		return fmt.Errorf("%w: starting", herald.ErrUnavailable)
	}
	e.nodes.dying.lock()
	defer e.nodes.dying.unlock()
	if err := e.nodes.store.Finish(e.life, m); err != nil {
		return err
	}
	if err := e.finishOutbox(e.life, outboxOf(m.Node)); err != nil {
		return err
	}
	return e.bury(m)
}

// disconnected is the row of a session whose connection ended at the given moment
// with the process that had it.
func disconnected(s persistence.Session, at int64) persistence.Session {
	s.Disconnected = at
	switch s.ExpiryInterval {
	case never:
	case 0:
		s.Expires = at
	default:
		s.Expires = at + int64(s.ExpiryInterval)*1000
	}
	return s
}

// resumed tells whether the client of a will that is due has come back, to a node
// that could not tell this one: it had the will from one that is dead.
func (e *Engine) resumed(w *persistence.Will) (bool, error) {
	if !e.nodes.on() {
		return false, nil
	}
	if !e.owners.owns(ownerKey{persistence.Client, w.Client}) {
		if replaced, err := e.replaced(w); replaced || err != nil {
			return replaced, err
		}
	}
	row, err := e.store.Session(e.life, persistence.Client, w.Client)
	switch {
	case errors.Is(err, herald.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case row.ID != w.Session:
		return false, nil
	case row.Disconnected == 0:
		return true, nil
	}
	return row.Disconnected+int64(min(w.Delay, row.ExpiryInterval))*1000 > w.Due, nil
}

// replaced tells whether a will is no longer what stands in its row: its client has come
// back at another node, which could not tell this one.
func (e *Engine) replaced(w *persistence.Will) (bool, error) {
	r, ok := e.nodes.store.(persistence.WillReader)
	if !ok {
		return false, nil
	}
	is, err := r.Will(e.life, w.Session)
	if errors.Is(err, herald.ErrNotFound) {
		return true, nil
	}
	return err == nil && keyOf(&is) != keyOf(w), err
}

// Finished tells that nothing is left to be finished of a dead node: the sessions
// look at their inboxes for what it has put there. For the membership.
//
// While this node is finishing it itself, because another was slow and then was not,
// it has not looked: nobody claims the dead node's sessions before, so that their
// rows are not written over.
func (e *Engine) Finished(m persistence.Member) error {
	e.nodes.dying.lock()
	defer e.nodes.dying.unlock()
	for _, l := range e.nodes.unburied(m) {
		if err := e.bury(l); err != nil {
			return err
		}
	}
	e.follow()
	e.wills.look()                      // it may have given sessions to this node, and not have said so
	for _, p := range e.nodes.peers() { // of a node that died often, lives may have gone unseen
		if p.Node == m.Node && p.Incarnation <= m.Life {
			e.look(p, math.MaxUint64)
			e.bereave(p)
			e.forget(p)
			e.errand(e.elect)
		}
	}
	return nil
}

// leads tells whether this node does what one node does for all: the live one with
// the lowest number.
func (e *Engine) leads() bool {
	n := &e.nodes
	if !n.on() {
		return true
	}
	for _, p := range n.peers() {
		if p.Node < n.self.Node && n.Live(p.Peer) {
			return false
		}
	}
	return n.Valid()
}
