package checker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// roleVariable makes the test binary play a process instead of testing.
const roleVariable = "CHECKER_ROLE"

// play is that process: it says it is ready by listening on the address after
// the role's name.
func play(role string) {
	name, addr, _ := strings.Cut(role, "@")
	switch name {
	case "broken":
		fmt.Println("cannot work")
		os.Exit(3)
	case "obedient":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		listen(addr)
		<-stop
	case "mortal": // dies as soon as somebody connects a second time
		l := listen(addr)
		l.Accept()
		l.Accept()
		fmt.Println("panic: enough")
		os.Exit(2)
	}
}

func listen(addr string) net.Listener {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		os.Exit(4)
	}
	return l
}

// actor is a Process of the test binary in a role.
func actor(t *testing.T, role string) (p *Process, addr string) {
	t.Helper()
	ports, err := FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	addr = fmt.Sprintf("127.0.0.1:%d", ports[0])
	p = &Process{
		Path: os.Args[0], Env: []string{roleVariable + "=" + role + "@" + addr},
		Ready: func(ctx context.Context) error { return dial(addr) },
	}
	t.Cleanup(func() { p.Kill() })
	return p, addr
}

func dial(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestProcessThatNeverBecomesReady(t *testing.T) {
	p, _ := actor(t, "broken")
	err := p.Start(context.Background())
	if err == nil || !strings.Contains(err.Error(), "ended before it was ready") || !strings.Contains(err.Error(), "cannot work") {
		t.Errorf("got %v", err)
	}
}

func TestProcessKilledAndStopped(t *testing.T) {
	p, addr := actor(t, "obedient")
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	kill := Kill{Processes: []*Process{p}}
	for range 3 {
		if err := kill.Inject(context.Background(), rand.New(rand.NewPCG(1, 1))); err != nil {
			t.Fatal(err)
		}
		if err := dial(addr); err != nil {
			t.Fatalf("not ready after a kill: %v", err)
		}
	}
	pause := Pause{Processes: []*Process{p}, For: 20 * time.Millisecond}
	if err := pause.Inject(context.Background(), rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if dial(addr) == nil {
		t.Error("it still listens")
	}
	if deaths := p.Deaths(); len(deaths) != 0 {
		t.Errorf("blamed for %q", deaths)
	}
	if err := p.Signal(syscall.SIGCONT); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a process that is gone: %v", err)
	}
}

// A broker that dies by itself is found, with what it said last, also if a
// kill has started it again since.
func TestProcessThatDies(t *testing.T) {
	p, addr := actor(t, "mortal")
	var log bytes.Buffer
	p.Log = &log
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	dial(addr)
	<-exited
	if err := (Kill{Processes: []*Process{p}}).Inject(context.Background(), rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	deaths := p.Deaths()
	if len(deaths) != 1 || !strings.Contains(deaths[0], "exit status 2") || !strings.Contains(deaths[0], "panic: enough") {
		t.Errorf("deaths %q", deaths)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "panic: enough") {
		t.Errorf("log %q", log.String())
	}
}
