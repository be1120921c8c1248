package cassandra_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
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
	outages []outage // read when the run is over
}

// outage is from the kill until CQL is spoken again.
type outage struct{ gone, back time.Time }

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
	o := outage{gone: time.Now()}
	for _, i := range nodes {
		if err := a.cluster.Kill(i); err != nil {
			return err
		}
	}
	select {
	case <-time.After(a.down):
	case <-ctx.Done():
	}
	for _, i := range nodes {
		if err := a.cluster.Restart(context.WithoutCancel(ctx), i); err != nil {
			return err
		}
	}
	o.back = time.Now()
	a.outages = append(a.outages, o)
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
	apply := exec.Command(path, "schema", "apply", "--config", dir+"/herald.yaml")
	apply.Env = checker.Environ()
	if out, err := apply.CombinedOutput(); err != nil {
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
