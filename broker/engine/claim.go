package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// How this node comes by the claim of a session: from its owner, who is asked for it,
// or from nobody, when its owner's life is over.

const (
	// claimWait is how long a client waits until another node has given up its
	// session, or was found dead.
	claimWait = 15 * time.Second
	// askAgain is how often the other node is asked, or the store, if nothing is heard.
	askAgain = 2 * time.Second
	// askFirst is when that is done first where no answer can come: while Redis is
	// away, or after the owner could not give the session up. From then on it takes
	// twice as long each time, up to askAgain.
	askFirst = 100 * time.Millisecond
	// overAfter is how long an owner may take to answer until this node looks whether
	// its life is over. Those that take milliseconds never cost it a look.
	overAfter = 100 * time.Millisecond
	// goneLook is how often a CONNECT that waits looks whether its client is there.
	goneLook = 50 * time.Millisecond
)

// errGone: the client has closed the connection that waits for the session. It may
// have the session over another one by now, so nothing is taken for this one.
var errGone = fmt.Errorf("%w: the client has gone", herald.ErrUnavailable)

// ownerOf tells who has a claim.
func ownerOf(c persistence.Claim) bridge.Peer {
	return bridge.Peer{Node: c.Owner, Incarnation: c.Life}
}

// secured is how a session was claimed.
type secured struct {
	died  bool    // what an earlier owner may still have in flight is to be sealed off
	moved bool    // this node did not have the claim
	row   rowRead // of the session
}

// rowRead waits for a session's row, which may have been asked for before.
type rowRead func() (persistence.Session, error)

// secure claims the session of a client that has connected, before it is loaded.
func (e *Engine) secure(name string, why purpose, gone func() bool) (s secured, err error) {
	s.row = func() (persistence.Session, error) { return e.store.Session(e.ctx, persistence.Client, name) }
	if !e.nodes.on() {
		return s, nil
	}
	k := ownerKey{persistence.Client, name}
	s.moved = !e.owners.owns(k)
	if !e.nodes.Valid() {
		return s, fmt.Errorf("%w: this node's lease has run out", herald.ErrUnavailable)
	}
	began := time.Now()
	row, err := e.claim(e.life, k, why, gone)
	if err != nil {
		if !errors.Is(err, errGone) {
			e.log.Warn("claiming a session", zap.Duration("after", time.Since(began)), errField(err))
		}
		return s, fmt.Errorf("%w: %w", herald.ErrUnavailable, err)
	}
	if row != nil {
		s.row = row
	}
	s.died = e.owners.isUnsealed(name)
	return s, nil
}

// errStays: a session that was to be ended, because its time has run out, has not ended
// for its owner.
var errStays = fmt.Errorf("%w: the session has not expired", herald.ErrUnavailable)

// claim makes this node the owner of a session. If the last owner's life has ended without
// its giving it up, the session is noted as one that is still to be sealed. row is nil if the session's row was not read
// meanwhile. Nothing is taken from another node once gone says that nobody waits for it
// any more; nil never does. The caller has the name's lock.
func (e *Engine) claim(ctx context.Context, k ownerKey, why purpose, gone func() bool) (row rowRead, err error) {
	n := &e.nodes
	if !n.on() || e.owners.owns(k) {
		return nil, nil
	}
	if gone == nil {
		gone = func() bool { return false }
	}
	ctx, cancel := context.WithTimeout(ctx, claimWait)
	defer cancel()
	a := asking{e: e, k: k, why: why, gone: gone, wait: askFirst}
	defer e.owners.unwant(k)
	for first := true; ; first = false {
		old, err := e.claimed(ctx, k, first)
		if err != nil {
			return nil, err
		}
		last := ownerOf(old)
		switch {
		case last == n.self: // it was given to us
			e.owners.set(k, old)
			return nil, nil
		case old.Epoch == 0:
		case gone():
			return nil, errGone
		case n.Live(last):
			epoch, err := a.ask(ctx, old)
			if err != nil {
				return nil, err
			}
			if epoch == 0 {
				continue // the store knows
			}
			e.owners.set(k, persistence.Claim{Owner: n.self.Node, Life: n.self.Incarnation, Epoch: epoch})
			return a.row, nil
		default:
			if _, _, err := a.await(ctx, last, &question{}, 0, 2*claimWait); err != nil {
				return nil, fmt.Errorf("waiting for the end of node %d/%d: %w", last.Node, last.Incarnation, err)
			}
			if k.kind == persistence.Client {
				e.owners.unseal(k.name)
			}
		}
		now, won, err := n.store.Claim(ctx, k.kind, k.name, old, n.self.Node, n.self.Incarnation)
		if err != nil {
			return nil, err
		}
		if won {
			e.owners.set(k, now)
			return nil, nil
		}
	}
}

// claimed tells who has a claim: with hint it may be that somebody else, who is live,
// had it before, who knows whether he has it still; or that nobody had, which whoever
// claims it then finds out.
func (e *Engine) claimed(ctx context.Context, k ownerKey, hint bool) (persistence.Claim, error) {
	n := &e.nodes
	if h, ok := n.store.(persistence.ClaimHinter); ok && hint {
		c, err := h.ClaimHint(ctx, k.kind, k.name)
		if owner := ownerOf(c); err == nil && (c.Epoch == 0 || owner != n.self && n.Live(owner)) {
			return c, nil
		}
	}
	return n.store.Claimed(ctx, k.kind, k.name)
}

// asking is one claim's way from its owner, who is asked again and again.
type asking struct {
	e    *Engine
	k    ownerKey
	why  purpose
	gone func() bool

	failed persistence.Claim // the owner of this one was asked, and could not give it up
	wait   time.Duration     // until it is asked again
	row    rowRead           // begun when the owner had written it for the last time
}

// later is how long to wait this time.
func (a *asking) later() time.Duration {
	d := a.wait
	a.wait = min(2*a.wait, askAgain)
	return d
}

// ask asks the owner of a claim for it and returns when it has answered, or may have:
// the epoch under which the claim is this node's, or 0 if the store has to be asked.
func (a *asking) ask(ctx context.Context, old persistence.Claim) (epoch uint64, err error) {
	e, p := a.e, a.e.meet(ownerOf(old))
	if a.failed == old {
		if _, _, err := a.await(ctx, p.Peer, &question{}, overAfter, a.later()); err != nil {
			return 0, a.refused(p, err)
		}
		if !e.nodes.Live(p.Peer) {
			return 0, nil
		}
	}
	request, q := e.owners.ask()
	defer func() {
		if e.owners.asked(request) {
			e.wills.look()
		}
	}()
	a.row = nil
	again, sent := askAgain, e.nodes.Available()
	if sent {
		p.send(appendRelease(nil, request, a.k.kind, a.why, old.Epoch, a.k.name), nil, 0)
	} else {
		again = a.later()
		e.owners.want(a.k, p.Peer, a.why)
		e.nodes.BeatNow()
	}
	epoch, answered, err := a.await(ctx, p.Peer, q, overAfter, again)
	if err != nil {
		if sent {
			p.send(appendWithdraw(nil, request), nil, 0)
		}
		return 0, a.refused(p, err)
	}
	if answered && epoch == 0 {
		if a.why == toExpire {
			return 0, errStays
		}
		a.failed = old // else the claim has changed
	}
	return epoch, nil
}

func (a *asking) refused(p *peer, err error) error {
	if errors.Is(err, errGone) {
		return err
	}
	return fmt.Errorf("%w: node %d/%d does not give the session up: %w", herald.ErrUnavailable, p.Node, p.Incarnation, err)
}

// await waits until q was answered, or again has passed, or the life of p is over, for
// which it looks when look has passed. It returns errGone as soon as nobody waits.
//
// The owner says that it is ready before it waits for other nodes and for the store: so
// long the session's row is being read. If it does not give the session up after all,
// what was read counts for nothing.
func (a *asking) await(ctx context.Context, p bridge.Peer, q *question, look, again time.Duration) (epoch uint64, answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan error, 1)
	looking := time.AfterFunc(look, func() { over <- a.e.nodes.Over(ctx, p) })
	defer looking.Stop()
	end := time.NewTimer(again)
	defer end.Stop()
	tick := time.NewTicker(goneLook)
	defer tick.Stop()
	for {
		select {
		case epoch := <-q.answer:
			return epoch, true, nil
		case <-q.ready:
			a.readAhead()
		case err := <-over:
			return 0, false, err
		case <-end.C:
			return 0, false, nil
		case <-tick.C:
			if a.gone() {
				return 0, false, errGone
			}
		case <-ctx.Done():
			return 0, false, ctx.Err()
		}
	}
}

// readAhead begins to read the session's row.
func (a *asking) readAhead() {
	e, k := a.e, a.k
	var row persistence.Session
	var err error
	read := make(chan struct{})
	go func() {
		defer close(read)
		row, err = e.store.Session(e.ctx, k.kind, k.name)
	}()
	a.row = func() (persistence.Session, error) {
		<-read
		return row, err
	}
}
