package engine

import (
	"cmp"
	"math"
	"slices"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// Wills: of those who are connected, and of those who are gone and may come back in
// time.

// newWill is the will of a CONNECT.
func (e *Engine) newWill(c *client, con *wire.Connect) *persistence.Will {
	m := herald.Message{
		Publisher: c.h0(), Topic: string(con.WillTopic), QoS: min(con.WillQoS, e.cfg.MaxQoS), Retain: con.WillRetain,
		Payload: append([]byte(nil), con.WillPayload...),
	}
	if len(con.WillProperties) > 0 {
		m.Properties = append([]byte(nil), con.WillProperties...)
	}
	if con.HasWillExpiry {
		// Counted from the moment of publication; kept as a duration until then.
		m.Expires = int64(con.WillExpiry)*1000 + 1
	}
	return &persistence.Will{
		Session: c.row.ID, Client: c.name, Message: m, Delay: con.WillDelay,
		Node: e.nodes.self.Node, Life: e.nodes.self.Incarnation,
	}
}

// h0 is the identity of a client whose handle is not made yet.
func (c *client) h0() herald.SessionID { return c.row.ID }

// delayedWills are the wills of clients that are gone and may come back in time.
type delayedWills struct {
	held gate // guards below; the store may be waited for while it is held
	m    map[herald.SessionID]*persistence.Will
	next int64 // when the earliest is due

	mu      sync.Mutex      // guards below; taken after held
	sending map[willKey]int // those that are being published
	watches map[*willWatch]struct{}
	// stray: some may be in this node's care of which it does not know: those that name it
	// in their row, and those of suspects, clients that may or may not have been given away.
	stray    bool
	suspects map[string]struct{}
}

func (d *delayedWills) init() {
	d.held = newGate()
	d.m = make(map[herald.SessionID]*persistence.Will)
	d.sending = make(map[willKey]int)
	d.suspects = make(map[string]struct{})
	d.watches = make(map[*willWatch]struct{})
}

func (d *delayedWills) add(w *persistence.Will) {
	d.held.lock()
	defer d.held.unlock()
	if len(d.m) == 0 || w.Due < d.next {
		d.next = w.Due
	}
	d.m[w.Session] = w
}

// some tells whether there are any.
func (d *delayedWills) some() bool {
	d.held.lock()
	defer d.held.unlock()
	return len(d.m) > 0
}

func (d *delayedWills) take(id herald.SessionID) *persistence.Will {
	d.held.lock()
	defer d.held.unlock()
	w := d.m[id]
	delete(d.m, id)
	if w != nil {
		d.passing(keyOf(w), 0)
	}
	return w
}

// passing notes that a will is not where it was: by 1, it is being published; by -1, that
// is over.
func (d *delayedWills) passing(id willKey, by int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.watches {
		w.taken[id] = struct{}{}
	}
	if d.sending[id] += by; d.sending[id] == 0 {
		delete(d.sending, id)
	}
}

// willKey tells the wills of a session apart: by the life that its row names. One that a
// node had in its care may have been replaced by that of a connection to another.
type willKey struct {
	session herald.SessionID
	of      bridge.Peer
}

func keyOf(w *persistence.Will) willKey {
	return willKey{w.Session, bridge.Peer{Node: w.Node, Incarnation: w.Life}}
}

// willWatch knows of what happens to wills while the store is read: what that tells may
// be of before.
type willWatch struct {
	of    *delayedWills
	taken map[willKey]struct{} // were being published, or taken out of m; guarded by of.mu
}

// watch begins a watch; the caller ends it.
func (d *delayedWills) watch() *willWatch {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := &willWatch{d, make(map[willKey]struct{})}
	for id := range d.sending {
		w.taken[id] = struct{}{}
	}
	d.watches[w] = struct{}{}
	return w
}

func (w *willWatch) end() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.watches, w)
}

// had tells whether a will that was read has been in this node's care since watch: it was
// among the delayed ones, or it was published.
func (w *willWatch) had(k willKey) bool {
	d := w.of
	d.held.lock()
	defer d.held.unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	_, taken := w.taken[k]
	has := d.m[k.session]
	return taken || has != nil && keyOf(has) == k
}

// adopt adds a will that was read as k, unless this node has had it.
func (w *willWatch) adopt(will *persistence.Will, k willKey) {
	if !w.had(k) {
		w.of.add(will)
	}
}

// look has the wills looked for that are in this node's care although it does not know.
func (d *delayedWills) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stray = true
}

// suspect has the will of a client looked for, whose session may be this node's or not.
func (d *delayedWills) suspect(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stray = true
	d.suspects[name] = struct{}{}
}

// publishDue publishes the wills that are due. It does so under the lock, so
// that a client which comes back at this moment stores its new will after the
// row of the old one is gone.
func (d *delayedWills) publishDue(e *Engine, now int64) {
	d.held.lock()
	defer d.held.unlock()
	if len(d.m) == 0 || now < d.next {
		return
	}
	d.next = math.MaxInt64
	var due []*persistence.Will
	for _, w := range d.m {
		if w.Due > now {
			d.next = min(d.next, w.Due)
		} else {
			due = append(due, w)
		}
	}
	// The latest of several retained ones is to stay.
	slices.SortFunc(due, func(a, b *persistence.Will) int {
		return cmp.Or(cmp.Compare(a.Due, b.Due), cmp.Compare(a.Client, b.Client))
	})
	for _, w := range due {
		resumed, err := e.resumed(w)
		if err != nil {
			w.Due = now + 1000
			d.next = min(d.next, w.Due)
			continue
		}
		delete(d.m, w.Session)
		d.passing(keyOf(w), 0)
		if !resumed {
			e.publishWill(w)
		}
	}
}

// publishWill publishes a will; its row goes in the same commit.
func (e *Engine) publishWill(will *persistence.Will) {
	e.publishWillIn(will, &shipment{failed: func() { // it is due again soon
		again := *will
		again.Due = e.now() + 1000
		e.wills.add(&again)
	}})
}

// publishWillNow is publishWill for who has to know that it is done.
func (e *Engine) publishWillNow(will *persistence.Will) error {
	done := make(chan error, 1)
	sh := new(shipment)
	sh.then = func() { done <- sh.err }
	e.publishWillIn(will, sh)
	select {
	case err := <-done:
		return err
	case <-e.life.Done():
		return herald.ErrClosed
	}
}

func (e *Engine) publishWillIn(will *persistence.Will, sh *shipment) {
	m := will.Message
	if m.Expires != 0 {
		m.Expires += e.now() - 1
	}
	e.stats.Wills.Add(1)
	e.wills.passing(keyOf(will), 1)
	then := sh.then
	sh.then = func() {
		e.wills.passing(keyOf(will), -1)
		if then != nil {
			then()
		}
	}
	sh.batch.WillsGone = []herald.SessionID{will.Session}
	e.publishOwn(&m, sh)
}
