package conformance

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// broker is what the suite talks to, fixed before the first test.
var broker struct {
	addr string // host:port
	ws   string // host:port/path, empty if there is none
	own  bool   // started by this run: its configuration is known
	// connectTime is how long a CONNECT may take until the connection must have
	// been closed.
	connectTime time.Duration
}

var page = flag.String("conformance.page", "", "write the page with the results to this `file`")

func TestMain(m *testing.M) {
	flag.Parse()
	// Most cases wait for the broker; two at a time would take minutes.
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	stop, err := findBroker()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 1
	}
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		code = 1
	}
	if filtered := flag.Lookup("test.run").Value.String()+flag.Lookup("test.skip").Value.String() != ""; code == 0 &&
		broker.own && !filtered && *page == "" {
		if was, err := os.ReadFile("../../docs/conformance.md"); err != nil || string(was) != Page(results) {
			fmt.Fprintln(os.Stderr, "conformance: docs/conformance.md is out of date; run go generate ./internal/conformance")
			code = 1
		}
	}
	if *page != "" {
		if err := os.WriteFile(*page, []byte(Page(results)), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			return 1
		}
	}
	return code
}

// findBroker starts Herald, or takes the broker that the environment names.
func findBroker() (func() error, error) {
	broker.addr, broker.ws = os.Getenv("HERALD_CONFORMANCE_ADDR"), os.Getenv("HERALD_CONFORMANCE_WS")
	broker.connectTime = 13 * time.Second // Herald's default is 10 s
	if broker.addr != "" {
		return func() error { return nil }, nil
	}
	broker.own, broker.connectTime = true, 5*time.Second // configured: 2 s
	dir, err := os.MkdirTemp("", "herald-conformance-")
	if err != nil {
		return nil, err
	}
	end, err := startHerald(dir)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return func() error {
		defer os.RemoveAll(dir)
		return end()
	}, nil
}

// startHerald builds and starts the real binary in dir and waits until it
// accepts connections.
func startHerald(dir string) (func() error, error) {
	bin := filepath.Join(dir, "herald")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/herald").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building cmd/herald: %v\n%s", err, out)
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	broker.addr = fmt.Sprintf("127.0.0.1:%d", ports[0])
	broker.ws = fmt.Sprintf("127.0.0.1:%d/mqtt", ports[1])
	config := filepath.Join(dir, "herald.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
node: {name: conformance, data: %q}
listeners:
  - {protocol: tcp, address: "127.0.0.1:%d"}
  - {protocol: ws, address: "127.0.0.1:%d", path: /mqtt}
admin: {address: "127.0.0.1:%d"}
mqtt: {max_keepalive: 60, connect_timeout: 2s}
log: {level: warn}
`, filepath.Join(dir, "data"), ports[0], ports[1], ports[2]), 0o600); err != nil {
		return nil, err
	}
	var logs lockedBuffer
	cmd := exec.Command(bin, "serve", "--config", config)
	cmd.Stdout, cmd.Stderr = &logs, &logs
	dieWithUs(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", broker.addr)
		if err == nil {
			conn.Close()
			break
		}
		select {
		case err := <-exited:
			return nil, fmt.Errorf("herald serve ended at once: %v\n%s", err, logs.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			<-exited
			return nil, fmt.Errorf("herald serve does not listen\n%s", logs.String())
		}
	}
	return func() error {
		select {
		case err := <-exited:
			return fmt.Errorf("herald died while it was tested: %v\n%s", err, logs.String())
		default:
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case err := <-exited:
			if err != nil {
				return fmt.Errorf("herald did not stop cleanly: %v\n%s", err, logs.String())
			}
			if bytes.Contains(logs.bytes(), []byte("panic")) {
				return fmt.Errorf("herald logged a panic\n%s", logs.String())
			}
			return nil
		case <-time.After(15 * time.Second):
			cmd.Process.Kill()
			<-exited
			return errors.New("herald did not stop within 15 s of SIGTERM")
		}
	}, nil
}

// dieWithUs ties a process to this one, where the system can.
var dieWithUs = func(*exec.Cmd) {}

// freePorts finds ports that nobody listens on now.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// lockedBuffer collects the broker's output while it runs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

func (l *lockedBuffer) String() string { return string(l.bytes()) }
