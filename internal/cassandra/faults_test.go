package cassandra_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/cassandra"
	"github.com/herald-mqtt/herald/internal/checker"
)

// away kills one database node, or all of them, and starts them again.
type away struct {
	cluster *cassandra.Cluster
	all     bool
	down    time.Duration
	during  func() // called when they are gone, and has all the time
}

func (a *away) String() string {
	if a.all {
		return "the database is gone"
	}
	return "a database node is gone"
}

func (a *away) Inject(ctx context.Context, rng *rand.Rand) error {
	nodes := []int{rng.IntN(len(a.cluster.Hosts()))}
	if a.all {
		nodes = nodes[:0]
		for i := range a.cluster.Hosts() {
			nodes = append(nodes, i)
		}
	}
	for _, i := range nodes {
		if err := a.cluster.Kill(i); err != nil {
			return err
		}
	}
	end := time.After(a.down)
	if a.during != nil {
		a.during()
	}
	select {
	case <-end:
	case <-ctx.Done():
	}
	for _, i := range nodes {
		if err := a.cluster.Restart(context.WithoutCancel(ctx), i); err != nil {
			return err
		}
	}
	return nil
}

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "herald-cql-")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return checker.Build(ctx, dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.Remove(path)
	}
	os.Exit(code)
}

// herald starts a node on a database.
func herald(t *testing.T, port, copies int, log *bytes.Buffer) *checker.Process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	extra := fmt.Sprintf("store:\n  engine: scylla\n  scylla: {hosts: [127.0.0.1], port: %d, keyspace: herald_faults, replication: %d}\n", port, copies)
	node, err := checker.Herald(path, dir, extra, log)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "schema", "apply", "--config", dir+"/herald.yaml").CombinedOutput(); err != nil {
		t.Fatalf("schema apply: %v\n%s", err, out)
	}
	if err := node.Start(context.Background()); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the node:\n%s", log)
		}
	})
	return node
}

// One of three database nodes is killed, and comes back later: nothing is lost,
// and publishing pauses for two seconds at most.
func TestDatabaseNodeKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("three database nodes take a minute")
	}
	c := cassandra.StartWith(t, cassandra.Options{Nodes: 3, Heap: 450, Durable: true})
	node := herald(t, c.Port(), 3, new(bytes.Buffer))
	report, err := checker.Run(context.Background(), checker.Config{
		Addrs: []string{node.Addr}, For: 30 * time.Second, Rate: 150, QoS1Publishers: 2, QoS2Publishers: 2,
		QoS1Subscribers: 2, QoS2Subscribers: 2, Window: 16,
		Faults: []checker.Fault{&away{cluster: c, down: 6 * time.Second}}, FaultEvery: 5 * time.Second,
		Quiet: 30 * time.Second, Drain: 2 * time.Minute,
		Processes: []*checker.Process{node}, Log: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if pause := time.Duration(report.LongestPause); pause > 2*time.Second {
		t.Errorf("publishing paused for %v", pause)
	}
}

// The whole database goes away: the node says that it is not ready, crashes not,
// and goes on within ten seconds of the database's return. Nothing is lost.
func TestDatabaseGone(t *testing.T) {
	c := cassandra.StartWith(t, cassandra.Options{Durable: true})
	if c.Given() {
		t.Skip("a database that was given is not killed")
	}
	node := herald(t, c.Port(), 1, new(bytes.Buffer))
	ready := func() bool {
		r, err := http.Get(node.URL)
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	}
	gone := &away{cluster: c, all: true, down: 5 * time.Second, during: func() {
		for end := time.Now().Add(4 * time.Second); ready(); {
			if time.Now().After(end) {
				t.Error("the node still says that it is ready")
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}}
	report, err := checker.Run(context.Background(), checker.Config{
		Addrs: []string{node.Addr}, For: 25 * time.Second, Rate: 200, QoS1Publishers: 2, QoS2Publishers: 2,
		QoS1Subscribers: 2, QoS2Subscribers: 2, Window: 16,
		Faults: []checker.Fault{gone}, FaultEvery: 5 * time.Second, Quiet: 30 * time.Second, Drain: 2 * time.Minute,
		Processes: []*checker.Process{node}, Log: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Faults[gone.String()] == 0 {
		t.Error("the database was never gone")
	}
}
