package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
)

// ErrCutOff: this node did not reach Redis while others did. It has sent its clients
// away and left the cluster, so that nobody waits for it; it may begin a new life
// when Redis is back.
var ErrCutOff = errors.New("cut off from redis while other nodes are not")

// DrainRate is how many connections a second a node that drains ends, unless told.
const DrainRate = 500

// maxDrainRate bounds what may be asked for.
const maxDrainRate = 1_000_000

const (
	// cutAfter is how long a node alone may not reach Redis before it sends its
	// clients away, backAfter how long it has to be as well off as the others before
	// it takes them again.
	cutAfter  = 3 * time.Second
	backAfter = 2 * time.Second
	// It sends them away within cutWithin, and leaves when all are gone and the other
	// nodes have looked for what it has committed, but after cutLast at the latest:
	// what other nodes' clients subscribe to in the meantime waits for it, eight
	// seconds at most.
	cutWithin = time.Second
	cutLast   = 6 * time.Second

	drainTick = 100 * time.Millisecond
)

// cutoff finds out whether this node alone is cut off. It is pure.
type cutoff struct {
	alone, together time.Time // since when; zero: it is not so
	cut             bool
}

// see takes what is so now: whether this node reaches Redis, and whether any other
// does. It tells for how long this node alone has not.
func (c *cutoff) see(now time.Time, available, others bool) (alone time.Duration) {
	if available || !others {
		c.alone = time.Time{}
		if c.together.IsZero() {
			c.together = now
		}
		if now.Sub(c.together) >= backAfter {
			c.cut = false
		}
		return 0
	}
	c.together = time.Time{}
	if c.alone.IsZero() {
		c.alone = now
	}
	alone = now.Sub(c.alone)
	c.cut = c.cut || alone >= cutAfter
	return alone
}

// drain sends clients elsewhere: because an operator has asked for it, for as long
// as the node lives; or because the node is cut off.
type drain struct {
	b    *Broker
	rate atomic.Int64  // as asked for; 0: it was not
	cut  atomic.Bool   // the node is cut off
	sent atomic.Int64  // clients that were told
	turn atomic.Uint32 // the other nodes take turns in getting clients
	left chan struct{} // closed when the node is to leave because it is cut off

	// Owned by run, and by the node's stop after it.
	cutoff  cutoff
	pace    pace
	away    bool          // clients are sent elsewhere
	covered chan struct{} // closed when the others have looked for what was committed; nil: nobody was asked
	running sync.WaitGroup
}

func newDrain(b *Broker) *drain {
	return &drain{b: b, left: make(chan struct{}), pace: pace{b: b, w: listen.NewWorker()}}
}

// run looks after it until ctx ends or the node is to leave.
func (d *drain) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer d.running.Wait()
	defer cancel()
	t := time.NewTicker(drainTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if d.step(ctx, time.Now()) {
			close(d.left)
			return
		}
	}
}

// step does what is due, and tells whether the node is to leave.
func (d *drain) step(ctx context.Context, now time.Time) (leave bool) {
	e := d.b.engine
	var alone time.Duration
	if c := d.b.cluster; c != nil {
		alone = d.cutoff.see(now, c.Available(), d.othersReach())
	}
	cut, asked := d.cutoff.cut, int(d.rate.Load())
	if cut != d.cut.Swap(cut) {
		if cut {
			d.b.log.Warn("this node alone does not reach redis; its clients are sent to other nodes", zap.Duration("for", alone))
		} else {
			d.b.log.Info("this node takes clients again")
			e.Regain()
		}
	}
	if away := cut || asked > 0; away != d.away {
		if d.away = away; away {
			e.Divert(d.elsewhere)
		} else {
			e.Divert(nil)
		}
	}
	if !d.away {
		d.covered = nil
		return false
	}
	clients := e.Gauges().Clients
	rate := float64(asked)
	if cut {
		rate = max(rate, DrainRate, float64(clients)/cutWithin.Seconds())
	}
	d.sent.Add(int64(d.pace.step(now, rate, d.elsewhere)))
	if !cut || alone == 0 {
		d.covered = nil
		return false
	}
	e.LetGo()
	if clients == 0 && d.covered == nil {
		d.cover(ctx)
	}
	return alone >= cutLast || d.isCovered()
}

// cover waits beside until the other nodes have looked for what this one, which has
// no clients any more, has committed.
func (d *drain) cover(ctx context.Context) {
	done := make(chan struct{})
	d.covered = done
	d.running.Go(func() {
		if d.b.engine.Covered(ctx) == nil {
			close(done)
		}
	})
}

func (d *drain) isCovered() bool {
	select {
	case <-d.covered: // nil: never
		return true
	default:
		return false
	}
}

// othersReach tells whether another node that takes clients reaches Redis.
func (d *drain) othersReach() bool {
	for _, p := range d.b.cluster.member.Peers() {
		if p.Status.Bridge && !p.Status.Leaving {
			return true
		}
	}
	return false
}

// elsewhere is what a client is told: where another node is, if any has an address,
// or that there is another.
func (d *drain) elsewhere() (reason byte, server string) {
	reason = wire.ReasonServerMoved
	if d.cut.Load() {
		reason = wire.ReasonUseAnother // for now
	}
	others, server := d.another()
	switch {
	case server != "":
		return reason, server
	case others:
		return wire.ReasonUseAnother, ""
	}
	return wire.ReasonShuttingDown, ""
}

// another is the address of a live node that takes clients, of each in turn; those
// that reach Redis come first.
func (d *drain) another() (others bool, server string) {
	if d.b.cluster == nil {
		return false, ""
	}
	var reach, all []string
	for _, p := range d.b.cluster.member.Peers() {
		if p.Status.Leaving {
			continue
		}
		others = true
		if p.Status.Address == "" {
			continue
		}
		if all = append(all, p.Status.Address); p.Status.Bridge {
			reach = append(reach, p.Status.Address)
		}
	}
	if len(reach) > 0 {
		all = reach
	}
	if len(all) == 0 {
		return others, ""
	}
	return true, all[int(d.turn.Add(1))%len(all)]
}

// why tells why the node takes no clients; empty: it does.
func (d *drain) why() string {
	switch {
	case d.cut.Load():
		return "cut off from redis while other nodes are not: clients are sent to them"
	case d.rate.Load() > 0:
		return "draining"
	}
	return ""
}

// pace ends connections at a bounded rate.
type pace struct {
	b      *Broker
	w      *listen.Worker
	queue  []*listen.Conn
	last   time.Time
	budget float64
}

// step ends as many as are due, at rate a second, and returns how many.
func (p *pace) step(now time.Time, rate float64, elsewhere func() (byte, string)) (sent int) {
	elapsed := drainTick // the first time
	if !p.last.IsZero() {
		elapsed = min(now.Sub(p.last), time.Second)
	}
	p.last = now
	p.budget = min(p.budget+rate*elapsed.Seconds(), max(rate, 1))
	if len(p.queue) == 0 && p.b.engine.Gauges().Clients > 0 {
		p.b.loop.Each(func(c *listen.Conn) { p.queue = append(p.queue, c) })
	}
	for p.budget >= 1 && len(p.queue) > 0 {
		last := len(p.queue) - 1
		c := p.queue[last]
		p.queue[last] = nil
		p.queue = p.queue[:last]
		reason, server := elsewhere()
		if p.b.engine.Dismiss(c, p.w, reason, server) {
			p.budget--
			sent++
		}
	}
	if len(p.queue) == 0 {
		p.queue = nil
	}
	p.w.Flush()
	return sent
}

// sendAll sends the clients away within a part of the time that a stop has, and
// returns when nobody is left or ctx ends.
func (d *drain) sendAll(ctx context.Context, within time.Duration) {
	e := d.b.engine
	e.Divert(d.elsewhere)
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	rate := max(float64(d.rate.Load()), DrainRate, float64(e.Gauges().Clients)/(within.Seconds()*3/4))
	t := time.NewTicker(drainTick / 5)
	defer t.Stop()
	for e.Gauges().Clients > 0 {
		d.sent.Add(int64(d.pace.step(time.Now(), rate, d.b.farewell)))
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// letGo lets go whom only Redis could help, again and again until the result is
// called.
func (b *Broker) letGo() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			b.engine.LetGo()
			select {
			case <-ctx.Done():
			case <-time.After(drainTick):
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// Drain sends the clients to other nodes, at rate connections a second (0:
// [DrainRate]), and takes no new ones until the node is stopped. It returns at once;
// a second call changes the rate. It may be called before Run. The error says what is
// wrong with the rate.
func (b *Broker) Drain(rate int) error {
	switch {
	case rate < 0 || rate > maxDrainRate:
		return fmt.Errorf("rate must be 1 to %d connections a second, not %d", maxDrainRate, rate)
	case rate == 0:
		rate = DrainRate
	}
	if b.drain.rate.Swap(int64(rate)) == 0 {
		b.log.Info("draining", zap.Int("rate", rate))
	}
	b.engine.Divert(b.drain.elsewhere) // from now on; the rest is run's
	return nil
}

// Kick ends the connection of a client, here or at another node; see [engine.Engine.Kick].
func (b *Broker) Kick(client string) (here bool) {
	here = b.engine.Kick(client)
	b.log.Info("kicked", zap.String("client", client), zap.Bool("here", here))
	return here
}
