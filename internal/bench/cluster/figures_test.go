//go:build linux

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/herald-mqtt/herald/internal/bench"
)

// outcome is one of rounds with these values.
func outcome(values ...float64) bench.Outcome {
	var o bench.Outcome
	for _, v := range values {
		o.Samples = append(o.Samples, bench.Sample{Value: v, Extra: map[string]float64{"broker_cores": 0.5, "cassandra_cores": 64}})
	}
	o.Summarize()
	return o
}

func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		judge    func(*report)
		outcomes map[way]bench.Outcome
		want     string
	}{
		"ten times":         {faster(10), map[way]bench.Outcome{across: outcome(100, 300, 200), bridged: outcome(20)}, "met ≥ 10 ×"},
		"nine times":        {faster(10), map[way]bench.Outcome{across: outcome(180), bridged: outcome(20)}, "MISSED ≥ 10 ×"},
		"no peer":           {faster(10), map[way]bench.Outcome{across: outcome(180)}, "not measured: ≥ 10 ×"},
		"five more":         {added, map[way]bench.Outcome{across: outcome(1, 55, 9), within: outcome(1, 50, 3)}, "met crossing adds"},
		"six more":          {added, map[way]bench.Outcome{across: outcome(9), within: outcome(3)}, "MISSED crossing adds"},
		"no node by itself": {added, map[way]bench.Outcome{across: outcome(9)}, "not measured: crossing adds"},
	} {
		r := report{Outcomes: c.outcomes}
		c.judge(&r)
		if len(r.Verdicts) != 1 || !strings.HasPrefix(r.Verdicts[0].String(), c.want) {
			t.Errorf("%s: %v, want %s", name, r.Verdicts, c.want)
		}
	}
}

// A percentile beside other programs is theirs.
func TestLatencyIsNotToldOnABusyMachine(t *testing.T) {
	busy := outcome(1)
	busy.Median.Extra["other_cores"] = 1.5
	r := report{Outcomes: map[way]bench.Outcome{across: outcome(1), within: busy}}
	added(&r)
	if len(r.Verdicts) != 1 || r.Verdicts[0].Got != nil || len(r.Notes) != 2 {
		t.Errorf("%v %v", r.Verdicts, r.Notes)
	}
}

// The rounds that count are the quiet ones, and those that failed come last.
func TestLeastDisturbedRoundsCount(t *testing.T) {
	round := func(value, others float64, err error) map[way]turn {
		return map[way]turn{
			across: {bench.Sample{Value: value, Extra: map[string]float64{"other_cores": others}}, err},
			within: {bench.Sample{Value: value / 2}, nil},
		}
	}
	all := []map[way]turn{round(1, 1.5, nil), round(2, 0.1, nil), round(3, 0, errors.New("x")), round(4, 0.2, nil)}
	got := outcomes(all, 2)
	if o := got[across]; !o.OK || len(o.Samples) != 2 || o.Samples[0].Value != 2 || o.Samples[1].Value != 4 || got[within].Median.Value != 1.5 {
		t.Errorf("%+v", got)
	}
	if o := outcomes(all, 4)[across]; o.OK || len(o.Errors) != 1 {
		t.Errorf("%+v", o)
	}
}

// A durable run is told per core, and what takes most of the processors is named.
func TestDurableIsTold(t *testing.T) {
	r := report{Outcomes: map[way]bench.Outcome{across: outcome(6000)}}
	durable(&r)
	told := strings.Join(r.Notes, "\n")
	if len(r.Verdicts) != 0 || !strings.Contains(told, "6,000 messages a second, in and out, in 0.50 cores of the brokers: 12,000 per core") || !strings.Contains(told, "the database 64.00, the brokers 0.50") {
		t.Errorf("%v %q", r.Verdicts, told)
	}
	if idle := bound(bench.Sample{}); !strings.HasPrefix(idle, "waiting") {
		t.Error(idle)
	}
}

func TestSelect(t *testing.T) {
	if f, err := selectFigures("qos1,durable"); err != nil || len(f) != 2 || f[0].name != "qos1" {
		t.Errorf("%v, %v", f, err)
	}
	if _, err := selectFigures("qos9"); err == nil {
		t.Error("a figure that there is not")
	}
}
