// Package membership knows which nodes are alive.
//
// Each node renews its row in the shared store every second. Whose row stands still
// for a lease is declared dead by whoever sees it first; the row changes from Live
// to Dead once, however many try. The node itself has stopped before: its own lease
// counts from the start of its last beat, and all clocks concerned are monotonic, so
// what a machine's wall clock does matters to nobody. (A clock that stands still
// while the machine is suspended is not monotonic in that sense: a suspended machine
// finds out with its first beat afterwards, and the store's fence stands in between.)
//
// What the dead node had begun is finished by the live node with the lowest number,
// by the next one too when that takes longer than a lease, and so on; then the row
// becomes Finished. From then on every node looks once at the inboxes of its own
// sessions and says so in its row. When all have, the death is settled: nothing of
// that life can turn up any more that nobody has looked for.
//
// While the store is away nobody is declared dead; leases run out all the same.
//
// What is decided stands in [machine] and [candidate], which are pure; [Node] runs
// them.
package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"go.uber.org/zap"
)

// ErrClock: this machine's clock is too far ahead of the other nodes'.
var ErrClock = errors.New("clock too far ahead")

// Peer is a live other node, as last read. Its maps must not be changed.
type Peer struct {
	Node   uint16
	Life   uint64
	Name   string
	Status Status // zero if it could not be read
}

// Handler is the node that membership tells. Its methods are called from goroutines
// of membership's own, each by one at a time; one that blocks holds up only itself.
// None but Lost may call [Node.Leave] or [Node.Close].
type Handler interface {
	// Status is asked before each beat. Looked, Met, Owes and Address are filled
	// in by membership. One that blocks lets the lease run out.
	Status() Status
	// Peers is called after every reading of the rows with the live others; readings
	// that come while it runs are told of once.
	Peers(live []Peer)
	// Died: this node is to finish what m had begun. It may be called on several nodes
	// at once, and again after it has succeeded. On nil the row becomes Finished, after
	// an error it is tried again. m is as read, Dead. Lives of m.Node before m.Life may
	// have left something too, which is to be finished with it.
	Died(m persistence.Member) error
	// Finished: look at the inboxes of the sessions here once, for the lives of m.Node
	// up to m.Life. On nil it is noted in Looked and beaten at once, after an error it
	// is tried again. Of a life whose row was not seen, only Node and Life are known.
	Finished(m persistence.Member) error
	// Lost: this node was declared dead. It is called once, when Valid is false for
	// good, and nothing is called after it but what was under way.
	Lost()
}

// Options are what a node is made of.
type Options struct {
	Store   persistence.Cluster
	Name    string // unique in the cluster
	Address string // what clients are told as server reference; at most 255 bytes
	// Lease is how long a node lives without a beat, Beat how often it beats: 5 s and
	// 1 s unless told. All nodes need the same. A lease is at least 3 beats.
	Lease, Beat time.Duration
	// MaxSkew is how far a clock may be ahead of the others': 10 s unless told. A node
	// that is further ahead of all is refused by [Join]. One that runs away later is not
	// followed: its Status.Clock is 0 for the others.
	MaxSkew time.Duration
	Handler Handler
	Log     *zap.Logger      // nil: none
	Now     func() time.Time // with a monotonic reading; nil: [time.Now]
	// Former is a life of which the caller is certain that its process is dead: it was
	// noted by the last holder of a lock that the caller holds now. If the name's row
	// is still that life's, Live, it is buried at once instead of after a lease. Only
	// Node and Life count; zero: none. (That somebody holds a lock of his own tells
	// nothing of a row that may be another machine's.)
	Former persistence.Member
}

func (o *Options) fill() error {
	o.Lease = cmp.Or(o.Lease, 5*time.Second)
	o.Beat = cmp.Or(o.Beat, time.Second)
	o.MaxSkew = cmp.Or(o.MaxSkew, 10*time.Second)
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Beat <= 0 || o.Lease < 3*o.Beat || o.MaxSkew < 0 {
		return fmt.Errorf("membership: a lease of %s with a beat of %s and a skew of %s", o.Lease, o.Beat, o.MaxSkew)
	}
	if o.Name == "" || len(o.Address) > maxAddress {
		return errors.New("membership: the name is empty, or the address longer than 255 bytes")
	}
	return nil
}

func (o *Options) timing() timing {
	return timing{lease: o.Lease, beat: o.Beat, margin: o.Lease / 20}
}

// Node is a life of a node. All methods may be called at any time from any
// goroutine.
type Node struct {
	// Fixed at construction.
	o        Options
	base     time.Time // where its own time begins
	self     persistence.Member
	follow   herald.ID     // the highest clock of the others before Join,
	followed time.Duration // and when that was read

	until atomic.Int64 // time.Duration: when the lease runs out; -1: it has for good
	view  atomic.Pointer[view]

	waiters atomic.Int32 // that want to know what others do
	wake    chan struct{}
	beat    atomic.Bool // BeatNow was called
	paid    atomic.Bool // Paid was
	results chan result

	machine *machine // owned by run; by Leave when run has ended
	warned  map[uint16]uint64

	start, stop sync.Once
	ctx         context.Context
	cancel      context.CancelFunc
	running     sync.WaitGroup

	mu      sync.Mutex // guards changed
	changed chan struct{}
}

// now is the time since an arbitrary beginning, monotonic if o.Now is.
func (n *Node) now() time.Duration { return n.o.Now().Sub(n.base) }

// Self is the row of this life as it was at [Join].
func (n *Node) Self() persistence.Member { return n.self }

// Valid tells whether nobody can have declared this node dead: it may acknowledge
// what it has committed. It costs a look at the clock. It may become false at any
// moment, and true again when the store was away, but not after Lost or Leave.
func (n *Node) Valid() bool { return n.now() < time.Duration(n.until.Load()) }

// Start begins to beat and to watch the others. The lease counts from Join.
func (n *Node) Start() {
	n.start.Do(func() {
		if n.ctx.Err() == nil {
			n.running.Add(1)
			go n.run()
		}
	})
}

// BeatNow asks for a beat soon, because what Status returns has changed.
func (n *Node) BeatNow() {
	n.beat.Store(true)
	n.poke()
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Owes returns the life before this one, if that was nobody's to finish: what it had
// begun, and lives of its number before it, is to be finished by this one before its
// sessions are served. Its intents ([persistence.Cluster.Finish]) are.
func (n *Node) Owes() (m persistence.Member, owes bool) {
	m = n.self
	m.Life--
	m.State, m.Beat, m.Status = persistence.Dead, 0, nil
	return m, n.view.Load().owes != 0
}

// Paid notes that what this life owed is finished, and tells the others.
func (n *Node) Paid() {
	n.paid.Store(true)
	n.poke()
}

// Leave ends this life by itself: whatever it had begun, or owed, must have been
// finished, and nothing be under way. Others count it as over at once. After an error it is not
// certain, and they may find it dead. In any case this node has stopped.
func (n *Node) Leave(ctx context.Context) error {
	n.Close()
	if _, owes := n.Owes(); owes && !n.paid.Load() {
		return errors.New("membership: leaving: it has not finished what it owes, and will be found dead")
	}
	m := n.machine.self
	for {
		ok, err := n.o.Store.Change(ctx, m, persistence.Live, persistence.Left)
		if ok && err == nil {
			return nil
		}
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("membership: leaving: %w: %w", ctx.Err(), err)
		}
		// The row is not as we know it: the last beat was without an answer, or
		// somebody has buried us.
		rows, err := n.o.Store.Members(ctx)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("membership: leaving: %w: %w", ctx.Err(), err)
		}
		for _, row := range rows {
			if row.Node != m.Node {
				continue
			}
			if row.Life == m.Life && row.State == persistence.Left {
				return nil
			}
			if row.Life != m.Life || row.State != persistence.Live {
				return fmt.Errorf("membership: leaving: declared dead before: %w", herald.ErrClosed)
			}
			m.Beat = row.Beat
		}
		if err := pause(ctx, n.o.Beat/10); err != nil {
			return fmt.Errorf("membership: leaving: %w", err)
		}
	}
}

// Close stops without leaving: the others will find this node dead. It waits for
// calls of the handler that are under way, except Lost.
func (n *Node) Close() {
	n.stop.Do(n.cancel)
	n.until.Store(-1)     // behind cancel: see note
	n.start.Do(func() {}) // it will not start any more
	n.running.Wait()
	n.notify()
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
