package pebble

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/storetest"
)

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, storetest.Driver{
		Open: func(t testing.TB) persistence.Store { return mustOpen(t, t.TempDir(), Options{}) },
	})
}

// resident is the resident memory of this process in MiB, 0 where it is not known.
func resident() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(status), "\n") {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(v)[0])
			return float64(kb) / 1024
		}
	}
	return 0
}

// BenchmarkRest fills a store with sessions of one subscription each, leaves it
// as a kill would, and opens it again: once as it was left, with the journal to
// read, and once after a close. HERALD_SESSIONS says how many; 100,000 without.
func BenchmarkRest(b *testing.B) {
	total := 100_000
	if v, err := strconv.Atoi(os.Getenv("HERALD_SESSIONS")); err == nil {
		total = v
	}
	for b.Loop() {
		dir, copied := b.TempDir(), b.TempDir()
		s := mustOpen(b, dir, Options{})
		id := herald.IDAt(time.Now().UnixMilli())
		start := time.Now()
		for at := 0; at < total; at += 500 {
			batch := &persistence.Batch{}
			for i := at; i < at+500; i++ {
				id++
				batch.Sessions = append(batch.Sessions, persistence.Session{ID: herald.SessionID(id), Name: fmt.Sprintf("device-%08d", i),
					Version: herald.V5, ExpiryInterval: 86400, Expires: 1 << 45, Epoch: 1, Connected: 1 << 40, Disconnected: 1 << 40})
				batch.Subscribe = append(batch.Subscribe, persistence.SubscriptionOf{Session: herald.SessionID(id),
					Subscription: persistence.Subscription{Filter: fmt.Sprintf("devices/%08d/commands/#", i), QoS: 1}})
			}
			s.Commit(batch, nil)
		}
		done := make(chan error)
		s.Commit(&persistence.Batch{}, func(err error) { done <- err })
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "fill-s")
		if err := os.CopyFS(copied+"/killed", os.DirFS(dir)); err != nil {
			b.Logf("copy of a live folder: %v", err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		for what, dir := range map[string]string{"killed": copied + "/killed", "closed": dir} {
			start = time.Now()
			s = mustOpen(b, dir, Options{})
			open := time.Since(start)
			n := 0
			if err := s.ScanSubscriptions(context.Background(), func(herald.SessionID, persistence.Subscription) error { n++; return nil }); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(open.Seconds(), what+"-open-s")
			b.ReportMetric((time.Since(start) - open).Seconds(), what+"-scan-s")
			if what == "closed" && n != total {
				b.Fatalf("%d subscriptions of %d", n, total)
			}
			runtime.GC()
			b.ReportMetric(resident(), what+"-MiB")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkLatency commits four messages of 1,000 bytes every 200 µs, 20 MB/s,
// and reports how long a commit takes and what the disk took of that: once with
// sessions that settle what they get, once with sessions that do not, so that
// everything is spilled. Segments are small, so there are many checkpoints.
func BenchmarkLatency(b *testing.B) {
	b.Run("keeping up", func(b *testing.B) { benchLatency(b, true) })
	b.Run("falling behind", func(b *testing.B) { benchLatency(b, false) })
}

func benchLatency(b *testing.B, settle bool) {
	s := mustOpen(b, b.TempDir(), Options{SegmentBytes: 8 << 20})
	defer s.Close()
	id := herald.IDAt(time.Now().UnixMilli())
	rows := &persistence.Batch{}
	for i := range 100 {
		rows.Sessions = append(rows.Sessions, persistence.Session{ID: herald.SessionID(i + 1), Name: strconv.Itoa(i)})
	}
	s.Commit(rows, nil)
	var mu sync.Mutex
	var took []time.Duration
	payload := make([]byte, 1000)
	spread := func(n int) persistence.Spread {
		sp := persistence.Spread{Targets: []persistence.Target{{Session: herald.SessionID(id%100 + 1), QoS: 1}}}
		for range n {
			id++
			sp.Messages = append(sp.Messages, &herald.Message{ID: id, Topic: "t", Payload: payload, QoS: 1})
		}
		return sp
	}
	var all sync.WaitGroup
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	b.ResetTimer()
	for i := range b.N {
		<-tick.C
		if i%1000 == 0 && settle {
			marks := &persistence.Batch{Lazy: true}
			for i := range 100 {
				marks.Marks = append(marks.Marks, persistence.Mark{Session: herald.SessionID(i + 1), Low: id})
			}
			s.Commit(marks, nil)
		}
		start := time.Now()
		all.Add(1)
		s.Commit(&persistence.Batch{Spreads: []persistence.Spread{spread(4)}}, func(error) {
			mu.Lock()
			took = append(took, time.Since(start))
			mu.Unlock()
			all.Done()
		})
	}
	all.Wait()
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	for _, p := range []float64{0.5, 0.99, 0.999, 1} {
		b.ReportMetric(float64(took[int(float64(len(took)-1)*p)].Microseconds()), fmt.Sprintf("p%g-µs", p*100))
	}
	st := s.Stats()
	b.ReportMetric(float64(st.Spilled)/float64(4*b.N), "spilled/entry")
	n, left := 0, st.Groups/100
	for n = len(st.SyncHistogram) - 1; n > 0 && left > st.SyncHistogram[n]; n-- {
		left -= st.SyncHistogram[n]
	}
	b.ReportMetric(float64(int64(1)<<n), "p99-sync-below-µs")
}
