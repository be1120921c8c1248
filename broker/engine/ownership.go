package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/persistence"
)

// Who serves a session, or a shared group, stands in its claim in the store. Only
// the owner gives it up, to the node that asks, when everything that it had under
// way is committed, received and out of its hands; or its life is over. So the
// owner of a claim is the only node that may have anything of the session.

// owners are the claims of this node.
type owners struct {
	mu       sync.Mutex // guards below
	own      map[ownerKey]persistence.Claim
	asking   map[uint64]*question           // by request
	wanted   map[ownerKey]wanted            // asked for in this node's row, while Redis is away
	unsealed map[string]struct{}            // clients whose window is still to be sealed
	undone   map[string]persistence.Session // of clients that could not be connected: see undoing
	giving   map[ownerKey]struct{}          // being given up to somebody who asked so
	requests map[requestOf]*atomic.Bool     // of other nodes, being carried out; true: withdrawn
	request  atomic.Uint64
}

type ownerKey struct {
	kind persistence.Kind
	name string
}

// wanted is what is asked of whom.
type wanted struct {
	of  bridge.Peer
	why purpose
}

// purpose is what a session is asked for.
type purpose byte

const (
	// toServe: to go on with it.
	toServe purpose = iota
	// toEnd: its client has said that it is to end, and begins another.
	toEnd
	// toExpire: to end it, if its time has run out. Its owner gives it up if that is so
	// for him, too: its client may just have come back.
	toExpire
)

// question is a request of this node's own.
type question struct {
	answer chan uint64   // the epoch under which it was given; 0: it was not
	ready  chan struct{} // the owner has written the session's row for the last time
}

// requestOf is another node's request.
type requestOf struct {
	peer    bridge.Peer
	request uint64
}

func (o *owners) init() {
	o.own = make(map[ownerKey]persistence.Claim)
	o.asking = make(map[uint64]*question)
	o.unsealed = make(map[string]struct{})
	o.wanted = make(map[ownerKey]wanted)
	o.undone = make(map[string]persistence.Session)
	o.giving = make(map[ownerKey]struct{})
	o.requests = make(map[requestOf]*atomic.Bool)
}

// owns tells whether this node has claimed something.
func (o *owners) owns(k ownerKey) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.own[k]
	return ok
}

// owned is what this node has claimed, if it knows of it.
func (o *owners) owned(k ownerKey) (persistence.Claim, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c, ok := o.own[k]
	return c, ok
}

func (o *owners) set(k ownerKey, c persistence.Claim) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.own[k] = c
}

func (o *owners) drop(k ownerKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.own, k)
}

// ask registers a request.
func (o *owners) ask() (request uint64, q *question) {
	request, q = o.request.Add(1), &question{make(chan uint64, 1), make(chan struct{}, 1)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asking[request] = q
	return request, q
}

// asked ends a request. given: it was granted, and who has made it has not seen that.
func (o *owners) asked(request uint64) (given bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case epoch := <-o.asking[request].answer:
		given = epoch != 0
	default:
	}
	delete(o.asking, request)
	return given
}

// answered brings the answer to a request, and tells whether anybody waits for it.
func (o *owners) answered(request, epoch uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.asking[request]
	if q == nil {
		return false
	}
	select {
	case q.answer <- epoch:
	default:
	}
	return true
}

// ready tells that the answer to a request is about to come.
func (o *owners) ready(request uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if q := o.asking[request]; q != nil {
		select {
		case q.ready <- struct{}{}:
		default:
		}
	}
}

// want notes what this node asks for in its row, unwant that it does not any more.
func (o *owners) want(k ownerKey, of bridge.Peer, why purpose) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wanted[k] = wanted{of, why}
}

func (o *owners) unwant(k ownerKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.wanted, k)
}

// wants is what stands in this node's row.
func (o *owners) wants() (w []membership.Want) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k, a := range o.wanted {
		w = append(w, membership.Want{Node: a.of.Node, Name: k.name, Ends: a.why == toEnd, Expires: a.why == toExpire})
	}
	return w
}

// giveWanted gives up what other nodes ask for in their rows.
func (e *Engine) giveWanted(to *peer, wanted []membership.Want) {
	for _, w := range wanted {
		if w.Node != e.nodes.self.Node {
			continue
		}
		k := ownerKey{persistence.Client, w.Name}
		o := &e.owners
		o.mu.Lock()
		_, busy := o.giving[k]
		o.giving[k] = struct{}{}
		o.mu.Unlock()
		if busy {
			continue
		}
		e.errand(func() {
			defer func() {
				o.mu.Lock()
				delete(o.giving, k)
				o.mu.Unlock()
			}()
			f := frame{subject: k.kind, name: k.name}
			switch {
			case w.Ends:
				f.why = toEnd
			case w.Expires:
				f.why = toExpire
			}
			e.giveUp(to, &f, new(atomic.Bool))
		})
	}
}

// release has another node's request carried out, for which one may have to wait.
func (e *Engine) release(to *peer, f *frame) {
	o, r := &e.owners, requestOf{to.Peer, f.request}
	withdrawn := new(atomic.Bool)
	o.mu.Lock()
	o.requests[r] = withdrawn
	o.mu.Unlock()
	to.requests = append(to.requests, func() {
		e.errand(func() {
			defer func() {
				o.mu.Lock()
				delete(o.requests, r)
				o.mu.Unlock()
			}()
			e.giveUp(to, f, withdrawn)
		})
	})
}

// withdrawn notes that a node does not want any more what it has asked for.
func (o *owners) withdrawn(of bridge.Peer, request uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.requests[requestOf{of, request}]; w != nil {
		w.Store(true)
	}
}

// giveUp gives a session to a node that asks for it, and answers.
func (e *Engine) giveUp(to *peer, f *frame, withdrawn *atomic.Bool) {
	epoch, err := e.handOver(to, ownerKey{f.subject, f.name}, f, withdrawn)
	if err != nil {
		e.log.Warn("giving a session up", nodeField(to.Peer), errField(err))
	}
	to.send(appendGranted(nil, f.request, epoch), surely, 0) // 0: it may ask again
}

// handOver ends what this node has of a session and makes another its owner. next is 0
// if that is not so: the store knows better, or the request was withdrawn. One that
// asks for an earlier epoch has had the session, and lost it again; 0 is whichever.
func (e *Engine) handOver(to *peer, k ownerKey, f *frame, withdrawn *atomic.Bool) (next uint64, err error) {
	if k.kind != persistence.Client {
		return 0, errors.New("only sessions are given up")
	}
	unlock := e.claims.lock(k.name)
	defer unlock()
	n := &e.nodes
	old, ok := e.owners.owned(k)
	if !ok { // it was given to this node when nobody waited for it any more, say
		if old, err = n.store.Claimed(e.life, k.kind, k.name); err != nil {
			return 0, err
		}
		if ownerOf(old) != n.self {
			return 0, nil
		}
	}
	if f.epoch != 0 && f.epoch != old.Epoch || withdrawn.Load() {
		return 0, nil
	}
	if f.why == toExpire {
		if expired, err := e.expired(k.name); err != nil || !expired {
			return 0, err
		}
	}
	will, err := e.putDown(k.name, f.why != toServe, to.Peer)
	if err != nil {
		return 0, err
	}
	// Until the name's lock is given back nobody here writes the row again.
	to.send(appendReady(nil, f.request), nil, 0)
	// What was published before must not be overtaken by what is published over
	// there.
	if err := e.allReceived(); err != nil {
		return 0, err
	}
	e.owners.drop(k)
	now, won, err := n.store.Claim(e.life, k.kind, k.name, old, to.Node, to.Incarnation)
	switch {
	case err != nil:
		if will { // it is named in the will's row, and may not have the session
			e.wills.suspect(k.name)
		}
		return 0, err
	case !won:
		return 0, errors.New("claimed by somebody else")
	}
	return now.Epoch, nil
}

// putDown ends what this node has of a session of its own; ends: so does the session,
// where it goes. It tells whether there is a will that is in the care of who gets it from
// here on. The name's lock is held.
func (e *Engine) putDown(name string, ends bool, to bridge.Peer) (entrusted bool, err error) {
	e.clientsMu.RLock()
	c := e.clients[name]
	e.clientsMu.RUnlock()
	w := listen.NewWorker()
	err = e.takeOver(name, nil, w)
	w.Flush()
	if err != nil {
		return false, err
	}
	if err := e.undo(name); err != nil {
		return false, err
	}
	e.flight.passOf(e.life, name)
	id, row := herald.SessionID(0), persistence.Session{}
	if c != nil {
		id = c.row.ID
	}
	unsealed := e.owners.isUnsealed(name)
	if id == 0 && unsealed || e.wills.some() {
		row, err = e.store.Session(e.life, persistence.Client, name)
		switch {
		case err == nil:
			id = row.ID
		case !errors.Is(err, herald.ErrNotFound):
			return false, err
		}
	}
	if unsealed { // it was claimed from a dead node, and not loaded since
		if id != 0 {
			if err := e.nodes.store.Seal(e.life, id); err != nil {
				return false, err
			}
		}
		e.owners.sealed(name)
	}
	will := e.wills.take(id)
	switch {
	case will == nil:
	case ends || row.ID != id: // it is due [MQTT-3.1.3-9]
		e.publishWill(will)
	default:
		if err := e.entrust(will, row, to); err != nil {
			e.wills.add(will)
			return false, err
		}
		return true, nil
	}
	return false, nil
}

// allReceived waits until every node has received the frames that were sent to it,
// or has looked for what they were to tell of. That Redis has them is not enough: it
// may lose them, and they come again later than what others send.
func (e *Engine) allReceived() error { return e.received(e.life) }

// received is allReceived until ctx ends.
func (e *Engine) received(ctx context.Context) error {
	n := &e.nodes
	last := e.flight.newest()
	for {
		bound, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := n.Received(bound)
		cancel()
		if err == nil {
			return nil
		}
		if errors.Is(err, herald.ErrClosed) || e.life.Err() != nil {
			return herald.ErrClosed
		}
		if ctx.Err() != nil {
			return err
		}
		covered := true
		for _, p := range n.peers() {
			st := p.status.Load()
			covered = covered && (st == nil && !n.Live(p.Peer) || st != nil && st.Covered[n.self.Node] >= last)
		}
		if covered {
			return nil
		}
	}
}

// unclaim gives back the claim of a session that has ended with its connection, if
// its client does not come back at this moment.
func (e *Engine) unclaim(c *client) {
	name := c.name
	u, ok := e.store.(persistence.Unclaimer)
	if !ok || !e.nodes.on() {
		return
	}
	e.within(e.unclaims, "giving a claim back", func() {
		unlock := e.claims.lock(name)
		defer unlock()
		e.clientsMu.RLock()
		now := e.clients[name]
		e.clientsMu.RUnlock()
		k := ownerKey{persistence.Client, name}
		e.owners.mu.Lock()
		claim, mine := e.owners.own[k]
		e.owners.mu.Unlock()
		if now != nil && now != c || !mine {
			return
		}
		e.owners.drop(k)
		if err := u.Unclaim(e.life, k.kind, k.name, claim); err != nil && e.life.Err() == nil {
			e.log.Warn("giving a claim back", errField(err))
		}
	})
}

// follow has this node give out no ID from now on that is not above all that the
// store has seen: those of a session's earlier messages, whose owner wrote its row
// after them, and those of a life that is Finished.
func (e *Engine) follow() {
	if c, ok := e.store.(interface{ Clock() herald.ID }); ok {
		e.ids.ObserveAll(c.Clock())
	}
}

// unseal notes that a session's window is to be sealed.
func (o *owners) unseal(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsealed[name] = struct{}{}
}

func (o *owners) isUnsealed(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, is := o.unsealed[name]
	return is
}

// sealed notes that a session's window is sealed: until then every connection tries.
func (o *owners) sealed(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.unsealed, name)
}

const (
	// errandSlots bounds what runs at the same time on behalf of other nodes.
	errandSlots = 256
	// unclaimSlots bounds the claims that are given back at the same time: nobody waits
	// for them, and when many clients go at once others are waited for.
	unclaimSlots = 8
)

// errand runs f on a goroutine of its own: it may wait for other nodes.
func (e *Engine) errand(f func()) { e.within(e.errands, "errand", f) }

// within runs f on a goroutine of its own when there is a slot.
func (e *Engine) within(slots chan struct{}, what string, f func()) {
	e.jobs.run(func() {
		select {
		case slots <- struct{}{}:
		case <-e.life.Done():
			return
		}
		defer func() { <-slots }()
		e.guard(what, f)
	})
}
