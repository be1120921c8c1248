package bridge

import (
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// read is the goroutine that applies the announcements of others.
func (r *routes) read() {
	b := r.b
	generation := b.generation.Load()
	for b.waitUp() {
		if g := b.generation.Load(); g != generation {
			generation, r.position = g, streamID{}
		}
		entries, err := b.read(b.keys.routes, r.position)
		if err != nil {
			b.fail(err)
			continue
		}
		var touched []*peer
		for _, e := range entries {
			if id, ok := parseID(e.ID); ok {
				r.position = id
			}
			if p := r.entry(e); p != nil && !slices.Contains(touched, p) {
				touched = append(touched, p)
			}
		}
		for _, p := range touched {
			p.link.say(0) // it waits for this
		}
	}
}

// entry applies one entry of the routes stream, and returns whose it was if
// there was news in it.
func (r *routes) entry(e redis.XMessage) *peer {
	b := r.b
	h, frames, err := b.decode(e, nil)
	if err != nil {
		b.stats.undecodable.Add(1)
		b.log.Warn("entry skipped", zap.String("stream", b.keys.routes), zap.String("id", e.ID), zap.Error(err))
		return nil
	}
	b.mu.Lock()
	p := b.peers[h.from.Node]
	b.mu.Unlock()
	if p == nil || p.Peer != h.from {
		return nil // who it is will be asked when it is a peer
	}
	applied := p.applied.Load()
	switch {
	case h.flags&flagSnapshot != 0:
		if h.first <= applied && applied > 0 {
			return p
		}
		all, at, err := r.readSnapshot(p, h.first)
		if err != nil {
			if !errors.Is(err, errNoSnapshot) {
				b.fail(err)
			}
			p.ask()
			return nil
		}
		b.opts.Handler.Replace(p.Peer, all)
		p.applied.Store(at)
		return p
	case h.first > applied+1:
		p.ask()
		return nil
	}
	for i, data := range frames {
		if n := h.first + uint64(i); n > applied {
			var c Change
			if err := decodeChange(data, &c); err != nil {
				b.stats.undecodable.Add(1)
				b.log.Warn("announcement skipped", zap.Uint16("node", p.Node), zap.Error(err))
			} else {
				b.opts.Handler.Apply(p.Peer, c)
				b.stats.applied.Add(1)
			}
			p.applied.Store(n)
		}
	}
	return p
}
