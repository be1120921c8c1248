//go:build linux

// Package peer finds, configures, starts and stops the brokers of a benchmark:
// Herald and the ones that it is compared with.
//
// Each runs with the configuration that lets it do its best without breaking
// the comparison: no logging, windows large enough that nothing is dropped, no
// access control, no limit of processors. The peers keep everything in memory;
// Herald's data lies in a folder and is synced.
package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/proc"
)

// Names of the brokers.
const (
	Herald    = "herald"
	Mosquitto = "mosquitto"
	NATS      = "nats-server"
	Rumqttd   = "rumqttd"
)

// Peer is a broker that can be started.
type Peer struct {
	Name    string // one of the names above
	Path    string // of the program
	Version string // as it tells it
}

// Find looks for the program of a broker: path if not empty, then the
// environment variable HERALD_BENCH_NAME (the name in upper case, - as _),
// then the folders in dirs, then PATH and /usr/sbin.
func Find(name, path string, dirs ...string) (Peer, error) {
	candidates := []string{path}
	if path == "" {
		env := "HERALD_BENCH_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		candidates = []string{os.Getenv(env)}
		for _, d := range dirs {
			candidates = append(candidates, filepath.Join(d, name))
		}
		if p, err := exec.LookPath(name); err == nil {
			candidates = append(candidates, p)
		}
		candidates = append(candidates, filepath.Join("/usr/sbin", name))
	}
	for _, c := range candidates {
		if c == "" {
			continue
		}
		if info, err := os.Stat(c); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			abs, err := filepath.Abs(c)
			if err != nil {
				return Peer{}, fmt.Errorf("%s: %w", name, err)
			}
			return Peer{Name: name, Path: abs, Version: version(name, abs)}, nil
		}
	}
	return Peer{}, fmt.Errorf("%s: no such program (looked at %s)", name, strings.Join(candidates, " "))
}

func version(name, path string) string {
	arg := map[string]string{Herald: "version", Mosquitto: "-h", NATS: "-v", Rumqttd: "--version"}[name]
	out, _ := exec.Command(path, arg).CombinedOutput() // mosquitto -h exits with 3
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// Broker is a running broker. Its methods are for one goroutine.
type Broker struct {
	Peer
	Address string // MQTT over TCP

	dir  string // its own: configuration, data, log
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// Start runs a broker with fresh data in a new folder below dir and returns
// when it accepts MQTT clients.
func (p Peer) Start(ctx context.Context, dir string) (*Broker, error) {
	return p.start(ctx, dir, "")
}

// StartBridged runs two mosquittos of which the first passes on everything that is
// published there to the second, by mosquitto's own bridge, and returns when a
// message has crossed.
func (p Peer) StartBridged(ctx context.Context, dir string) (from, to *Broker, err error) {
	if to, err = p.Start(ctx, dir); err != nil {
		return nil, nil, err
	}
	if from, err = p.start(ctx, dir, mosquittoBridge(to.Address)); err != nil {
		to.Stop()
		return nil, nil, err
	}
	if err = crosses(ctx, from, to); err != nil {
		from.Stop()
		to.Stop()
		return nil, nil, err
	}
	return from, to, nil
}

// crosses waits until what is published at one broker arrives at the other.
func crosses(ctx context.Context, from, to *Broker) (err error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		_, err = load.Run(ctx, load.Config{
			Target: to.Address, From: from.Address, QoS: 0, Count: 1, Stall: 200 * time.Millisecond, Prefix: "ready",
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("nothing crosses from one %s to the other: %w: %s", from.Name, err, from.LogTail())
}

// start is Start with more lines of configuration.
func (p Peer) start(ctx context.Context, dir, more string) (*Broker, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	own, err := os.MkdirTemp(dir, p.Name+"-")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	b := &Broker{Peer: p, dir: own}
	ports, err := freePorts(2)
	if err == nil {
		b.Address = ports[0]
		b.args, err = p.configure(own, ports, more)
	}
	if err == nil {
		err = b.Run(ctx)
	}
	if err != nil {
		b.Stop()
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	return b, nil
}

// Run starts the process, again after Kill with the data that is there, and
// returns when it accepts MQTT clients.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.Launch(); err != nil {
		return err
	}
	return b.awaitReady(ctx)
}

// Launch starts the process and does not wait.
func (b *Broker) Launch() error {
	log, err := os.OpenFile(b.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(b.Path, b.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, log, log
	// Not left behind when the benchmark is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.cmd, b.done = cmd, make(chan struct{})
	go func(done chan struct{}) { _ = cmd.Wait(); close(done) }(b.done)
	return nil
}

func (b *Broker) logPath() string { return filepath.Join(b.dir, "log") }

func (b *Broker) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	est := load.Establish{Target: b.Address, Leave: true, Timeout: 2 * time.Second}
	for {
		err := est.Run(ctx, 1, func(int) load.Session { return load.Session{ClientID: "ready", Clean: true} }, nil)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-b.done:
			return fmt.Errorf("it ended at once: %s", b.LogTail())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after 30 s: %w: %s", err, b.LogTail())
		}
	}
}

// LogTail is the last lines of what the broker printed.
func (b *Broker) LogTail() string {
	data, err := os.ReadFile(b.logPath())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data[max(0, len(data)-600):]))
}

// PID is the process's number.
func (b *Broker) PID() int { return b.cmd.Process.Pid }

// CPU is the processor time that the broker has used.
func (b *Broker) CPU() (time.Duration, error) { return proc.CPU(b.PID()) }

// Resident is the broker's resident memory in bytes.
func (b *Broker) Resident() (int64, error) { return proc.Resident(b.PID()) }

// Exited is closed when the process has ended.
func (b *Broker) Exited() <-chan struct{} { return b.done }

// Kill ends the process with SIGKILL and waits. The data stays.
func (b *Broker) Kill() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill()
	<-b.done
}

// Stop ends the process, by force after 10 s, and removes its data.
func (b *Broker) Stop() {
	if b.cmd != nil {
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-b.done:
		case <-time.After(10 * time.Second):
			b.Kill()
		}
	}
	_ = os.RemoveAll(b.dir)
	_ = os.RemoveAll(memoryDir(b.dir))
}

// freePorts returns n loopback addresses that were free a moment ago.
func freePorts(n int) ([]string, error) {
	var out []string
	var errs error
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		defer ln.Close()
		out = append(out, ln.Addr().String())
	}
	return out, errs
}
