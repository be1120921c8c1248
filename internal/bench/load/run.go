//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Run connects, measures and disconnects. The result tells what was seen even
// when err is a *StallError; other errors (refused, disconnected) come with
// what was seen until then, or with nil when the run did not begin.
func Run(ctx context.Context, config Config) (*Result, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	r := &runner{config: &config, tag: fmt.Sprintf("%s-%08x", config.Prefix, rand.Uint32())}
	defer r.close()
	if err := r.connect(ctx); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	result, err := r.run(ctx)
	r.close()
	if config.Durable {
		if cleanErr := r.forget(ctx); err == nil && cleanErr != nil {
			err = fmt.Errorf("removing durable sessions: %w", cleanErr)
		}
	}
	if err != nil {
		err = fmt.Errorf("load: %w", err)
	}
	return result, err
}

// runner is the coordinator of one run.
type runner struct {
	config *Config
	tag    string // of topics and client identifiers, different in each run
	phase  atomic.Int32
	loops  []*loop
	conns  []*conn // subscribers first
	closed bool
}

func (r *runner) close() {
	if r.closed {
		return
	}
	r.closed = true
	for _, l := range r.loops {
		l.close()
	}
}

func (r *runner) connect(ctx context.Context) error {
	c := r.config
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && uint64(c.Publishers+c.Subscribers)+64 > limit.Cur {
		return fmt.Errorf("%d connections: only %d open files are allowed", c.Publishers+c.Subscribers, limit.Cur)
	}
	threads := min(c.Threads, c.Topics)
	start := time.Now()
	for range threads {
		l, err := newLoop(c, start, &r.phase)
		if err != nil {
			return err
		}
		r.loops = append(r.loops, l)
	}
	flows := make([]*flow, c.Topics)
	owner := make(map[*flow]*loop, c.Topics)
	for i := range flows {
		flows[i] = &flow{topic: fmt.Sprintf("%s/%d", r.tag, i), index: i}
		l := r.loops[i%threads]
		l.flows = append(l.flows, flows[i])
		owner[flows[i]] = l
	}
	var pubs []*publisher
	for i := range c.Publishers {
		f := flows[i%c.Topics]
		l := owner[f]
		p := newPublisher(c, f, len(l.pubs))
		l.pubs = append(l.pubs, p)
		pubs = append(pubs, p)
	}
	for i := range c.Subscribers {
		r.conns = append(r.conns, &newSubscriber(c, flows[i%c.Topics]).conn)
	}
	for _, p := range pubs {
		r.conns = append(r.conns, &p.conn)
	}
	for _, l := range r.loops {
		l.rate = c.Rate / 1e9 * float64(len(l.pubs)) / float64(c.Publishers)
	}
	var addErr error
	err := r.eachEnd(func(target string, first, n int) error {
		est := Establish{Target: target, Protocol: c.Protocol}
		return est.Run(ctx, n, func(i int) Session { return r.session(first + i) }, func(m Made) {
			c := r.conns[first+m.Index]
			if c.pub != nil {
				c.pub.receive = m.ReceiveMaximum
			}
			if err := owner[c.flow].add(c, m.FD, m.Rest); err != nil {
				addErr = err
			}
		})
	})
	return errors.Join(err, addErr)
}

// eachEnd calls f for the subscribers and then for the publishers: with where they
// connect, and which connections they are.
func (r *runner) eachEnd(f func(target string, first, n int) error) error {
	c := r.config
	if err := f(c.Target, 0, c.Subscribers); err != nil {
		return err
	}
	return f(c.From, c.Subscribers, c.Publishers)
}

func (r *runner) session(i int) Session {
	s := Session{ClientID: fmt.Sprintf("%s-%d", r.tag, i), Clean: !r.config.Durable}
	if c := r.conns[i]; c.sub != nil {
		s.Filter, s.QoS = c.flow.topic, r.config.QoS
	}
	return s
}

// forget removes the durable sessions of the run from the broker.
func (r *runner) forget(ctx context.Context) error {
	return r.eachEnd(func(target string, first, n int) error {
		est := Establish{Target: target, Protocol: r.config.Protocol, Leave: true}
		return est.Run(ctx, n, func(i int) Session {
			return Session{ClientID: fmt.Sprintf("%s-%d", r.tag, first+i), Clean: true}
		}, nil)
	})
}

func (r *runner) totals() (delivered, published uint64) {
	for _, l := range r.loops {
		delivered += l.delivered.Load()
		published += l.published.Load()
	}
	return delivered, published
}

func (r *runner) run(ctx context.Context) (*Result, error) {
	start := time.Now() // the clock of the schedule starts with the loops
	for _, l := range r.loops {
		l.start = start
	}
	errs := make([]error, len(r.loops))
	finished := make(chan struct{})
	var wg sync.WaitGroup
	launch := func() {
		for i, l := range r.loops {
			wg.Go(func() {
				if errs[i] = l.run(); errs[i] != nil {
					r.phase.Store(phaseAbort)
				}
			})
		}
		go func() { wg.Wait(); close(finished) }()
	}

	result := &Result{}
	if r.config.Count > 0 {
		r.measure(result, func() {
			// The loops stop by themselves when the count has arrived; in
			// between they take latencies. A small count may have arrived before
			// this goroutine runs again, so all of it is measured.
			launch()
			r.until(ctx, finished, func() bool { return r.arrived() }, 0)
		})
		r.phase.CompareAndSwap(phaseMeasure, phaseDrain)
	} else {
		launch()
		r.until(ctx, finished, nil, r.config.Warmup)
		r.measure(result, func() { r.until(ctx, finished, nil, r.config.Duration) })
		r.phase.CompareAndSwap(phaseMeasure, phaseDrain)
	}
	select {
	case <-finished:
	case <-ctx.Done():
		r.phase.Store(phaseAbort)
		<-finished
	}
	r.collect(result)
	return result, errors.Join(ctx.Err(), joinStalls(errs))
}

// measure runs body as the measured interval.
func (r *runner) measure(result *Result, body func()) {
	if r.config.Measure != nil {
		r.config.Measure(true)
	}
	d0, p0 := r.totals()
	t0 := time.Now()
	r.phase.CompareAndSwap(phaseWarm, phaseMeasure)
	body()
	d1, p1 := r.totals()
	result.Interval = time.Since(t0)
	if r.config.Measure != nil {
		r.config.Measure(false)
	}
	result.IntervalDelivered, result.IntervalPublished = d1-d0, p1-p0
}

func (r *runner) arrived() bool {
	delivered, _ := r.totals()
	c := r.config
	due := 0
	for j := range c.Subscribers {
		topic := j % c.Topics
		due += (c.Publishers - topic + c.Topics - 1) / c.Topics * c.Count
	}
	return delivered >= uint64(due)
}

// until waits for the end of the loops, of d (if not 0), or of the context, or
// for cond, looked at every millisecond.
func (r *runner) until(ctx context.Context, finished <-chan struct{}, cond func() bool, d time.Duration) {
	var end, tick <-chan time.Time
	if d > 0 || cond == nil {
		t := time.NewTimer(d)
		defer t.Stop()
		end = t.C
	}
	if cond != nil {
		t := time.NewTicker(time.Millisecond)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-finished:
			return
		case <-ctx.Done():
			return
		case <-end:
			return
		case <-tick:
			if cond() {
				return
			}
		}
	}
}

// collect sums up the counters of all connections once the loops have ended.
func (r *runner) collect(result *Result) {
	for _, l := range r.loops {
		for i := range l.latency {
			result.Latency[i].Merge(&l.latency[i])
		}
		lost, _, _ := l.outstanding()
		result.Lost += lost
		for _, p := range l.pubs {
			result.Published += p.sent
			result.BadAcks += p.badAcks
		}
		for _, f := range l.flows {
			for _, s := range f.subs {
				result.BadAcks += s.badAcks
				result.WrongQoS += s.wrong
				result.Foreign += s.foreign
				for i := range s.from {
					result.Delivered += s.from[i].received
					result.Duplicates += s.from[i].duplicates
					result.Reordered += s.from[i].reordered
				}
			}
		}
	}
}

// joinStalls makes one error of the loops' errors; stalls are added up.
func joinStalls(errs []error) error {
	var stall *StallError
	var rest []error
	for _, err := range errs {
		var s *StallError
		switch {
		case errors.As(err, &s):
			if stall == nil {
				stall = &StallError{}
			}
			stall.Lost += s.Lost
			stall.Unacked += s.Unacked
		case err != nil:
			rest = append(rest, err)
		}
	}
	if stall != nil {
		rest = append(rest, stall)
	}
	return errors.Join(rest...)
}
