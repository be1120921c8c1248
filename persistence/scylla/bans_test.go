package scylla

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

func banned(who string, until int64) persistence.BanChange {
	return persistence.BanChange{Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: persistence.BanClient, Who: who}, Until: until}}
}

// Who has not asked for so long that it is no longer known what was changed gets the
// whole list, and so does who finds a gap; what cannot be decoded is skipped and
// counted.
func TestBansBehindWhatIsKnown(t *testing.T) {
	s := mustOpen(t, options(t))
	defer s.Close()
	change := func(c persistence.BanChange) uint64 {
		t.Helper()
		v, err := s.ChangeBan(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	news := func(since uint64) persistence.BanNews {
		t.Helper()
		n, err := s.BanNews(t.Context(), since)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	exec := func(cql string, args ...any) {
		t.Helper()
		if err := s.cql.Session.Query(cql, args...).Exec(); err != nil {
			t.Fatal(err)
		}
	}
	first := change(banned("one", time.Now().Add(time.Hour).UnixMilli()))
	second := change(banned("two", 0))
	if n := news(first); n.Whole || len(n.Changes) != 1 || n.Changes[0].Who != "two" {
		t.Fatalf("news: %+v", n)
	}
	// The row of a ban that ends goes by itself, a minute later.
	var ttl *int
	for who, want := range map[string]int{"one": 3600 + 60, "two": 0} {
		if err := s.cql.Session.Query("SELECT TTL(row) FROM ban WHERE part = 0 AND key = ?", banKey(banned(who, 0).BanKey)).Scan(&ttl); err != nil {
			t.Fatal(err)
		}
		if got := deref(int64p(ttl)); int(got) > want || int(got) < want-60 {
			t.Errorf("%s lives for %d s, want about %d", who, got, want)
		}
	}
	exec("DELETE FROM ban WHERE part = 0 AND key = ?", banChangeKey(second))
	if n := news(first); !n.Whole || len(n.Changes) != 2 || n.Version != second {
		t.Fatalf("behind a gap: %+v", n)
	}
	exec("UPDATE ban SET row = 0x63 WHERE part = 0 AND key = ?", banKey(banned("two", 0).BanKey))
	before := s.corrupt.Load()
	if n := news(0); len(n.Changes) != 1 || n.Unreadable != 1 || s.corrupt.Load() != before+1 {
		t.Fatalf("with a row that cannot be decoded: %+v", n)
	}
	// One that has ended already is none.
	change(banned("one", time.Now().Add(-time.Second).UnixMilli()))
	if n := news(second); len(n.Changes) != 1 || !n.Changes[0].Gone {
		t.Fatalf("one that has ended: %+v", n)
	}
	done := make(chan error, 1)
	s.Commit(&persistence.Batch{Bans: []persistence.BanChange{banned("three", 0)}}, func(err error) { done <- err })
	if err := <-done; err == nil {
		t.Error("a batch with a ban was committed")
	}
}

func int64p(v *int) *int64 {
	if v == nil {
		return nil
	}
	w := int64(*v)
	return &w
}

// Tables of version 1 get what version 2 has, and keep what is in them.
func TestSchemaFromVersion1(t *testing.T) {
	o := options(t)
	full := o.withDefaults()
	s, err := full.connect("")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, stmt := range []string{
		fmt.Sprintf("DROP TABLE %s.ban", o.Keyspace),
		fmt.Sprintf("INSERT INTO %s.session (key, row) VALUES (0x01, 0x02)", o.Keyspace),
		fmt.Sprintf("UPDATE %s.herald_schema SET version = 1 WHERE name = 'schema' IF EXISTS", o.Keyspace),
	} {
		if err := execSchema(t.Context(), s, stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	if st, err := SchemaStatus(context.Background(), o); err != nil || st.Version != 1 {
		t.Fatalf("before: %v, %v", st, err)
	}
	if _, err := Open(o); err == nil {
		t.Fatal("a store of version 1 was opened")
	}
	if st, err := ApplySchema(context.Background(), o); err != nil || st.Version != 2 {
		t.Fatalf("after: %v, %v", st, err)
	}
	var n int
	if err := s.Query(fmt.Sprintf("SELECT COUNT(*) FROM %s.session", o.Keyspace), nil).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}
	st := mustOpen(t, o)
	defer st.Close()
	if _, err := st.ChangeBan(t.Context(), banned("one", 0)); err != nil {
		t.Error(err)
	}
}

// What bans cost: asking whether anything has changed, which every node does once a
// second; a change; reading 100,000 bans, which a node does when it starts.
func BenchmarkBans(b *testing.B) {
	s := mustOpen(b, options(b))
	defer s.Close()
	version, err := s.ChangeBan(b.Context(), banned("first", 0))
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000 { // past the transactions, which would take ten minutes
		batch := s.cql.Session.NewBatch(gocql.UnloggedBatch)
		for k := range 100 {
			c := banned(fmt.Sprintf("a-client-of-some-length-%d", i*100+k), 0)
			c.Reason, c.By = "sends too much of everything", "operator"
			batch.Query(putBan.cql, int32(0), record.AppendBan(nil, &c), bans, banKey(c.BanKey))
		}
		if err := s.cql.Session.ExecuteBatch(batch); err != nil {
			b.Fatal(err)
		}
	}
	news := func(b *testing.B, since uint64, want int) {
		n, err := s.BanNews(b.Context(), since)
		if err != nil || len(n.Changes) < want {
			b.Fatal(len(n.Changes), err)
		}
	}
	b.Run("nothing new", func(b *testing.B) {
		for b.Loop() {
			news(b, version, 0)
		}
	})
	b.Run("all of 100,000", func(b *testing.B) {
		for b.Loop() {
			news(b, 0, 100_000)
		}
	})
	b.Run("change", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.ChangeBan(b.Context(), banned(fmt.Sprint(i), 0)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
