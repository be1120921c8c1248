package simulation

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// twoNodes is two nodes of a fleet, both of which serve, without any of its clients.
func twoNodes(t *testing.T) (f *Fleet, a, b *node) {
	f = newFleet(1, FleetOptions{})
	f.nodes, f.w.clients, f.db.lose = f.nodes[:2], nil, 0
	for _, n := range f.nodes {
		n.ahead = 0
		n.start()
	}
	for _, n := range f.nodes {
		for !n.serves() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Cleanup(func() {
		if err := f.db.wrong; err != nil {
			t.Error(err)
		}
	})
	return f, f.nodes[0], f.nodes[1]
}

// dials connects a client that has a lasting session.
func (n *node) dials(name string, clean bool) *conn {
	con := &wire.Connect{Version: herald.V5, ClientID: []byte(name), Clean: clean, Properties: connectProperties(1<<32-1, 100, 0)}
	return newConn(n.now.engine.Load(), name, wire.AppendConnect(nil, con), 1<<20, n.now)
}

// packets waits for what comes, within a time.
func (c *conn) packets(t *testing.T, within time.Duration) []packet {
	t.Helper()
	for began := time.Now(); c.pending.Load() == 0 && time.Since(began) < within; {
		time.Sleep(time.Millisecond)
	}
	all, err := parse(c.read(1000), herald.V5)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// connected waits for CONNACK and tells whether the session was there.
func (c *conn) connected(t *testing.T) (present bool) {
	t.Helper()
	all := c.packets(t, 20*time.Second)
	if len(all) == 0 || all[0].kind != wire.TypeConnack || all[0].reason != 0 {
		t.Fatalf("%s gets %+v, want CONNACK", c.name, all)
	}
	return all[0].present
}

// A CONNECT that waited until its client had gone takes nothing away from the
// connection that the client has made meanwhile, least of all its session.
func TestConnectOfAClientThatHasGone(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b := twoNodes(t)
		defer f.stop()
		first := a.dials("c", false)
		first.connected(t)

		// It asks a node that does not answer, and is given up.
		gate := make(chan struct{})
		a.mu.Lock()
		a.gate = gate
		a.mu.Unlock()
		waiting := b.dials("c", true)
		time.Sleep(time.Second)
		waiting.hangUp()
		select {
		case <-waiting.end:
		case <-time.After(time.Second):
			t.Error("it goes on waiting for nobody")
		}
		a.mu.Lock()
		a.gate = nil
		a.mu.Unlock()
		close(gate)
		time.Sleep(5 * time.Second)
		if first.closed() {
			t.Error("the newer connection was closed")
		}
		if _, err := b.now.store.Session(context.Background(), persistence.Client, "c"); err != nil {
			t.Errorf("the session: %v", err)
		}

		// It has the claim, and ends before it has deleted anything.
		again := b.dials("c", false)
		if !again.connected(t) {
			t.Error("the session is not there")
		}
		again.hangUp()
		<-again.end
	})
}

// What it costs that the owner of a session has just left: less than asking it again.
func TestTakeOverFromANodeThatLeaves(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b := twoNodes(t)
		defer f.stop()
		first := a.dials("c", false)
		first.connected(t)
		first.hangUp()
		<-first.end
		if err := a.leave(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		now := b.dials("c", false)
		if !now.connected(t) {
			t.Error("the session is not there")
		}
		took := time.Since(began)
		if took > 500*time.Millisecond { // the next reading of the rows, which is brought forward
			t.Errorf("it took %v", took)
		}
	})
}

// A retained message that cannot be read is not left out: the connection is closed, and
// the client is told to come again.
func TestRetainedMessageThatCannotBeRead(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, _ := twoNodes(t)
		defer f.stop()
		for _, fails := range []bool{false, true} {
			f.db.mu.Lock()
			a.now.store.hold = func(what string) error {
				if fails && what == "retained" {
					return herald.ErrUnavailable
				}
				return nil
			}
			f.db.mu.Unlock()
			c := a.dials("c", false)
			c.connected(t)
			c.bring(input{subscribe: &wire.Subscribe{PacketID: 1, Filters: []wire.SubscribeFilter{{Filter: []byte("a"), QoS: 1}, {Filter: []byte("b"), QoS: 1}}}})
			var got []string
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
				for _, p := range c.packets(t, time.Second) {
					got = append(got, fmt.Sprintf("%d/%x", p.kind, p.reason))
				}
			}
			if c.closed() != fails {
				t.Errorf("reading fails: %v, closed: %v; it got %q", fails, c.closed(), got)
			}
			if want := fmt.Sprintf("%d/%x", wire.TypeDisconnect, wire.ReasonBusy); slices.Contains(got, want) != fails {
				t.Errorf("reading fails: %v; it got %q", fails, got)
			}
		}
	})
}
