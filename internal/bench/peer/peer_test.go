//go:build linux

package peer

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/internal/bench/load"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, Rumqttd)
	if err := os.WriteFile(file, []byte("#!/bin/sh\necho rumqttd 9\necho more\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, find := range map[string]func() (Peer, error){
		"path":   func() (Peer, error) { return Find(Rumqttd, file) },
		"folder": func() (Peer, error) { return Find(Rumqttd, "", dir) },
		"environment": func() (Peer, error) {
			t.Setenv("HERALD_BENCH_RUMQTTD", file)
			return Find(Rumqttd, "")
		},
	} {
		p, err := find()
		if err != nil || p.Path != file || p.Version != "rumqttd 9" {
			t.Errorf("%s: %+v, error %v", name, p, err)
		}
	}
	if _, err := Find("no-such-broker", ""); err == nil {
		t.Error("found a broker that is not there")
	}
	if _, err := Find(Herald, filepath.Join(dir, "absent")); err == nil {
		t.Error("a given path was passed over")
	}
}

// Herald's own configuration must be one that it takes.
func TestHeraldConfiguration(t *testing.T) {
	dir := t.TempDir()
	args, err := Peer{Name: Herald}.configure(dir, []string{"127.0.0.1:18830", "127.0.0.1:18831"}, "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(config.Sources{File: args[len(args)-1]})
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Data != filepath.Join(dir, "data") || len(c.Listeners) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestConfigurations(t *testing.T) {
	for _, name := range []string{Mosquitto, NATS, Rumqttd} {
		dir := t.TempDir()
		args, err := Peer{Name: name}.configure(dir, []string{"127.0.0.1:18830", "127.0.0.1:18831"}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(args[len(args)-1]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Peer{Name: "other"}).configure(t.TempDir(), []string{"", ""}, ""); err == nil {
		t.Error("a configuration for an unknown broker")
	}
}

// What is published at the first of two bridged mosquittos arrives at the second,
// and nothing that is published at the second at the first.
func TestBridged(t *testing.T) {
	p, err := Find(Mosquitto, "")
	if err != nil {
		t.Skip(err) // make test-tools installs it
	}
	from, to, err := p.StartBridged(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Stop()
	defer from.Stop()
	c := load.Config{Target: to.Address, From: from.Address, QoS: 1, Publishers: 2, Subscribers: 2, Topics: 2, Count: 100}
	r, err := load.Run(t.Context(), c)
	if err != nil || r.Delivered != 200 || r.WrongQoS > 0 {
		t.Fatalf("%v, result %+v", err, r)
	}
	c.Target, c.From, c.Stall = from.Address, to.Address, 200*time.Millisecond
	if r, err := load.Run(t.Context(), c); err == nil || r.Delivered > 0 {
		t.Fatalf("%v, result %+v", err, r)
	}
}
