package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"herald": main})
}

// The scripts in testdata are the commands' contract: what they print, and
// their exit status. Besides testscript's own commands they have
//
//	status N command args...   runs a command that must end with status N
//	serve args...              starts herald serve on free ports; $HOST, $PORT,
//	                           $WS and $ADMIN tell where it is
//	signal NAME                sends a signal to it
//	stopped N                  waits until it has ended, with status N
//	broker                     starts the broker that the clients are tested with;
//	                           $HOST and $PORT tell where it is
//	fetch STATUS URL           gets a URL, whose status must be STATUS; the body
//	                           is the standard output
func TestScripts(t *testing.T) { runScripts(t, "testdata/commands", nil) }

// The clients work with a broker that is not ours. It is what make test
// installs.
func TestClientsWithMosquitto(t *testing.T) {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("mosquitto is not installed; make test installs it")
	}
	runScripts(t, "testdata/clients", func(ts *testscript.TestScript) { startMosquitto(ts, path) })
}

// The same scripts, and ours is the broker.
func TestClientsWithHerald(t *testing.T) {
	runScripts(t, "testdata/clients", func(ts *testscript.TestScript) { cmdServe(ts, false, nil) })
}

func runScripts(t *testing.T, dir string, broker func(*testscript.TestScript)) {
	testscript.Run(t, testscript.Params{
		Dir:      dir,
		Deadline: time.Now().Add(2 * time.Minute),
		Setup: func(env *testscript.Env) error {
			port, err := freePort()
			env.Setenv("FREEPORT", port)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each command, otherwise
			env.Values["process"] = &process{}
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":  cmdStatus,
			"serve":   cmdServe,
			"signal":  cmdSignal,
			"stopped": cmdStopped,
			"fetch":   cmdFetch,
			"broker":  func(ts *testscript.TestScript, _ bool, _ []string) { broker(ts) },
		},
	})
}

// startMosquitto leaves mosquitto's address in $HOST and $PORT.
func startMosquitto(ts *testscript.TestScript, path string) {
	port := ts.Getenv("FREEPORT")
	conf := ts.MkAbs("mosquitto.conf")
	ts.Check(os.WriteFile(conf, []byte("allow_anonymous true\nlistener "+port+" 127.0.0.1\n"), 0o600))
	cmd := exec.Command(path, "-c", conf)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			ts.Check(conn.Close())
			break
		}
		if time.Now().After(end) {
			ts.Fatalf("mosquitto does not listen: %v", err)
		}
	}
	ts.Setenv("HOST", "127.0.0.1")
	ts.Setenv("PORT", port)
}

// freePort is a port that nobody listened on a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command args...")
	}
	err := ts.Exec(args[1], args[2:]...)
	if got := exitStatus(err); fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
	if args[0] != "0" {
		text := ts.ReadFile("stderr")
		if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "herald: ") {
			ts.Fatalf("standard error is not one line of herald's:\n%s", text)
		}
	}
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// process is the herald serve that a script started.
type process struct {
	cmd  *exec.Cmd
	said chan string // lines of its standard output; closed at its end
	done chan error
}

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("serve cannot be negated; use status 3 herald serve")
	}
	args = append([]string{
		"serve", "--set", "admin.address=127.0.0.1:0", "--set", "node.data=" + ts.MkAbs("data"), "--set",
		"listeners=[{protocol: tcp, address: '127.0.0.1:0'}, {protocol: ws, address: '127.0.0.1:0'}]",
	}, args...)
	errs, err := os.OpenFile(ts.MkAbs("serve.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	p := ts.Value("process").(*process)
	*p = process{cmd: exec.Command("herald", args...), said: make(chan string, 64), done: make(chan error, 1)}
	p.cmd.Dir, p.cmd.Stderr = ts.MkAbs("."), errs
	p.cmd.Env = append(os.Environ(), "GORACE="+ts.Getenv("GORACE"))
	out, err := p.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(p.cmd.Start())
	go func() {
		defer func() { _ = errs.Close() }()
		s := bufio.NewScanner(out)
		for s.Scan() {
			p.said <- s.Text()
		}
		close(p.said)
		p.done <- p.cmd.Wait()
	}()
	ts.Defer(func() { _ = p.cmd.Process.Kill() })
	for _, name := range []string{"HOST", "PORT", "WS", "ADMIN"} {
		ts.Setenv(name, "")
	}
	deadline := time.After(30 * time.Second)
	for ts.Getenv("PORT") == "" || ts.Getenv("WS") == "" {
		select {
		case line, ok := <-p.said:
			if !ok {
				ts.Fatalf("serve ended: %s", ts.ReadFile("serve.log"))
			}
			note(ts, line)
		case <-deadline:
			ts.Fatalf("serve does not say where it listens: %s", ts.ReadFile("serve.log"))
		}
	}
}

// note keeps an address that serve printed.
func note(ts *testscript.TestScript, line string) {
	ts.Logf("[serve] %s", line)
	if a, ok := strings.CutPrefix(line, "listening on tcp "); ok {
		host, port, err := net.SplitHostPort(a)
		ts.Check(err)
		ts.Setenv("HOST", host)
		ts.Setenv("PORT", port)
	}
	if a, ok := strings.CutPrefix(line, "listening on ws "); ok {
		ts.Setenv("WS", "ws://"+a)
	}
	if a, ok := strings.CutPrefix(line, "admin on "); ok {
		ts.Setenv("ADMIN", a)
	}
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{
		"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL,
	}
	if neg || len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: signal TERM|INT|HUP|KILL")
	}
	ts.Check(ts.Value("process").(*process).cmd.Process.Signal(signals[args[0]]))
}

func cmdStopped(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: stopped N")
	}
	select {
	case err := <-ts.Value("process").(*process).done:
		if got := exitStatus(err); fmt.Sprint(got) != args[0] {
			ts.Fatalf("serve ended with %d, want %s: %s", got, args[0], ts.ReadFile("serve.log"))
		}
	case <-time.After(20 * time.Second):
		ts.Fatalf("serve does not end")
	}
}

func cmdFetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fetch STATUS URL")
	}
	r, err := http.Get(args[1])
	ts.Check(err)
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	ts.Check(err)
	if fmt.Sprint(r.StatusCode) != args[0] {
		ts.Fatalf("%s: status %d, want %s: %s", args[1], r.StatusCode, args[0], body)
	}
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
}
