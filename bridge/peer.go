package bridge

import (
	"sync/atomic"
	"time"
)

// peer is what is known of another node.
type peer struct {
	Peer
	b    *Bridge
	link *link

	// Guarded by Bridge.mu. A guest said hello and is not in the set of live
	// nodes yet; it may already serve, relying on us to wait for it.
	live  bool
	since time.Time // became a guest

	in inState // owned by the goroutine that receives

	// Routes.
	heard     atomic.Bool   // has told where it stands since it knows of us
	announced atomic.Uint64 // has announced up to this
	applied   atomic.Uint64 // of which we have applied this; written by the reader of routes
	routeAck  atomic.Uint64 // has applied our announcements up to this
	asked     atomic.Int64  // when we last asked for announcements, Unix nanoseconds

	// Owned by keep.
	probed, lagging time.Time
	lagAt           uint64 // what was applied when lagging began
}

// SetPeers says which nodes are alive; this node may be among them and is left
// out. Links to others, and to former incarnations, end with [ErrGone]. A peer
// that a later incarnation of the node is known of already is left out as well.
func (b *Bridge) SetPeers(live []Peer) {
	var ended []*peer
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	set := make(map[uint16]bool, len(live))
	for _, id := range live {
		if id.Node == b.opts.Self.Node || id.Node > maxNode {
			continue
		}
		old := b.peers[id.Node]
		if old != nil && old.Incarnation > id.Incarnation {
			continue
		}
		set[id.Node] = true
		if old == nil || old.Incarnation < id.Incarnation {
			if old != nil {
				ended = append(ended, old)
			}
			old = b.addLocked(id)
		}
		old.live = true
	}
	for node, p := range b.peers {
		if p.live && !set[node] {
			delete(b.peers, node)
			ended = append(ended, p)
		}
	}
	b.mu.Unlock()
	b.dropped(ended)
}

// addLocked begins a link; the first thing that it says is hello.
func (b *Bridge) addLocked(id Peer) *peer {
	p := &peer{Peer: id, b: b, since: time.Now()}
	p.link = newLink(b, p)
	b.peers[id.Node] = p
	b.wg.Go(p.link.run)
	p.link.say(flagAnswer)
	return p
}

func (b *Bridge) dropped(ended []*peer) {
	for _, p := range ended {
		p.link.end(ErrGone)
	}
	b.routes.settle()
}

// peerOf is the peer that an entry comes from, a guest if need be; nil if the
// sender is a former incarnation, or us.
func (b *Bridge) peerOf(id Peer) *peer {
	b.mu.Lock()
	p := b.peers[id.Node]
	if p != nil && p.Incarnation == id.Incarnation {
		b.mu.Unlock()
		return p
	}
	if b.closed || id.Incarnation == 0 || id.Node == b.opts.Self.Node || p != nil && p.Incarnation > id.Incarnation {
		b.mu.Unlock()
		return nil
	}
	guest := b.addLocked(id)
	b.mu.Unlock()
	if p != nil {
		b.dropped([]*peer{p})
		b.opts.Handler.Gap(id)
	}
	return guest
}

func (b *Bridge) expireGuests(now time.Time) {
	var ended []*peer
	b.mu.Lock()
	for node, p := range b.peers {
		if !p.live && now.Sub(p.since) > guestFor {
			delete(b.peers, node)
			ended = append(ended, p)
		}
	}
	b.mu.Unlock()
	if len(ended) > 0 {
		b.dropped(ended)
	}
}

func (b *Bridge) allPeers() []*peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*peer, 0, len(b.peers))
	for _, p := range b.peers {
		all = append(all, p)
	}
	return all
}

func (b *Bridge) wakeAll() {
	for _, p := range b.allPeers() {
		p.link.poke()
	}
	b.routes.poke()
}

// tick sends what is due and nobody else has sent: an acknowledgement, a
// question after one that is late, a question after announcements.
func (p *peer) tick(now time.Time) {
	p.link.tick(now)
	switch {
	case !p.heard.Load() && now.Sub(p.probed) >= probeAfter,
		p.routeAck.Load() < p.b.routes.waited() && now.Sub(p.probed) >= askEvery:
		p.probed = now
		p.link.say(flagAnswer)
	}
	// Announcements may just be on their way; only no progress is a reason to ask.
	if applied := p.applied.Load(); applied >= p.announced.Load() || applied != p.lagAt {
		p.lagAt, p.lagging = applied, now
	} else if now.Sub(p.lagging) >= askEvery {
		p.ask()
	}
}

// ask has the peer send announcements again, at most every askEvery.
func (p *peer) ask() {
	now, last := time.Now().UnixNano(), p.asked.Load()
	if now-last >= int64(askEvery) && p.asked.CompareAndSwap(last, now) {
		p.link.say(flagRoutes)
	}
}
