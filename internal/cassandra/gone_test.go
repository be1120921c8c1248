package cassandra_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/cassandra"
	"github.com/herald-mqtt/herald/internal/checker"
)

// watch notes when a node did what.
type watch struct {
	mu      sync.Mutex // guards below
	acks    []time.Time
	reasons []reason
	states  []state
	most    float64 // resident bytes
}

type reason struct {
	at   time.Time
	text string
}

// state is an answer of /readyz.
type state struct {
	at    time.Time
	ready bool
}

func (w *watch) acknowledged(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, at)
}

func (w *watch) refused(at time.Time, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reasons = append(w.reasons, reason{at, text})
}

// observe asks a node how it is until stop is closed.
func (w *watch) observe(url string, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		at := time.Now()
		ready := false
		if r, err := http.Get(url); err == nil {
			ready = r.StatusCode == http.StatusOK
			r.Body.Close()
		}
		resident := residentBytes(url)
		w.mu.Lock()
		w.states = append(w.states, state{at, ready})
		w.most = max(w.most, resident)
		w.mu.Unlock()
	}
}

// verdict is what an outage did to clients.
type verdict struct {
	lastAck  time.Duration // the last acknowledgement, after the kill
	notReady time.Duration // when /readyz failed, after the kill; 0: never
	told     map[string]int
	firstAck time.Duration // the first acknowledgement, after CQL was back; 0: none
	ready    time.Duration // when /readyz was 200 again, after that; 0: never
}

func (w *watch) judge(o outage) verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := verdict{told: make(map[string]int)}
	for _, at := range w.acks {
		switch {
		case at.After(o.gone) && at.Before(o.back):
			v.lastAck = max(v.lastAck, at.Sub(o.gone))
		case at.After(o.back) && v.firstAck == 0:
			v.firstAck = at.Sub(o.back)
		}
	}
	for _, r := range w.reasons {
		if r.at.After(o.gone) && r.at.Before(o.back) {
			v.told[r.text]++
		}
	}
	for _, s := range w.states {
		switch {
		case s.at.After(o.gone) && s.at.Before(o.back) && !s.ready && v.notReady == 0:
			v.notReady = s.at.Sub(o.gone)
		case s.at.After(o.back) && s.ready && v.ready == 0:
			v.ready = s.at.Sub(o.back)
		}
	}
	return v
}

// The whole database goes away. Acknowledgements stop within a second, MQTT 5 clients
// are told why, the node says that it is not ready, does not crash and does not grow;
// within ten seconds of the database's return, that is, of when it speaks CQL again,
// all goes on. Nothing that was acknowledged is lost.
func TestDatabaseGone(t *testing.T) {
	c := cassandra.StartWith(t, cassandra.Options{Durable: true})
	if c.Given() {
		t.Skip("a database that was given is not killed")
	}
	node := herald(t, c.Port(), 1, new(bytes.Buffer))
	w, stop := new(watch), make(chan struct{})
	var observer sync.WaitGroup
	observer.Go(func() { w.observe(node.URL, stop) })
	gone := &away{cluster: c, all: true, down: 8 * time.Second}
	report, err := checker.Run(context.Background(), checker.Config{
		Addrs: []string{node.Addr}, For: 25 * time.Second, Rate: 1000, QoS1Publishers: 3, QoS2Publishers: 3,
		QoS1Subscribers: 2, QoS2Subscribers: 2, Window: 64,
		Faults: []checker.Fault{gone}, FaultEvery: 5 * time.Second, Quiet: 30 * time.Second, Drain: 2 * time.Minute,
		Processes: []*checker.Process{node}, Acknowledged: w.acknowledged, Refused: w.refused, Log: t.Logf,
	})
	close(stop)
	observer.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if len(gone.outages) == 0 {
		t.Error("the database was never gone")
	}
	for _, o := range gone.outages {
		v := w.judge(o)
		t.Logf("gone for %v: last acknowledgement after %v, not ready after %v, told %v; back: acknowledgements after %v, ready after %v",
			round(o.back.Sub(o.gone)), round(v.lastAck), round(v.notReady), v.told, round(v.firstAck), round(v.ready))
		if v.lastAck > time.Second {
			t.Errorf("the last acknowledgement came %v after the database had gone, want one second at most", v.lastAck)
		}
		if v.notReady == 0 || v.notReady > 4*time.Second {
			t.Errorf("/readyz failed after %v, want four seconds at most", v.notReady)
		}
		if v.firstAck == 0 || v.firstAck > 10*time.Second || v.ready == 0 || v.ready > 10*time.Second {
			t.Errorf("it went on after %v and was ready after %v, want ten seconds at most", v.firstAck, v.ready)
		}
		if !slices.ContainsFunc(reasonsOf(v), because) {
			t.Errorf("no client was told why: %v", v.told)
		}
	}
	t.Logf("at most %.0f MB resident", w.most/1e6)
	if w.most > 200e6 {
		t.Errorf("%.0f MB resident, want 200 at most", w.most/1e6)
	}
}

func reasonsOf(v verdict) []string {
	var all []string
	for text := range v.told {
		all = append(all, text)
	}
	return all
}

// because tells whether a reason says that the server cannot work now: unspecified
// error, server unavailable, server busy, quota exceeded.
func because(text string) bool {
	for _, code := range []string{"0x88", "0x89", "0x97"} {
		if strings.Contains(text, code) {
			return true
		}
	}
	return false
}

func round(d time.Duration) string { return fmt.Sprint(d.Round(10 * time.Millisecond)) }
