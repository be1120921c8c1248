package clustertest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo is a server that says each line again.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the connection ends
			}()
		}
	}()
	return l.Addr().String()
}

func newLink(t *testing.T) *Link {
	t.Helper()
	l, err := NewLink("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// peer is a client of the echo.
type peer struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, l *Link) *peer {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &peer{t, c, bufio.NewReader(c)}
}

// say sends a line; what goes wrong is seen by heard.
func (p *peer) say(line string) { _, _ = io.WriteString(p, line+"\n") }

// heard waits for the next line.
func (p *peer) heard(within time.Duration) (string, error) {
	_ = p.SetReadDeadline(time.Now().Add(within))
	line, err := p.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	return line[:len(line)-1], nil
}

func (p *peer) wants(line string) {
	p.t.Helper()
	if got, err := p.heard(5 * time.Second); err != nil || got != line {
		p.t.Fatalf("heard %q, %v, want %q", got, err, line)
	}
}

func (p *peer) hearsNothing() {
	p.t.Helper()
	if got, err := p.heard(100 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("heard %q, %v, want silence", got, err)
	}
}

func TestACutLinkResets(t *testing.T) {
	l := newLink(t)
	before := dial(t, l)
	before.say("a")
	before.wants("a")
	l.Set(Cut)
	if _, err := before.heard(5 * time.Second); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection that was there ended with %v", err)
	}
	during, err := net.Dial("tcp", l.Addr)
	if err == nil {
		defer during.Close()
		_ = during.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = during.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection ended with %v", err)
	}
	l.Set(Healed)
	after := dial(t, l)
	after.say("b")
	after.wants("b")
}

// Silence loses nothing: what was said arrives when the link is healed.
func TestASilentLinkHolds(t *testing.T) {
	for _, harm := range []Harm{Silent, SilentOut, SilentIn} {
		t.Run(harm.String(), func(t *testing.T) {
			l := newLink(t)
			before := dial(t, l)
			before.say("a")
			before.wants("a")
			l.Set(harm)
			during := dial(t, l)
			before.say("b")
			during.say("c")
			before.hearsNothing()
			during.hearsNothing()
			l.Set(Healed)
			before.wants("b")
			during.wants("c")
		})
	}
}

// One direction only: the other goes on.
func TestOneWay(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l, err := NewLink("127.0.0.1:0", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	broker := dial(t, l)
	c, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far := &peer{t, c, bufio.NewReader(c)}
	broker.say("hello") // both goroutines of the link run
	far.wants("hello")

	l.Set(SilentOut)
	broker.say("a")
	far.say("b")
	broker.wants("b")
	far.hearsNothing()
	l.Set(SilentIn)
	far.wants("a")
	far.say("c")
	broker.say("d")
	far.wants("d")
	broker.hearsNothing()
	l.Set(Healed)
	broker.wants("c")
}

func TestCloseEndsASilentLink(t *testing.T) {
	l, err := NewLink("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, l)
	c.say("a")
	c.wants("a")
	l.Set(Silent)
	c.say("b")
	l.Close()
	if got, err := c.heard(5 * time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("heard %q, %v after Close", got, err)
	}
}

func TestHidePorts(t *testing.T) {
	for _, test := range []struct {
		in, want string
		kept     int
	}{
		{"SELECT * FROM system.peers_v2", "SELECT * FROM system.peers   ", 0},
		{"system.peers_v2 system.peers_v2 x", "system.peers    system.peers    x", 0},
		{"SELECT * FROM system.peers", "SELECT * FROM system.peers", 12},
		{"SELECT * FROM system.pee", "SELECT * FROM system.pee", 10},
		{"SELECT * FROM system.local", "SELECT * FROM system.local", 0},
		{"", "", 0},
	} {
		b := []byte(test.in)
		if kept := hidePorts(b); kept != test.kept || string(b) != test.want {
			t.Errorf("%q became %q, %d kept, want %q, %d", test.in, b, kept, test.want, test.kept)
		}
	}
}
