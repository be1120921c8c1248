package clustertest

import (
	"context"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/cassandra"
)

// shared is what the tests of this package build and start once.
var shared struct {
	dir   string
	store *cassandra.Cluster
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.store != nil {
		shared.store.Stop()
	}
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

var binary = sync.OnceValues(func() (_ string, err error) {
	if shared.dir, err = os.MkdirTemp("", "herald-clustertest-"); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return Binary(ctx, shared.dir)
})

var store = sync.OnceValues(func() (_ *cassandra.Cluster, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	shared.store, err = cassandra.Launch(ctx, cassandra.Options{})
	return shared.store, err
})

// start starts a cluster with the package's binary and, unless opts ask for
// another, on its database.
func start(t *testing.T, opts Options) *Cluster {
	t.Helper()
	var err error
	if opts.Binary, err = binary(); err != nil {
		t.Fatal(err)
	}
	if opts.Databases <= 1 && opts.Store == nil {
		if opts.Store, err = store(); err != nil {
			t.Fatal(err)
		}
	}
	return Start(t, opts)
}

// becomes waits until a node says that it is ready, or that it is not.
func becomes(t *testing.T, n *Node, ready bool, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get(n.URL)
		if err == nil {
			resp.Body.Close()
			if ready == (resp.StatusCode == http.StatusOK) {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s: ready %t is not so after %v", n.Name, ready, within)
		}
	}
}

// A node whose links to the database are cut has no other way to it, with one
// database server and with three, whose driver learns the servers' addresses from
// the servers.
func TestLinksCannotBePassed(t *testing.T) {
	for _, databases := range []int{1, 3} {
		if databases > 1 && testing.Short() {
			continue // a minute
		}
		c := start(t, Options{Brokers: 1, Databases: databases})
		if c.Store.Given() {
			t.Skip("a database that was given says itself where it is: the links would be passed by")
		}
		n := c.Nodes[0]
		harms := []Harm{Cut, Silent, SilentOut, SilentIn}
		if databases > 1 {
			harms = harms[:1]
		}
		for _, harm := range harms {
			for _, l := range n.ToStore {
				l.Set(harm)
			}
			becomes(t, n, false, 10*time.Second)
			c.Heal()
			becomes(t, n, true, 20*time.Second)
		}
	}
}
