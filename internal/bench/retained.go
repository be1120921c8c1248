//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

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
