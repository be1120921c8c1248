package checker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// mosquitto starts mosquitto without persistence on a free port.
func mosquitto(t *testing.T) *Process {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			t.Skip("mosquitto is not installed; it is here only to try the checker on another broker")
		}
	}
	ports, err := FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "mosquitto.conf")
	text := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 100000\n", ports[0])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Process{Path: path, Args: []string{"-c", config}, Dir: dir, Addr: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// The clients are correct in another broker's eyes: while all connections
// stay, mosquitto answers and delivers everything. Its order is not looked at: when
// a client's window is full it sends what is queued at one QoS before the other.
func TestMosquittoUndisturbed(t *testing.T) {
	p := mosquitto(t)
	report := mustRun(t, Config{
		Addrs: []string{p.Addr}, For: 2 * time.Second, Rate: 1000,
		Plain: true, DropEvery: -1, PublisherDropEvery: -1, Members: 3, MixedPublishers: 2, Both: 2,
		QoS1Subscribers: 4, QoS2Subscribers: 4, Joiners: 2,
		Processes: []*Process{p}, Quiet: 2 * time.Second, Log: t.Logf,
	})
	report.Reordered = Finding{}
	if err := report.Err(); err != nil {
		t.Fatal(err)
	}
	if report.Closed != 0 {
		t.Errorf("mosquitto closed %d connections", report.Closed)
	}
}

// A broker that keeps nothing forgets its sessions when it is killed, and the
// checker says so.
func TestMosquittoKilled(t *testing.T) {
	p := mosquitto(t)
	report := mustRun(t, Config{
		Addrs: []string{p.Addr}, For: 2 * time.Second, Rate: 500,
		Faults: []Fault{Kill{Processes: []*Process{p}}}, FaultEvery: time.Second,
		Processes: []*Process{p}, Quiet: time.Second, Log: t.Logf,
	})
	if report.Forgotten.Count == 0 || report.Crashes.Count != 0 {
		t.Fatalf("%v", report.Err())
	}
}
