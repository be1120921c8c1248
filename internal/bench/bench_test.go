//go:build linux

package bench

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
)

func outcome(name string, value, cpu float64) Outcome {
	o := Outcome{Broker: name, Samples: []Sample{{Value: value, CPU: cpu}}}
	o.Summarize()
	return o
}

func failed(name string) Outcome {
	o := Outcome{Broker: name, Samples: []Sample{{Value: 1e9, CPU: 0.001}}, Errors: []string{"stalled: 3 lost"}}
	o.Summarize()
	return o
}

func TestMedianOfRounds(t *testing.T) {
	o := Outcome{Samples: []Sample{
		{Value: 5, CPU: 1, Extra: map[string]float64{"p99_ms": 9}},
		{Value: 1, CPU: 3, Extra: map[string]float64{"p99_ms": 7}},
		{Value: 2, CPU: 2, Extra: map[string]float64{"p99_ms": 8}},
	}}
	o.Summarize()
	if m := o.Median; !o.OK || m.Value != 2 || m.CPU != 2 || m.Extra["p99_ms"] != 8 {
		t.Errorf("%+v", o)
	}
	if median([]float64{4, 1}) != 2.5 || median(nil) != 0 {
		t.Error("median of two, or of none")
	}
}

// A goal that could not be measured is not taken for met.
func TestGoalWithoutPeer(t *testing.T) {
	for _, row := range Rows() {
		r := conclude(row, failed(peer.Herald), failed(peer.Mosquitto), failed(peer.Rumqttd))
		if len(r.Verdicts) == 0 {
			t.Errorf("%s: no goal", row.Name)
		}
		for _, v := range r.Verdicts {
			if v.Met || v.Got != nil || !strings.HasPrefix(v.String(), "not measured") {
				t.Errorf("%s: %s", row.Name, v)
			}
		}
	}
}

// A peer that loses messages is not the one to beat, however fast it was.
func TestBestPeerHasNoErrors(t *testing.T) {
	peers := map[string]Outcome{"a": outcome("a", 10, 1), "b": outcome("b", 20, 2), "c": failed("c")}
	if b := best(peers, false); b == nil || b.Broker != "b" {
		t.Errorf("best is %+v", b)
	}
	if b := best(peers, true); b == nil || b.Broker != "a" {
		t.Errorf("lowest is %+v", b)
	}
	if b := best(map[string]Outcome{"c": failed("c")}, false); b != nil {
		t.Errorf("best of none is %+v", b)
	}
}

func conclude(row Row, outcomes ...Outcome) RowReport {
	r := RowReport{Name: row.Name, Title: row.Title, Unit: row.Unit, Lower: row.Lower, Outcomes: outcomes}
	r.conclude(row)
	return r
}

func TestGoals(t *testing.T) {
	one := func(name string) Row {
		rows, err := Select([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		return rows[0]
	}
	met := func(r RowReport) string {
		var b strings.Builder
		for _, v := range r.Verdicts {
			if v.Met {
				b.WriteByte('+')
			} else {
				b.WriteByte('-')
			}
		}
		return b.String()
	}
	rumqttd := outcome(peer.Rumqttd, 100, 2)
	mosquitto := outcome(peer.Mosquitto, 10, 10)
	retained := Outcome{Broker: peer.Herald, Samples: []Sample{{Value: 20, Extra: map[string]float64{"p99_growth": 1.3}}}}
	sessions := Outcome{Broker: peer.Herald, Samples: []Sample{{Value: 650, Extra: map[string]float64{"ready_s": 9}}}}
	for _, c := range []struct {
		row  string
		h    Outcome
		want string
	}{
		{"qos1-4-4", outcome(peer.Herald, 400, 1), "++"},
		{"qos1-4-4", outcome(peer.Herald, 399, 1.01), "--"},
		{"qos1-4-4", failed(peer.Herald), "--"},
		{"cpu-qos0-pairs", outcome(peer.Herald, 10, 0), "+"},
		{"cpu-qos0-pairs", outcome(peer.Herald, 11, 0), "-"},
		{"latency-durable", outcome(peer.Herald, 13, 0), "+"},
		{"latency-durable", outcome(peer.Herald, 13.5, 0), "-"},
		{"retained", retained, "++-"},
		{"idle", outcome(peer.Herald, 9, 0), "+"},
		{"sessions", sessions, "++"},
	} {
		r := conclude(one(c.row), c.h, rumqttd, mosquitto)
		if got := met(r); got != c.want {
			t.Errorf("%s with %+v: %s, want %s: %+v", c.row, c.h.Median, got, c.want, r.Verdicts)
		}
		var out strings.Builder
		if err := r.Print(&out); err != nil || !strings.Contains(out.String(), "herald") {
			t.Errorf("%s prints %q, error %v", c.row, out.String(), err)
		}
		whole := Report{Rows: []RowReport{r}, Rounds: 3}
		if err := whole.Print(&out); err != nil || !strings.Contains(out.String(), c.row) {
			t.Errorf("%s prints %q, error %v", c.row, out.String(), err)
		}
		if (len(whole.HeraldFailed()) == 1) != (len(c.h.Errors) > 0) {
			t.Errorf("%s: failed rows %v", c.row, whole.HeraldFailed())
		}
	}
}

func TestRowsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rows() {
		if r.Name == "" || r.Title == "" || r.Unit == "" || r.run == nil || r.judge == nil || seen[r.Name] {
			t.Errorf("row %+v", r)
		}
		seen[r.Name] = true
	}
	if _, err := Select([]string{"qos0-4-4", "no-such"}); err == nil {
		t.Error("an unknown row was accepted")
	}
}

// Anything but the right messages, once and in order, has no rate.
func TestFaultsAreErrors(t *testing.T) {
	for _, c := range []struct {
		qos byte
		r   load.Result
		bad bool
	}{
		{0, load.Result{}, false},
		{1, load.Result{Duplicates: 1}, false},
		{2, load.Result{Duplicates: 1}, true},
		{0, load.Result{Lost: 1}, true},
		{1, load.Result{Reordered: 1}, true},
		{1, load.Result{WrongQoS: 1}, true},
		{1, load.Result{BadAcks: 1}, true},
	} {
		if err := faults(c.qos, &c.r); (err != nil) != c.bad {
			t.Errorf("qos %d, %+v: %v", c.qos, c.r, err)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.1234: "0.123", 12.345: "12.35", 999.6: "1,000", 1234567: "1,234,567", -2.5: "-2.50"} {
		if got := Number(v); got != want {
			t.Errorf("%v is printed as %s, want %s", v, got, want)
		}
	}
}

// The whole way with a real broker: start, measure, stop.
func TestTableWithMosquitto(t *testing.T) {
	m, err := peer.Find(peer.Mosquitto, "")
	if err != nil {
		t.Skipf("mosquitto is not installed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b, err := m.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	for qos := range byte(3) {
		c := load.Config{Target: b.Address, QoS: qos, Publishers: 2, Subscribers: 4, Topics: 2, Count: 2000, Durable: qos == 1}
		s, r, err := Measure(ctx, c, b.PID())
		if err != nil || r.Delivered != 8000 || s.Value <= 0 {
			t.Errorf("qos %d: %+v, error %v", qos, s, err)
		}
	}
	s, err := runRetained(ctx, &Env{Short: true}, b)
	if err != nil || s.Value <= 0 || s.Extra["p99_before_ms"] <= 0 || s.Extra["p99_during_ms"] <= 0 {
		t.Errorf("retained: %+v, error %v", s, err)
	}
	est := load.Establish{Target: b.Address, Leave: true}
	if err := est.Run(ctx, 1, func(int) load.Session {
		return load.Session{ClientID: "known", Filter: "known/in", QoS: 1}
	}, nil); err != nil {
		t.Fatal(err)
	}
	if err := load.Probe(ctx, b.Address, 4, "known", "known/in", 5*time.Second); err != nil {
		t.Errorf("a known session: %v", err)
	}
	if err := load.Probe(ctx, b.Address, 4, "unknown", "known/in", 5*time.Second); !errors.Is(err, load.ErrForgotten) {
		t.Errorf("an unknown session: %v", err)
	}
	b.Kill()
	if err := b.Run(ctx); err != nil {
		t.Errorf("after a kill: %v", err)
	}
}

// A broker that cannot start is an error of its round, with what it said.
func TestBrokerThatDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	bad := dir + "/herald"
	if err := os.WriteFile(bad, []byte("#!/bin/sh\necho port taken >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var lines []string
	r, err := Run(t.Context(), Options{
		Herald: bad, Rows: []string{"qos0-4-4"}, Peers: []string{"no-such-broker"}, Rounds: 1, Short: true, Dir: dir,
		Progress: func(line string) { lines = append(lines, line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	o := r.Rows[0].Outcomes[0]
	if o.OK || len(o.Errors) != 1 || !strings.Contains(o.Errors[0], "port taken") {
		t.Errorf("%+v", o)
	}
	if len(r.Missing) != 1 || len(lines) == 0 || len(r.HeraldFailed()) != 1 {
		t.Errorf("missing %v, progress %v", r.Missing, lines)
	}
}

func TestClosedConnectionIsSeen(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if closed(int(f.Fd())) {
		t.Error("an open connection is taken for closed")
	}
	_ = s.Close()
	for deadline := time.Now().Add(5 * time.Second); !closed(int(f.Fd())); {
		if time.Now().After(deadline) {
			t.Fatal("a closed connection is taken for open")
		}
	}
}
