package engine

import (
	"context"
	"fmt"
	"maps"
	"math"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// What a life leaves of its clients: rows of sessions that are said to be connected,
// and wills. Several nodes may be burying it at once. The rows may be written by all
// of them; the wills are in the care of one, which has claimed them: two would each
// send them.

// graves are the lives that this node has begun to bury. Guarded by nodes.dying.
type graves map[bridge.Peer]*grave

// grave is what is to be stored for a life; nil fields: it is not known yet.
type grave struct {
	member persistence.Member
	batch  *persistence.Batch
	watch  *willWatch                   // since the wills were read
	as     map[herald.SessionID]willKey // the wills of the batch, as they were read
	// sending: the publication of the first of the batch's wills was begun here, and may
	// have failed.
	sending bool
}

// unburied are those of a number up to a life that were begun and are not done: the
// wills may be in this node's care, and nobody else sees to them.
func (n *nodes) unburied(upTo persistence.Member) (all []persistence.Member) {
	for g := range maps.Values(n.graves) {
		if g.member.Node == upTo.Node && g.member.Life <= upTo.Life {
			all = append(all, g.member)
		}
	}
	return all
}

// bury sees to the sessions and wills of a life whose intents are finished; nodes.dying
// is held. After an error it goes on where it was.
func (e *Engine) bury(m persistence.Member) error {
	n, began := &e.nodes, e.now()
	key := bridge.Peer{Node: m.Node, Incarnation: m.Life}
	g := n.graves[key]
	if g == nil {
		g = &grave{member: m}
		n.graves[key] = g
	}
	if g.batch == nil {
		watch := e.wills.watch()
		as := make(map[herald.SessionID]willKey)
		b, err := e.remains(m, began, watch, as)
		if err != nil {
			watch.end()
			return err
		}
		g.batch, g.watch, g.as = b, watch, as
	}
	if !g.batch.Empty() {
		if err := e.commit(g.batch); err != nil {
			return err // some of it may be in: the same again
		}
	}
	wills := len(g.batch.Wills)
	for ; len(g.batch.Wills) > 0; g.batch.Wills = g.batch.Wills[1:] {
		w := &g.batch.Wills[0]
		if w.Delay > 0 {
			g.watch.adopt(w, g.as[w.Session])
			continue
		}
		if !g.sending && g.watch.had(g.as[w.Session]) {
			continue
		}
		g.sending = true
		// Before its client is served again, with another will in its place.
		if err := e.publishWillNow(w); err != nil {
			return err
		}
		g.sending = false
	}
	delete(n.graves, key)
	g.watch.end()
	e.lookLate(m)
	e.log.Info("what a dead node had begun is finished", zap.String("node", m.Name), zap.Int("sessions", len(g.batch.Sessions)),
		zap.Int("wills", wills), zap.Int64("ms", e.now()-began))
	return nil
}

// remains is what is to be stored of the sessions and wills of a life, and of those
// before it of its number.
func (e *Engine) remains(m persistence.Member, at int64, watch *willWatch, as map[herald.SessionID]willKey) (*persistence.Batch, error) {
	wills, err := e.adopted(m)
	if err != nil {
		return nil, err
	}
	b := new(persistence.Batch)
	of := sessionsOf(wills)
	// Its clients have lost their connection without a DISCONNECT [MQTT-3.1.2-8].
	err = e.store.ScanSessions(e.life, func(s persistence.Session) error {
		of.see(s)
		if s.Kind == persistence.Client && s.Node == m.Node && s.Life <= m.Life && s.Life != 0 && s.Disconnected == 0 {
			b.Sessions = append(b.Sessions, disconnected(s, at))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, w := range wills {
		if watch.had(keyOf(&w)) { // it came into this node's care before
			continue
		}
		as[w.Session] = keyOf(&w)
		w.Due = of.due(&w, at)
		w.Node, w.Life = e.nodes.self.Node, e.nodes.self.Incarnation
		b.Wills = append(b.Wills, w)
	}
	return b, nil
}

// adopted are the wills of a life, of those before it of its number, and of others
// that one of these had in its care, as far as they are in this node's from here on.
func (e *Engine) adopted(m persistence.Member) ([]persistence.Will, error) {
	all, err := e.store.Wills(e.life, math.MaxInt64, true, math.MaxInt)
	if err != nil {
		return nil, err
	}
	mine := make(map[bridge.Peer]bool)
	var wills []persistence.Will
	for _, w := range all {
		life := bridge.Peer{Node: w.Node, Incarnation: w.Life}
		if w.Life == 0 || life == e.nodes.self {
			continue
		}
		own, asked := mine[life]
		if !asked {
			if own, err = e.care(life, &m); err != nil {
				return nil, err
			}
			mine[life] = own
		}
		if own {
			wills = append(wills, w)
		}
	}
	return wills, nil
}

// care has this node take the wills of a life into its care, if that is over, or is
// being buried here, and nobody has them who will see to them.
func (e *Engine) care(life bridge.Peer, buried *persistence.Member) (bool, error) {
	n := &e.nodes
	dies := func(p bridge.Peer) bool {
		return buried != nil && p.Node == buried.Node && p.Incarnation <= buried.Life
	}
	name := fmt.Sprintf("%d/%d", life.Node, life.Incarnation)
	for {
		old, err := n.store.Claimed(e.life, persistence.Wills, name)
		if err != nil {
			return false, err
		}
		owner := ownerOf(old)
		switch {
		case old.Epoch == 0 && buried != nil && !dies(life):
			return false, nil // another burial's, or that of nobody
		case old.Epoch != 0 && owner == n.self:
			return true, nil
		case old.Epoch != 0 && !dies(owner) && (buried != nil || !n.settled(owner)):
			return false, nil
		}
		_, won, err := n.store.Claim(e.life, persistence.Wills, name, old, n.self.Node, n.self.Incarnation)
		if won || err != nil {
			return won, err
		}
	}
}

// settled tells whether a life is over and settled.
func (n *nodes) settled(p bridge.Peer) bool {
	done, cancel := context.WithCancel(context.Background())
	cancel() // nothing is waited for
	return !n.Live(p) && n.Over(done, p) == nil
}

// willSessions are the sessions of wills whose clients are said to be connected.
type willSessions map[herald.SessionID]persistence.Session

func sessionsOf(wills []persistence.Will) willSessions {
	of := make(willSessions)
	for i := range wills {
		if w := &wills[i]; w.Due == 0 {
			of[w.Session] = persistence.Session{}
		}
	}
	return of
}

func (of willSessions) see(s persistence.Session) {
	if _, ok := of[s.ID]; ok && s.Kind == persistence.Client {
		of[s.ID] = s
	}
}

// due is when a will is due whose client's connection has ended with its process. A
// session's end is the latest [MQTT-3.1.3-9]; one without a row has ended. The row may
// say that it was put away already: then the will's is of before.
func (of willSessions) due(w *persistence.Will, at int64) int64 {
	if w.Due != 0 {
		return w.Due
	}
	s := of[w.Session]
	if s.Disconnected != 0 {
		at = s.Disconnected
	}
	return at + int64(min(w.Delay, s.ExpiryInterval))*1000
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
	watch := e.wills.watch() // one that is being published stands there still
	defer watch.end()
	wills, err := e.store.Wills(e.life, now, false, expireAtOnce)
	if err != nil {
		e.log.Warn("reading wills", errField(err))
		return
	}
	for i := range wills {
		w := &wills[i]
		owner := bridge.Peer{Node: w.Node, Incarnation: w.Life}
		if owner == n.self || w.Due > now-orphanedEvery || !n.settled(owner) {
			continue
		}
		own, err := e.care(owner, nil)
		if err != nil {
			e.log.Warn("claiming wills", errField(err))
			return
		}
		if own {
			watch.adopt(w, keyOf(w))
		}
	}
}
