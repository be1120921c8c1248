package engine

import (
	"errors"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// Who has what of a shared group when nodes have died. What the group rests on:
//
//   - One life deals: that which the group's claim names. Whoever may have claimed it
//     finds out, and deals or knows who does (sharedclaims.go).
//   - An entry has one holder at a time. It is dealt again only when its holder has not
//     begun it and never will: the node that it is connected to says so, which is live;
//     or the life that it was connected to is over, and what that has written of its
//     window can turn up no more, and the window does not have it. For that somebody has
//     to own the session's claim, and to seal the window (settle).
//   - What became of an entry its holder's node tells, or the store once that node is dead
//     (bereave): what a dead node tells then is not listened to, as the entry may be
//     somebody else's by now.

// identify learns the names of sessions. Of those that are not known the rows are read,
// all at once; who has none has ended, or ends with its connection.
func (e *Engine) identify(ids []herald.SessionID) error {
	s := &e.sharing
	s.naming.lock()
	defer s.naming.unlock()
	wanted := make(map[herald.SessionID]struct{})
	s.mu.Lock()
	for _, id := range ids {
		if _, ok := s.names[id]; !ok {
			wanted[id] = struct{}{}
		}
	}
	s.mu.Unlock()
	if len(wanted) == 0 {
		return nil
	}
	for _, all := range e.durableMembers() { // they will be asked for next
		for _, id := range all {
			wanted[id] = struct{}{}
		}
	}
	names := make(map[herald.SessionID]string, len(wanted))
	err := e.store.ScanSessions(e.life, func(row persistence.Session) error {
		if _, ok := wanted[row.ID]; ok && row.Kind == persistence.Client {
			names[row.ID] = row.Name
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range ids { // identities are given once: it will have no row
		if _, ok := names[id]; !ok {
			names[id] = ""
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, members := range s.rest { // of the others nobody will ask
		for id := range members {
			if name := s.names[id]; name != "" {
				names[id] = name
			}
		}
	}
	s.names = names
	return nil
}

// windowOf reads the window of a session that was identified. Nothing that lives which
// are over have written of it turns up later. It may wait for other nodes.
func (e *Engine) windowOf(id herald.SessionID) (persistence.Window, error) {
	s := &e.sharing
	s.mu.Lock()
	name := s.names[id]
	s.mu.Unlock()
	if name != "" {
		if err := e.settle(id, name); err != nil {
			return persistence.Window{}, err
		}
	}
	return e.store.Window(e.life, id)
}

// settle returns when the window of a session has nothing to come of a life that is over.
// If nobody goes on with the session, this node takes its claim, as one that wants to
// serve it does.
func (e *Engine) settle(id herald.SessionID, name string) error {
	for range settleLooks {
		ok, later, err := e.isSettled(id, name)
		if ok || err != nil {
			return err
		}
		if !later {
			break
		}
		select { // its owner may be about to go on with it
		case <-time.After(settleEvery):
		case <-e.life.Done():
			return herald.ErrClosed
		}
	}
	defer e.claims.lock(name)()
	if _, err := e.claim(e.life, ownerKey{persistence.Client, name}, toServe, nil); err != nil {
		return err
	}
	if !e.owners.isUnsealed(name) {
		return nil
	}
	if err := e.nodes.store.Seal(e.life, id); err != nil {
		return err
	}
	e.owners.sealed(name)
	return nil
}

// A live owner that has not gone on with a session is given settleLooks times
// settleEvery to do so, before it is asked to give the session up.
const (
	settleLooks = 10
	settleEvery = 500 * time.Millisecond
)

// isSettled tells whether the window of a session has nothing to come of a life that is
// over; later: it may have by itself soon.
func (e *Engine) isSettled(id herald.SessionID, name string) (ok, later bool, err error) {
	c, err := e.nodes.store.Claimed(e.life, persistence.Client, name)
	owner := ownerOf(c)
	switch {
	case err != nil:
		return false, false, err
	case c.Epoch == 0:
		return true, false, nil
	case owner == e.nodes.self:
		return !e.owners.isUnsealed(name), false, nil
	case !e.nodes.Live(owner):
		return false, false, nil
	}
	// Whoever goes on with a session seals it before it writes the row.
	row, err := e.store.Session(e.life, persistence.Client, name)
	switch {
	case errors.Is(err, herald.ErrNotFound):
		return true, false, nil
	case err != nil:
		return false, false, err
	}
	return row.ID != id || row.Node == owner.Node && row.Life == owner.Incarnation, true, nil
}

// mourn notes that what is told of a life does not count any more.
func (s *sharing) mourn(p bridge.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over[p.Node] = max(s.over[p.Node], p.Incarnation)
}

// mourned tells whether that is so.
func (s *sharing) mourned(p bridge.Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.Incarnation <= s.over[p.Node]
}

// atRest are those of durable sessions that are not connected to a live node as members
// of a group.
func (s *sharing) atRest(e *Engine, key string, ids []herald.SessionID) (rest []herald.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	connected := make(map[herald.SessionID]struct{})
	for id := range s.here[key] {
		connected[id] = struct{}{}
	}
	for a := range s.away[key] {
		if e.nodes.Live(a.at.Peer) {
			connected[a.session] = struct{}{}
		}
	}
	for _, id := range ids {
		if _, ok := connected[id]; !ok {
			rest = append(rest, id)
		}
	}
	return rest
}
