package scylla

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

func sweepAllTopics(t *testing.T, s *Store, age time.Duration) {
	t.Helper()
	for shard := range int16(indexShards) {
		if err := s.sweepTopics(shard, age); err != nil {
			t.Fatal(err)
		}
	}
}

// rowsIn counts a table's rows.
func rowsIn(t *testing.T, s *Store, table string) (n int) {
	t.Helper()
	if err := s.cql.Session.Query("SELECT COUNT(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The removal of a retained message is itself removed when it is old; what is newer
// stays.
func TestRemovalsAreSwept(t *testing.T) {
	s := mustOpen(t, options(t))
	defer s.Close()
	old, gone, again, kept := benchMessage(), benchMessage(), benchMessage(), benchMessage()
	for _, m := range []*herald.Message{old, gone, again} {
		m.Topic = "a"
	}
	gone.Payload, again.Topic, kept.Topic = nil, "b", "c"
	removed := *kept
	removed.ID, removed.Topic, removed.Payload = benchID(), "b", nil
	again.ID = benchID() + 1<<23
	commitTo(t, s, &persistence.Batch{Retain: []*herald.Message{old, gone, &removed, again, kept}})
	sweepAllTopics(t, s, -time.Minute)
	for table, want := range map[string]int{"retained": 2, "retained_index": 2} {
		var n int
		if err := s.cql.Session.Query("SELECT COUNT(*) FROM " + table).Scan(&n); err != nil || n != want {
			t.Errorf("%s has %d rows, want %d (%v)", table, n, want, err)
		}
	}
	msgs, _, err := s.ScanRetained(context.Background(), "#", "", 10, 1<<20, nil)
	if err != nil || len(msgs) != 2 || msgs[0].Topic != "b" || msgs[1].Topic != "c" {
		t.Errorf("left: %v, %v", msgs, err)
	}
}

// An expired retained message is removed: first it becomes a removal, which nothing
// older can undo and everything newer replaces; then that goes.
func TestExpiredRetainedMessagesAreSwept(t *testing.T) {
	s := mustOpen(t, options(t))
	defer s.Close()
	now := time.Now()
	expired, later, never, newer := benchMessage(), benchMessage(), benchMessage(), benchMessage()
	expired.Topic, expired.Expires = "a", now.Add(-2*time.Hour).UnixMilli()
	later.Topic, later.Expires = "b", now.Add(time.Hour).UnixMilli()
	never.Topic, newer.Topic = "c", "a"
	newer.ID = expired.ID + 1 // the same timestamp
	commitTo(t, s, &persistence.Batch{Retain: []*herald.Message{expired, later, never}})
	sweepAllTopics(t, s, time.Hour)
	msgs, _, err := s.ScanRetained(t.Context(), "#", "", 10, 1<<20, nil)
	if err != nil || len(msgs) != 2 || msgs[0].Topic != "b" || msgs[1].Topic != "c" {
		t.Errorf("left: %v, %v", msgs, err)
	}
	if n := rowsIn(t, s, "retained"); n != 3 {
		t.Errorf("%d rows, want the removal, too", n)
	}
	commitTo(t, s, &persistence.Batch{Retain: []*herald.Message{expired}}) // it arrives once more
	s.caches.changed("a")
	if m, err := s.Retained(t.Context(), "a"); err == nil {
		t.Errorf("what had expired is back: %v", m)
	}
	commitTo(t, s, &persistence.Batch{Retain: []*herald.Message{newer}})
	if m, err := s.Retained(t.Context(), "a"); err != nil || m.ID != newer.ID {
		t.Errorf("a newer one: %v, %v", m, err)
	}
	newest := *expired
	newest.ID = benchID()
	commitTo(t, s, &persistence.Batch{Retain: []*herald.Message{&newest}})
	sweepAllTopics(t, s, time.Hour)
	sweepAllTopics(t, s, -time.Minute)
	if n := rowsIn(t, s, "retained") + rowsIn(t, s, "retained_index"); n != 4 {
		t.Errorf("%d rows in both tables, want 4", n)
	}
}

// The message of a wide publish goes when every session that it was for has settled it
// or is gone, and not before; written once more, by whoever finishes what was begun, it
// is there again.
func TestPayloadsAreSwept(t *testing.T) {
	o := options(t)
	o.InlineUpTo, o.SplitAfter = 1, 2
	s := mustOpen(t, o)
	defer s.Close()
	sessions := make([]persistence.Session, 5)
	batch := &persistence.Batch{}
	var first, second []persistence.Target
	for i := range sessions {
		sessions[i] = persistence.Session{ID: herald.SessionID(benchID()), Name: string(rune('a' + i))}
		target := persistence.Target{Session: sessions[i].ID, QoS: 1}
		if i < 3 {
			first = append(first, target)
		} else {
			second = append(second, target)
		}
	}
	batch.Sessions = sessions
	commitTo(t, s, batch)
	msgs := []*herald.Message{benchMessage(), benchMessage(), benchMessage(), benchMessage()}
	spread := func() {
		t.Helper()
		for _, targets := range [][]persistence.Target{first, second} { // in chunks
			commitTo(t, s, &persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: targets}}})
		}
	}
	spread()
	// A patrol that comes two days later.
	tomorrow := o
	tomorrow.Node = 1
	tomorrow.Now = func() time.Time { return time.Now().Add(2 * payloadAge) }
	patrol := mustOpen(t, tomorrow)
	defer patrol.Close()
	sweep := func(want int) {
		t.Helper()
		n, err := patrol.sweepPayloads(math.MinInt64, math.MaxInt64, payloadAge)
		if err != nil {
			t.Fatal(err)
		}
		if n != want {
			t.Errorf("%d messages removed, want %d", n, want)
		}
	}
	readable := func(i, want int) {
		t.Helper()
		s.caches.payloads.InvalidateAll()
		page, err := s.Inbox(t.Context(), sessions[i].ID, 0, ^herald.ID(0), 10, 1<<20, nil)
		if err != nil || len(page) != want {
			t.Errorf("session %d reads %d entries, want %d (%v)", i, len(page), want, err)
		}
	}
	if n, err := s.sweepPayloads(math.MinInt64, math.MaxInt64, payloadAge); n != 0 || err != nil {
		t.Errorf("%d young messages removed (%v)", n, err)
	}
	sweep(0)
	for i := range 4 { // the last one lags, at the last message
		low := msgs[3].ID
		if i == 3 {
			low = msgs[2].ID
		}
		commitTo(t, s, &persistence.Batch{Marks: []persistence.Mark{{Session: sessions[i].ID, Low: low}}})
	}
	sweep(0) // session 4 has all of them before it
	readable(4, 4)
	commitTo(t, s, &persistence.Batch{Delete: sessions[4:5]})
	sweep(3)
	if page, err := s.Inbox(t.Context(), sessions[3].ID, msgs[2].ID, ^herald.ID(0), 10, 1<<20, nil); err != nil || len(page) != 1 {
		t.Errorf("who lags reads %d entries (%v)", len(page), err)
	}
	commitTo(t, s, &persistence.Batch{Marks: []persistence.Mark{{Session: sessions[3].ID, Low: msgs[3].ID}}})
	sweep(1)
	sweep(0)
	if n := rowsIn(t, s, "payload"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	// Whoever lives at the time of the patrol writes after what it removed.
	s.clock.saw(patrol.clock.next())
	spread()
	readable(0, 4)
}

// What arrives for a session after its end, from a node that has not heard of it, does
// not stay, whether its inbox was divided or not.
func TestNothingStaysOfASessionThatEnded(t *testing.T) {
	o := options(t)
	for name, split := range map[string]int{"coarse": 100, "fine": 1} {
		t.Run(name, func(t *testing.T) {
			empty(t, o)
			o := o
			o.SplitAfter = split
			s := mustOpen(t, o)
			defer s.Close()
			other := o // another node's store
			other.Node = 1
			late := mustOpen(t, other)
			defer late.Close()
			row := persistence.Session{ID: herald.SessionID(benchID()), Name: "c"}
			entries := func(s *Store, n int) {
				t.Helper()
				var msgs []*herald.Message
				for range n {
					msgs = append(msgs, benchMessage())
				}
				commitTo(t, s, &persistence.Batch{
					Spreads:   []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: row.ID, QoS: 1}}}},
					Marks:     []persistence.Mark{{Session: row.ID, Low: msgs[0].ID}},
					Subscribe: []persistence.SubscriptionOf{{Session: row.ID, Subscription: persistence.Subscription{Filter: "a"}}},
				})
			}
			commitTo(t, s, &persistence.Batch{Sessions: []persistence.Session{row}})
			entries(s, 5)
			entries(late, 5)
			if n := rowsIn(t, s, "inbox"); n < 10 {
				t.Fatalf("%d rows before the end", n)
			}
			commitTo(t, s, &persistence.Batch{Delete: []persistence.Session{row}})
			entries(late, 5)
			for _, table := range []string{"session", "subscription", "window", "inbox"} {
				if n := rowsIn(t, s, table); n != 0 {
					t.Errorf("%d rows stay in %s", n, table)
				}
			}
			// Its name lives on, with a session of its own.
			row.ID = herald.SessionID(benchID())
			commitTo(t, late, &persistence.Batch{Sessions: []persistence.Session{row}})
			entries(late, 5)
			page, err := s.Inbox(context.Background(), row.ID, 0, ^herald.ID(0), 10, 1<<20, nil)
			if err != nil || len(page) != 5 {
				t.Errorf("the name's next session has %d entries, want 5 (%v)", len(page), err)
			}
		})
	}
}
