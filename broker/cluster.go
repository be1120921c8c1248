package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/persistence"
)

// ErrLost: the other nodes have declared this one dead. Everything of it is over; it
// may begin a new life.
var ErrLost = errors.New("declared dead by the other nodes")

// cluster joins membership, transport and engine.
//
// A life begins like this: the store is opened, membership takes the node's number,
// the engine is made, the bridge opened; every live node has to have met this one
// and its routes be applied here; then the engine reads the subscriptions and finishes
// what this life owes. When nothing is left that any dead node had begun, the listeners
// open.
type cluster struct {
	cfg   config.Config
	log   *zap.Logger
	store persistence.Cluster
	lock  *os.File // of the name on this machine; nil: somebody else has it
	now   func() time.Time

	member *membership.Node
	engine atomic.Pointer[engine.Engine]
	bridge atomic.Pointer[bridge.Bridge]
	lost   chan struct{} // closed when this life was declared dead
	begun  bool          // the engine was started; owned by who runs the node
}

var (
	_ engine.Cluster     = (*cluster)(nil)
	_ membership.Handler = (*cluster)(nil)
)

// join takes the node's number.
func join(ctx context.Context, cfg config.Config, store persistence.Cluster, now func() time.Time, log *zap.Logger) (*cluster, error) {
	c := &cluster{cfg: cfg, log: log, store: store, now: now, lost: make(chan struct{})}
	c.lockName()
	var err error
	c.member, err = membership.Join(ctx, membership.Options{
		Store: store, Name: cfg.Node.Name, Address: cfg.Cluster.Address, Lease: cfg.Cluster.Lease, Beat: cfg.Cluster.Lease / 5,
		MaxSkew: cfg.Cluster.MaxSkew, Handler: c, Log: log.Named("membership"), Now: now, Former: c.former(),
	})
	if err != nil {
		c.unlock()
		if errors.Is(err, herald.ErrInUse) {
			return nil, fmt.Errorf("node.name: %q is taken by a live node: %w", cfg.Node.Name, herald.ErrInUse)
		}
		return nil, err
	}
	store.Fence(c.member.Valid)
	c.note(c.member.Self())
	return c, nil
}

// former is the life that the last holder of the lock has noted: its process is dead,
// or it was this one's.
func (c *cluster) former() (m persistence.Member) {
	if c.lock == nil {
		return m
	}
	if n, err := fmt.Fscanf(c.lock, "node %d life %d\n", &m.Node, &m.Life); n < 2 || err != nil {
		return persistence.Member{}
	}
	return m
}

// note writes down whose life this is. Without it the next process waits for a lease.
func (c *cluster) note(m persistence.Member) {
	if c.lock == nil {
		return
	}
	err := c.lock.Truncate(0)
	if err == nil {
		_, err = c.lock.WriteAt(fmt.Appendf(nil, "node %d life %d\n", m.Node, m.Life), 0)
	}
	if err != nil {
		c.log.Warn("cannot note this node's life", zap.Error(err))
	}
}

// lockName takes a lock that the kernel gives back when the process dies, however
// it does: who has it knows that no other process has this name in this folder, and
// that the one which has noted its life there is dead.
func (c *cluster) lockName() {
	if os.MkdirAll(c.cfg.Node.Data, 0o755) != nil { //nolint:gosec // as the embedded store does
		return
	}
	f, err := os.OpenFile(filepath.Join(c.cfg.Node.Data, "node-"+filepath.Base(c.cfg.Node.Name)+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = f.Close()
		return
	}
	c.lock = f
}

func (c *cluster) unlock() {
	if c.lock != nil {
		_ = c.lock.Close()
		c.lock = nil
	}
}

// open connects the engine to the other nodes.
func (c *cluster) open(ctx context.Context, e *engine.Engine) error {
	c.engine.Store(e)
	for _, p := range c.member.Peers() {
		e.Observe(p.Status.Clock)
	}
	c.member.Start()
	id, err := c.store.Identity(ctx)
	if err != nil {
		return err
	}
	b, err := bridge.Open(ctx, bridge.Options{
		URL: c.cfg.Bridge.Redis, Prefix: c.cfg.Bridge.Prefix, Cluster: id, Self: c.Self(), Handler: e,
		Log: c.log.Named("bridge"), Clock: e.Clock, Observe: e.Observe,
		MaxFrame: max(16<<20, int(c.cfg.MQTT.MaxPacketSize)+1<<20),
	})
	if err != nil {
		return fmt.Errorf("bridge.redis: %w", err)
	}
	b.SetPeers(peersOf(c.member.Peers()))
	c.bridge.Store(b)
	return nil
}

// ready waits until every node counts this one in, and its routes are applied.
func (c *cluster) ready(ctx context.Context) error {
	if err := c.member.Known(ctx); err != nil {
		return err
	}
	for _, p := range c.member.Peers() {
		c.engine.Load().Observe(p.Status.Clock)
	}
	b := c.bridge.Load()
	b.SetPeers(peersOf(c.member.Peers()))
	return b.Ready(ctx)
}

// finish carries out what this life owes, and waits until the others have carried out
// what else dead nodes had begun: what was published before all of them died comes
// before what is published from now on.
func (c *cluster) finish(ctx context.Context) error {
	if m, owes := c.member.Owes(); owes {
		if err := c.engine.Load().Died(m); err != nil {
			return err
		}
		c.member.Paid()
	}
	told := time.AfterFunc(clearTold, func() { c.log.Warn("waiting until what dead nodes had begun is finished") })
	defer told.Stop()
	return c.member.Clear(ctx)
}

// clearTold is after how long the log says what a start waits for.
const clearTold = 10 * time.Second

// abandon ends a life that could not be begun. If there is nothing that it owes the
// others, they need not wait for its death.
func (c *cluster) abandon() {
	if _, owes := c.member.Owes(); c.begun || owes {
		c.close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Cluster.Lease)
	defer cancel()
	if err := c.leave(ctx, true); err != nil {
		c.log.Warn("leaving the other nodes", zap.Error(err))
	}
}

// leave ends this life by itself: everything of it is committed. covered: the other
// nodes have looked for it, and need no frames that tell of it.
func (c *cluster) leave(ctx context.Context, covered bool) error {
	b := c.bridge.Load()
	var err error
	if b != nil && !covered {
		err = b.Flush(ctx)
	}
	if err == nil {
		err = c.member.Leave(ctx)
	}
	c.close()
	return err
}

// close stops without leaving.
func (c *cluster) close() {
	if b := c.bridge.Load(); b != nil {
		if err := b.Close(); err != nil && !errors.Is(err, context.Canceled) {
			c.log.Debug("closing the bridge", zap.Error(err))
		}
	}
	c.member.Close()
	c.unlock()
}

func peersOf(live []membership.Peer) []bridge.Peer {
	out := make([]bridge.Peer, len(live))
	for i, p := range live {
		out[i] = bridge.Peer{Node: p.Node, Incarnation: p.Life}
	}
	return out
}

// Of membership.Handler.

func (c *cluster) Status() membership.Status {
	if e := c.engine.Load(); e != nil {
		return e.Status()
	}
	return membership.Status{}
}

func (c *cluster) Peers(live []membership.Peer) {
	e := c.engine.Load()
	if e == nil {
		return
	}
	e.Peers(live)
	if b := c.bridge.Load(); b != nil {
		b.SetPeers(peersOf(live))
	}
}

func (c *cluster) Died(m persistence.Member) error {
	if e := c.engine.Load(); e != nil {
		return e.Died(m)
	}
	return fmt.Errorf("%w: starting", herald.ErrUnavailable)
}

func (c *cluster) Finished(m persistence.Member) error {
	if e := c.engine.Load(); e != nil {
		return e.Finished(m)
	}
	return nil
}

func (c *cluster) Lost() {
	close(c.lost)
}

func (c *cluster) isLost() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}

// Of engine.Cluster.

func (c *cluster) Self() bridge.Peer {
	m := c.member.Self()
	return bridge.Peer{Node: m.Node, Incarnation: m.Life}
}

func (c *cluster) Valid() bool { return c.member.Valid() }

func (c *cluster) Live(p bridge.Peer) bool {
	_, ok := c.member.Live(p.Node, p.Incarnation)
	return ok
}

func (c *cluster) Over(ctx context.Context, p bridge.Peer) error {
	return c.member.Settled(ctx, p.Node, p.Incarnation)
}

func (c *cluster) BeatNow() { c.member.BeatNow() }

func (c *cluster) Available() bool {
	b := c.bridge.Load()
	return b != nil && b.Available()
}

func (c *cluster) AppendAsync(to bridge.Peer, frame []byte, done func(error)) error {
	if b := c.bridge.Load(); b != nil {
		return b.AppendAsync(to, frame, done)
	}
	return bridge.ErrUnavailable
}

func (c *cluster) Received(ctx context.Context) error {
	if b := c.bridge.Load(); b != nil {
		return b.Received(ctx)
	}
	return nil
}

func (c *cluster) Announce(ch bridge.Change) (bridge.Position, error) {
	if b := c.bridge.Load(); b != nil {
		return b.Announce(ch)
	}
	return 0, bridge.ErrUnavailable
}

func (c *cluster) Settled(ctx context.Context, p bridge.Position) error {
	if b := c.bridge.Load(); b != nil {
		return b.Settled(ctx, p)
	}
	return bridge.ErrUnavailable
}
