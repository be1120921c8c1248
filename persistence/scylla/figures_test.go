package scylla

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/pebble"
)

// What is asked of the store is shown at its full size by "make bench-store", which
// sets HERALD_TEST_FIGURES to the file that gets the figures. Without it the same tests
// do the same with less and hold the store to what does not depend on the machine.
func atSize(small, full int) int {
	if os.Getenv("HERALD_TEST_FIGURES") != "" {
		return full
	}
	return small
}

// figure notes what was measured beside what is asked.
func figure(t testing.TB, met bool, what, format string, args ...any) {
	t.Helper()
	verdict := "met"
	if !met {
		verdict = "missed"
	}
	line := fmt.Sprintf("%-7s %s: %s", verdict, what, fmt.Sprintf(format, args...))
	t.Log(line)
	path := os.Getenv("HERALD_TEST_FIGURES")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(f, line); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if !met {
		t.Error(line)
	}
}

// The store writes at least 60 % of the rows that the bare driver writes: the same
// rows (64 bytes of payload, one inbox entry for each message, 100 sessions), on the
// same server, as many at a time as the store has in flight, in turns. Beside it the
// embedded store with the same commits, each of which it has on disk before done.
func TestShareOfTheBareDriver(t *testing.T) {
	o := options(t)
	o.Logger = nil
	s := mustOpen(t, o)
	defer s.Close()
	embedded, err := pebble.Open(filepath.Join(t.TempDir(), "embedded"), pebble.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer embedded.Close()
	ids := make([]herald.SessionID, 100)
	for i := range ids {
		ids[i] = herald.SessionID(benchID())
	}
	turn := atSize(500, 20_000)
	writeBare(t, s, ids, turn) // prepares the statements, warms the server
	for _, each := range []int{1, 10} {
		var bare, store, alone time.Duration
		n := 0
		for range atSize(1, 4) {
			bare += writeBare(t, s, ids, turn)
			store += writeStore(t, s, ids, turn, each)
			alone += writeStore(t, embedded, ids, turn, each)
			n += turn
		}
		if t.Failed() {
			return
		}
		share := bare.Seconds() / store.Seconds()
		rate := func(d time.Duration) float64 { return float64(n) / d.Seconds() }
		what := fmt.Sprintf("rows/s, %d messages a commit", each)
		if atSize(0, 1) == 0 {
			t.Logf("%s: %.2f of the bare driver's", what, share)
			continue
		}
		figure(t, share >= 0.6, what, "store %.0f, bare driver %.0f: %.2f of it, at least 0.60 asked; embedded store %.0f",
			rate(store), rate(bare), share, rate(alone))
	}
	page, err := s.Inbox(t.Context(), ids[0], 0, ^herald.ID(0), 10, 1<<20, nil)
	if err != nil || len(page) == 0 {
		t.Errorf("%d entries, %v: nothing was written", len(page), err)
	}
}

// writeBare writes n entries with nothing but the driver.
func writeBare(t testing.TB, s *Store, ids []herald.SessionID, n int) time.Duration {
	start := time.Now()
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range s.opts.Concurrency {
		wg.Go(func() {
			for {
				i := left.Add(-1)
				if i < 0 {
					return
				}
				if err := bareRow(s, ids[int(i)%len(ids)]).Exec(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// writeStore writes n through a store, in commits of each.
func writeStore(t testing.TB, s persistence.Store, ids []herald.SessionID, n, each int) time.Duration {
	start := time.Now()
	window := make(chan struct{}, 512)
	var wg sync.WaitGroup
	for i := 0; i < n; i += each {
		window <- struct{}{}
		wg.Add(1)
		msgs := make([]*herald.Message, each)
		for k := range msgs {
			msgs[k] = benchMessage()
		}
		batch := &persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs,
			Targets: []persistence.Target{{Session: ids[i/each%len(ids)], QoS: 1}}}}}
		s.Commit(batch, func(err error) {
			if err != nil {
				t.Error(err)
			}
			<-window
			wg.Done()
		})
	}
	wg.Wait()
	return time.Since(start)
}
