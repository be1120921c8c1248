package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"

	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/topic"
	"github.com/herald-mqtt/herald/broker/wire"
	hook "github.com/herald-mqtt/herald/hooks/session"
	"github.com/herald-mqtt/herald/persistence"
)

// Broker is a node.
type Broker struct {
	cfg      config.Config
	log      *zap.Logger
	store    persistence.Store
	engine   *engine.Engine
	loop     *listen.Loop
	registry *prometheus.Registry
	mochi    server

	cluster *cluster // nil: this node is alone
	now     func() time.Time

	drain     *drain
	listeners []*listen.Listener
	serving   atomic.Bool
}

// server is what the broker needs of mochi.
type server interface {
	Serve() error
	Close() error
}

// Version is told to clients that ask, in $SYS; set by the linker's user.
var Version = "dev"

// New opens the store of a node. It listens nowhere before Run. Errors wrap
// herald.ErrInUse, herald.ErrSchemaNewer, herald.ErrCorrupt, herald.ErrUnavailable.
func New(cfg config.Config, log *zap.Logger) (*Broker, error) {
	if cfg.Bridge.Redis != "" {
		// A node that took its number and then did not reach Redis would be waited
		// for by all others.
		if err := bridge.Reach(context.Background(), cfg.Bridge.Redis); err != nil {
			return nil, fmt.Errorf("bridge.redis: %w", err)
		}
	}
	store, err := openStore(cfg, log)
	if err != nil {
		return nil, err
	}
	if cfg.Bridge.Redis == "" {
		return on(cfg, store, nil, log)
	}
	c, err := join(context.Background(), cfg, store.(persistence.Cluster), clock(), log)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return on(cfg, store, c, log)
}

// on makes a node on a store, which it closes if it cannot.
func on(cfg config.Config, store persistence.Store, c *cluster, log *zap.Logger) (*Broker, error) {
	b := &Broker{cfg: cfg, log: log, store: store, cluster: c, now: clock(), registry: prometheus.NewRegistry()}
	b.drain = newDrain(b)
	if err := b.build(); err != nil {
		b.unbind()
		if c != nil {
			c.abandon()
		}
		return nil, errors.Join(err, store.Close())
	}
	return b, nil
}

// unbind lets go of the addresses of a node that has not served.
func (b *Broker) unbind() {
	for _, l := range b.listeners {
		l.Close(func(string) {})
	}
	b.listeners = nil
}

// clock is the node's: the machine's, unless a test says that it is ahead.
func clock() func() time.Time {
	ahead, err := time.ParseDuration(os.Getenv("HERALD_TEST_CLOCK_AHEAD"))
	if err != nil || ahead == 0 {
		return time.Now
	}
	return func() time.Time { return time.Now().Add(ahead) }
}

func (b *Broker) build() error {
	c := &b.cfg.MQTT
	strategy, err := topic.ParseStrategy(b.cfg.Shared.Strategy)
	if err != nil {
		return fmt.Errorf("shared.strategy: %w", err)
	}
	var others engine.Cluster
	node := uint16(0)
	if b.cluster != nil {
		others, node = b.cluster, b.cluster.Self().Node
	}
	b.engine = engine.New(engine.Config{
		Node: node, Cluster: others, Now: b.now,
		MaxQoS:           byte(c.MaxQoS),
		ReceiveMaximum:   c.ReceiveMaximum,
		MaxPacket:        uint32(c.MaxPacketSize),
		MaxClients:       c.MaxClients,
		MaxSubscriptions: b.cfg.Limits.Subscriptions,
		MaxKeepalive:     uint16(c.MaxKeepalive / time.Second),
		ExpiryMax:        uint32(c.SessionExpiryMax / time.Second),
		ExpiryV3:         uint32(c.SessionExpiryV3 / time.Second),
		AliasMaximum:     uint16(c.TopicAliasMaximum),
		Queue: engine.QueueLimits{
			Messages: b.cfg.Queue.MaxMessages, Bytes: int64(b.cfg.Queue.MaxBytes), Full: b.cfg.Queue.Full,
		},
		BackgroundAbove: b.cfg.Inbox.BackgroundAbove,
		Shared: engine.SharedConfig{
			Durable: b.cfg.Shared.Durable, Expiry: b.cfg.Shared.Expiry, Strategy: strategy,
		},
		MaxBans:     b.cfg.Bans.Max,
		SysInterval: c.SysInterval,
		Version:     "herald version " + Version,
		Network: func() engine.Network {
			s := b.loop.Stats()
			return engine.Network{BytesIn: s.BytesIn, BytesOut: s.BytesOut, Accepted: s.Accepted}
		},
	}, b.store, b.log)
	slogs := zapslog.NewHandler(b.log.Core())
	mochi, err := hook.NewServer(hook.Options{
		ReceiveMaximum: uint16(c.ReceiveMaximum), MaxQoS: byte(c.MaxQoS),
		AliasMaximum: uint16(c.TopicAliasMaximum), MaxPacket: uint32(c.MaxPacketSize), Log: slogs,
	}, sessions{b.engine})
	if err != nil {
		return err
	}
	b.loop, err = listen.NewLoop(listen.LoopConfig{
		MaxPacketSize: int(c.MaxPacketSize), ConnectTimeout: c.ConnectTimeout, Log: slog.New(slogs),
		MaxConnections: connectionsFor(descriptors()), MaxPending: pendingFor(int64(b.cfg.Limits.PendingOutput), memory()),
	}, handler{b.engine})
	if err != nil {
		return err
	}
	if err := b.loop.Attach(mochi); err != nil {
		return err
	}
	b.register()
	for i, l := range b.cfg.Listeners {
		open, err := b.bind(i, l)
		if err == nil {
			err = mochi.AddListener(open)
		}
		if err != nil {
			for _, open := range b.listeners {
				open.Close(func(string) {})
			}
			return err
		}
		b.listeners = append(b.listeners, open)
	}
	b.mochi = mochi
	if b.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), joinWait)
		defer cancel()
		return b.cluster.open(ctx, b.engine)
	}
	return nil
}

// Run serves until ctx ends; then it stops accepting, tells the clients, commits
// what was accepted and returns. It closes the store.
//
// In a cluster it returns [ErrLost] when the other nodes have declared this one dead,
// and [ErrCutOff] when it has left because it alone does not reach Redis.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.start(ctx); err != nil {
		b.unbind()
		if c := b.cluster; c != nil {
			if c.isLost() {
				err = errors.Join(ErrLost, err)
			}
			b.engine.Halt()
			c.abandon()
			if c.begun {
				at, cancel := context.WithCancel(context.Background())
				cancel()
				b.engine.Stop(at)
			}
		}
		return errors.Join(err, b.store.Close())
	}
	b.serving.Store(true)
	var lost chan struct{}
	if b.cluster != nil {
		lost = b.cluster.lost
	}
	var why error
	looking, cancel := context.WithCancel(context.Background())
	var drain sync.WaitGroup
	drain.Go(func() { b.drain.run(looking) })
	select {
	case <-ctx.Done():
	case <-lost:
		why = ErrLost
	case <-b.drain.left:
		why = ErrCutOff
	}
	b.serving.Store(false)
	cancel()
	drain.Wait()
	if errors.Is(why, ErrLost) {
		b.engine.Halt()
	}
	return errors.Join(why, b.stop())
}

// joinWait is how long a node waits for the others when it starts.
const joinWait = 30 * time.Second

func (b *Broker) start(ctx context.Context) error {
	if b.cluster != nil {
		ctx, cancel := context.WithTimeout(ctx, joinWait)
		defer cancel()
		if err := b.cluster.ready(ctx); err != nil {
			return err
		}
	}
	if b.cluster != nil {
		b.cluster.begun = true
	}
	if err := b.engine.Start(ctx); err != nil {
		return err
	}
	if b.cluster != nil {
		if err := b.cluster.finish(ctx); err != nil {
			return err
		}
	}
	b.loop.Start()
	return b.mochi.Serve()
}

// stop is the way back of Run. Its parts get so many tenths of node.stop_timeout.
func (b *Broker) stop() error {
	part := func(tenths time.Duration) (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), b.cfg.Node.StopTimeout*tenths/10)
	}
	alone := b.cluster != nil && !b.cluster.Available() // without Redis
	connections := time.Duration(6)
	if alone {
		connections = 3
		defer b.letGo()()
	}
	ctx, cancel := part(connections)
	defer cancel()
	for _, l := range b.listeners {
		l.Close(func(string) {})
	}
	if _, server := b.farewell(); server != "" {
		b.drain.sendAll(ctx, b.cfg.Node.StopTimeout*connections*2/30)
	}
	b.engine.Refuse()
	reason, elsewhere := b.farewell()
	w := listen.NewWorker()
	b.loop.Each(func(c *listen.Conn) {
		c.CloseAfter(w, b.engine.Goodbye(c, reason, elsewhere))
	})
	w.Flush()
	err := b.loop.Stop(ctx)
	covered := b.drain.isCovered()
	if alone && !covered && b.cluster.Valid() {
		ctx, cancel := part(3) // two readings of the rows, and two beats
		covered = b.engine.Covered(ctx) == nil
		cancel()
	}
	ctx, cancel = part(2)
	defer cancel()
	through := b.engine.Stop(ctx)
	if b.cluster != nil {
		ctx, cancel := part(2)
		defer cancel()
		switch {
		case !b.cluster.Valid():
			b.cluster.close()
		case !through: // who leaves owes nobody anything
			b.log.Warn("not everything is committed; the other nodes finish it, when they find this one dead")
			b.cluster.close()
		default:
			err = errors.Join(err, b.cluster.leave(ctx, covered))
		}
	}
	return errors.Join(err, b.mochi.Close(), b.store.Close())
}

// farewell is what clients are told when the node stops: where else they find one,
// if it knows.
func (b *Broker) farewell() (reason byte, elsewhere string) {
	if _, elsewhere = b.drain.another(); elsewhere != "" {
		return wire.ReasonServerMoved, elsewhere
	}
	return wire.ReasonShuttingDown, ""
}

// Ready returns the reasons why the node cannot serve now; none: it can.
func (b *Broker) Ready() []string {
	var why []string
	if !b.serving.Load() {
		why = append(why, "not listening")
	}
	if away := b.drain.why(); away != "" {
		why = append(why, away)
	}
	if err := b.store.Health(); err != nil {
		why = append(why, err.Error())
	}
	if b.cluster != nil {
		if !b.cluster.Valid() {
			why = append(why, "the node's lease has run out")
		}
	}
	return why
}

// Registry holds the node's metrics.
func (b *Broker) Registry() *prometheus.Registry { return b.registry }

// Listening describes where the node listens, one line each.
func (b *Broker) Listening() []string {
	out := make([]string, len(b.listeners))
	for i, l := range b.listeners {
		out[i] = l.Protocol() + " " + l.Address()
	}
	return out
}

// pendingFor is how many bytes may wait to be written to all clients together, as
// configured or a quarter of the memory that this process may use; 0 for any number,
// where that is not known.
func pendingFor(configured int64, memory uint64) int64 {
	if configured > 0 {
		return configured
	}
	return int64(min(memory/4, math.MaxInt64))
}

// connectionsFor is how many connections there may be in a process that may have
// so many files open, 0 for any number: the rest is the store's, which could not
// go on if clients took everything, and the admin endpoint's.
func connectionsFor(descriptors uint64) int {
	const others = 640
	if descriptors == 0 {
		return 0
	}
	return int(min(max(descriptors-min(descriptors, others), descriptors/2), math.MaxInt32))
}
