package checker

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"
)

// heraldDir holds the binary; TestMain removes it.
var heraldDir string

var buildHerald = sync.OnceValues(func() (string, error) {
	var err error
	if heraldDir, err = os.MkdirTemp("", "herald-checker-"); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return Build(ctx, heraldDir)
})

// startHerald builds and starts a node with a store of its own.
func startHerald(t *testing.T) *Process {
	t.Helper()
	binary, err := buildHerald()
	if err != nil {
		t.Fatal(err)
	}
	node, err := Herald(binary, t.TempDir(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	})
	return node
}

// Killed with SIGKILL every two seconds while its clients drop their
// connections, Herald loses, reorders, duplicates and forgets nothing. The long
// form of this is "make soak".
func TestHeraldKilled(t *testing.T) {
	node := startHerald(t)
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
}

// Clients that drop their connections, sessions that publish and subscribe at
// once and subscribers that join late get all that is due, and Herald closes no
// connection itself.
func TestHeraldClientsDrop(t *testing.T) {
	node := startHerald(t)
	report := mustRun(t, Config{
		Addrs: []string{node.Addr}, For: 4 * time.Second, Rate: 1000,
		QoS1Subscribers: 2, QoS2Subscribers: 2, MixedPublishers: 2, Both: 4, Joiners: 3,
		DropEvery: 500 * time.Millisecond, PublisherDropEvery: time.Second,
		Processes: []*Process{node}, Log: t.Logf,
	})
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Closed > report.Reasons["DISCONNECT 0x8e"] {
		t.Errorf("the broker closed %d connections of correct clients", report.Closed)
	}
}

// What is acknowledged for a shared group reaches one member, at QoS 2 once,
// while members drop their connections; then while the broker is killed.
func TestHeraldSharedGroup(t *testing.T) {
	node := startHerald(t)
	cfg := Config{
		Addrs: []string{node.Addr}, For: 4 * time.Second, Rate: 800,
		QoS1Publishers: 1, QoS2Publishers: 1, MixedPublishers: 2, Members: 3,
		DropEvery: 500 * time.Millisecond,
		Processes: []*Process{node}, Drain: 20 * time.Second, Quiet: 3 * time.Second, Log: t.Logf,
	}
	if err := mustRun(t, cfg).Err(); err != nil {
		t.Errorf("members drop: %v", err)
	}
	cfg.Faults, cfg.FaultEvery = []Fault{Kill{Processes: []*Process{node}}}, time.Second
	if err := mustRun(t, cfg).Err(); err != nil {
		t.Errorf("killed: %v", err)
	}
}
