package engine

import (
	"errors"
	"fmt"
	"math"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
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
	began := e.now()
	if err := e.nodes.store.Finish(e.life, m); err != nil {
		return err
	}
	if err := e.finishOutbox(e.life, outboxOf(m.Node)); err != nil {
		return err
	}
	// Its clients have lost their connection without a DISCONNECT [MQTT-3.1.2-8].
	var b persistence.Batch
	outlives := make(map[herald.SessionID]uint32)
	if err := e.store.ScanSessions(e.life, func(s persistence.Session) error {
		if s.Kind == persistence.Client && s.Node == m.Node && s.Life <= m.Life && s.Life != 0 && s.Disconnected == 0 {
			outlives[s.ID] = s.ExpiryInterval
			b.Sessions = append(b.Sessions, disconnected(s, began))
		}
		return nil
	}); err != nil {
		return err
	}
	wills, err := e.adopted(m.Node, m.Life, began, outlives)
	if err != nil {
		return err
	}
	b.Wills = wills
	if !b.Empty() {
		if err := e.commit(&b); err != nil {
			return err
		}
	}
	for i := range wills {
		e.wills.add(&wills[i])
	}
	e.log.Info("what a dead node had begun is finished", zap.String("node", m.Name), zap.Int("sessions", len(b.Sessions)),
		zap.Int("wills", len(wills)), zap.Int64("ms", e.now()-began))
	return nil
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

// adopted are the wills that a life had in its care, as they are in this node's.
func (e *Engine) adopted(node uint16, life uint64, at int64, outlives map[herald.SessionID]uint32) ([]persistence.Will, error) {
	all, err := e.store.Wills(e.life, math.MaxInt64, true, math.MaxInt)
	if err != nil {
		return nil, err
	}
	var wills []persistence.Will
	for _, w := range all {
		if w.Node != node || w.Life > life || w.Life == 0 {
			continue
		}
		if w.Due == 0 { // a session's end is the latest [MQTT-3.1.3-9]
			w.Due = at + int64(min(w.Delay, outlives[w.Session]))*1000
		}
		w.Node, w.Life = e.nodes.self.Node, e.nodes.self.Incarnation
		wills = append(wills, w)
	}
	return wills, nil
}

// resumed tells whether the client of a will that is due has come back, to a node
// that could not tell this one: it had the will from one that is dead.
func (e *Engine) resumed(w *persistence.Will) (bool, error) {
	if !e.nodes.on() {
		return false, nil
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

// Finished tells that nothing is left to be finished of a dead node: the sessions
// look at their inboxes for what it has put there. For the membership.
//
// While this node is finishing it itself, because another was slow and then was not,
// it has not looked: nobody claims the dead node's sessions before, so that their
// rows are not written over.
func (e *Engine) Finished(m persistence.Member) error {
	e.nodes.dying.lock()
	defer e.nodes.dying.unlock()
	e.follow()
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

// orphanedEvery is how often the wills are looked through for those of nodes that
// have left, in milliseconds.
const orphanedEvery = 5000

// adoptOrphans takes care of delayed wills that nobody has in his: those of nodes
// that have left by themselves.
func (e *Engine) adoptOrphans(now int64) {
	n := &e.nodes
	if !n.on() || now-e.orphansAt < orphanedEvery || !e.leads() {
		return
	}
	e.orphansAt = now
	wills, err := e.store.Wills(e.life, now, false, expireAtOnce)
	if err != nil {
		e.log.Warn("reading wills", errField(err))
		return
	}
	for i := range wills {
		w := &wills[i]
		owner := bridge.Peer{Node: w.Node, Incarnation: w.Life}
		if owner == n.self || n.Live(owner) || w.Due > now-orphanedEvery {
			continue
		}
		e.wills.add(w)
	}
}
