package engine

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/persistence"
)

// Many nodes. The engine of each has all durable subscriptions of the cluster in
// its index and writes the entries of all durable sessions itself. After the
// commit a publish goes to the nodes that have announced a route for its topic,
// which means somebody is connected there who wants it; they match it again
// against their own clients (forward.go). Routes and changes of subscriptions are
// announced to all (routes.go). Who serves a session stands in the store
// (ownership.go). What a dead node leaves is seen to in died.go.

// Cluster is what the engine needs of the other nodes: membership and transport.
// Its methods may be called from any goroutine.
type Cluster interface {
	// Self is this node in its life.
	Self() bridge.Peer
	// Valid tells whether this node's lease still runs. Without it nothing is
	// acknowledged.
	Valid() bool
	// Live tells whether a life is believed to be going on.
	Live(p bridge.Peer) bool
	// Over waits until a life is over and settled: whatever it acknowledged is
	// where it has to be, and what it still does has no effect.
	Over(ctx context.Context, p bridge.Peer) error
	// BeatNow has what this node says of itself told soon.
	BeatNow()

	// Of the transport: see [bridge.Bridge].
	Available() bool
	AppendAsync(to bridge.Peer, frame []byte, done func(error)) error
	Received(ctx context.Context) error
	Announce(c bridge.Change) (bridge.Position, error)
	Settled(ctx context.Context, p bridge.Position) error
}

// nodes is what the engine knows of the others.
type nodes struct {
	Cluster // nil: this node is alone
	store   persistence.Cluster
	self    bridge.Peer

	mu    sync.Mutex // guards below
	known map[bridge.Peer]*peer
	moved chan struct{} // closed and replaced when closed rises

	wanted chan struct{} // of capacity 1: somebody waits to be told

	dying  gate   // held while a dead node is seen to; taken before all others
	graves graves // guarded by it

	list   atomic.Pointer[[]*peer] // known, for those who only look
	closed atomic.Uint64           // the least of the peers' closed
}

// peer is another node in one of its lives.
type peer struct {
	bridge.Peer
	e *Engine

	// live and waited stand for the node in the index of remote routes: somebody
	// who is connected there wants what matches; somebody whose session ends with
	// its connection does, at QoS 1 or 2, so that the publisher's acknowledgement
	// waits for the frame.
	live, waited *remote

	// Owned by who calls Receive and Gap: frames are missing since it last told its
	// closed time.
	missed bool
	// Likewise: what it asks for, begun when all that came at once was looked at, since
	// it may be withdrawn at once.
	requests []func()

	status  atomic.Pointer[membership.Status] // as last read
	holding atomic.Int32                      // len(held)

	mu      sync.Mutex // guards below
	parcels uint64     // how many frames were sent
	queue   []parcel   // those that the bridge did not take, ascending by number
	behind  []parcel   // those that wait until the peer was told to look
	waiting int        // bytes of both that nobody waits for
	// held is who waits for frames that the bridge keeps, by their first byte; nil:
	// nobody any more.
	held    map[*byte]func(error)
	gap     bool      // a frame that nobody waited for was lost
	closing bool      // what comes is kept again, and the peer will be told to look
	gapTo   herald.ID // all that was lost lies at or below
	fresh   bool      // it was sent something since it was told
	told    herald.ID // the newest closed time that it was told
	toldAt  time.Time
	asked   herald.ID // it waits until it is told of this
	asking  herald.ID // the same, of it
	routes  map[string]struct{}

	// What has arrived of it. shown: entries up to here may be taken from an inbox;
	// closed: nothing at or below will turn up any more that has not. arrived are
	// the IDs of frames that came and lie above, as ranges.
	shown, closed herald.ID
	arrived       []idRange
	unnoted       herald.ID // of what came and is not in arrived
	over          bool      // dead, and its entries have been looked for
}

// remote is a peer in the index of remote routes.
type remote struct {
	peer *peer
	wait bool
}

type idRange struct{ first, last herald.ID }

func (n *nodes) on() bool { return n.Cluster != nil }

// init joins the engine to a cluster.
func (n *nodes) init(c Cluster, store persistence.Cluster) {
	n.Cluster, n.store, n.self = c, store, c.Self()
	n.known = make(map[bridge.Peer]*peer)
	n.wanted, n.dying = make(chan struct{}, 1), newGate()
	n.moved = make(chan struct{})
	n.graves = make(graves)
	n.closed.Store(math.MaxUint64)
	n.list.Store(new([]*peer))
}

// peers are the lives that count: live ones, and dead ones not looked after yet.
func (n *nodes) peers() []*peer {
	if !n.on() {
		return nil
	}
	return *n.list.Load()
}

// meet makes a life known. From here on closed time waits for it: the node will
// not use an ID at or below what is closed now, since it observes this node's
// clock before it makes the first.
func (e *Engine) meet(id bridge.Peer) *peer {
	n := &e.nodes
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.known[id]; p != nil {
		return p
	}
	floor := herald.ID(0) // one that was there before: it will tell
	if e.loaded.Load() {
		floor = e.flight.advance(e.ids, e.now()).Floor() // the millisecond may be shared
	}
	p := &peer{Peer: id, e: e, routes: make(map[string]struct{}), shown: floor, closed: floor}
	p.live, p.waited = &remote{peer: p}, &remote{peer: p, wait: true}
	n.known[id] = p
	n.refreshLocked()
	return p
}

// forget drops a life that is over.
func (e *Engine) forget(p *peer) {
	n := &e.nodes
	n.mu.Lock()
	delete(n.known, p.Peer)
	n.refreshLocked()
	n.mu.Unlock()
	e.dropRoutes(p)
	p.fail(nil) // nobody is there any more
}

func (n *nodes) refreshLocked() {
	list := make([]*peer, 0, len(n.known))
	for _, p := range n.known {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *peer) int { return cmp.Compare(a.Node, b.Node) })
	n.list.Store(&list)
	n.sumLocked()
}

// sumLocked takes the least of all closed times.
func (n *nodes) sumLocked() {
	least := herald.ID(math.MaxUint64)
	for _, p := range n.known {
		p.mu.Lock()
		if !p.over {
			least = min(least, p.closed)
		}
		p.mu.Unlock()
	}
	n.closed.Store(uint64(least))
	close(n.moved)
	n.moved = make(chan struct{})
}

func (n *nodes) sum() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sumLocked()
}

// passed waits until every node's closed time has come to id, or quit is closed
// (false).
func (n *nodes) passed(quit <-chan struct{}, id herald.ID) bool {
	for n.on() {
		n.mu.Lock()
		moved := n.moved
		n.mu.Unlock()
		if herald.ID(n.closed.Load()) >= id {
			return true
		}
		for _, p := range n.peers() {
			p.ask(id)
		}
		select {
		case <-moved:
		case <-quit:
			return false
		}
	}
	return true
}

// maxArrived bounds the ranges of IDs that are kept of a peer. When there are more,
// because its closed time stands still, what comes is left in the inboxes until
// closed time has passed it.
const maxArrived = 4096

// came notes the IDs of a run that arrived.
func (p *peer) came(msgs []*herald.Message) {
	if msgs[0].ID == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r := idRange{msgs[0].ID, msgs[len(msgs)-1].ID}
	if k := len(p.arrived); k > 0 && p.unnoted <= p.closed && p.arrived[k-1].last < r.first && r.first-p.arrived[k-1].last == 1 {
		p.arrived[k-1].last = r.last
		return
	}
	if len(p.arrived) >= maxArrived || p.unnoted > p.closed {
		p.unnoted = max(p.unnoted, r.last) // nor what comes behind it: that would be ahead of it
		p.missed = true
		return
	}
	p.arrived = append(p.arrived, r)
}

// reach moves closed time of the peer to id: everything up to it has arrived, or
// was looked for.
func (p *peer) reach(id herald.ID) {
	p.mu.Lock()
	p.shown, p.closed = max(p.shown, id), max(p.closed, id)
	p.arrived = slices.DeleteFunc(p.arrived, func(r idRange) bool { return r.last <= p.closed })
	p.mu.Unlock()
}

// stale tells whether everything of a run was looked for in the inboxes.
func (p *peer) stale(id herald.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return id != 0 && id <= p.closed
}

// arrivals is what of other nodes' entries may be taken from an inbox that is read
// after it was made. An earlier entry of the same publisher may not be visible yet,
// unless its node had closed the time before, or the frame of the later one had
// come.
type arrivals []arrival

type arrival struct {
	node   uint16
	over   bool
	shown  herald.ID
	ranges []idRange
}

func (n *nodes) arrivals() (a arrivals) {
	for _, p := range n.peers() {
		p.mu.Lock()
		a = append(a, arrival{p.Node, p.over, p.shown, slices.Clone(p.arrived)})
		p.mu.Unlock()
	}
	return a
}

func (a arrivals) shows(id herald.ID) bool {
	for i := range a {
		p := &a[i]
		if p.node == id.Node() && !p.over && id > p.shown &&
			!slices.ContainsFunc(p.ranges, func(r idRange) bool { return r.first <= id && id <= r.last }) {
			return false
		}
	}
	return true
}

// visible drops from a page what may not be taken yet.
func (a arrivals) visible(entries []persistence.Entry) []persistence.Entry {
	if len(a) == 0 {
		return entries
	}
	return slices.DeleteFunc(entries, func(en persistence.Entry) bool { return !a.shows(en.Message.ID) })
}

// look has every connected session look at its inbox again, and then moves closed
// time of a peer to upTo, which was true before.
func (e *Engine) look(p *peer, upTo herald.ID) {
	p.mu.Lock()
	p.shown = max(p.shown, upTo)
	p.mu.Unlock()
	e.lookAll()
	p.reach(upTo)
	e.nodes.sum()
}

// lookAll has every connected session and every group look at its inbox.
func (e *Engine) lookAll() {
	e.clientsMu.RLock()
	cs := make([]*client, 0, len(e.clients))
	for _, c := range e.clients {
		if c.core.Durable() {
			cs = append(cs, c)
		}
	}
	e.clientsMu.RUnlock()
	w := listen.NewWorker()
	for _, c := range cs {
		e.step(c, c.core, w, c.core.Look)
	}
	for _, g := range e.groups.all() {
		g.mu.Lock()
		g.core.Look(e.env())
		g.mu.Unlock()
		g.wake(e, w)
	}
	w.Flush()
}

// fenced tells whether this node may not acknowledge.
func (e *Engine) fenced() bool { return e.nodes.on() && !e.nodes.Valid() }

// Status is what this node says of itself in its row: for the membership.
func (e *Engine) Status() membership.Status {
	n := &e.nodes
	s := membership.Status{
		Closed: e.flight.advance(e.ids, e.now()), Bridge: n.Available(), Covered: make(map[uint16]herald.ID),
		Leaving: e.refusing.Load() || e.diverting() != nil, Wanted: e.owners.wants(),
	}
	s.Clock = s.Closed
	if last := e.flight.newest(); last > s.Clock {
		s.Clock = last
	}
	for _, p := range n.peers() {
		p.mu.Lock()
		s.Covered[p.Node] = p.closed
		p.mu.Unlock()
	}
	return s
}

// Peers is told the live others, as their rows say: for the membership.
func (e *Engine) Peers(live []membership.Peer) {
	n := &e.nodes
	for i := range live {
		l := &live[i]
		e.observe(l.Status.Clock)
		p := e.meet(bridge.Peer{Node: l.Node, Incarnation: l.Life})
		p.status.Store(&l.Status)
		e.giveWanted(p, l.Status.Wanted)
		if !n.Available() || !l.Status.Bridge {
			e.look(p, l.Status.Closed) // no frames tell how far it is
			if l.Status.Leaving {      // it waits for this
				n.BeatNow()
			}
		}
	}
	e.left(live)
}

// left forgets lives that have gone by themselves: everything of them was
// committed and appended before.
func (e *Engine) left(live []membership.Peer) {
	done, cancel := context.WithCancel(context.Background())
	cancel() // nothing is waited for
	for _, p := range e.nodes.peers() {
		if slices.ContainsFunc(live, func(l membership.Peer) bool { return l.Node == p.Node && l.Life == p.Incarnation }) {
			continue
		}
		if e.nodes.Live(p.Peer) || e.nodes.Over(done, p.Peer) != nil {
			continue
		}
		e.look(p, math.MaxUint64)
		e.wills.look() // it may have given sessions to this node, and not have said so
		e.bereave(p)
		e.forget(p)
		e.errand(e.elect)
	}
}

// observe keeps this node's clock from running behind another's.
func (e *Engine) observe(id herald.ID) {
	if id == 0 || e.ids == nil {
		return
	}
	e.ids.Observe(id)
	if e.nodes.on() {
		e.nodes.store.Observe(id)
	}
}

// Clock is this node's, for the transport.
func (e *Engine) Clock() herald.ID { return e.ids.Now(e.now()) }

// Observe keeps this node's clock from running behind id: for the transport.
func (e *Engine) Observe(id herald.ID) { e.observe(id) }
