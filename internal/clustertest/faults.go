package clustertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/herald-mqtt/herald/internal/checker"
)

// The faults that may come over a cluster, by the names that [Cluster.Fault]
// knows.
const (
	NoFault     = "none"
	KillBroker  = "kill-broker"  // SIGKILL of a random broker, started again
	PauseBroker = "pause-broker" // SIGSTOP for 10 s, longer than its lease
	DrainBroker = "drain-broker" // SIGTERM of a random broker, started again
	KillRedis   = "kill-redis"   // SIGKILL, started again empty
	CutRedis    = "cut-redis"    // one broker's link to Redis
	CutStore    = "cut-store"    // one broker's link to the database
	CutBoth     = "cut-both"
	KillDB      = "kill-db"     // one of three database servers
	ClockAhead  = "clock-ahead" // one broker's clock, all the time
)

// FaultNames are all of them.
var FaultNames = []string{NoFault, KillBroker, PauseBroker, DrainBroker, KillRedis,
	CutRedis, CutStore, CutBoth, KillDB, ClockAhead}

// ErrNoRedis: one broker alone has no Redis that could be harmed.
var ErrNoRedis = errors.New("clustertest: there is no Redis")

// Needs changes options to what a fault needs.
func Needs(fault string, opts *Options) {
	switch fault {
	case KillDB:
		opts.Databases, opts.Store = 3, nil
	case ClockAhead:
		opts.Ahead = map[int]time.Duration{opts.Brokers / 2: 2 * time.Second}
	}
}

// Fault returns a fault by name, nil for those that are no event. Each is undone
// and every broker ready again before the next one comes: the promise is for one
// machine at a time.
func (c *Cluster) Fault(name string) (checker.Fault, error) {
	f := &fault{name: name, cluster: c}
	switch name {
	case NoFault, ClockAhead:
		return nil, nil
	case KillBroker:
		f.harm = f.killBroker
	case PauseBroker:
		f.harm = f.pauseBroker
	case DrainBroker:
		f.harm = f.drainBroker
	case KillRedis:
		f.harm = f.killRedis
	case CutRedis, CutStore, CutBoth:
		f.harm = f.cut
	case KillDB:
		f.harm = f.killDB
	default:
		return nil, fmt.Errorf("clustertest: there is no fault %q: %s", name, strings.Join(FaultNames, ", "))
	}
	if c.Redis == nil && (name == KillRedis || name == CutRedis || name == CutBoth) {
		return nil, fmt.Errorf("%w: %s", ErrNoRedis, name)
	}
	return f, nil
}

// fault is one that is an event.
type fault struct {
	name    string
	cluster *Cluster
	harm    func(ctx context.Context, rng *rand.Rand) error
}

// String implements checker.Fault.
func (f *fault) String() string { return f.name }

// Inject implements checker.Fault.
func (f *fault) Inject(ctx context.Context, rng *rand.Rand) error {
	if err := f.harm(ctx, rng); err != nil {
		return err
	}
	return f.cluster.Await(context.WithoutCancel(ctx))
}

func (f *fault) broker(rng *rand.Rand) *Node { return f.cluster.Nodes[rng.IntN(len(f.cluster.Nodes))] }

// between is a random time from a to b.
func between(rng *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(rng.Int64N(int64(b-a)))
}

// wait waits for d, or less if ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (f *fault) killBroker(ctx context.Context, rng *rand.Rand) error {
	n := f.broker(rng)
	if err := n.Kill(); err != nil {
		return err
	}
	// At once, within its lease, or after it.
	if rng.IntN(2) == 0 {
		wait(ctx, between(rng, time.Millisecond, 8*time.Second))
	}
	return n.Start(context.WithoutCancel(ctx))
}

func (f *fault) pauseBroker(ctx context.Context, rng *rand.Rand) error {
	n := f.broker(rng)
	if err := n.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("clustertest: pause: %w", err)
	}
	wait(ctx, 10*time.Second)
	if err := n.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("clustertest: continue: %w", err)
	}
	return nil
}

func (f *fault) drainBroker(ctx context.Context, rng *rand.Rand) error {
	n := f.broker(rng)
	return errors.Join(n.Stop(), n.Start(context.WithoutCancel(ctx)))
}

func (f *fault) killRedis(ctx context.Context, rng *rand.Rand) error {
	r := f.cluster.Redis
	if err := r.Kill(); err != nil {
		return err
	}
	if rng.IntN(2) == 0 {
		wait(ctx, between(rng, time.Millisecond, 3*time.Second))
	}
	return r.Start(context.WithoutCancel(ctx))
}

// cut harms one broker's links in one of the ways there are, for less or more
// than its lease.
func (f *fault) cut(ctx context.Context, rng *rand.Rand) error {
	n := f.broker(rng)
	harm := []Harm{Cut, Silent, SilentOut, SilentIn}[rng.IntN(4)]
	for _, l := range n.links() {
		if f.name == CutBoth || (l == n.ToRedis) == (f.name == CutRedis) {
			l.Set(harm)
		}
	}
	f.cluster.opts.Log("clustertest: %s is %v from %s", n.Name, harm, strings.TrimPrefix(f.name, "cut-"))
	wait(ctx, between(rng, time.Second, 9*time.Second))
	f.cluster.Heal()
	return nil
}

// killDB kills one server of the database, and starts it again later.
func (f *fault) killDB(ctx context.Context, rng *rand.Rand) error {
	i := rng.IntN(len(f.cluster.Store.Hosts()))
	if err := f.cluster.Store.Kill(i); err != nil {
		return err
	}
	wait(ctx, between(rng, 3*time.Second, 8*time.Second))
	return f.cluster.Store.Restart(context.WithoutCancel(ctx), i)
}

// Check runs the checker against the cluster's brokers, all of them, with faults
// by name. What cfg says of them is kept; its addresses, faults and processes are
// the cluster's.
func (c *Cluster) Check(ctx context.Context, cfg checker.Config, faults ...string) (*checker.Report, error) {
	cfg.Addrs, cfg.Processes = c.Addrs(), c.Processes()
	if c.Redis != nil {
		cfg.Processes = append(slices.Clone(cfg.Processes), c.Redis)
	}
	cfg.Faults = nil
	for _, name := range faults {
		f, err := c.Fault(name)
		if err != nil {
			return nil, err
		}
		if f != nil {
			cfg.Faults = append(cfg.Faults, f)
		}
	}
	if cfg.ConnackTimeout == 0 {
		// A session of a dead node is there when the node's lease has run out and
		// its death is settled.
		cfg.ConnackTimeout = 8 * time.Second
	}
	return checker.Run(ctx, cfg)
}
