// Package engine is the shell around the session machines: it moves publishes
// from the connection that brought them to the sessions they are due to, and
// commits in between what was promised. One file per hop; who follows a publish
// reads them in this order:
//
//	intake.go       frames of one read → runs of publishes, acknowledgements
//	match.go        a run → who it is due to, and what must be stored
//	commit.go       one batch to the store; what waits for it, in order
//	deliver.go      to the sessions that are connected here
//	acknowledge.go  to the publisher, in the order in which it published
//
// Sessions come in attach.go and go in detach.go, subscriptions in subscribe.go, retained
// messages in retained.go, wills in will.go, expiry in housekeeping.go, shared
// subscriptions in group.go, wide publishes in outbox.go, bounds in queue.go, bans in
// bans.go.
//
// With many nodes (cluster.go has the overview): forward.go and frame.go between
// deliver and acknowledge, routes.go for who wants what where, ownership.go for who
// serves a session, sharing.go, dealer.go and outside.go for shared subscriptions,
// died.go and bury.go for what dead nodes leave.
//
// Locks, in the order in which they may be taken: claim (one client id),
// client.reading, groups.joins (one key), group.mu, client.mu, client.pmu, the
// connection's own; sharing.mu, peer.mu and owners.mu are leaves.
package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/persistence"
)

// Config is what an engine is told. The zero value of a field means what its
// comment says.
type Config struct {
	// Node is the number of this node in message IDs.
	Node uint16
	// MaxQoS is the most that subscriptions are granted and publishes may have.
	MaxQoS byte
	// ReceiveMaximum is how many QoS > 0 publishes one client may have under
	// way, in either direction. 0: 1,024.
	ReceiveMaximum int
	// MaxPacket is the largest packet that is accepted, in bytes. 0: no bound.
	MaxPacket uint32
	// MaxClients bounds the clients that are connected. 0: no bound.
	MaxClients int
	// MaxSubscriptions bounds the subscriptions of one client: a filter that is one too
	// many is refused. 0: no bound.
	MaxSubscriptions int
	// MaxKeepalive is the longest keepalive that is granted, in seconds. 0: any.
	MaxKeepalive uint16
	// ExpiryMax bounds the session expiry interval, in seconds. 0: no bound.
	ExpiryMax uint32
	// ExpiryV3 is that of MQTT 3.1.1 sessions with clean session 0, in seconds.
	// 0: never.
	ExpiryV3 uint32
	// AliasMaximum is how many topic aliases are accepted from a client.
	AliasMaximum uint16
	// Queue bounds the queue of one session.
	Queue QueueLimits
	// Memory bounds what a session holds in memory of its queue.
	Memory session.Memory
	// BackgroundAbove: what is due to more sessions with an inbox than this is
	// spread after it was acknowledged. 0: never.
	BackgroundAbove int
	// Shared tells how shared subscriptions are served.
	Shared SharedConfig
	// MaxBans bounds the list of bans. 0: DefaultMaxBans.
	MaxBans int
	// SysInterval is how often $SYS is published. 0: never.
	SysInterval time.Duration
	// Version is told in $SYS.
	Version string
	// Cluster are the other nodes, for a store that implements persistence.Cluster;
	// nil: this node is alone.
	Cluster Cluster
	// Now is the wall clock. nil: time.Now.
	Now func() time.Time
	// Network tells what went over the network, for $SYS; nil: nothing.
	Network func() Network
}

// Network is what went over the network since the start, in bytes, and how many
// connections there were.
type Network struct{ BytesIn, BytesOut, Accepted int64 }

// QueueLimits bounds the messages that wait for one session; 0 is no bound.
type QueueLimits struct {
	Messages int
	Bytes    int64
	// Full: drop_oldest, drop_new or disconnect.
	Full string
}

// SharedConfig tells how shared subscriptions are served.
type SharedConfig struct {
	// Durable are "{group}/{filter}" or "{group}" of groups that keep messages
	// although all members are ephemeral.
	Durable []string
	// Expiry is how long a durable group without members lives.
	Expiry time.Duration
	// Strategy chooses the member.
	Strategy topic.Strategy
}

// Engine owns sessions, subscriptions and QoS. Its methods may be called from
// any goroutine.
type Engine struct {
	cfg   Config
	store persistence.Store
	log   *zap.Logger
	ids   *herald.IDs
	index *topic.Index[*handle]

	nodes    nodes
	owners   owners
	routing  routing
	trusts   trusts
	sharing  sharing
	remote   *topic.Index[*remote] // what other nodes have announced
	errands  chan struct{}         // one taken by each that runs for another node or waits for one
	unclaims chan struct{}         // one taken by each claim that is being given back
	loaded   atomic.Bool           // subscriptions were read
	divided  bool                  // the store's batches are not atomic

	// receiver is that of the goroutine that takes what other nodes send.
	receiver *listen.Worker

	flight  flight
	epoch   atomic.Uint32 // of routing: rises when an ephemeral session gets an inbox
	spillMu sync.Mutex    // serialises that
	workers []*worker
	claims  claims
	groups  groups
	queues  queues
	outbox  outbox
	bans    bans
	sys     sysTree
	stats   Stats

	diversion diversion

	handlesMu sync.RWMutex
	handles   map[herald.SessionID]*handle // of sessions with subscriptions or connections

	clientsMu sync.RWMutex
	clients   map[string]*client // by client id: connected, or being put away

	wills     delayedWills
	orphansAt int64           // when wills were looked through last (housekeep)
	strayAt   int64           // likewise: for stray ones
	life      context.Context // ends when Stop or Halt is called: what waits for others ends
	endLife   context.CancelFunc
	ctx       context.Context // ends with Stop
	cancel    context.CancelFunc
	stopping  atomic.Bool
	refusing  atomic.Bool
	failed    atomic.Int64 // when a failed commit was logged last, Unix milliseconds
	jobs      jobs
	slots     chan struct{} // one taken by each function that runs in the background
	quit      chan struct{}
	grants    grants
}

// handle is a session or group as the subscriptions index knows it. It costs a
// session at rest 32 bytes.
type handle struct {
	id      herald.SessionID
	live    atomic.Pointer[client] // nil while nobody is connected
	group   atomic.Pointer[group]  // of a shared subscription; nil while another node owns it
	durable bool
	spilled atomic.Uint32 // of an ephemeral session: since which routing epoch it has an inbox; 0: it has none
}

// stored tells whether what is routed in an epoch goes into the inbox of h.
func (h *handle) stored(epoch uint32) bool {
	if h.durable {
		return true
	}
	since := h.spilled.Load()
	return since != 0 && epoch >= since
}

// New returns an engine on a store. It is idle until Start.
func New(cfg Config, store persistence.Store, log *zap.Logger) *Engine {
	if cfg.Network == nil {
		cfg.Network = func() Network { return Network{} }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ReceiveMaximum <= 0 {
		cfg.ReceiveMaximum = 1024
	}
	e := &Engine{
		cfg: cfg, store: store, log: log,
		ids:     herald.NewIDs(cfg.Node, store.MaxID()),
		index:   topic.New[*handle](),
		handles: make(map[herald.SessionID]*handle),
		clients: make(map[string]*client),
		quit:    make(chan struct{}),
		slots:   make(chan struct{}, backgroundSlots),
	}
	e.remote, e.receiver = topic.New[*remote](), listen.NewWorker()
	e.errands, e.unclaims = make(chan struct{}, errandSlots), make(chan struct{}, unclaimSlots)
	e.owners.init()
	e.routing.init()
	e.trusts.init()
	e.wills.init()
	e.sharing.init()
	_, e.divided = store.(persistence.Claimer)
	if cfg.Cluster != nil {
		e.nodes.init(cfg.Cluster, store.(persistence.Cluster))
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.life, e.endLife = context.WithCancel(e.ctx)
	e.diversion.init(e.life)
	e.flight.last = store.MaxID() // what a former life committed will not come again, nor anything below it
	e.claims.m = make(map[string]*claim)
	e.groups.init()
	e.queues.init(cfg.Queue)
	e.outbox.init(cfg.BackgroundAbove)
	e.bans.init(cfg.MaxBans, store)
	e.sys.init()
	return e
}

// Start reads what the store knows of sessions, begins to serve and returns.
// The caller accepts connections after it. After an error Stop is called all the same.
func (e *Engine) Start(ctx context.Context) error {
	if e.nodes.on() {
		e.follow()
	}
	e.workers = newWorkers(e)
	if e.nodes.on() { // reading may take long, and the others' closed time waits for this node's
		e.jobs.run(e.tellClosed)
	}
	if err := e.loadBans(ctx); err != nil {
		return fmt.Errorf("engine: load bans: %w", err)
	}
	if err := e.load(ctx); err != nil {
		return fmt.Errorf("engine: load sessions: %w", err)
	}
	e.jobs.run(e.followBans)
	e.jobs.run(e.housekeep)
	e.jobs.run(e.spreadOutbox)
	if e.nodes.on() {
		e.jobs.run(e.trust)
	}
	return nil
}

// Halt ends what waits for the store or for other nodes, because this node's life is
// over: nothing that it does has an effect any more. Stop follows.
func (e *Engine) Halt() { e.endLife() }

// Stop ends what runs in the background, after the connections were closed. It
// returns true when everything that was accepted is committed, and spread, or false when
// ctx ends: some of it may be left for the next start to find, or for who finishes this
// life. Of several calls only the first waits and knows.
func (e *Engine) Stop(ctx context.Context) (through bool) {
	if !e.stopping.CompareAndSwap(false, true) {
		return false
	}
	e.endLife()
	close(e.quit)
	e.flight.pass(ctx)
	e.outbox.end()
	undo := context.AfterFunc(ctx, e.cancel)
	e.jobs.end()
	undo()
	through = e.flight.pass(ctx) // of what those have published, too
	stopWorkers(e.workers)
	e.cancel()
	return through
}

func (e *Engine) now() int64 { return e.cfg.Now().UnixMilli() }

func (e *Engine) env() session.Env {
	return session.Env{Now: e.now(), Closed: e.closed()}
}

// closed is the ID at or below which everything is committed and delivered.
func (e *Engine) closed() herald.ID {
	if !e.nodes.on() {
		return e.flight.closed()
	}
	return min(e.flight.closed(), herald.ID(e.nodes.closed.Load()))
}

// handle returns the handle of a session, or nil.
func (e *Engine) handle(id herald.SessionID) *handle {
	e.handlesMu.RLock()
	defer e.handlesMu.RUnlock()
	return e.handles[id]
}

// handleFor returns the handle of a session, made if there is none.
func (e *Engine) handleFor(id herald.SessionID, durable bool) *handle {
	if h := e.handle(id); h != nil {
		return h
	}
	e.handlesMu.Lock()
	defer e.handlesMu.Unlock()
	h := e.handles[id]
	if h == nil {
		h = &handle{id: id, durable: durable}
		e.handles[id] = h
	}
	return h
}

func (e *Engine) dropHandle(id herald.SessionID) {
	e.handlesMu.Lock()
	defer e.handlesMu.Unlock()
	delete(e.handles, id)
}

func (e *Engine) newID() herald.ID { return e.ids.Next(e.now(), 1).At(0) }

// newSessionID makes the identity of a session.
func (e *Engine) newSessionID() herald.SessionID { return herald.SessionID(e.newID()) }

// scratch is what one worker of the listeners keeps for the engine.
type scratch struct {
	cache   *topic.Cache[*handle]
	remote  *topic.Cache[*remote] // nil until it is needed
	targets []nodeTarget
	in      intake
	fx      session.Effects

	open  bool   // fx is open to a connection's buffer, which began
	began []byte // like this
}

func (e *Engine) scratch(w *listen.Worker) *scratch {
	if s, ok := w.Scratch.(*scratch); ok {
		return s
	}
	s := &scratch{cache: e.index.NewCache(topicCache)}
	w.Scratch = s
	return s
}

// topicCache is how many topics a worker remembers the subscribers of.
const topicCache = 8192

// Stats counts what happened, for $SYS and the metrics. All only rise.
type Stats struct {
	Received, Sent                            atomic.Int64 // messages
	ReceivedByQoS                             [3]atomic.Int64
	DroppedQoS0, Expired, TooLarge, QueueFull atomic.Int64
	Commits                                   atomic.Int64
	CommitErrors                              atomic.Int64
	Duplicates                                atomic.Int64 // QoS 2 PUBLISHes sent again
	TakeOvers                                 atomic.Int64
	Wills                                     atomic.Int64
	Panics                                    atomic.Int64 // that ended one connection, or nothing
	ClientsMaximum                            atomic.Int64
	SessionsExpired                           atomic.Int64
	Forwarded                                 atomic.Int64 // messages that came from other nodes
	BadFrames                                 atomic.Int64 // frames and announcements that could not be decoded
	OverSubscribed                            atomic.Int64 // filters that were one too many for their client
	Rejected                                  atomic.Int64 // connections that were refused or broke the protocol
	Banned, BanEnded                          atomic.Int64 // CONNECTs refused, and connections ended, because of a ban
	BansUnreadable                            atomic.Int64 // bans that could not be decoded, each time that they were read
	BanReadErrors                             atomic.Int64
}

// Stats returns the counters, which go on counting.
func (e *Engine) Stats() *Stats { return &e.stats }

// Gauges are how much there is now.
type Gauges struct {
	Clients, Sessions, Subscriptions, Filters, Bans int
}

// Gauges returns how much there is now.
func (e *Engine) Gauges() Gauges {
	e.handlesMu.RLock()
	sessions := len(e.handles)
	e.handlesMu.RUnlock()
	return Gauges{Clients: e.connected(), Sessions: sessions, Subscriptions: e.index.Subscriptions(), Filters: e.index.Filters(), Bans: e.bans.list.Len()}
}

// connected is how many clients are.
func (e *Engine) connected() int {
	e.clientsMu.RLock()
	defer e.clientsMu.RUnlock()
	return len(e.clients)
}

// Refuse makes the engine refuse new sessions, for a stop.
func (e *Engine) Refuse() { e.refusing.Store(true) }
