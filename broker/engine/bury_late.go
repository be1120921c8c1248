package engine

import (
	"errors"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// lateAfter is when a life that was buried is looked at again: a row that it was writing
// when it was found dead may have landed since. Nobody was told of such a session, but it
// is said to be connected, and would never expire.
const lateAfter = 30 * time.Second

// lookLate puts away, after a while, sessions that are said to be connected to a node in a
// life that is over.
func (e *Engine) lookLate(m persistence.Member) {
	e.jobs.run(func() {
		select {
		case <-e.life.Done():
			return
		case <-time.After(lateAfter):
		}
		var late []persistence.Session
		err := e.store.ScanSessions(e.life, func(s persistence.Session) error {
			if s.Kind == persistence.Client && s.Node == m.Node && s.Life <= m.Life && s.Life != 0 && s.Disconnected == 0 {
				late = append(late, s)
			}
			return nil
		})
		for _, s := range late {
			err = errors.Join(err, e.putAwayLate(s))
		}
		if err != nil && e.life.Err() == nil {
			e.log.Warn("looking at the sessions of a dead node again", nodeField(bridge.Peer{Node: m.Node, Incarnation: m.Life}), errField(err))
		}
	})
}

// putAwayLate does so with one, unless a live node has it.
func (e *Engine) putAwayLate(s persistence.Session) error {
	unlock := e.claims.lock(s.Name)
	defer unlock()
	if e.connectedAs(s.Name) {
		return nil
	}
	k := ownerKey{persistence.Client, s.Name}
	owner, err := e.nodes.store.Claimed(e.life, k.kind, k.name)
	if err != nil {
		return err
	}
	if p := ownerOf(owner); p != e.nodes.self && e.nodes.Live(p) {
		return nil
	}
	if _, err := e.claim(e.life, k, toServe, nil); err != nil {
		return err
	}
	now, err := e.store.Session(e.life, k.kind, k.name)
	switch {
	case errors.Is(err, herald.ErrNotFound):
		return nil
	case err != nil:
		return err
	case now.ID != s.ID || now.Node != s.Node || now.Life != s.Life || now.Disconnected != 0:
		return nil
	}
	return e.commit(&persistence.Batch{Sessions: []persistence.Session{disconnected(now, e.now())}})
}
