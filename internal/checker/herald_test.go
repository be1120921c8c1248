package checker

import (
	"context"
	"testing"
	"time"
)

// Herald itself: killed with SIGKILL every two seconds while its clients drop
// their connections, it loses, reorders, duplicates and forgets nothing. The
// long form of this is "make soak".
func TestHeraldKilled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	binary, err := Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	node, err := Herald(binary, dir, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer node.Kill()
	duration := 20 * time.Second
	if testing.Short() {
		duration = 6 * time.Second
	}
	report := mustRun(t, Config{
		Addrs: []string{node.Addr}, For: duration, Rate: 1000,
		Faults: []Fault{Kill{Processes: []*Process{node}}}, FaultEvery: 2 * time.Second,
		Processes: []*Process{node}, Log: t.Logf,
	})
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Faults["SIGKILL"] == 0 || report.Drops == 0 {
		t.Errorf("nothing was killed or dropped: %v", report)
	}
	if err := node.Stop(); err != nil {
		t.Error(err)
	}
}

// With nothing but sessions that publish and subscribe at once, joiners and a
// shared group, and no kills, no connection is closed by the broker.
func TestHeraldUndisturbed(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	binary, err := Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	node, err := Herald(binary, dir, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer node.Kill()
	report := mustRun(t, Config{
		Addrs: []string{node.Addr}, For: 4 * time.Second, Rate: 1000,
		QoS1Subscribers: 2, QoS2Subscribers: 2, MixedPublishers: 2, Both: 4, Joiners: 3, Members: 3,
		Processes: []*Process{node}, Log: t.Logf,
	})
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Closed != 0 {
		t.Errorf("the broker closed %d connections of correct clients", report.Closed)
	}
}
