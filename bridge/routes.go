package bridge

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/herald-mqtt/herald"
)

// Position is how far a node's announcements go: the number of the last one,
// from 1. 0 is none.
type Position uint64

// announcement is one that some peer may still need.
type announcement []byte

// routes are this node's announcements and those of the others.
//
// The log holds the announcements that somebody may not have applied yet, up to
// a bound; written is the last that Redis has. Behind the log stands the set of
// all routes, from which a snapshot is made for those who need more.
type routes struct {
	b    *Bridge
	wake chan struct{} // of capacity 1

	// Owned by read; set by Open.
	position streamID

	mu       sync.Mutex // guards below
	own      map[string]struct{}
	log      []announcement // numbers dropped+1 to last
	dropped  Position
	last     Position
	written  Position // Redis has them
	sent     Position // the last that was ever sent
	bytes    int      // of the log
	snapshot bool     // somebody needs more than the log has
	madeAt   time.Time
	newest   streamID // of what was written
	waiters  []waiter // ascending by position
	ended    bool
}

type waiter struct {
	position Position
	settled  chan struct{} // closed when all have applied
}

func newRoutes(b *Bridge) *routes {
	return &routes{b: b, wake: make(chan struct{}, 1), own: make(map[string]struct{})}
}

func (r *routes) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Announce tells the other nodes of a change, in the order of the calls, and
// returns its position. While Redis is away announcements are kept, up to
// [Options.LogBytes], then refused with [ErrOverflow]; nothing of a refused one
// has happened.
func (b *Bridge) Announce(c Change) (Position, error) {
	r := b.routes
	data := appendChange(nil, c)
	if len(data) > b.opts.MaxFrame {
		return 0, fmt.Errorf("bridge: announce: %w", ErrTooLarge)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || b.ctx.Err() != nil {
		return 0, herald.ErrClosed
	}
	r.shrinkLocked()
	if len(r.log) > 0 && r.bytes+len(data) > b.opts.LogBytes && r.written == r.dropped {
		b.stats.overflow.Add(1)
		return 0, fmt.Errorf("bridge: announce: %w", ErrOverflow)
	}
	for _, s := range c.Add {
		r.own[s] = struct{}{}
	}
	for _, s := range c.Remove {
		delete(r.own, s)
	}
	r.log = append(r.log, data)
	r.bytes += len(data)
	r.last++
	b.stats.announced.Add(1)
	r.poke()
	return r.last, nil
}

// shrinkLocked makes room in the log at the cost of those who have not applied
// what they could have read.
func (r *routes) shrinkLocked() {
	for r.bytes > r.b.opts.LogBytes && r.dropped < r.written {
		r.dropLocked(r.dropped + 1)
	}
}

// dropLocked forgets announcements up to the given one.
func (r *routes) dropLocked(upTo Position) {
	if upTo <= r.dropped {
		return
	}
	n := int(upTo - r.dropped)
	for _, a := range r.log[:n] {
		r.bytes -= len(a)
	}
	clear(r.log[:n])
	r.log = r.log[n:]
	r.dropped = upTo
}

// Settled waits until every peer has applied this node's announcements up to
// position: those of [Bridge.SetPeers], as that set is then, and those who have
// said hello and are about to be in it. Without peers everything is settled.
func (b *Bridge) Settled(ctx context.Context, position Position) error {
	r := b.routes
	applied := r.appliedByAll()
	r.mu.Lock()
	if position <= applied {
		r.mu.Unlock()
		return nil
	}
	w := waiter{position, make(chan struct{})}
	at, _ := slices.BinarySearchFunc(r.waiters, position+1, func(w waiter, p Position) int {
		return int(int64(w.position) - int64(p))
	})
	r.waiters = slices.Insert(r.waiters, at, w)
	r.mu.Unlock()
	r.settle() // it may have happened meanwhile
	select {
	case <-w.settled:
		return nil
	case <-ctx.Done():
	case <-b.ctx.Done():
	}
	r.mu.Lock()
	r.waiters = slices.DeleteFunc(r.waiters, func(o waiter) bool { return o.settled == w.settled })
	r.mu.Unlock()
	if b.ctx.Err() != nil {
		return herald.ErrClosed
	}
	return fmt.Errorf("bridge: routes not settled: %w", ctx.Err())
}

// appliedByAll is how far every peer is.
func (r *routes) appliedByAll() Position {
	all := Position(1<<64 - 1)
	for _, p := range r.b.allPeers() {
		all = min(all, Position(p.routeAck.Load()))
	}
	return all
}

// settle lets those go on who have waited for what has come to pass, and forgets
// what nobody needs any more.
func (r *routes) settle() {
	applied := r.appliedByAll()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.waiters) && r.waiters[n].position <= applied {
		close(r.waiters[n].settled)
		n++
	}
	clear(r.waiters[:n])
	r.waiters = r.waiters[n:]
	r.dropLocked(min(applied, r.written))
}

// waited is the least position that somebody waits for; 0: nobody does.
func (r *routes) waited() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiters) == 0 {
		return 0
	}
	return uint64(r.waiters[0].position)
}

// Ready waits until this node has applied whatever each peer had announced when
// it got to know of this one. Each of them counts it in its [Bridge.Settled]
// since. So: SetPeers, Ready, then serve.
func (b *Bridge) Ready(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	goal := make(map[Peer]uint64)
	for {
		behind := 0
		for _, p := range b.allPeers() {
			if _, ok := goal[p.Peer]; !ok && p.heard.Load() {
				goal[p.Peer] = p.announced.Load()
			}
			if to, ok := goal[p.Peer]; !ok || p.applied.Load() < to {
				behind++
			}
		}
		if behind == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bridge: routes of %d nodes are missing: %w", behind, ctx.Err())
		case <-b.ctx.Done():
			return herald.ErrClosed
		case <-tick.C:
		}
	}
}

func (r *routes) announced() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(r.last)
}

// missing: a peer has applied announcements up to the given one and misses some
// that Redis had.
func (r *routes) missing(applied uint64) {
	r.mu.Lock()
	from := Position(applied)
	switch {
	case from >= r.sent:
		// It asks for what was not sent yet.
	case from >= r.dropped:
		r.written = min(r.written, from)
	default:
		r.snapshot = true
	}
	r.mu.Unlock()
	r.poke()
}

// resync: Redis may have lost announcements, and the snapshot.
func (r *routes) resync() {
	r.mu.Lock()
	r.written = r.dropped
	r.mu.Unlock()
	r.poke()
}

func (r *routes) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.written == r.last
}

func (r *routes) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
}

// write is the goroutine that announces.
func (r *routes) write() {
	b := r.b
	for {
		select {
		case <-r.wake:
		case <-b.ctx.Done():
			return
		}
		for again := true; again && b.waitUp(); {
			var err error
			if again, err = r.writeSome(); err != nil {
				b.fail(err)
				pause(b.ctx, backoffFirst)
				again = true
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// writeSome writes a snapshot if one is due, then an entry of announcements. It
// returns whether there is more.
func (r *routes) writeSome() (more bool, err error) {
	b := r.b
	r.mu.Lock()
	if r.snapshot {
		r.mu.Unlock()
		return true, r.writeSnapshot()
	}
	first := r.written + 1
	var frames [][]byte
	for size, i := 0, int(r.written-r.dropped); i < len(r.log) && len(frames) < entryFrames; i++ {
		if size += len(r.log[i]) + 2; size > entryBytes && len(frames) > 0 {
			break
		}
		frames = append(frames, r.log[i])
	}
	if len(frames) == 0 {
		r.mu.Unlock()
		return false, nil
	}
	upTo := r.written + Position(len(frames))
	r.sent = max(r.sent, upTo)
	r.mu.Unlock()

	id, err := r.append(header{from: b.opts.Self, first: uint64(first)}, frames)
	if err != nil {
		return true, err
	}
	r.mu.Lock()
	r.newest = id
	if r.written == first-1 { // else somebody misses some, or Redis lost some
		r.written = upTo
	}
	r.shrinkLocked()
	more = r.written < r.last || r.snapshot
	r.mu.Unlock()
	if b.peerless() {
		r.settle()
	}
	return more, nil
}

func (b *Bridge) peerless() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.peers) == 0
}

// append adds an entry to the routes stream and drops what is too old, by the
// clock of Redis.
func (r *routes) append(h header, frames [][]byte) (streamID, error) {
	b := r.b
	data, _ := appendEntry(nil, nil, h, frames, b.opts.CompressOver)
	args := &redis.XAddArgs{Stream: b.keys.routes, Values: []any{field, data}}
	if keep := uint64(b.opts.Retention / time.Millisecond); r.newest.ms > keep {
		args.MinID, args.Approx = streamID{ms: r.newest.ms - keep}.String(), true
	}
	reply, err := b.cmd.XAdd(b.ctx, args).Result()
	if err != nil {
		return streamID{}, err
	}
	id, _ := parseID(reply)
	return id, nil
}
