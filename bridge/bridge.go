package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
)

const maxNode = herald.MaxNode

// What may become of a frame or an announcement, for errors.Is.
var (
	// ErrUnavailable: Redis is away, and the frame was never sent.
	ErrUnavailable = errors.New("redis unavailable")
	// ErrHeld: Redis went away with the frame, which may or may not have it. The
	// link keeps it, sends it as soon as it can, and reports once more.
	ErrHeld = errors.New("redis went away, frame held")
	// ErrOverflow: the buffer of that link is full.
	ErrOverflow = errors.New("buffer full")
	// ErrTooLarge: a frame above [Options.MaxFrame].
	ErrTooLarge = errors.New("frame too large")
	// ErrGone: the node, in this incarnation, is not among the peers.
	ErrGone = errors.New("no such peer")
	// ErrForeign: another cluster uses this prefix in this Redis.
	ErrForeign = errors.New("the prefix belongs to another cluster")
	// ErrUnfit: what answers is not a Redis of version 6.2 or later.
	ErrUnfit = errors.New("not a usable Redis")
)

// Peer is a node in one of its lives. A node's incarnation rises every time that
// its number is taken.
type Peer struct {
	Node        uint16 // 0 to herald.MaxNode
	Incarnation uint64 // from 1
}

// Handler is who has the bridge. Receive and Gap come from one goroutine, Apply
// and Replace from another, Lost from a third. Each may block, which holds up
// only its own kind: while Receive blocks, senders fill their buffers and then
// are refused. All may call the bridge, but not wait in it (Settled, Ready,
// Flush, Close): what these wait for comes through the same goroutines.
type Handler interface {
	// Receive gets frames of one peer, in the order in which they were appended,
	// each once. The frames are the callee's to keep, the slice of them is not.
	Receive(from Peer, frames [][]byte)
	// Gap: frames of this node may be missing for good, because it started anew,
	// dropped its link, or sent what could not be read.
	Gap(from Peer)
	// Apply gets one announcement of a peer, in the order in which they were
	// made, each once. The callee may keep it.
	Apply(from Peer, c Change)
	// Replace gets all the routes of a peer: what is not among them is gone, and
	// events may have been missed. The callee may keep them.
	Replace(from Peer, routes []string)
	// Lost: Redis may have lost what it had acknowledged. The bridge has begun to
	// make good what it can; this is for what else the owner built on it.
	Lost(reason error)
}

// Change is what a node announces. Routes are a set of strings that mean
// something to the owner: adding one that is there and removing one that is not
// change nothing. Events are passed on to those who are there and not kept.
type Change struct {
	Add, Remove []string
	Events      [][]byte
}

// Options say how to reach Redis and how much to keep. Zero values are the
// defaults.
type Options struct {
	// URL: see FORMAT.md. Required.
	URL string
	// TLS replaces the default configuration of a rediss:// URL.
	TLS *tls.Config
	// Prefix begins every key. Default "herald".
	Prefix string
	// Cluster identifies the cluster, by something that its shared store says.
	// Required.
	Cluster string
	// Self is this node. Required.
	Self Peer
	// Handler is required.
	Handler Handler
	// Log may be nil.
	Log *zap.Logger
	// Clock is sent with every entry, and Observe gets that of the others, from
	// the goroutine of Receive. Both may be nil.
	Clock   func() herald.ID
	Observe func(herald.ID)

	// Timeout is how long Redis may take to answer. Default 1 s.
	Timeout time.Duration
	// Patience is how long Redis may be away until frames that somebody waits for
	// are given back or reported as held. Default 500 ms.
	Patience time.Duration
	// Retention is how long announcements stay in the routes stream. Default 10 min.
	Retention time.Duration
	// WindowFrames and WindowBytes bound what a link keeps for one peer: what
	// waits and what the peer has not acknowledged. Default 262,144 and 32 MiB. A
	// frame that finds the link empty is always taken.
	WindowFrames int
	WindowBytes  int
	// MaxFrame bounds one frame. Default 16 MiB.
	MaxFrame int
	// LogBytes bounds the announcements that are kept for peers that have not
	// applied them. Default 16 MiB.
	LogBytes int
	// CompressOver is the size in bytes above which an entry is compressed;
	// negative never. Default 8 KiB.
	CompressOver int
}

// The size of a batch. Larger ones gain nothing and make Redis stutter.
const (
	entryBytes  = 128 << 10 // an entry is closed when it has this many
	entryFrames = 4096
	batchBytes  = 1 << 20 // and a round trip
	readEntries = 64
)

// How often things are done.
const (
	checkEvery   = 250 * time.Millisecond // look whether Redis is there and the same
	blockFor     = time.Second            // one XREAD
	ackDelay     = 25 * time.Millisecond
	trimEvery    = 200 * time.Millisecond
	askEvery     = 100 * time.Millisecond // for what is missing
	probeAfter   = time.Second            // ask for an acknowledgement that is late
	guestFor     = 15 * time.Second       // wait for one who says hello to become a peer
	backoffFirst = 20 * time.Millisecond
	backoffLast  = time.Second
)

func (o *Options) setDefaults() {
	def(&o.Prefix, "herald")
	def(&o.Timeout, time.Second)
	def(&o.Patience, 500*time.Millisecond)
	def(&o.Retention, 10*time.Minute)
	def(&o.WindowFrames, 1<<18)
	def(&o.WindowBytes, 32<<20)
	def(&o.MaxFrame, 16<<20)
	def(&o.LogBytes, 16<<20)
	def(&o.CompressOver, 8<<10)
	if o.CompressOver < 0 {
		o.CompressOver = 0
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
}

func def[T comparable](v *T, d T) {
	if *v == *new(T) {
		*v = d
	}
}

// Bridge is one node's end. Its methods may be called by everybody at any time.
//
// Locks are taken in the order Bridge.mu, link.mu, routes.mu; nothing is called
// back under one.
type Bridge struct {
	// Fixed by Open.
	opts   Options
	log    *zap.Logger
	cmd    redis.UniversalClient // short commands
	reader redis.UniversalClient // blocking ones
	keys   keys
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	routes *routes
	in     *inbound

	available  atomic.Bool
	generation atomic.Uint64 // rises when Redis may have lost something
	kick       chan struct{} // has watch look at once
	stats      counters

	// Owned by watch.
	marker, process string

	mu     sync.Mutex       // guards below
	peers  map[uint16]*peer // by node; one incarnation of each
	down   time.Time        // since when Redis is away
	why    error
	held   bool          // patience is over
	up     chan struct{} // closed and replaced when Redis is back
	closed bool
}

// keys are the names in Redis. What is used together in one command has one hash
// tag.
type keys struct{ cluster, in, routes, snapshot string }

func inKey(prefix string, node uint16) string { return fmt.Sprintf("%s:{%d}:in", prefix, node) }
func snapshotKey(prefix string, node uint16) string {
	return fmt.Sprintf("%s:{%d}:routes", prefix, node)
}

// Open connects, checks that Redis can serve and that the prefix is this
// cluster's, and starts to receive. There are no peers yet. Errors say address
// and cause on one line, never a password.
func Open(ctx context.Context, opts Options) (*Bridge, error) {
	opts.setDefaults()
	switch {
	case opts.Handler == nil || opts.Cluster == "":
		return nil, errors.New("bridge: Handler and Cluster are required")
	case opts.Self.Node > maxNode || opts.Self.Incarnation == 0:
		return nil, fmt.Errorf("bridge: node %d, incarnation %d: out of range", opts.Self.Node, opts.Self.Incarnation)
	}
	parsed, err := parseURL(opts.URL)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	b := &Bridge{
		opts:   opts,
		log:    opts.Log,
		cmd:    dial(parsed, opts.Timeout, opts.TLS),
		reader: dial(parsed, opts.Timeout, opts.TLS),
		keys: keys{
			cluster:  opts.Prefix + ":cluster",
			in:       inKey(opts.Prefix, opts.Self.Node),
			routes:   opts.Prefix + ":routes",
			snapshot: snapshotKey(opts.Prefix, opts.Self.Node),
		},
		kick:  make(chan struct{}, 1),
		peers: make(map[uint16]*peer),
		up:    make(chan struct{}),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.routes = newRoutes(b)
	b.in = &inbound{b: b}
	if err := b.first(ctx); err != nil {
		b.cancel()
		_ = b.reader.Close() // nothing was written
		_ = b.cmd.Close()
		return nil, fmt.Errorf("bridge: redis %s: %w", parsed.Addrs[0], err)
	}
	b.available.Store(true)
	for _, run := range []func(){b.watch, b.keep, b.in.run, b.routes.write, b.routes.read} {
		b.wg.Go(run)
	}
	return b, nil
}

// Close stops everything. Frames that somebody waits for are reported with
// [herald.ErrClosed]; [Bridge.Flush] first, to leave none. It returns when the
// Handler's methods have returned.
func (b *Bridge) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	for _, p := range b.peers {
		p.link.end(herald.ErrClosed)
	}
	b.mu.Unlock()
	b.available.Store(false)
	b.cancel()
	// A blocked read ends when its connection does.
	err := errors.Join(b.reader.Close(), b.cmd.Close())
	b.wg.Wait()
	b.routes.end()
	return err
}

// Available tells whether Redis answered when it was last asked. It turns false
// with the first failure, in which case appends with somebody waiting are
// refused, and true when Redis has been found whole again.
func (b *Bridge) Available() bool { return b.available.Load() }

// Err is why Redis is not available; nil if it is.
func (b *Bridge) Err() error {
	if b.available.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

// AppendAsync sends a frame to a peer. An error means that it was not taken, and
// done is not called. Otherwise done, which may be nil, is called with
//
//   - nil once Redis has it (it arrives once, in order, whatever Redis loses,
//     while this node and the peer live);
//   - [ErrUnavailable] if it was not and will not be sent;
//   - [ErrHeld] if Redis went away with it, and a second time, with anything but
//     these two, when the outcome is known. Who writes it to an outbox meanwhile
//     takes it out again on nil;
//   - [ErrGone] if the peer was dropped, or [herald.ErrClosed]: it may have arrived.
//
// Calls of done for one peer come one at a time, from a goroutine of the bridge,
// and must not block. While Redis is away only frames without done are taken.
// The bridge owns payload from now on.
func (b *Bridge) AppendAsync(to Peer, payload []byte, done func(error)) error {
	if len(payload) > b.opts.MaxFrame {
		b.stats.overflow.Add(1)
		return fmt.Errorf("bridge: node %d: %w", to.Node, ErrTooLarge)
	}
	b.mu.Lock()
	p := b.peers[to.Node]
	closed := b.closed
	b.mu.Unlock()
	switch {
	case closed:
		return herald.ErrClosed
	case p == nil || p.Incarnation != to.Incarnation:
		return fmt.Errorf("bridge: node %d: %w", to.Node, ErrGone)
	case done != nil && !b.available.Load():
		return fmt.Errorf("bridge: node %d: %w", to.Node, ErrUnavailable)
	}
	return p.link.push(payload, done)
}

// Flush waits until Redis has everything that was appended and announced.
func (b *Bridge) Flush(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		idle := b.routes.idle()
		for _, p := range b.allPeers() {
			idle = idle && p.link.idle()
		}
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bridge: flush: %w", ctx.Err())
		case <-b.ctx.Done():
			return herald.ErrClosed
		case <-tick.C:
		}
	}
}

// Received waits until every peer has received what was appended to it before the
// call, or is gone.
func (b *Bridge) Received(ctx context.Context) error {
	goal := make(map[*peer]uint64)
	for _, p := range b.allPeers() {
		if upTo := p.link.last(); !p.link.has(upTo) {
			goal[p] = upTo
			p.link.say(flagAnswer) // rather than when it is due
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		for p, upTo := range goal {
			if p.link.has(upTo) {
				delete(goal, p)
			}
		}
		if len(goal) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bridge: not received by %d nodes: %w", len(goal), ctx.Err())
		case <-b.ctx.Done():
			return herald.ErrClosed
		case <-tick.C:
		}
	}
}

// waitUp waits until Redis is available, or the bridge closed (false).
func (b *Bridge) waitUp() bool {
	for {
		b.mu.Lock()
		up := b.up
		b.mu.Unlock()
		if b.ctx.Err() != nil {
			return false
		}
		if b.available.Load() {
			return true
		}
		select {
		case <-up:
		case <-b.ctx.Done():
			return false
		}
	}
}
