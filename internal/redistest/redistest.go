// Package redistest runs real redis-servers as processes of their own, which a
// test may kill, freeze, empty and set back to an older state.
package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is one redis-server on a free port of 127.0.0.1, with a folder of its
// own. Its methods are for one goroutine.
type Server struct {
	// Addr is host:port; it stays the same over restarts.
	Addr string

	tb   testing.TB
	dir  string
	port int
	args []string
	conf string // of a Sentinel
	cmd  *exec.Cmd
	gone chan struct{} // closed when the process has ended
}

// Start runs a server until the test ends; args are added to its command line.
// It writes nothing to disk but what [Server.Save] asks for. A machine without
// redis-server fails the test: `make test-tools` installs it.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		tb.Fatal("redis-server is missing: make test-tools installs it")
	}
	s := &Server{tb: tb, dir: tb.TempDir(), args: args}
	s.start()
	return s
}

// Sentinel runs a Sentinel that watches master under the given name, and alone
// decides that it is down after half a second.
func Sentinel(tb testing.TB, name string, master *Server) *Server {
	tb.Helper()
	s := &Server{tb: tb, dir: tb.TempDir()}
	s.conf = filepath.Join(s.dir, "sentinel.conf")
	conf := fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 1\nsentinel down-after-milliseconds %s 500\n"+
		"sentinel failover-timeout %s 2000\n", name, master.port, name, name)
	if err := os.WriteFile(s.conf, []byte(conf), 0o600); err != nil {
		tb.Fatal(err)
	}
	s.start()
	return s
}

func (s *Server) start() {
	tb := s.tb
	tb.Helper()
	tb.Cleanup(s.Kill)
	// Another process may take the port before the server has it.
	for try := 0; ; try++ {
		s.port = freePort(tb)
		s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
		err := s.launch()
		if err == nil {
			return
		}
		if try == 4 {
			tb.Fatal(err)
		}
	}
}

// URL is the address as a client wants it.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Port is the server's port.
func (s *Server) Port() int { return s.port }

// Kill ends the process with SIGKILL and waits until it is gone. Killing it
// twice is harmless.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // one that is gone already is as good
	<-s.gone
	s.cmd = nil
}

// Freeze stops the process (SIGSTOP): connections stay, nothing answers.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.tb.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Fatal(err)
	}
}

// Restart starts the server again with what its folder holds: what the last
// [Server.Save] wrote, or nothing.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Kill()
	// The port was ours a moment ago and comes back.
	var err error
	for try := 0; try < 20; try++ {
		if err = s.launch(); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.tb.Fatal(err)
}

// RestartEmpty starts the server again without its data.
func (s *Server) RestartEmpty() {
	s.tb.Helper()
	s.Kill()
	if err := os.Remove(filepath.Join(s.dir, "dump.rdb")); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.tb.Fatal(err)
	}
	s.Restart()
}

// Save has the server write its data to its folder: a [Server.Restart] comes
// back with it and without whatever was written later.
func (s *Server) Save() {
	s.tb.Helper()
	if reply := s.Do("SAVE"); reply != "+OK" {
		s.tb.Fatal("SAVE: " + reply)
	}
}

// Do sends one inline command and returns the first line of the reply.
func (s *Server) Do(command string) string {
	s.tb.Helper()
	reply, err := s.do(command)
	if err != nil {
		s.tb.Fatal(err)
	}
	line, _, _ := strings.Cut(reply, "\r\n")
	return line
}

// Text sends one inline command and returns what came back at once.
func (s *Server) Text(command string) string {
	s.tb.Helper()
	reply, err := s.do(command)
	if err != nil {
		s.tb.Fatal(err)
	}
	return reply
}

func (s *Server) do(command string) (string, error) {
	conn, err := net.DialTimeout("tcp", s.Addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// launch starts the process and waits until it has loaded its data.
func (s *Server) launch() error {
	args := []string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1",
		"--dir", s.dir, "--logfile", filepath.Join(s.dir, "log")}
	if s.conf != "" {
		args = append([]string{s.conf, "--sentinel"}, args...)
	} else {
		args = append(append(args, "--save", "", "--appendonly", "no"), s.args...)
	}
	cmd := exec.Command("redis-server", args...)
	gone := make(chan struct{})
	started := make(chan error, 1)
	// The thread that starts the process must live as long as the process,
	// since its end is the process's end.
	go func() {
		defer close(gone)
		defer lockThread()()
		dieWithParent(cmd)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, mostly
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("redis-server: %w", err)
	}
	s.cmd, s.gone = cmd, gone

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if reply, err := s.do("PING"); err == nil && reply == "+PONG\r\n" && s.ours() {
			return nil
		}
		select {
		case <-gone:
			log, _ := os.ReadFile(filepath.Join(s.dir, "log")) // for the message only
			return fmt.Errorf("redis-server on port %d ended: %s", s.port, tail(string(log)))
		case <-ctx.Done():
			s.Kill()
			return fmt.Errorf("redis-server on port %d does not answer", s.port)
		case <-tick.C:
		}
	}
}

// ours tells whether who answers is our process and not somebody else who was
// quicker to take the port.
func (s *Server) ours() bool {
	if s.conf != "" {
		return strings.HasPrefix(s.Text("SENTINEL MASTERS"), "*1")
	}
	reply, err := s.do("CONFIG GET dir")
	return err == nil && strings.Contains(reply, s.dir)
}

func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// freePort finds a port that leaves room for the bus of a Redis Cluster, which is
// 10,000 above.
func freePort(tb testing.TB) int {
	tb.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		defer l.Close() // not before another is found
		if port := l.Addr().(*net.TCPAddr).Port; port <= 65535-10000 {
			return port
		}
	}
}
