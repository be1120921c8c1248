package engine

import (
	"errors"
	"maps"
	"math"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// In whose care a delayed will is: in that of the node that has the claim of its session.
// Its row names that node before the claim does, so that it is known who sees to it when
// one of the two dies. Who is given a session goes on with it, and removes the row; else,
// because its client has gone, or nobody waited for the answer, the row is looked for.

// entrust names another node in the row of a delayed will, to which its session is about
// to be given. The session's row goes with it: who goes on with the session reads that
// and is ahead of the will's, which it removes: see [persistence.Cluster.Observe].
func (e *Engine) entrust(will *persistence.Will, row persistence.Session, to bridge.Peer) error {
	w := *will
	w.Node, w.Life = to.Node, to.Incarnation
	return e.commit(&persistence.Batch{Sessions: []persistence.Session{row}, Wills: []persistence.Will{w}})
}

// adoptStray looks for delayed wills that are in this node's care of which it does not
// know. What cannot be decided now is looked for again.
func (e *Engine) adoptStray(now int64) {
	d := &e.wills
	if !e.nodes.on() || now-e.strayAt < strayEvery {
		return
	}
	d.mu.Lock()
	if !d.stray {
		d.mu.Unlock()
		return
	}
	suspects := d.suspects
	d.stray, d.suspects = false, make(map[string]struct{})
	d.mu.Unlock()
	watch := d.watch()
	defer watch.end()
	e.strayAt = now
	again := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.stray = true
		maps.Copy(d.suspects, suspects)
	}
	wills, err := e.store.Wills(e.life, math.MaxInt64, false, math.MaxInt)
	if err != nil {
		again()
		return
	}
	for i := range wills {
		w := &wills[i]
		_, suspect := suspects[w.Client]
		if keyOf(w).of != e.nodes.self && !suspect {
			continue
		}
		if settled, err := e.adoptOne(w, watch); err != nil || !settled {
			if err != nil && !errors.Is(err, herald.ErrClosed) {
				e.log.Warn("looking for a will", sessionField(w.Session), zap.Error(err))
			}
			again()
		}
	}
}

// strayEvery is how often stray wills are looked for, if there is a reason, in
// milliseconds.
const strayEvery = 2000

// adoptOne takes care of a will if it is this node's; false: that cannot be told yet.
func (e *Engine) adoptOne(w *persistence.Will, watch *willWatch) (settled bool, err error) {
	unlock, ok := e.claims.tryLock(w.Client)
	if !ok {
		return false, nil
	}
	defer unlock()
	read := keyOf(w)
	if watch.had(read) || e.connectedAs(w.Client) {
		return true, nil
	}
	row, err := e.store.Session(e.life, persistence.Client, w.Client)
	ended := errors.Is(err, herald.ErrNotFound) || err == nil && row.ID != w.Session
	switch {
	case ended: // it is due [MQTT-3.1.3-9], and nobody else minds
		if read.of != e.nodes.self {
			return true, nil
		}
		w.Due = min(w.Due, e.now())
		watch.adopt(w, read)
		return true, nil
	case err != nil:
		return false, err
	}
	k := ownerKey{persistence.Client, w.Client}
	claim, err := e.nodes.store.Claimed(e.life, k.kind, k.name)
	if err != nil {
		return false, err
	}
	switch owner := ownerOf(claim); {
	case owner == e.nodes.self:
	case e.nodes.Live(owner):
		return true, nil // he sees to it, or gives the session away, which is then heard
	case !e.nodes.settled(owner):
		return false, nil
	default:
		if _, err := e.claim(e.life, k, toServe, nil); err != nil {
			return false, err
		}
	}
	if resumed, err := e.resumed(w); err != nil || resumed {
		return err == nil, err
	}
	if read.of != e.nodes.self {
		if err := e.entrust(w, row, e.nodes.self); err != nil {
			return false, err
		}
		w.Node, w.Life = e.nodes.self.Node, e.nodes.self.Incarnation
	}
	watch.adopt(w, read)
	return true, nil
}

// connectedAs tells whether a client is connected here, or being put away.
func (e *Engine) connectedAs(name string) bool {
	e.clientsMu.RLock()
	defer e.clientsMu.RUnlock()
	return e.clients[name] != nil
}
