package engine

import (
	"context"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
)

// A node that drains sends its clients elsewhere and takes no new ones; it goes on
// owning its sessions until another node asks for them. One that is cut off from
// Redis also lets go whom only Redis could help.

// diversion is where clients are sent, and how long those who are here wait for
// other nodes.
type diversion struct {
	mu        sync.Mutex // guards below
	elsewhere func() (reason byte, server string)
	ctx       context.Context // what waits for other nodes waits no longer than this
	cancel    context.CancelFunc
}

func (d *diversion) init(parent context.Context) { d.ctx, d.cancel = context.WithCancel(parent) }

// Divert has every CONNECT refused, with the reason and the server reference that
// elsewhere tells for it, and the other nodes told that this one takes no clients;
// nil has them accepted again. MQTT 3.1.1 clients are told 0x03.
func (e *Engine) Divert(elsewhere func() (reason byte, server string)) {
	d := &e.diversion
	d.mu.Lock()
	d.elsewhere = elsewhere
	d.mu.Unlock()
	if e.nodes.on() {
		e.nodes.BeatNow()
	}
}

// diverting is what Divert was told last.
func (e *Engine) diverting() func() (byte, string) {
	d := &e.diversion
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.elsewhere
}

// diverted refuses a CONNECT if all are, and tells whether it did.
func (e *Engine) diverted(conn Conn, con *wire.Connect) bool {
	elsewhere := e.diverting()
	if elsewhere == nil {
		return false
	}
	reason, server := elsewhere()
	var p *wire.ConnackProperties
	if server != "" {
		p = &wire.ConnackProperties{ServerReference: server}
	}
	if con.Version != herald.V5 || reason == wire.ReasonShuttingDown { // that one is for DISCONNECT
		reason = wire.ReasonUnavailable
	}
	conn.CloseAfter(nil, wire.AppendConnack(nil, con.Version, false, reason, p))
	return true
}

// Dismiss ends a client's connection and has its session put away, for which it
// does not wait. It tells whether it did: not twice, and not to one whose session is
// not established yet, which is to be tried again. What is written goes out with w.
func (e *Engine) Dismiss(conn Conn, w *listen.Worker, reason byte, server string) bool {
	c, _ := conn.User().(*client)
	if c == nil || !c.attached.Load() || c.sent.Swap(true) {
		return false
	}
	conn.CloseAfter(w, wire.AppendDisconnect(nil, c.version, reason, "", server))
	e.abandon(conn)
	return true
}

var errLetGo = fmt.Errorf("%w: let go", herald.ErrUnavailable)

// keptBytes bounds the frames for one node that are kept although nobody waits for
// them any more.
const keptBytes = 32 << 20

// LetGo has nobody wait for Redis: publishes whose frames could not be appended
// fail and are not acknowledged, announcements that are waited for are given up.
// The frames are kept as long as this life lasts and go when Redis is back: their
// publisher may be acknowledged by another node, which finds them committed. It is
// called again and again until [Engine.Regain].
func (e *Engine) LetGo() {
	e.diversion.mu.Lock()
	e.diversion.cancel()
	e.diversion.mu.Unlock()
	for _, p := range e.nodes.peers() {
		if dropped := p.letGo(); dropped > 0 {
			e.log.Warn("frames for another node are dropped: redis is away for too long", nodeField(p.Peer), zap.Int("frames", dropped))
		}
	}
}

// Regain ends what LetGo began.
func (e *Engine) Regain() {
	d := &e.diversion
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil && e.life.Err() == nil {
		d.init(e.life)
	}
}

// patience is for whoever waits for other nodes on behalf of a client.
func (e *Engine) patience() context.Context {
	d := &e.diversion
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ctx
}

// letGo fails what waits for a frame, and keeps the frames within a bound.
func (p *peer) letGo() (dropped int) {
	p.mu.Lock()
	var waiting []func(error)
	bytes, kept := 0, p.queue[:0]
	for _, f := range p.queue {
		if !f.kept && f.done != nil {
			waiting = append(waiting, f.done)
			f.kept, f.done = true, func(error) {}
		}
		if bytes += len(f.frame); bytes > keptBytes {
			dropped++
			if f.done == nil {
				p.waiting -= len(f.frame)
			}
			p.loseLocked(f.id)
			continue
		}
		kept = append(kept, f)
	}
	clear(p.queue[len(kept):])
	p.queue = kept
	for frame, done := range p.held {
		if done != nil {
			waiting = append(waiting, done)
			p.held[frame] = nil
		}
	}
	p.mu.Unlock()
	for _, done := range waiting {
		done(errLetGo)
	}
	return dropped
}

// hold notes a frame of which Redis may or may not have heard, and that is on its
// way as long as this life lasts.
func (p *peer) hold(f parcel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(map[*byte]func(error))
	}
	p.held[&f.frame[0]] = f.done
	p.holding.Store(int32(len(p.held)))
}

// released notes that the outcome of a frame is known, and tells whether who waited
// for it was let go before.
func (p *peer) released(f parcel) bool {
	if p.holding.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	done, ok := p.held[&f.frame[0]]
	delete(p.held, &f.frame[0])
	p.holding.Store(int32(len(p.held)))
	return ok && done == nil
}

// Covered waits until every other node has received the frames of what this one
// has committed, or has looked at its sessions' inboxes since. It needs no Redis.
// The error is ctx's, or herald.ErrClosed.
func (e *Engine) Covered(ctx context.Context) error {
	if !e.nodes.on() {
		return nil
	}
	e.nodes.BeatNow() // what they look for stands in the row
	return e.received(ctx)
}
