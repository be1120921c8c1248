package scylla

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/herald-mqtt/herald/internal/cassandra"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/storetest"
)

// server is the database of all tests of this package, started by the first that
// needs it.
var server struct {
	sync.Mutex
	cluster *cassandra.Cluster
}

func TestMain(m *testing.M) {
	flag.Parse()
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() == checks.DefValue {
		_ = flag.Set("rapid.checks", "8") // a database takes its time
	}
	code := m.Run()
	if server.cluster != nil {
		server.cluster.Stop()
	}
	os.Exit(code)
}

func cluster(t testing.TB) *cassandra.Cluster {
	t.Helper()
	server.Lock()
	defer server.Unlock()
	if server.cluster == nil {
		c, err := cassandra.Launch(context.Background(), cassandra.Options{Log: t.Logf})
		if err != nil {
			t.Fatal(err)
		}
		server.cluster = c
	}
	return server.cluster
}

// keyspaces makes names that no other test uses.
var keyspaces atomic.Int64

func newKeyspace() string {
	return fmt.Sprintf("herald_test_%d_%d_%d", os.Getpid(), time.Now().Unix()%1_000_000, keyspaces.Add(1))
}

// options are those of a store in a keyspace of its own, whose tables are there.
func options(t testing.TB) Options {
	t.Helper()
	c := cluster(t)
	o := Options{Hosts: c.Hosts(), Port: c.Port(), Keyspace: newKeyspace(), ReplicationFactor: 1, CountEvery: -1, Logger: logger(t)}
	if _, err := ApplySchema(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { drop(t, o) })
	return o
}

func logger(t testing.TB) *zap.Logger {
	if testing.Verbose() {
		return zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel))
	}
	return zap.NewNop()
}

func drop(t testing.TB, o Options) {
	o.Timeout = time.Minute
	o = o.withDefaults()
	s, err := o.connect("")
	if err != nil {
		t.Logf("drop keyspace: %v", err)
		return
	}
	defer s.Close()
	if err := s.ExecStmt("DROP KEYSPACE IF EXISTS " + o.Keyspace); err != nil {
		t.Logf("drop keyspace: %v", err)
	}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// empty removes what earlier tests have left in a keyspace.
func empty(t testing.TB, o Options) {
	t.Helper()
	o = o.withDefaults()
	s, err := o.connect(o.Keyspace)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	for _, table := range []string{"session", "claim", "member", "subscription", "window", "inbox", "payload", "retained", "retained_index", "will", "expiry", "expiry_bucket", "intent", "node", "ban"} {
		var n int
		if err := s.Query("SELECT COUNT(*) FROM "+table+" LIMIT 1", nil).Scan(&n); err == nil && n == 0 && table != "intent" {
			continue // of intents, tombstones count, too: the node's clock begins anew
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := s.ExecStmt("TRUNCATE " + table); err != nil {
				t.Errorf("truncate %s: %v", table, err)
			}
		}()
	}
	wg.Wait()
}

// driver lets a suite use one keyspace after the other's data.
func driver(t testing.TB, change func(*Options)) storetest.Driver {
	o := options(t)
	if change != nil {
		change(&o)
	}
	return storetest.Driver{
		Large:  20_000,
		Rounds: 15,
		Open: func(t testing.TB) persistence.Store {
			empty(t, o)
			return mustOpen(t, o)
		},
		Node: func(t testing.TB, on persistence.Cluster, ahead time.Duration) persistence.Cluster {
			if on == nil {
				empty(t, o)
			}
			o := o
			o.Cluster, o.Now = true, func() time.Time { return time.Now().Add(ahead) }
			return mustOpen(t, o)
		},
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return mustOpen(t, s.(*Store).opts)
		},
	}
}

func TestStore(t *testing.T) {
	storetest.Run(t, driver(t, nil))
}

// Every entry but the first few in fine buckets, hardly a payload in its entry,
// and no cache.
func TestStoreDivided(t *testing.T) {
	d := driver(t, func(o *Options) { o.SplitAfter, o.InlineUpTo, o.CacheTTL = 3, 1, -1 })
	d.Large = 2000
	storetest.Run(t, d)
}
