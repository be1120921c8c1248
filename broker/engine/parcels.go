package engine

import (
	"cmp"
	"errors"
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
)

// The way of frames to one peer. What the bridge does not take waits here, in its
// order. Too much of what nobody waits for is lost; then the peer has to look at its
// inboxes, and nothing that is newer than what was lost may come before it is told so:
//
//	queue          what came before the loss
//	(lost)         nothing more is kept until Redis is back and queue is empty
//	behind         what comes until closed time has passed all that was lost; then
//	               the peer is told to look, and behind is sent
type parcel struct {
	number uint64 // of all to one peer
	frame  []byte
	done   func(error) // nil: nobody waits for it
	id     herald.ID   // the newest of what stands in inboxes, too; 0: nothing does
	kept   bool        // nobody waits for it any more
}

// waitingBytes bounds the frames to one peer that nobody waits for.
const waitingBytes = 16 << 20

// send sends a frame to the peer, behind all that was sent before. done, if not
// nil, is called when Redis has it, or with an error when this node gives up. A
// frame without it may be lost, if it is too much, and the peer told to look for what
// had an ID up to id.
func (p *peer) send(frame []byte, done func(error), id herald.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		if done != nil {
			done(nil) // nobody is there any more
		}
		return
	}
	p.fresh = p.fresh || id != 0
	p.drainLocked()
	p.parcels++
	f := parcel{number: p.parcels, frame: frame, done: done, id: id}
	switch {
	case p.gap && !p.closing && done == nil:
		p.loseLocked(id)
	case p.gap:
		if p.roomLocked(f) {
			p.behind = append(p.behind, f)
		}
	case len(p.queue) > 0 || !p.takenLocked(f):
		if p.roomLocked(f) {
			p.queue = append(p.queue, f)
		}
	}
}

// roomLocked tells whether a frame may wait; if not, it is lost.
func (p *peer) roomLocked(f parcel) bool {
	if f.done != nil {
		return true
	}
	if p.waiting+len(f.frame) > waitingBytes {
		p.loseLocked(f.id)
		return false
	}
	p.waiting += len(f.frame)
	return true
}

// loseLocked notes that a frame is lost. If others wait behind an earlier loss, what
// nobody waits for of them is lost, too: it could be ahead of this one.
func (p *peer) loseLocked(id herald.ID) {
	if id == 0 {
		return // at QoS 0 nothing is promised
	}
	p.gap, p.closing, p.gapTo = true, false, max(p.gapTo, id)
	p.behind = slices.DeleteFunc(p.behind, func(f parcel) bool {
		if f.done != nil {
			return false
		}
		p.waiting -= len(f.frame)
		p.gapTo = max(p.gapTo, f.id)
		return true
	})
}

// takenLocked gives the bridge a frame and tells whether that is the end of it here.
func (p *peer) takenLocked(f parcel) bool {
	err := p.appendLocked(f)
	switch {
	case err == nil:
	case errors.Is(err, bridge.ErrGone), errors.Is(err, bridge.ErrTooLarge):
		if f.done != nil {
			f.done(nil)
		} else {
			p.loseLocked(f.id)
		}
	case errors.Is(err, herald.ErrClosed):
		if f.done != nil {
			f.done(err)
		}
	default:
		return false
	}
	return true
}

// appendLocked gives the bridge a frame.
func (p *peer) appendLocked(f parcel) error {
	if f.done == nil {
		return p.e.nodes.AppendAsync(p.Peer, f.frame, nil)
	}
	return p.e.nodes.AppendAsync(p.Peer, f.frame, func(err error) {
		switch {
		case errors.Is(err, bridge.ErrHeld):
			p.hold(f) // it is on its way, and will be reported again
		case p.released(f):
		case errors.Is(err, bridge.ErrUnavailable): // given back, while later ones wait already
			p.mu.Lock()
			if p.over {
				p.mu.Unlock()
				f.done(nil)
				return
			}
			at, _ := slices.BinarySearchFunc(p.queue, f.number, func(o parcel, n uint64) int { return cmp.Compare(o.number, n) })
			p.queue = slices.Insert(p.queue, at, f)
			p.mu.Unlock()
		case errors.Is(err, bridge.ErrGone):
			f.done(nil)
		default:
			f.done(err)
		}
	})
}

// drainLocked gives the bridge what waits, if it takes it again.
func (p *peer) drainLocked() {
	if !p.e.nodes.Available() {
		return
	}
	n := 0
	for n < len(p.queue) {
		f := p.queue[n]
		if !p.takenLocked(f) {
			break
		}
		if f.done == nil {
			p.waiting -= len(f.frame)
		}
		n++
	}
	clear(p.queue[:n])
	if p.queue = p.queue[n:]; len(p.queue) == 0 {
		p.queue = nil
		p.closing = p.gap
	}
}

// fail gives up what waits.
func (p *peer) fail(err error) {
	p.mu.Lock()
	queue := slices.Concat(p.queue, p.behind)
	p.queue, p.behind, p.waiting, p.over = nil, nil, 0, true
	p.mu.Unlock()
	for _, f := range queue {
		if f.done != nil {
			f.done(err)
		}
	}
}
