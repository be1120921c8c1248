package checker

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Config says what a run does. Zero values mean what the comments say.
type Config struct {
	// Addrs are the brokers' MQTT addresses, at least one. A client takes one
	// at random each time it connects, but not the one that has just refused it
	// or did not answer, if there is another.
	Addrs              []string
	Username, Password string
	// Seed drives what is random; 0: another one each time. A run with real
	// brokers is not repeated exactly by its seed, its clients' choices are.
	Seed uint64

	// For is how long publishing goes on (10 s).
	For time.Duration
	// Rate is publishes per second of all publishers together; 0: as fast as
	// the windows allow.
	Rate float64
	// Publishers by QoS, and those that use QoS 1 on some topics and QoS 2 on
	// the others within one session. None at all: 4 and 4.
	QoS1Publishers, QoS2Publishers, MixedPublishers int
	// Subscribers by QoS. None at all, and no Members: 4 and 4.
	QoS1Subscribers, QoS2Subscribers int
	// Members of one shared group, all MQTT 5 at QoS 2; 0: no group.
	Members int
	// Both are sessions that publish at QoS 1 and 2 and subscribe at QoS 2.
	Both int
	// Joiners are further subscribers that subscribe one after the other while
	// publishing goes on. What is published after their SUBACK is due to them.
	Joiners int
	// Topics (4), Window of publishes in flight per publisher (64), Size of a
	// payload in bytes (64, at least 26).
	Topics, Window, Size int
	// Plain leaves out what other brokers do differently: overlapping
	// subscriptions of one session, for which a broker may deliver several
	// copies [MQTT-3.3.5-1] (Herald is held to one), and small receive maximums,
	// which mosquitto 2.0.11 does not keep while it empties its queue.
	Plain bool
	// Narrow has each subscriber take only one or two of the topics, in turn, so
	// that a publish is for about a quarter of them, not for most.
	Narrow bool
	// DropEvery is the mean time after which a subscriber breaks its
	// connection (1 s), PublisherDropEvery the same for publishers (5 s).
	// Negative: never.
	DropEvery, PublisherDropEvery time.Duration
	// ConnackTimeout is how long a client waits for CONNACK (5 s). In a cluster
	// the session may have to be waited for until a dead node's lease has run out.
	ConnackTimeout time.Duration

	// Faults come one at a time, one at random about every FaultEvery (4 s),
	// counted from the end of the one before.
	Faults     []Fault
	FaultEvery time.Duration
	// Processes are asked at the end whether they ended by themselves.
	Processes []*Process

	// Drain bounds the time after publishing until everything has been
	// answered and has arrived (60 s). It ends early when it has, or when
	// nothing has arrived for Quiet (10 s) although all clients are connected.
	Drain, Quiet time.Duration

	// Acknowledged is told of every PUBACK and PUBREC that accepts a publish, and
	// Refused of what a broker gave as a reason for refusing one, for closing a
	// connection or for not accepting it, as Report.Reasons has it. Both are called by
	// several goroutines, with locks held: they return at once. nil is nobody.
	Acknowledged func(at time.Time)
	Refused      func(at time.Time, reason string)

	// Log gets a line now and then, if not nil.
	Log func(format string, args ...any)
}

func (c Config) withDefaults() (Config, error) {
	if len(c.Addrs) == 0 {
		return c, errors.New("checker: no broker address")
	}
	for c.Seed == 0 {
		c.Seed = randomUint64()
	}
	if c.QoS1Publishers+c.QoS2Publishers+c.MixedPublishers+c.Both == 0 {
		c.QoS1Publishers, c.QoS2Publishers = 4, 4
	}
	if c.QoS1Subscribers+c.QoS2Subscribers+c.Members+c.Both+c.Joiners == 0 {
		c.QoS1Subscribers, c.QoS2Subscribers = 4, 4
	}
	positive := func(v *int, otherwise int) {
		if *v <= 0 {
			*v = otherwise
		}
	}
	positive(&c.Topics, 4)
	positive(&c.Window, 64)
	positive(&c.Size, 64)
	c.Size = max(c.Size, payloadMin)
	duration := func(v *time.Duration, otherwise time.Duration) {
		if *v == 0 {
			*v = otherwise
		}
		*v = max(*v, 0)
	}
	duration(&c.For, 10*time.Second)
	duration(&c.DropEvery, time.Second)
	duration(&c.PublisherDropEvery, 5*time.Second)
	duration(&c.ConnackTimeout, 5*time.Second)
	duration(&c.FaultEvery, 4*time.Second)
	duration(&c.Drain, time.Minute)
	duration(&c.Quiet, 10*time.Second)
	if c.Log == nil {
		c.Log = func(string, ...any) {}
	}
	return c, nil
}

func randomUint64() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// startTimeout bounds how long the clients may take to connect and subscribe.
const startTimeout = 30 * time.Second

// run is one run under way.
type run struct {
	cfg     Config
	ledger  *ledger
	clients []*client
	joiners []*client
	calm    *gate
	publish *gate
	loops   sync.WaitGroup
}

// Run publishes, subscribes and injects faults as cfg says, waits for what is
// due, and reports. The error says why the run could not be carried out; what
// the brokers did wrong stands in the report ([Report.Err]). When ctx ends,
// publishing stops and the drain follows as usual.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	r := newRun(cfg)
	cfg.Log("checker: seed %d, %d clients, %d streams", cfg.Seed, len(r.clients)+len(r.joiners), len(r.ledger.streams))
	clientCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer r.loops.Wait()
	defer cancel()
	for _, c := range r.clients {
		r.loops.Go(func() { c.loop(clientCtx) })
	}
	if err := r.awaitReady(ctx, r.clients); err != nil {
		return nil, err
	}
	err = r.work(ctx, clientCtx)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	r.drain()
	r.ledger.tally(func(rep *Report) { rep.Drain = Seconds(time.Since(begun)) })
	r.end()
	r.ledger.conclude()
	for _, p := range cfg.Processes {
		for _, death := range p.Deaths() {
			r.ledger.tally(func(rep *Report) { rep.Crashes.add("%s", death) })
		}
	}
	report := r.ledger.report
	return &report, nil
}

// awaitReady waits until the clients are connected and subscribed.
func (r *run) awaitReady(ctx context.Context, clients []*client) error {
	timeout := time.After(startTimeout)
	for _, c := range clients {
		select {
		case <-c.ready:
		case <-ctx.Done():
			return fmt.Errorf("checker: start: %w", ctx.Err())
		case <-timeout:
			var text string
			r.ledger.tally(func(rep *Report) { text = fmt.Sprint(rep.Reasons, rep.Protocol.Examples) })
			return fmt.Errorf("checker: %s is not connected and subscribed after %v: %s", c.name, startTimeout, text)
		}
	}
	return nil
}

// work publishes and injects faults for cfg.For.
func (r *run) work(ctx, clientCtx context.Context) error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.cfg.For)
	defer cancel()
	r.ledger.measurePauses(true)
	r.publish.open()
	for _, c := range r.clients {
		c.nudge()
	}
	var others sync.WaitGroup
	others.Go(func() { r.join(ctx, clientCtx) })
	others.Go(func() { r.progress(ctx) })
	err := r.harm(ctx)
	if err == nil {
		<-ctx.Done()
	}
	cancel()
	r.ledger.measurePauses(false)
	r.calm.open()
	others.Wait()
	r.ledger.tally(func(rep *Report) {
		took := time.Since(begun)
		rep.Publishing, rep.Rate = Seconds(took), float64(rep.Acknowledged)/took.Seconds()
	})
	return err
}

// harm injects faults until ctx ends.
func (r *run) harm(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(r.cfg.Seed, 1))
	for len(r.cfg.Faults) > 0 && ctx.Err() == nil {
		wait(ctx, r.cfg.FaultEvery/2+time.Duration(rng.Int64N(int64(r.cfg.FaultEvery)+1)))
		if ctx.Err() != nil {
			return nil
		}
		f := r.cfg.Faults[rng.IntN(len(r.cfg.Faults))]
		r.ledger.faulted(f.String())
		if err := f.Inject(ctx, rng); err != nil {
			return fmt.Errorf("checker: %v at %v: %w", f, r.ledger.now(), err)
		}
	}
	return nil
}

// join starts the joiners one after the other.
func (r *run) join(ctx, clientCtx context.Context) {
	for _, c := range r.joiners {
		wait(ctx, r.cfg.For/time.Duration(len(r.joiners)+1))
		if ctx.Err() != nil {
			return
		}
		r.loops.Go(func() { c.loop(clientCtx) })
	}
}

// progress logs now and then until ctx ends.
func (r *run) progress(ctx context.Context) {
	for {
		wait(ctx, 10*time.Second)
		if ctx.Err() != nil {
			return
		}
		var text string
		r.ledger.tally(func(rep *Report) {
			faults := 0
			for _, n := range rep.Faults {
				faults += n
			}
			text = fmt.Sprintf("acknowledged %d, faults %d, drops %d, longest pause %.2f s", rep.Acknowledged, faults, rep.Drops, time.Duration(rep.LongestPause).Seconds())
			for _, f := range rep.findings() {
				if f.Count > 0 {
					text += fmt.Sprintf(", %s %d", f.name, f.Count)
				}
			}
		})
		r.cfg.Log("checker: %v: %s", r.ledger.now().Round(time.Second), text)
	}
}

// drain waits until everything begun is answered and everything acknowledged
// has arrived, then makes every client come back once more and waits until
// nothing comes any more.
func (r *run) drain() {
	limit := time.Now().Add(r.cfg.Drain)
	begun := time.Now()
	arriving := false
	r.poll(limit, func() bool {
		missing, last := 0, begun
		for _, a := range r.ledger.audiences {
			m, _ := a.missing(nil)
			missing += m
			if at := a.lastArrival(); at.After(last) {
				last = at
			}
		}
		open, connected := r.open()
		if missing == 0 && open == 0 {
			arriving = false
			return true
		}
		quiet := time.Since(last) > r.cfg.Quiet
		arriving = !quiet
		return connected && quiet
	})
	r.ledger.tally(func(rep *Report) { rep.DrainCut = arriving })
	stuck := r.unanswered()
	for _, c := range r.all() {
		c.drop()
	}
	r.poll(limit, func() bool {
		open, _ := r.open()
		return r.quietFor() > settle && (open == 0 || r.quietFor() > r.cfg.Quiet)
	})
	if stuck == 0 {
		r.unanswered()
	}
}

// settle is how long nothing may have come for a run to be over.
const settle = 500 * time.Millisecond

// poll asks done until it is true or the time is over.
func (r *run) poll(limit time.Time, done func() bool) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() && time.Now().Before(limit) {
		<-tick.C
	}
}

// open counts the handshakes under way in both directions; connected is
// whether all clients are.
func (r *run) open() (open int, connected bool) {
	connected = true
	for _, c := range r.all() {
		c.mu.Lock()
		open += len(c.out.inflight) + len(c.in.held)
		connected = connected && c.online
		c.mu.Unlock()
	}
	return open, connected
}

// quietFor is how long nothing but PINGRESP has come to any client; clients
// that are to reconnect still count as not quiet.
func (r *run) quietFor() time.Duration {
	quiet := time.Hour
	for _, c := range r.all() {
		c.mu.Lock()
		if c.bounce {
			quiet = 0
		}
		quiet = min(quiet, time.Since(c.last))
		c.mu.Unlock()
	}
	return quiet
}

// all are the clients that have been started.
func (r *run) all() []*client {
	all := append([]*client(nil), r.clients...)
	for _, c := range r.joiners {
		c.mu.Lock()
		if c.attempts > 0 {
			all = append(all, c)
		}
		c.mu.Unlock()
	}
	return all
}

// unanswered reports the handshakes that are still under way, and how many.
func (r *run) unanswered() (n int) {
	for _, c := range r.all() {
		c.mu.Lock()
		n += len(c.out.inflight) + len(c.in.held)
		for _, e := range c.out.inflight {
			r.ledger.tally(func(rep *Report) {
				rep.Unanswered.add("%v, sequence %d, packet identifier %d, PUBREC seen %t", e.stream, e.seq, e.id, e.released)
			})
		}
		for id, h := range c.in.held {
			r.ledger.tally(func(rep *Report) {
				rep.Unanswered.add("%s waits for PUBREL of packet identifier %d, publisher %d sequence %d", c.name, id, h.label.publisher, h.label.seq)
			})
		}
		c.mu.Unlock()
	}
	return n
}

// end disconnects all clients and removes their sessions from the brokers.
func (r *run) end() {
	for _, c := range r.all() {
		c.stop()
	}
	r.loops.Wait()
	for _, c := range r.all() {
		c.remove()
	}
}
