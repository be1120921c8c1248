//go:build linux

package bench

import (
	"context"
	"slices"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
)

// Row is one line of the table: a measurement and what Herald must reach in it.
type Row struct {
	Name  string // for --rows
	Title string
	Unit  string // of Sample.Value
	Lower bool   // less is better
	Once  bool   // one round is enough
	// Peers take part besides Herald; nil means all.
	Peers []string

	run   func(context.Context, *Env, *peer.Broker) (Sample, error)
	judge func(herald Outcome, peers map[string]Outcome) []Verdict
	load  func(*Env) load.Config // of a row that is one run of the generator
}

// Env is what the measurements of a table share.
type Env struct {
	Short bool
	Log   func(format string, args ...any)
}

func (e *Env) pick(long, short time.Duration) time.Duration {
	if e.Short {
		return short
	}
	return long
}

func (e *Env) count(long, short int) int {
	if e.Short {
		return short
	}
	return long
}

// Sample is the outcome of one measurement of one broker.
type Sample struct {
	Value float64 `json:"value"`
	// CPU of the broker in microseconds per delivered message; 0 where the
	// row is not about messages.
	CPU   float64            `json:"cpu_us_per_message,omitempty"`
	Extra map[string]float64 `json:"extra,omitempty"`
}

// Outcome is what the rounds of one broker came to.
type Outcome struct {
	Broker  string   `json:"broker"`
	Version string   `json:"version"`
	Median  Sample   `json:"median"` // each figure by itself
	Samples []Sample `json:"samples"`
	Errors  []string `json:"errors,omitempty"`
	// OK says that no round failed, so that Median counts.
	OK bool `json:"ok"`
}

// Verdict is a goal of a row and whether Herald has reached it.
type Verdict struct {
	Goal string   `json:"goal"`
	Got  *float64 `json:"got"` // nil: Herald, or the peer to compare with, failed
	Met  bool     `json:"met"`
}

// verdict is about a figure that Herald has reached.
func verdict(goal string, got float64, met bool) Verdict {
	return Verdict{Goal: goal, Got: &got, Met: met}
}

// median returns the middle of v, or the mean of the two in the middle.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Summarize fills in Median and OK from Samples and Errors.
func (o *Outcome) Summarize() {
	o.OK = len(o.Samples) > 0 && len(o.Errors) == 0
	var values, cpu []float64
	extra := map[string][]float64{}
	for _, s := range o.Samples {
		values = append(values, s.Value)
		cpu = append(cpu, s.CPU)
		for k, v := range s.Extra {
			extra[k] = append(extra[k], v)
		}
	}
	o.Median = Sample{Value: median(values), CPU: median(cpu), Extra: map[string]float64{}}
	for k, v := range extra {
		o.Median.Extra[k] = median(v)
	}
}

// best is the peer with the best median among those that took part without an
// error; nil if there is none.
func best(peers map[string]Outcome, lower bool) *Outcome {
	var b *Outcome
	for _, o := range peers {
		if !o.OK {
			continue
		}
		if b == nil || (o.Median.Value < b.Median.Value) == lower {
			b = &o
		}
	}
	return b
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Load is the generator's configuration of a row that is a single run of it;
// ok is false for other rows.
func (r Row) Load() (c load.Config, ok bool) {
	if r.load == nil {
		return c, false
	}
	return r.load(&Env{}), true
}
