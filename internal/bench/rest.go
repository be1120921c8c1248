//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
)

// retainedRow subscribes to many retained topics while others go on.
func retainedRow() Row {
	return Row{
		Name: "retained", Title: "one wildcard subscription to 100,000 retained topics at QoS 1, beside 1,000 msg/s of others",
		Unit: "ms to the first", Lower: true, run: runRetained,
		judge: func(h Outcome, _ map[string]Outcome) []Verdict {
			x := h.Median.Extra
			return []Verdict{
				verdict("none missing", x["missing"], true),
				verdict("first within 50 ms", h.Median.Value, h.Median.Value <= 50),
				verdict("others' p99 × ≤ 1.2", x["p99_growth"], x["p99_growth"] <= 1.2),
			}
		},
	}
}

const (
	collectQuiet = 3 * time.Second        // without a message: nothing more comes
	collectPause = 300 * time.Millisecond // between subscriptions
)

func runRetained(ctx context.Context, e *Env, b *peer.Broker) (Sample, error) {
	topics := e.count(100000, 10000)
	if err := load.Retain(ctx, b.Address, 4, "retained", topics); err != nil {
		return Sample{}, err
	}
	// Others: 20 pairs, 1,000 messages a second, all the time.
	var part atomic.Int32
	side := load.Config{
		Target: b.Address, QoS: 1, Publishers: 20, Subscribers: 20, Topics: 20, Rate: 1000, Prefix: "side",
		Warmup: e.pick(2*time.Second, 500*time.Millisecond), Duration: time.Hour, Part: &part,
	}
	sideCtx, stop := context.WithCancel(ctx)
	defer stop()
	begun := make(chan struct{})
	side.Measure = func(begin bool) {
		if begin {
			close(begun)
		}
	}
	type answer struct {
		result *load.Result
		err    error
	}
	ended := make(chan answer, 1)
	go func() {
		r, err := load.Run(sideCtx, side)
		ended <- answer{r, err}
	}()
	select {
	case <-begun:
	case a := <-ended:
		return Sample{}, fmt.Errorf("others: %w", a.err)
	}
	wait(ctx, e.pick(4*time.Second, time.Second)) // their latency undisturbed

	s := Sample{Value: 0, Extra: map[string]float64{"missing": 0, "duplicates": 0, "unretained": 0}}
	var failed error
	for range e.count(8, 3) {
		part.Store(1)
		got, err := load.Collect(ctx, b.Address, 4, "retained", topics, collectQuiet)
		part.Store(0)
		if err != nil {
			failed = err
			break
		}
		// The worst of the subscriptions counts.
		s.Value = max(s.Value, ms(got.First))
		s.Extra["last_ms"] = max(s.Extra["last_ms"], ms(got.Last))
		s.Extra["duplicates"] += float64(got.Duplicates)
		s.Extra["unretained"] += float64(got.Unretained)
		if got.Distinct < topics {
			failed = fmt.Errorf("%d of %d retained messages missing", topics-got.Distinct, topics)
			break
		}
		wait(ctx, collectPause)
	}
	stop()
	a := <-ended
	if failed == nil && !errors.Is(a.err, context.Canceled) {
		failed = fmt.Errorf("others: %w", a.err)
	}
	if a.result != nil {
		before, during := a.result.Latency[0].Quantile(0.99), a.result.Latency[1].Quantile(0.99)
		s.Extra["p99_before_ms"], s.Extra["p99_during_ms"] = ms(before), ms(during)
		s.Extra["p99_growth"] = ratio(float64(during), float64(before))
	}
	return s, failed
}

// idleRow is the memory of connections that do nothing.
func idleRow() Row {
	return Row{
		Name: "idle", Title: "resident memory per idle TCP connection at 15,000", Unit: "KB", Lower: true, Once: true, run: runIdle,
		judge: func(h Outcome, _ map[string]Outcome) []Verdict {
			return []Verdict{verdict("≤ 10 KB", h.Median.Value, h.Median.Value <= 10)}
		},
	}
}

func runIdle(ctx context.Context, e *Env, b *peer.Broker) (Sample, error) {
	n := e.count(15000, 2000)
	before, err := b.Resident()
	if err != nil {
		return Sample{}, err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	est := load.Establish{Target: b.Address, Spread: true}
	err = est.Run(ctx, n, func(i int) load.Session {
		return load.Session{ClientID: fmt.Sprintf("idle-%d", i), Clean: true}
	}, func(m load.Made) { fds = append(fds, m.FD) })
	if err != nil {
		return Sample{}, err
	}
	after, err := settled(ctx, b)
	if err != nil {
		return Sample{}, err
	}
	for _, fd := range fds {
		if closed(fd) {
			return Sample{}, errors.New("the broker closed idle connections")
		}
	}
	return Sample{
		Value: float64(after-before) / float64(n) / 1024,
		Extra: map[string]float64{"connections": float64(n), "before_mb": mb(before), "after_mb": mb(after)},
	}, nil
}

func closed(fd int) bool {
	var one [1]byte
	n, _, err := unix.Recvfrom(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil || err == unix.ECONNRESET
}

// settled waits until the resident memory does not fall any more, at least 5 s
// and at most 20 s, and returns it.
func settled(ctx context.Context, b *peer.Broker) (int64, error) {
	wait(ctx, 5*time.Second)
	last := int64(math.MaxInt64)
	for range 5 {
		r, err := b.Resident()
		if err != nil {
			return 0, err
		}
		if float64(r) > 0.99*float64(last) {
			return r, nil
		}
		last = r
		wait(ctx, 3*time.Second)
	}
	return last, nil
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// wait lets time pass that is part of a measurement.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// sessionsRow is the memory of durable sessions at rest, and the time after a
// kill. Peers make fewer sessions, from which their figure is extrapolated.
func sessionsRow() Row {
	return Row{
		Name: "sessions", Title: "1,000,000 durable sessions at rest, one subscription each", Unit: "MB", Lower: true, Once: true,
		Peers: []string{peer.Mosquitto}, run: runSessions,
		judge: func(h Outcome, _ map[string]Outcome) []Verdict {
			ready := h.Median.Extra["ready_s"]
			return []Verdict{
				verdict("≤ 700 MB", h.Median.Value, h.Median.Value <= 700),
				verdict("ready ≤ 15 s after kill -9", ready, ready <= 15),
			}
		},
	}
}

func runSessions(ctx context.Context, e *Env, b *peer.Broker) (Sample, error) {
	const full = 1000000
	n := e.count(full, 20000)
	if b.Name != peer.Herald {
		n = e.count(50000, 5000)
	}
	client := func(i int) string { return fmt.Sprintf("device-%d", i) }
	topic := func(i int) string { return fmt.Sprintf("devices/%d/in", i) }
	before, err := b.Resident()
	if err != nil {
		return Sample{}, err
	}
	start := time.Now()
	est := load.Establish{Target: b.Address, Leave: true, Spread: true, Parallel: 128, Timeout: time.Minute}
	err = est.Run(ctx, n, func(i int) load.Session {
		return load.Session{ClientID: client(i), Filter: topic(i), QoS: 1}
	}, func(m load.Made) {
		if m.Index > 0 && m.Index%100000 == 0 {
			e.Log("%s: %d sessions after %.0f s", b.Name, m.Index, time.Since(start).Seconds())
		}
	})
	if err != nil {
		return Sample{}, err
	}
	created := time.Since(start)
	after, err := settled(ctx, b)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{
		Value: mb(before) + mb(after-before)*float64(full)/float64(n),
		Extra: map[string]float64{
			"sessions": float64(n), "resident_mb": mb(after), "created_per_s": float64(n) / created.Seconds(),
		},
	}
	if b.Name != peer.Herald {
		return s, nil // nothing would be left after a kill
	}
	b.Kill()
	killed := time.Now()
	if err := b.Launch(); err != nil {
		return s, err
	}
	for {
		i := rand.IntN(n)
		err := load.Probe(ctx, b.Address, 4, client(i), topic(i), 10*time.Second)
		if err == nil {
			break
		}
		if errors.Is(err, load.ErrForgotten) || time.Since(killed) > 2*time.Minute || ctx.Err() != nil {
			return s, fmt.Errorf("after kill -9: %w", err)
		}
		select {
		case <-b.Exited():
			return s, fmt.Errorf("after kill -9: the broker ended: %s", b.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.Extra["ready_s"] = time.Since(killed).Seconds()
	restarted, err := settled(ctx, b)
	s.Extra["resident_after_restart_mb"] = mb(restarted)
	return s, err
}
