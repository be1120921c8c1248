package scenario

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// answered connects until CONNACK says want, at most patience long; other answers must
// be among meanwhile. The connection is returned if it was accepted.
func answered(t *testing.T, node int, id string, want byte, meanwhile ...byte) *client {
	t.Helper()
	for end := time.Now().Add(2 * patience); ; time.Sleep(20 * time.Millisecond) {
		c, got, err := attempt(t, node, id)
		if err == nil && got == want {
			return c
		}
		if c != nil {
			c.conn.Close()
		}
		if time.Now().After(end) || err == nil && !slices.Contains(meanwhile, got) {
			t.Fatalf("%s at node %d: CONNACK %#02x, %v, want %#02x", id, node, got, err, want)
		}
	}
}

// A client that is banned at one node is sent away from another and let in by none,
// also by one that was killed and has come back; Redis is not needed. When the ban is
// over it has its session, and its queue.
func TestBanEverywhere(t *testing.T) {
	name := names(t)
	c := connect(t, B, name("c"))
	c.subscribe(name("t"), 1)
	d := connect(t, C, name("d"))
	p := connect(t, A, name("p"))

	began := time.Now()
	ctl(t, A, "ban", "--client", name("c"), "--reason", "for a test")
	c.disconnected(0x98)
	if took := time.Since(began); took > 5*time.Second { // 2 s are promised, on a machine that has time
		t.Errorf("it was sent away after %v", took)
	}
	for node := range box.Nodes {
		answered(t, node, name("c"), 0x8A, 0)
	}
	p.publish(name("t"), "queued", 1)
	if out := ctl(t, C, "bans"); !strings.Contains(out, name("c")) {
		t.Errorf("another node shows\n%s", out)
	}

	if box.Redis != nil {
		if err := box.Redis.Kill(); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		ctl(t, A, "ban", "--client", name("d"), "--for", "1h")
		d.disconnected(0x98)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("without Redis it was sent away after %v", took)
		}
		if err := box.Redis.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := box.Nodes[B%len(box.Nodes)].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := box.Nodes[B%len(box.Nodes)].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, got, err := attempt(t, B, name("c")); err != nil || got != 0x8A { // from the first connection on
		t.Errorf("after a restart: CONNACK %#02x, %v", got, err)
	}
	ctl(t, C, "unban", "--client", name("c"))
	if box.Redis != nil {
		ctl(t, C, "unban", "--client", name("d"))
	}
	answered(t, A, name("c"), 0, 0x8A, 0x88, 0x89).wantPresent(true).takes("queued")
}
