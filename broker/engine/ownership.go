package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

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
	asking   map[uint64]chan uint64   // by request
	wanted   map[ownerKey]bridge.Peer // asked for in this node's row, while Redis is away
	unsealed map[string]struct{}      // clients whose window is still to be sealed
	giving   map[ownerKey]struct{}    // being given up to somebody who asked so
	request  atomic.Uint64
}

type ownerKey struct {
	kind persistence.Kind
	name string
}

func (o *owners) init() {
	o.own = make(map[ownerKey]persistence.Claim)
	o.asking = make(map[uint64]chan uint64)
	o.unsealed = make(map[string]struct{})
	o.wanted = make(map[ownerKey]bridge.Peer)
	o.giving = make(map[ownerKey]struct{})
}

// owns tells whether this node has claimed something.
func (o *owners) owns(k ownerKey) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.own[k]
	return ok
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
func (o *owners) ask() (request uint64, answer chan uint64) {
	request, answer = o.request.Add(1), make(chan uint64, 1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asking[request] = answer
	return request, answer
}

func (o *owners) asked(request uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.asking, request)
}

// answered brings the answer to a request.
func (o *owners) answered(request, epoch uint64) {
	o.mu.Lock()
	ch := o.asking[request]
	o.mu.Unlock()
	if ch != nil {
		select {
		case ch <- epoch:
		default:
		}
	}
}

const (
	// claimWait is how long a client waits until another node has given up its
	// session, or was found dead.
	claimWait = 15 * time.Second
	// askAgain is how often the other node is asked, or the store.
	askAgain = 2 * time.Second
)

// owner tells who has a claim, for errors.
func ownerOf(c persistence.Claim) bridge.Peer {
	return bridge.Peer{Node: c.Owner, Incarnation: c.Life}
}

// claim makes this node the owner of a session, which it wants to go on with, or to
// end; died tells that the last owner's life had ended without its giving it up. The
// caller has the name's lock.
func (e *Engine) claim(ctx context.Context, k ownerKey, ends bool) (died bool, err error) {
	n := &e.nodes
	if !n.on() || e.owners.owns(k) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimWait)
	defer cancel()
	for {
		old, err := n.store.Claimed(ctx, k.kind, k.name)
		if err != nil {
			return false, err
		}
		last := ownerOf(old)
		switch {
		case last == n.self: // it was given to us
			e.owners.set(k, old)
			return died, nil
		case old.Epoch != 0 && n.Live(last):
			if err := e.askFor(ctx, k, old, ends); err != nil {
				return false, err
			}
			continue
		case old.Epoch != 0:
			if err := n.Over(ctx, last); err != nil {
				return false, fmt.Errorf("%w: waiting for the end of node %d/%d: %w", herald.ErrUnavailable, last.Node, last.Incarnation, err)
			}
			died = true
		}
		now, won, err := n.store.Claim(ctx, k.kind, k.name, old, n.self.Node, n.self.Incarnation)
		if err != nil {
			return false, err
		}
		if won {
			e.owners.set(k, now)
			return died, nil
		}
	}
}

// askFor asks the owner of a claim for it and returns when it has answered, or may
// have.
func (e *Engine) askFor(ctx context.Context, k ownerKey, old persistence.Claim, ends bool) error {
	request, answer := e.owners.ask()
	defer e.owners.asked(request)
	p := e.meet(ownerOf(old))
	if e.nodes.Available() {
		p.send(appendRelease(nil, request, k.kind, ends, old.Epoch, k.name), nil, 0)
	} else {
		e.owners.want(k, p.Peer)
		defer e.owners.unwant(k)
		e.nodes.BeatNow()
	}
	t := time.NewTimer(askAgain)
	defer t.Stop()
	select {
	case <-answer:
		return nil
	case <-t.C:
		return nil // the store knows whether it has
	case <-ctx.Done():
		return fmt.Errorf("%w: node %d/%d does not give the session up", herald.ErrUnavailable, p.Node, p.Incarnation)
	}
}

// want notes what this node asks for in its row, unwant that it does not any more.
func (o *owners) want(k ownerKey, of bridge.Peer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wanted[k] = of
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
	for k, p := range o.wanted {
		w = append(w, membership.Want{Node: p.Node, Name: k.name})
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
			e.giveUp(to, &frame{subject: k.kind, name: k.name})
		})
	}
}

// giveUp gives a session to a node that asks for it.
func (e *Engine) giveUp(to *peer, f *frame) {
	k := ownerKey{f.subject, f.name}
	epoch, err := e.handOver(to, k, f)
	if err != nil {
		e.log.Warn("giving a session up", nodeField(to.Peer), errField(err))
		return // it asks again
	}
	to.send(appendGranted(nil, f.request, epoch), surely, 0)
}

// handOver ends what this node has of a session and makes another its owner.
func (e *Engine) handOver(to *peer, k ownerKey, f *frame) (epoch uint64, err error) {
	if k.kind != persistence.Client {
		return 0, errors.New("only sessions are given up")
	}
	unlock := e.claims.lock(k.name)
	defer unlock()
	return e.handOverLocked(to, k, f.epoch, func() error {
		w := listen.NewWorker()
		err := e.takeOver(k.name, nil, w)
		w.Flush()
		if err == nil {
			e.flight.passOf(e.life, k.name)
			e.dropWill(k.name, f.ends)
		}
		return err
	})
}

// handOverLocked gives up what was claimed under an epoch; 0: whichever. One that
// asks for an earlier one has had it, and lost it again.
func (e *Engine) handOverLocked(to *peer, k ownerKey, epoch uint64, end func() error) (next uint64, err error) {
	n := &e.nodes
	old, err := n.store.Claimed(e.life, k.kind, k.name)
	if err != nil {
		return 0, err
	}
	if ownerOf(old) != n.self {
		e.owners.drop(k)
		return 0, nil // the store knows
	}
	if epoch != 0 && epoch != old.Epoch {
		return 0, nil
	}
	if err := end(); err != nil {
		return 0, err
	}
	// What was published before must not be overtaken by what is published over
	// there.
	if err := e.allReceived(); err != nil {
		return 0, err
	}
	e.owners.drop(k)
	now, won, err := n.store.Claim(e.life, k.kind, k.name, old, to.Node, to.Incarnation)
	switch {
	case err != nil:
		return 0, err
	case !won:
		return 0, errors.New("claimed by somebody else")
	}
	return now.Epoch, nil
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
	e.errand(func() {
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

// dropWill takes a delayed will out of this node's care: who goes on with the session
// removes its row. If the session ends the will is due [MQTT-3.1.3-9].
func (e *Engine) dropWill(name string, ends bool) {
	row, err := e.store.Session(e.life, persistence.Client, name)
	if err != nil {
		return
	}
	if will := e.wills.take(row.ID); will != nil && ends {
		e.publishWill(will)
	}
}

// follow has this node give out no ID from now on that is not above all that the
// store has seen: those of a session's earlier messages, whose owner wrote its row
// after them, and those of a life that is Finished.
func (e *Engine) follow() {
	if c, ok := e.store.(interface{ Clock() herald.ID }); ok {
		e.ids.ObserveAll(c.Clock())
	}
}

// secure claims a client's session before it is loaded. died tells that what an
// earlier owner may still have in flight is to be sealed off, moved that this node did
// not have the claim.
func (e *Engine) secure(name string, ends bool) (died, moved bool, err error) {
	if !e.nodes.on() {
		return false, false, nil
	}
	moved = !e.owners.owns(ownerKey{persistence.Client, name})
	if !e.nodes.Valid() {
		return false, false, fmt.Errorf("%w: this node's lease has run out", herald.ErrUnavailable)
	}
	began := time.Now()
	if died, err = e.claim(e.life, ownerKey{persistence.Client, name}, ends); err != nil {
		e.log.Warn("claiming a session", zap.Duration("after", time.Since(began)), errField(err))
		return false, false, fmt.Errorf("%w: %w", herald.ErrUnavailable, err)
	}
	o := &e.owners
	o.mu.Lock()
	defer o.mu.Unlock()
	if died {
		o.unsealed[name] = struct{}{}
	}
	_, died = o.unsealed[name]
	return died, moved, nil
}

// sealed notes that a session's window is sealed: until then every connection tries.
func (o *owners) sealed(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.unsealed, name)
}

// errandSlots bounds what runs at the same time on behalf of other nodes.
const errandSlots = 256

// errand runs f on a goroutine of its own: it may wait for other nodes.
func (e *Engine) errand(f func()) {
	e.jobs.run(func() {
		select {
		case e.errands <- struct{}{}:
		case <-e.life.Done():
			return
		}
		defer func() { <-e.errands }()
		e.guard("errand", f)
	})
}
