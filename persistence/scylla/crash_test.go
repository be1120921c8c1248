package scylla

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

func commitTo(t *testing.T, s *Store, b *persistence.Batch) {
	t.Helper()
	done := make(chan error, 1)
	s.Commit(b, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A crash between any two steps of a QoS 2 publish leaves, after the next start,
// all of it if its intent stood in the database, and nothing of it otherwise
// [MQTT-4.3.3-2].
func TestIntentsAreFinished(t *testing.T) {
	o := options(t)
	ctx := context.Background()
	// The steps: the intent, payloads, the rows. cut says after how many rows of
	// the last the process dies.
	for _, cut := range []int{-1, 0, 1, 2, 3} {
		t.Run(fmt.Sprint("rows written: ", cut), func(t *testing.T) {
			empty(t, o)
			s := mustOpen(t, o)
			id, publisher := herald.SessionID(benchID()), herald.SessionID(benchID())
			commitTo(t, s, &persistence.Batch{Sessions: []persistence.Session{{ID: id, Name: "c"}}})
			m := benchMessage()
			m.QoS = 2
			j := &job{s: s, batch: &persistence.Batch{
				Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: []persistence.Target{{Session: id, QoS: 2}}}},
				Retain:  []*herald.Message{m},
				Held:    []persistence.Held{{Session: publisher, PacketID: 7, ID: m.ID}},
			}}
			if err := s.plan(j); err != nil {
				t.Fatal(err)
			}
			s.intents.begin(s, j)
			var all []write
			for _, st := range j.steps {
				all = append(all, st.writes...)
			}
			if len(all) != 5 {
				t.Fatalf("%d rows, want intent, inbox, retained, index and window", len(all))
			}
			for _, w := range all[:cut+1] {
				if err := s.query(ctx, w.stmt, w.args...).Exec(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil { // nothing was done with the job
				t.Fatal(err)
			}
			for range 2 { // a second start finds nothing to do
				s = mustOpen(t, o)
				w, err := s.Window(ctx, publisher)
				if err != nil {
					t.Fatal(err)
				}
				page, err := s.Inbox(ctx, id, 0, ^herald.ID(0), 10, 1<<20, nil)
				if err != nil {
					t.Fatal(err)
				}
				topic, err := s.Retained(ctx, m.Topic)
				want := 1
				if cut < 0 {
					want = 0
				}
				if got := []int{len(w.Held), len(page)}; got[0] != want || got[1] != want || (topic != nil) != (want == 1) {
					t.Fatalf("held and inbox %v, retained %v %v; want %d of each", got, topic, err, want)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// An intent that turns up after the start that should have found it was never
// acknowledged: it is void.
func TestLateIntentIsVoid(t *testing.T) {
	o := options(t)
	ctx := context.Background()
	s := mustOpen(t, o)
	id, m := herald.SessionID(benchID()), benchMessage()
	j := &job{s: s, batch: &persistence.Batch{
		Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: []persistence.Target{{Session: id, QoS: 2}}}},
		Held:    []persistence.Held{{Session: id, PacketID: 7, ID: m.ID}},
	}}
	if err := s.plan(j); err != nil {
		t.Fatal(err)
	}
	s.intents.begin(s, j)
	late := j.steps[0].writes[0]
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, o)
		if err := s.query(ctx, late.stmt, late.args...).Exec(); err != nil {
			t.Fatal(err)
		}
	}
	defer s.Close()
	w, err := s.Window(ctx, id)
	if err != nil || len(w.Held) > 0 {
		t.Fatalf("held %v, %v", w.Held, err)
	}
}

// A row that makes no sense is skipped, and keeps nobody from the others.
func TestUndecodableRowsAreSkipped(t *testing.T) {
	s := mustOpen(t, options(t))
	defer s.Close()
	ctx := context.Background()
	id := herald.SessionID(benchID())
	a, b, c := benchMessage(), benchMessage(), benchMessage()
	msgs := []*herald.Message{a, b, c}
	commitTo(t, s, &persistence.Batch{
		Sessions:  []persistence.Session{{ID: id, Name: "c"}},
		Spreads:   []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: id, QoS: 1}}}},
		Subscribe: []persistence.SubscriptionOf{{Session: id, Subscription: persistence.Subscription{Filter: "a"}}, {Session: id, Subscription: persistence.Subscription{Filter: "b"}}},
		Held:      []persistence.Held{{Session: id, PacketID: 1, ID: a.ID}, {Session: id, PacketID: 2, ID: b.ID}},
	})
	junk, now := []byte{99, 1}, s.clock.next()
	for _, w := range []write{
		{stmt: putInbox, args: []any{int64(id), coarse(b.ID), int64(b.ID), junk, int32(0), now}},
		{stmt: putSubscription, args: []any{int64(id), []byte("a"), junk, int32(0), now}},
		{stmt: putWindow, args: []any{int64(id), slotHeld, int64(1), junk, int32(0), now}},
	} {
		if err := s.query(ctx, w.stmt, w.args...).Exec(); err != nil {
			t.Fatal(err)
		}
	}
	page, err := s.Inbox(ctx, id, 0, ^herald.ID(0), 10, 1<<20, nil)
	if err != nil || len(page) != 2 || page[0].Message.ID != a.ID || page[1].Message.ID != c.ID {
		t.Errorf("inbox: %v, %v", page, err)
	}
	subs, err := s.Subscriptions(ctx, id)
	if err != nil || len(subs) != 1 || subs[0].Filter != "b" {
		t.Errorf("subscriptions: %v, %v", subs, err)
	}
	w, err := s.Window(ctx, id)
	if err != nil || len(w.Held) != 1 || w.Held[0].PacketID != 2 {
		t.Errorf("window: %v, %v", w, err)
	}
	if n := s.corrupt.Load(); n != 3 {
		t.Errorf("%d rows counted, want 3", n)
	}
}

// Programs that start at once make one schema.
func TestSchemaIsAppliedAtOnce(t *testing.T) {
	c := cluster(t)
	o := Options{Hosts: c.Hosts(), Port: c.Port(), Keyspace: newKeyspace(), ReplicationFactor: 1}
	t.Cleanup(func() { drop(t, o) })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			st, err := ApplySchema(context.Background(), o)
			if err != nil || st.Version != SchemaVersion {
				t.Errorf("%v, %v", st, err)
			}
		})
	}
	wg.Wait()
	s := mustOpen(t, o)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is wrong with a database is said in one line, before anything is served.
func TestWrongDatabase(t *testing.T) {
	o := options(t)
	o.ConnectTimeout = 500e6
	for name, c := range map[string]struct {
		change func(*Options)
		want   error
		says   string
	}{
		"port":     {func(o *Options) { o.Port = 1 }, herald.ErrUnavailable, "store.scylla.hosts: no answer from 127.0.0.1, port 1"},
		"host":     {func(o *Options) { o.Hosts = []string{"no.such.host.invalid"} }, herald.ErrUnavailable, "store.scylla.hosts: no answer from no.such.host.invalid"},
		"keyspace": {func(o *Options) { o.Keyspace = "nobody_made_this" }, herald.ErrUnavailable, `store.scylla.keyspace: there is no "nobody_made_this"`},
		"name":     {func(o *Options) { o.Keyspace = "a-b" }, nil, "is not a name of a keyspace"},
	} {
		t.Run(name, func(t *testing.T) {
			o := o
			c.change(&o)
			_, err := Open(o)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
	t.Run("newer", func(t *testing.T) {
		s := mustOpen(t, o)
		if _, err := s.cql.Session.Query(fmt.Sprintf("UPDATE %s.herald_schema SET version = %d WHERE name = 'schema' IF EXISTS", o.Keyspace, SchemaVersion+1)).
			SerialConsistency(gocql.LocalSerial).MapScanCAS(map[string]any{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(o); !errors.Is(err, herald.ErrSchemaNewer) {
			t.Errorf("open: %v", err)
		}
		if _, err := ApplySchema(context.Background(), o); !errors.Is(err, herald.ErrSchemaNewer) {
			t.Errorf("apply: %v", err)
		}
	})
}
