package checker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// readyTimeout bounds how long a process may take to become ready.
const readyTimeout = 60 * time.Second

// Process is a broker, or another server, that can be killed and started
// again. Its methods may be called from several goroutines; one Start, Kill or
// Stop runs at a time.
type Process struct {
	// Fixed before Start.
	Path string
	Args []string
	Env  []string // added to [Environ]
	Dir  string
	// Addr is asked with an MQTT CONNECT, and URL with GET, until both are
	// satisfied: the process is ready. Either may be empty.
	Addr string
	URL  string
	// Ready replaces both, for servers of another kind; it is called again
	// until it returns nil.
	Ready func(ctx context.Context) error
	// Log gets stdout and stderr as well, if not nil.
	Log io.Writer

	turn sync.Mutex // held by Start, Kill and Stop

	mu     sync.Mutex // guards below
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	told   bool          // it is to end
	deaths []string
	tail   tail
}

// tail keeps the last output.
type tail struct {
	mu  sync.Mutex
	buf []byte
	log io.Writer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 4<<10; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	if t.log != nil {
		_, _ = t.log.Write(p) // the tail has it
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}

// Environ is this process's environment without what configures a broker
// (HERALD_...): a test's own variables would be refused there as unknown keys.
func Environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "HERALD_") })
}

// Start starts the process and returns when it is ready. Where the system can,
// it is killed when this process ends.
func (p *Process) Start(ctx context.Context) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Dir = p.Dir
	cmd.Env = append(Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = &p.tail, &p.tail
	p.tail.mu.Lock()
	p.tail.log, p.tail.buf = p.Log, nil
	p.tail.mu.Unlock()
	exited := make(chan struct{})
	started := make(chan error, 1)
	go func() {
		// The process dies with the thread that starts it, so that one has to
		// live as long: nothing is left behind when a test is cut off.
		defer lockThread()()
		dieWithParent(cmd)
		err := cmd.Start()
		if err == nil {
			p.mu.Lock()
			p.cmd, p.exited, p.told = cmd, exited, false
			p.mu.Unlock()
		}
		started <- err
		if err == nil {
			p.wait(cmd, exited)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("checker: start %s: %w", filepath.Base(p.Path), err)
	}
	if err := p.awaitReady(ctx, exited); err != nil {
		p.end(syscall.SIGKILL)
		return fmt.Errorf("checker: %s: %w; its last output:\n%s", filepath.Base(p.Path), err, p.tail.String())
	}
	return nil
}

func (p *Process) wait(cmd *exec.Cmd, exited chan struct{}) {
	err := cmd.Wait()
	p.mu.Lock()
	if !p.told {
		text := "exit status 0"
		if err != nil {
			text = err.Error()
		}
		p.deaths = append(p.deaths, fmt.Sprintf("%s (%s): %s; its last output:\n%s", filepath.Base(p.Path), p.Addr, text, p.tail.String()))
	}
	p.mu.Unlock()
	close(exited)
}

// Await returns when the process is ready again, after a harm that did not end
// it; not being so within a minute is an error.
func (p *Process) Await(ctx context.Context) error {
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	if err := p.awaitReady(ctx, exited); err != nil {
		return fmt.Errorf("checker: %s (%s): %w; its last output:\n%s", filepath.Base(p.Path), p.Addr, err, p.tail.String())
	}
	return nil
}

func (p *Process) awaitReady(ctx context.Context, exited chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ready := p.Ready
	if ready == nil {
		ready = p.probe
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return errors.New("ended before it was ready")
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-tick.C:
		}
	}
}

// probe asks the MQTT port and the ready URL.
func (p *Process) probe(ctx context.Context) error {
	if p.URL != "" {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
		if err != nil {
			return err
		}
		// Keeping such a connection would outlive the process it leads to.
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s says %s", p.URL, resp.Status)
		}
	}
	if p.Addr == "" {
		return nil
	}
	return Probe(ctx, p.Addr)
}

// Probe connects to addr with an MQTT 3.1.1 clean session, and disconnects. A
// broker that refuses the connection is alive too: only silence or a broken
// connection is an error.
func Probe(ctx context.Context, addr string) error {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// Nodes of one cluster that are asked at the same time are not to take the
	// session over from each other.
	id := fmt.Sprintf("probe%x", randomUint64())
	return exchange(conn, connectOptions{version: v311, clientID: id, clean: true, keepAlive: keepAlive})
}

// exchange sends CONNECT, waits for CONNACK and sends DISCONNECT.
func exchange(conn net.Conn, o connectOptions) error {
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := conn.Write(appendConnect(nil, o)); err != nil {
		return err
	}
	var buf []byte
	f, err := readFrame(bufio.NewReader(conn), &buf)
	if err != nil {
		return err
	}
	if _, err := parseConnack(f, o.version); err != nil {
		return err
	}
	_, err = conn.Write([]byte{typeDisconnect << 4, 0})
	return err
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	return p.end(syscall.SIGKILL)
}

// Stop ends the process with SIGTERM and waits until it is gone; after 15 s it
// is killed, and that is an error.
func (p *Process) Stop() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	return p.end(syscall.SIGTERM)
}

// PID is the number of the process that was started last; 0 if none was.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Signal sends any signal to a process that runs.
func (p *Process) Signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// end signals the process and waits; p.turn is held. A process that does not
// run is not an error.
func (p *Process) end(sig syscall.Signal) error {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	if cmd == nil {
		p.mu.Unlock()
		return nil
	}
	select {
	case <-exited:
		p.mu.Unlock()
		return nil
	default:
	}
	p.told = true
	err := cmd.Process.Signal(sig)
	p.mu.Unlock()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("checker: signal %s: %w", filepath.Base(p.Path), err)
	}
	select {
	case <-exited:
		return nil
	case <-time.After(15 * time.Second):
	}
	_ = cmd.Process.Kill() // it may just have ended
	<-exited
	return fmt.Errorf("checker: %s did not end on %v within 15 s; its last output:\n%s", filepath.Base(p.Path), sig, p.tail.String())
}

// Deaths describes each time the process ended without having been told to.
func (p *Process) Deaths() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.deaths)
}
