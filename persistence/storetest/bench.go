package storetest

import (
	"fmt"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Benchmark measures what brokers do most.
func Benchmark(b *testing.B, d Driver) {
	b.Run("spread 200 to one", func(b *testing.B) { benchSpread(b, d, 200, 1, 64) })
	b.Run("spread 1 to 100", func(b *testing.B) { benchSpread(b, d, 1, 100, 64) })
	b.Run("one after the other", benchLatency(d))
}

// benchSpread commits spreads as fast as the store takes them, and a mark for
// all that is done now and then. An operation is one entry.
func benchSpread(b *testing.B, d Driver, msgs, targets, payload int) {
	s := d.Open(b)
	defer s.Close()
	var sessions []herald.SessionID
	rows := &persistence.Batch{}
	for i := range targets {
		id := herald.SessionID(newID())
		sessions = append(sessions, id)
		rows.Sessions = append(rows.Sessions, persistence.Session{ID: id, Name: fmt.Sprint("bench", i)})
	}
	if err := commit(s, rows); err != nil {
		b.Fatal(err)
	}
	body := make([]byte, payload)
	each := msgs * targets
	window := make(chan struct{}, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += each {
		window <- struct{}{}
		all := make([]herald.Message, msgs)
		ptrs := make([]*herald.Message, msgs)
		for i := range all {
			all[i] = herald.Message{ID: newID(), Publisher: 1, Topic: "bench/topic", Payload: body, QoS: 1}
			ptrs[i] = &all[i]
		}
		batch := &persistence.Batch{Spreads: []persistence.Spread{{Messages: ptrs, Targets: to(sessions...)}}}
		last := ptrs[msgs-1].ID
		settle := n/each%50 == 49
		s.Commit(batch, func(err error) {
			if err != nil {
				b.Error(err)
			}
			<-window
		})
		if settle {
			marks := &persistence.Batch{Lazy: true}
			for _, id := range sessions {
				marks.Marks = append(marks.Marks, persistence.Mark{Session: id, Low: last})
			}
			s.Commit(marks, nil)
		}
	}
	for range cap(window) {
		window <- struct{}{}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func benchLatency(d Driver) func(b *testing.B) {
	return func(b *testing.B) {
		s := d.Open(b)
		defer s.Close()
		id := herald.SessionID(newID())
		if err := commit(s, &persistence.Batch{Sessions: []persistence.Session{{ID: id, Name: "bench"}}}); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if err := commit(s, &persistence.Batch{Spreads: []persistence.Spread{{Messages: messages(1, "t"), Targets: to(id)}}}); err != nil {
				b.Fatal(err)
			}
		}
	}
}
