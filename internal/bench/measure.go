//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
	"github.com/herald-mqtt/herald/internal/bench/proc"
)

// Measure runs one load. pid is the broker's process for its CPU time, 0 if it
// is not on this machine. The sample's value is messages delivered per second.
// A run with lost, reordered or downgraded messages is an error, as is a
// duplicate at QoS 0 and 2; the sample is filled in all the same.
func Measure(ctx context.Context, c load.Config, pid int) (Sample, *load.Result, error) {
	if pid == 0 {
		return MeasureAll(ctx, c, nil, nil)
	}
	return MeasureAll(ctx, c, []int{pid}, nil)
}

// MeasureAll is Measure for several processes that together are the broker, and
// helpers: what they rest on, by name. Their processors go into the sample's Extra as
// NAME_cores and do not count as the broker's.
func MeasureAll(ctx context.Context, c load.Config, pids []int, helpers map[string][]int) (Sample, *load.Result, error) {
	var use [2]usage
	var useErr error
	c.Measure = func(begin bool) {
		i := 1
		if begin {
			i = 0
		}
		var err error
		if use[i], err = readUsage(pids, helpers); err != nil {
			useErr = err
		}
	}
	result, err := load.Run(ctx, c)
	if result == nil {
		return Sample{}, nil, err
	}
	s := Sample{Value: result.PerSecond(), Extra: map[string]float64{
		"p50_ms":     ms(result.Latency[0].Quantile(0.5)),
		"p99_ms":     ms(result.Latency[0].Quantile(0.99)),
		"max_ms":     ms(result.Latency[0].Max()),
		"duplicates": float64(result.Duplicates),
	}}
	if result.Interval > 0 {
		seconds := result.Interval.Seconds()
		broker, own, all := use[1].broker-use[0].broker, use[1].own-use[0].own, use[1].all-use[0].all
		s.Extra["generator_cores"] = own.Seconds() / seconds
		known := own + broker
		for name := range helpers {
			d := use[1].helpers[name] - use[0].helpers[name]
			s.Extra[name+"_cores"] = d.Seconds() / seconds
			known += d
		}
		if len(pids) > 0 {
			s.Extra["broker_cores"] = broker.Seconds() / seconds
			s.Extra["other_cores"] = max(0, (all-known).Seconds()/seconds)
			if result.IntervalDelivered > 0 {
				s.CPU = broker.Seconds() * 1e6 / float64(result.IntervalDelivered)
			}
		}
	}
	if err == nil {
		err = useErr
	}
	if err == nil {
		err = faults(c.QoS, result)
	}
	return s, result, err
}

func faults(qos byte, r *load.Result) error {
	switch {
	case r.Lost > 0:
		return fmt.Errorf("%d messages lost", r.Lost)
	case r.Reordered > 0:
		return fmt.Errorf("%d messages reordered", r.Reordered)
	case r.WrongQoS > 0:
		return fmt.Errorf("%d messages delivered at another QoS", r.WrongQoS)
	case r.BadAcks > 0:
		return fmt.Errorf("%d acknowledgements for nothing outstanding, or with an error", r.BadAcks)
	case r.Duplicates > 0 && qos != 1:
		return fmt.Errorf("%d duplicates at QoS %d", r.Duplicates, qos)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// usage is processor time at a moment: of the broker, of this process, of the
// whole machine, of what the broker rests on.
type usage struct {
	broker, own, all time.Duration
	helpers          map[string]time.Duration
}

func readUsage(pids []int, helpers map[string][]int) (u usage, err error) {
	if u.own, err = proc.CPU(os.Getpid()); err != nil {
		return u, err
	}
	if u.all, err = proc.Busy(); err != nil {
		return u, err
	}
	u.helpers = make(map[string]time.Duration)
	for name, of := range helpers {
		if u.helpers[name], err = cpuOf(of); err != nil {
			return u, err
		}
	}
	u.broker, err = cpuOf(pids)
	return u, err
}

func cpuOf(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		t, err := proc.CPU(pid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// runLoad makes the measurement of a row out of one run of the generator.
// adjust sees the sample when the run went well.
func runLoad(config func(*Env) load.Config, adjust func(*Sample, *load.Result) error) func(context.Context, *Env, *peer.Broker) (Sample, error) {
	return func(ctx context.Context, e *Env, b *peer.Broker) (Sample, error) {
		c := config(e)
		c.Target = b.Address
		s, result, err := Measure(ctx, c, b.PID())
		if err != nil {
			return s, err
		}
		return s, adjust(&s, result)
	}
}
