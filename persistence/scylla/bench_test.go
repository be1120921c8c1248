package scylla

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocql/gocql"

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

func benchMessage() *herald.Message {
	return &herald.Message{ID: benchID(), Publisher: 1, Topic: "bench/topic", Payload: make([]byte, 64), QoS: 1}
}

// bareRow is an entry as the store would write it, for the driver.
func bareRow(s *Store, id herald.SessionID) *gocql.Query {
	m := benchMessage()
	row := record.AppendEntry(nil, m, 1, false, nil, false)
	return s.cql.Session.Query(putInbox.cql, int64(id), coarse(m.ID), int64(m.ID), row, int32(0), idStamp(m.ID))
}

// A reconnect reads in a time that does not grow with what was settled before.
func TestInboxDoesNotSlowDown(t *testing.T) {
	n := atSize(50_000, 1_000_000)
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
	through := time.Since(start).Round(10 * time.Millisecond)
	msgs := []*herald.Message{benchMessage(), benchMessage(), benchMessage()}
	commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: id, QoS: 1}}}}})
	after, got := reconnect()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	defer s.Close()
	again, got2 := reconnect()
	if got != 3 || got2 != 3 {
		t.Fatalf("%d and %d entries, want 3", got, got2)
	}
	limit := 4*fresh + 20*time.Millisecond
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	figure(t, after <= limit && again <= limit, "reconnect behind what was settled",
		"fresh session %v; behind %d messages (through in %v) %v, after the store's restart %v; at most %v asked",
		round(fresh), n, through, round(after), round(again), round(limit))
}
