//go:build linux

package main

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/herald-mqtt/herald/internal/bench"
	"github.com/herald-mqtt/herald/internal/bench/load"
)

// figure is one that is asked for.
type figure struct {
	name, title string
	unit        string
	ways        []way
	load        load.Config
	judge       func(*report)
}

const latencyRate = 5000

// perCore is what TBMQ publishes for itself, with durable sessions: messages a
// second, in and out, per core of its brokers.
const perCore = 8900

func figures() []figure {
	four := func(qos byte, durable bool) load.Config {
		return load.Config{QoS: qos, Publishers: 4, Subscribers: 4, Topics: 4, Durable: durable}
	}
	paced := func(qos byte) load.Config {
		return load.Config{QoS: qos, Publishers: 50, Subscribers: 50, Topics: 50, Rate: latencyRate}
	}
	return []figure{
		{"qos0", "QoS 0, 4 → 4, 64 B", "msg/s", []way{across, bridged, within}, four(0, false), faster(10)},
		{"qos1", "QoS 1, 4 → 4, 64 B, ephemeral sessions", "msg/s", []way{across, bridged, within}, four(1, false), faster(5)},
		{"durable", "QoS 1, 4 → 4, 64 B, durable sessions", "msg/s", []way{across, within}, four(1, true), durable},
		{"latency0", "p99 latency at 5,000 msg/s over 50 pairs, QoS 0", "ms", []way{across, within}, paced(0), added},
		{"latency1", "p99 latency at 5,000 msg/s over 50 pairs, QoS 1, ephemeral sessions", "ms", []way{across, within}, paced(1), added},
	}
}

func selectFigures(names string) ([]figure, error) {
	all := figures()
	if names == "" {
		return all, nil
	}
	var chosen []figure
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(all, func(f figure) bool { return f.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no figure %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// config is the load of one run.
func (f *figure) config(short bool) load.Config {
	c := f.load
	c.Warmup, c.Duration, c.Stall = time.Second, 5*time.Second, 10*time.Second
	if c.Rate > 0 {
		c.Duration = 3 * time.Second // so that both ways meet the same machine
	}
	if short {
		c.Warmup, c.Duration = 300*time.Millisecond, 1500*time.Millisecond
	}
	return c
}

// value makes the figure of a sample.
func (f *figure) value(s *bench.Sample, r *load.Result) error {
	if f.load.Rate == 0 {
		return nil
	}
	s.Extra["msg_per_s"] = s.Value
	s.Value = s.Extra["p99_ms"]
	if got := r.PerSecond(); got < 0.97*f.load.Rate {
		return fmt.Errorf("only %.0f of %.0f messages per second", got, f.load.Rate)
	}
	return nil
}

// faster asks for a multiple of the bridged mosquittos.
func faster(factor float64) func(*report) {
	return func(r *report) {
		goal := fmt.Sprintf("≥ %g × two mosquittos joined by their bridge", factor)
		herald, peer, one := r.Outcomes[across], r.Outcomes[bridged], r.Outcomes[within]
		if !herald.OK || !peer.OK {
			r.Verdicts = append(r.Verdicts, bench.Verdict{Goal: goal})
			return
		}
		times := herald.Median.Value / peer.Median.Value
		r.Verdicts = append(r.Verdicts, bench.Verdict{Goal: goal, Got: &times, Met: times >= factor})
		if one.OK {
			r.note("%.2f of what passes through one node with the same store", herald.Median.Value/one.Median.Value)
		}
	}
}

// durable is printed beside another's figure; nothing is asked.
func durable(r *report) {
	for _, w := range []way{across, within} {
		o := r.Outcomes[w]
		cores := o.Median.Extra["broker_cores"]
		if !o.OK || cores == 0 {
			continue
		}
		r.note("%s: %s messages a second, in and out, in %.2f cores of the brokers: %s per core; TBMQ publishes %s for its own", w,
			bench.Number(o.Median.Value), cores, bench.Number(o.Median.Value/cores), bench.Number(perCore))
		r.note("%s: bound by %s", w, bound(o.Median))
	}
}

// added asks how much later a message arrives that crosses.
func added(r *report) {
	const goal = "crossing adds ≤ 5 ms at p99"
	two, one := r.Outcomes[across], r.Outcomes[within]
	if !two.OK || !one.OK {
		r.Verdicts = append(r.Verdicts, bench.Verdict{Goal: goal})
		return
	}
	var more []float64 // within a round: what else the machine does changes slowly
	for i := range two.Samples {
		more = append(more, two.Samples[i].Value-one.Samples[i].Value)
	}
	slices.Sort(more)
	got := more[len(more)/2]
	if others := max(two.Median.Extra["other_cores"], one.Median.Extra["other_cores"]); others >= disturbance {
		r.Verdicts = append(r.Verdicts, bench.Verdict{Goal: goal})
		r.note("other programs took %.2f processors: the %.2f ms more at p99 tell of those", others, got)
	} else {
		r.Verdicts = append(r.Verdicts, bench.Verdict{Goal: goal, Got: &got, Met: got <= 5})
	}
	r.note("p50: %.2f ms across, %.2f ms within a node", two.Median.Extra["p50_ms"], one.Median.Extra["p50_ms"])
}

// bound names what bounds a run: whatever takes most of the processors when there
// are no more, or waiting.
func bound(s bench.Sample) string {
	type taker struct {
		name  string
		cores float64
	}
	takers := []taker{
		{"the brokers", s.Extra["broker_cores"]}, {"the database", s.Extra["cassandra_cores"]},
		{"Redis", s.Extra["redis_cores"]}, {"the generator", s.Extra["generator_cores"]},
		{"other programs", s.Extra["other_cores"]},
	}
	slices.SortFunc(takers, func(a, b taker) int { return cmp.Compare(b.cores, a.cores) })
	sum, parts := 0.0, make([]string, len(takers))
	for i, t := range takers {
		sum += t.cores
		parts[i] = fmt.Sprintf("%s %.2f", t.name, t.cores)
	}
	if sum >= 0.9*float64(runtime.NumCPU()) {
		return fmt.Sprintf("processors, of which there are %d: %s", runtime.NumCPU(), strings.Join(parts, ", "))
	}
	return fmt.Sprintf("waiting for answers of the database; of %d processors %.2f were busy: %s", runtime.NumCPU(), sum, strings.Join(parts, ", "))
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}
