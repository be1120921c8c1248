package scylla

import (
	"context"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
	"github.com/herald-mqtt/herald/persistence/storetest"
)

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, driver(b, func(o *Options) { o.Logger = nil }))
}

// benchID makes IDs that rise.
var benchIDs atomic.Uint64

func benchID() herald.ID {
	return herald.IDAt(time.Now().UnixMilli()) + herald.ID(benchIDs.Add(1)&(1<<22-1))
}

// BenchmarkAgainstBare writes the same rows (64 bytes of payload, one inbox entry
// for each message, 100 sessions) in turns with nothing but the driver, as many at
// a time as the store has in flight, and through the store. The share is the
// store's rate by the bare one.
func BenchmarkAgainstBare(b *testing.B) {
	o := options(b)
	o.Logger = nil
	s := mustOpen(b, o)
	defer s.Close()
	const sessions = 100
	ids := make([]herald.SessionID, sessions)
	for i := range ids {
		ids[i] = herald.SessionID(benchID())
	}
	for _, each := range []int{1, 10} {
		b.Run("messages in a commit: "+strconv.Itoa(each), func(b *testing.B) {
			const turn = 20_000
			var bare, store time.Duration
			n := 0
			for b.Loop() {
				bare += writeBare(b, s, ids, turn)
				store += writeStore(b, s, ids, turn, each)
				n += turn
			}
			b.ReportMetric(float64(n)/bare.Seconds(), "bare-rows/s")
			b.ReportMetric(float64(n)/store.Seconds(), "store-rows/s")
			b.ReportMetric(bare.Seconds()/store.Seconds(), "share")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func benchMessage() *herald.Message {
	return &herald.Message{ID: benchID(), Publisher: 1, Topic: "bench/topic", Payload: make([]byte, 64), QoS: 1}
}

func writeBare(b *testing.B, s *Store, ids []herald.SessionID, n int) time.Duration {
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
				m := benchMessage()
				row := record.AppendEntry(nil, m, 1, false, nil, false)
				if err := s.cql.Session.Query(putInbox.cql, int64(ids[int(i)%len(ids)]), coarse(m.ID), int64(m.ID), row, int32(0), idStamp(m.ID)).Exec(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

func writeStore(b *testing.B, s *Store, ids []herald.SessionID, n, each int) time.Duration {
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
				b.Error(err)
			}
			<-window
			wg.Done()
		})
	}
	wg.Wait()
	return time.Since(start)
}

// A reconnect reads in a time that does not grow with what was settled before. The
// number of messages is HERALD_TEST_INBOX (50,000; the is 1,000,000).
func TestInboxDoesNotSlowDown(t *testing.T) {
	n := 50_000
	if v, err := strconv.Atoi(os.Getenv("HERALD_TEST_INBOX")); err == nil {
		n = v
	}
	o := options(t)
	o.SplitAfter = min(20_000, n/5)
	s := mustOpen(t, o)
	id := herald.SessionID(benchID())
	commit := func(b *persistence.Batch) {
		t.Helper()
		done := make(chan error, 1)
		s.Commit(b, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	commit(&persistence.Batch{Sessions: []persistence.Session{{ID: id, Name: "phone"}}})
	// reconnect is what a session asks of the store when its client is back.
	reconnect := func() (time.Duration, int) {
		t.Helper()
		best, got := time.Hour, 0
		for range 5 {
			start := time.Now()
			w, err := s.Window(context.Background(), id)
			if err != nil {
				t.Fatal(err)
			}
			page, err := s.Inbox(context.Background(), id, w.Low, ^herald.ID(0), 512, 1<<20, nil)
			if err != nil {
				t.Fatal(err)
			}
			best, got = min(best, time.Since(start)), len(page)
		}
		return best, got
	}
	put := func(n int) (last herald.ID) {
		for at := 0; at < n; at += 100 {
			msgs := make([]*herald.Message, 100)
			for i := range msgs {
				msgs[i] = benchMessage()
				last = msgs[i].ID
			}
			done := func(err error) {
				if err != nil {
					t.Error(err)
				}
			}
			s.Commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: id, QoS: 1}}}}}, done)
			if at%10_000 == 0 { // what a client acknowledges as it goes
				s.Commit(&persistence.Batch{Lazy: true, Marks: []persistence.Mark{{Session: id, Low: msgs[0].ID}}}, done)
			}
		}
		commit(&persistence.Batch{Marks: []persistence.Mark{{Session: id, Low: last}}})
		return last
	}
	put(100)
	put(100)
	fresh, _ := reconnect()
	start := time.Now()
	put(n)
	t.Logf("%d messages through one inbox in %v", n, time.Since(start).Round(time.Millisecond))
	msgs := []*herald.Message{benchMessage(), benchMessage(), benchMessage()}
	commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: id, QoS: 1}}}}})
	after, got := reconnect()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	defer s.Close()
	again, got2 := reconnect()
	t.Logf("reconnect: fresh %v, behind %d settled %v, after a restart %v", fresh, n, after, again)
	if got != 3 || got2 != 3 {
		t.Fatalf("%d and %d entries, want 3", got, got2)
	}
	if limit := 4*fresh + 20*time.Millisecond; after > limit || again > limit {
		t.Errorf("reconnecting takes %v and %v, want %v at most", after, again, limit)
	}
}

// Durable subscriptions are read by ranges of tokens, in parallel. The number is
// HERALD_TEST_SUBSCRIPTIONS (20,000; the is 1,000,000 within 60 s).
func TestSubscriptionsAreScanned(t *testing.T) {
	n := 20_000
	if v, err := strconv.Atoi(os.Getenv("HERALD_TEST_SUBSCRIPTIONS")); err == nil {
		n = v
	}
	s := mustOpen(t, options(t))
	defer s.Close()
	var wg sync.WaitGroup
	start := time.Now()
	for at := 0; at < n; at += 100 {
		b := &persistence.Batch{}
		for range 100 {
			id := herald.SessionID(benchID())
			b.Sessions = append(b.Sessions, persistence.Session{ID: id, Name: "device-" + strconv.FormatUint(uint64(id), 36)})
			b.Subscribe = append(b.Subscribe, persistence.SubscriptionOf{Session: id, Subscription: persistence.Subscription{Filter: "device/" + strconv.FormatUint(uint64(id), 36) + "/in", QoS: 1}})
		}
		wg.Add(1)
		s.Commit(b, func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
	t.Logf("%d sessions and subscriptions written in %v", n, time.Since(start).Round(time.Millisecond))
	start, got := time.Now(), 0
	if err := s.ScanSubscriptions(context.Background(), func(herald.SessionID, persistence.Subscription) error { got++; return nil }); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d subscriptions read in %v", got, time.Since(start).Round(time.Millisecond))
	if got != n {
		t.Errorf("%d of %d", got, n)
	}
}
