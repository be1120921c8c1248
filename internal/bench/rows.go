//go:build linux

package bench

import (
	"fmt"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
)

const (
	pairs    = 1000
	pairRate = 20000
)

// Rows is the table, in the order in which it is printed.
func Rows() []Row {
	return []Row{
		throughput("qos0-1-100", "QoS 0, 1 → 100", 2,
			load.Config{QoS: 0, Publishers: 1, Subscribers: 100, Topics: 1}),
		throughput("qos0-4-4", "QoS 0, 4 → 4 on 4 topics", 2.5,
			load.Config{QoS: 0, Publishers: 4, Subscribers: 4, Topics: 4}),
		throughput("qos1-4-4", "QoS 1, 4 → 4, ephemeral sessions", 4,
			load.Config{QoS: 1, Publishers: 4, Subscribers: 4, Topics: 4}),
		throughput("qos1-1-100", "QoS 1, 1 → 100, ephemeral sessions", 2,
			load.Config{QoS: 1, Publishers: 1, Subscribers: 100, Topics: 1}),
		throughput("qos2-4-4", "QoS 2, 4 → 4, ephemeral sessions", 3.5,
			load.Config{QoS: 2, Publishers: 4, Subscribers: 4, Topics: 4}),
		throughput("qos1-pairs", "QoS 1, 1,000 → 1,000 in pairs, 4 in flight each", 1.5,
			load.Config{QoS: 1, Publishers: pairs, Subscribers: pairs, Topics: pairs, Window: 4}),
		cpuAtRate("cpu-qos0-pairs", "CPU per message, 1,000 pairs at 20,000/s, QoS 0", 0),
		cpuAtRate("cpu-qos1-pairs", "CPU per message, 1,000 pairs at 20,000/s, QoS 1", 1),
		throughput("qos1-4-4-durable", "QoS 1, 4 → 4, durable sessions (Herald: synced before each acknowledgement)", 1,
			load.Config{QoS: 1, Publishers: 4, Subscribers: 4, Topics: 4, Durable: true}),
		retainedRow(),
		latencyDurable(),
		idleRow(),
		sessionsRow(),
	}
}

// throughput is a row that counts deliveries per second of a closed loop.
func throughput(name, title string, factor float64, c load.Config) Row {
	r := Row{Name: name, Title: title, Unit: "msg/s"}
	r.load = func(e *Env) load.Config {
		c.Warmup, c.Duration = e.pick(time.Second, 300*time.Millisecond), e.pick(5*time.Second, 1500*time.Millisecond)
		return c
	}
	r.run = runLoad(r.load, func(s *Sample, _ *load.Result) error { return nil })
	r.judge = func(herald Outcome, peers map[string]Outcome) []Verdict {
		b := best(peers, false)
		if b == nil {
			return []Verdict{{Goal: fmt.Sprintf("≥ %g × best peer", factor)}, {Goal: "CPU ≤ 0.5 × best peer"}}
		}
		speed := ratio(herald.Median.Value, b.Median.Value)
		cpu := ratio(herald.Median.CPU, b.Median.CPU)
		return []Verdict{
			verdict(fmt.Sprintf("≥ %g × %s", factor, b.Broker), speed, speed >= factor),
			verdict(fmt.Sprintf("CPU ≤ 0.5 × %s", b.Broker), cpu, cpu <= 0.5),
		}
	}
	return r
}

// cpuAtRate is a row that counts CPU per message at a fixed rate.
func cpuAtRate(name, title string, qos byte) Row {
	r := Row{Name: name, Title: title, Unit: "µs", Lower: true}
	r.load = func(e *Env) load.Config {
		return load.Config{
			QoS: qos, Publishers: pairs, Subscribers: pairs, Topics: pairs, Rate: pairRate,
			Warmup: e.pick(time.Second, 300*time.Millisecond), Duration: e.pick(8*time.Second, 2*time.Second),
		}
	}
	r.run = runLoad(r.load, func(s *Sample, result *load.Result) error {
		s.Extra["msg_per_s"] = s.Value
		s.Value = s.CPU
		return keptUp(result, pairRate)
	})
	r.judge = func(herald Outcome, peers map[string]Outcome) []Verdict {
		m := peers[peer.Mosquitto]
		if !m.OK {
			return []Verdict{{Goal: "≤ mosquitto's"}}
		}
		cpu := ratio(herald.Median.Value, m.Median.Value)
		return []Verdict{verdict("≤ mosquitto's", cpu, cpu <= 1)}
	}
	return r
}

// latencyDurable is the row about latency with durable sessions.
func latencyDurable() Row {
	const rate = 5000
	r := Row{Name: "latency-durable", Title: "p99 delivery latency, QoS 1 durable, 5,000 msg/s over 50 pairs", Unit: "ms", Lower: true}
	r.load = func(e *Env) load.Config {
		return load.Config{
			QoS: 1, Publishers: 50, Subscribers: 50, Topics: 50, Rate: rate, Durable: true,
			Warmup: e.pick(time.Second, 300*time.Millisecond), Duration: e.pick(8*time.Second, 2*time.Second),
		}
	}
	r.run = runLoad(r.load, func(s *Sample, result *load.Result) error {
		s.Extra["msg_per_s"] = s.Value
		s.Value = s.Extra["p99_ms"]
		return keptUp(result, rate)
	})
	r.judge = func(herald Outcome, peers map[string]Outcome) []Verdict {
		m := peers[peer.Mosquitto]
		if !m.OK {
			return []Verdict{{Goal: "≤ mosquitto's (in memory) + 3 ms"}}
		}
		more := herald.Median.Value - m.Median.Value
		return []Verdict{verdict("≤ mosquitto's (in memory) + 3 ms", more, more <= 3)}
	}
	return r
}

// keptUp refuses a run at a fixed rate in which the broker fell behind.
func keptUp(result *load.Result, rate float64) error {
	if got := result.PerSecond(); got < 0.97*rate {
		return fmt.Errorf("only %.0f of %.0f messages per second", got, rate)
	}
	return nil
}
