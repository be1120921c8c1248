package engine

import (
	"time"

	"github.com/herald-mqtt/herald"
)

// How a node tells the others up to where everything of its own is committed and sent.

const (
	// closeEvery is how often a node tells the others its closed time.
	closeEvery = 20 * time.Millisecond
	// closeIdle is how often it does when it has sent nothing and nobody asks.
	closeIdle = 500 * time.Millisecond
)

// tellClosed tells every peer how far this node is, until Stop.
//
// Without a lease it tells nothing: of a life that is over commits fail whose intents
// stand in the store, and whoever finishes that life carries them out. Were they taken
// for past, marks would pass what they are going to put into inboxes.
func (e *Engine) tellClosed() {
	t := time.NewTicker(closeEvery)
	defer t.Stop()
	for {
		select {
		case <-e.quit:
			return
		case <-t.C:
		case <-e.nodes.wanted:
		}
		closed := e.flight.advance(e.ids, e.now())
		if !e.nodes.Valid() { // asked when closed is known: that holds if the lease runs now
			closed = 0
		}
		for _, p := range e.nodes.peers() {
			p.tell(closed, time.Now())
		}
	}
}

// ask has the peer tell when its closed time has come to id.
func (p *peer) ask(id herald.ID) {
	p.mu.Lock()
	ask := !p.over && p.closed < id && p.asking < id
	if ask {
		p.asking = id
	}
	p.mu.Unlock()
	if ask {
		p.send(appendClosed(nil, frameAsk, id), surely, 0)
	}
}

// wants notes that the peer waits for closed time to come to id.
func (p *peer) wants(id herald.ID) {
	p.mu.Lock()
	p.asked = max(p.asked, id)
	p.mu.Unlock()
	select {
	case p.e.nodes.wanted <- struct{}{}:
	default:
	}
}

// tell tells the peer that everything up to closed was appended, or how far it has
// to look itself after something was lost.
func (p *peer) tell(closed herald.ID, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drainLocked()
	if closed <= p.told || p.over || len(p.queue) > 0 {
		return
	}
	if !p.fresh && !p.gap && p.asked <= p.told && now.Sub(p.toldAt) < closeIdle {
		return
	}
	kind := frameClosed
	if p.gap {
		if !p.closing || closed < p.gapTo {
			return
		}
		kind = frameLook
	}
	if p.e.nodes.AppendAsync(p.Peer, appendClosed(nil, kind, closed), nil) == nil {
		p.told, p.toldAt, p.gap, p.closing, p.fresh = closed, now, false, false, false
		p.queue, p.behind = p.behind, nil
		p.drainLocked()
	}
}
