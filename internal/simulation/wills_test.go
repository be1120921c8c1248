package simulation

import (
	"context"
	"errors"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// claimOf is the claim of a client's session.
func (f *Fleet) claimOf(name string) persistence.Claim {
	f.db.mu.Lock()
	defer f.db.mu.Unlock()
	return f.db.claims[claimKey(persistence.Client, name)]
}

// dialsWithWill is dials for a client that has a will for "w".
func (n *node) dialsWithWill(name string, delay uint32) *conn {
	con := &wire.Connect{
		Version: herald.V5, ClientID: []byte(name), Properties: connectProperties(1<<32-1, 100, 0),
		HasWill: true, WillTopic: []byte("w"), WillPayload: []byte("gone"), WillQoS: 2, WillDelay: delay,
	}
	return newConn(n.now.engine.Load(), name, wire.AppendConnect(nil, con), 1<<20, n.now)
}

// threeNodes is twoNodes and one more. Of the first two a has the lower number: it finishes what
// c had begun when that dies.
func threeNodes(t *testing.T) (f *Fleet, a, b, c *node) {
	f, a, b = twoNodes(t)
	f.nodes = f.nodes[:3]
	c = f.nodes[2]
	c.ahead = 0
	c.start()
	for !c.serves() {
		time.Sleep(10 * time.Millisecond)
	}
	if b.now.Self().Node < a.now.Self().Node {
		a, b = b, a
	}
	return f, a, b, c
}

// watches connects a client that is to see the wills.
func (n *node) watches(t *testing.T) *conn {
	t.Helper()
	c := n.dials("s", false)
	c.connected(t)
	c.bring(input{subscribe: &wire.Subscribe{PacketID: 1, Filters: []wire.SubscribeFilter{{Filter: []byte("w"), QoS: 2}}}})
	if all := c.packets(t, time.Second); len(all) == 0 {
		t.Fatal("no SUBACK")
	}
	return c
}

// seen tells how many wills come within a time.
func (c *conn) seen(t *testing.T, within time.Duration) (n int) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); {
		for _, p := range c.packets(t, time.Until(end)) {
			if p.kind == wire.TypePublish {
				n++
			}
		}
	}
	return n
}

// A delayed will whose session goes to another node is in the care of that node, although
// its client has gone meanwhile and comes nowhere; if that node dies, too.
func TestWillOfOneWhoHasGoneMeanwhile(t *testing.T) {
	for _, then := range []string{"the node lives", "the node dies", "the owner dies"} {
		t.Run(then, func(t *testing.T) {
			oneAtATime(t)
			synctest.Test(t, func(t *testing.T) {
				f, a, b := twoNodes(t)
				defer f.stop()
				at := b
				if then == "the node dies" {
					at = a
				}
				s := at.watches(t)
				c := a.dialsWithWill("c", 10)
				c.connected(t)
				c.hangUp()
				<-c.end
				// The owner gives it up when that which it is to wait for comes to pass, and
				// nobody waits any more.
				end := a.now.opened.Load()
				f.net.change(func() { end.mute = true })
				waiting := b.dials("c", false)
				time.Sleep(300 * time.Millisecond)
				waiting.hangUp()
				<-waiting.end
				f.net.change(func() { end.mute = false })
				for f.claimOf("c").Owner != b.now.Self().Node {
					time.Sleep(time.Millisecond)
				}
				switch then {
				case "the node dies":
					b.kill()
				case "the owner dies":
					a.kill()
				}
				if n := s.seen(t, 60*time.Second); n != 1 {
					t.Errorf("the will was published %d times", n)
				}
			})
		})
	}
}

// The will of a session that its client ends at another node is sent although Redis is
// away, and the node's row has to tell the owner that it is to end [MQTT-3.1.3-9].
func TestWillOfASessionThatEndsWithoutRedis(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b := twoNodes(t)
		defer f.stop()
		s := b.watches(t)
		c := a.dialsWithWill("c", 1000)
		c.connected(t)
		c.hangUp()
		<-c.end
		f.net.change(func() { f.net.down = true })
		if b.dials("c", true).connected(t) {
			t.Error("the session is there after a clean start")
		}
		if n := s.seen(t, 20*time.Second); n != 1 {
			t.Errorf("the will was published %d times", n)
		}
		f.net.change(func() { f.net.down = false })
	})
}

// A node that has taken care of the will of one that has left, and sent it, does not send it
// again because it has read of it before, while it finishes another one that died.
func TestWillOfANodeThatLeftWhileAnotherDies(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b, c := threeNodes(t)
		defer f.stop()
		s := a.watches(t)
		w := c.dialsWithWill("w", 3)
		w.connected(t)
		w.hangUp()
		<-w.end
		if err := c.leave(); err != nil {
			t.Fatal(err)
		}
		gate, held := make(chan struct{}), make(chan struct{}, 1)
		f.db.mu.Lock()
		a.now.store.hold = func(what string) error {
			if what == "wills" && strings.Contains(string(debug.Stack()), ".remains(") {
				held <- struct{}{}
				<-gate
			}
			return nil
		}
		f.db.mu.Unlock()
		b.kill()
		<-held
		if n := s.seen(t, 10*time.Second); n != 1 {
			t.Errorf("the will was published %d times", n)
		}
		close(gate)
		if n := s.seen(t, 10*time.Second); n != 0 {
			t.Error("the will was published again")
		}
		f.db.mu.Lock()
		defer f.db.mu.Unlock()
		if rows := f.db.rowsLocked(place{table: tableWill}); len(rows) > 0 {
			t.Errorf("it is stored again: %+v", rows)
		}
	})
}

// The will of a client whose node has died is not sent when it has come back in time at a
// node that does not have the will in its care, although its session has ended there since.
func TestWillOfOneWhoCameBackElsewhere(t *testing.T) {
	for _, ends := range []string{"where it came back", "where the will is"} {
		t.Run("it ends "+ends, func(t *testing.T) {
			oneAtATime(t)
			synctest.Test(t, func(t *testing.T) {
				f, a, b, c := threeNodes(t)
				defer f.stop()
				s := a.watches(t)
				c.dialsWithWill("w", 30).connected(t)
				c.kill()
				w := b.dials("w", false)
				if !w.connected(t) {
					t.Error("the session is not there")
				}
				at := b
				if ends == "where the will is" {
					at = a
				}
				at.dials("w", true).connected(t)
				if n := s.seen(t, time.Minute); n != 0 {
					t.Error("the will was published")
				}
			})
		})
	}
}

// stillWhileStoring dials a client at a node, which stands still while it writes to a table
// until another node has found it dead and finished it, and then goes on.
func (f *Fleet) stillWhileStoring(t *testing.T, a, b *node, in table, dial func() *conn) *conn {
	t.Helper()
	c := dial()
	for pending := false; !pending; {
		time.Sleep(time.Microsecond)
		f.db.mu.Lock()
		for _, w := range a.now.store.writes {
			pending = pending || w.place.table == in
		}
		f.db.mu.Unlock()
		if c.pending.Load() > 0 {
			t.Fatal("it is connected already")
		}
	}
	gate := make(chan struct{})
	a.mu.Lock()
	a.gate = gate
	a.mu.Unlock()
	self := a.now.Self()
	for b.now.member.Settled(context.Background(), self.Node, self.Incarnation) != nil {
		time.Sleep(100 * time.Millisecond)
	}
	a.mu.Lock()
	a.gate = nil
	a.mu.Unlock()
	close(gate)
	return c
}

// A node whose CONNECT is stored when it has been found dead does not tell the client that
// it is connected: whoever finished that life may not have seen its will.
func TestNoConnackFromTheDead(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b := twoNodes(t)
		defer f.stop()
		c := f.stillWhileStoring(t, a, b, tableWill, func() *conn { return a.dialsWithWill("c", 0) })
		for _, p := range c.packets(t, 10*time.Second) {
			if p.kind == wire.TypeConnack && p.reason == 0 {
				t.Error("it is told that it is connected")
			}
		}
	})
}

// The row of a session that lands when its node was found dead and finished expires like
// any other.
func TestARowThatLandsAfterTheEnd(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b := twoNodes(t)
		defer f.stop()
		f.stillWhileStoring(t, a, b, tableSession, func() *conn {
			con := &wire.Connect{Version: herald.V5, ClientID: []byte("c"), Properties: connectProperties(6, 100, 0)}
			return newConn(a.now.engine.Load(), "c", wire.AppendConnect(nil, con), 1<<20, a.now)
		})
		row := func() (persistence.Session, error) {
			return b.now.store.Session(context.Background(), persistence.Client, "c")
		}
		time.Sleep(5 * time.Second)
		if _, err := row(); err != nil {
			t.Fatalf("it has not landed: %v", err)
		}
		time.Sleep(time.Minute)
		if s, err := row(); !errors.Is(err, herald.ErrNotFound) {
			t.Errorf("it is there: %+v, %v", s, err)
		}
	})
}

// Of a client whose nodes die one after the other the will of the last connection is sent,
// although who finished both has that of the one before in its care.
func TestWillOfOneWhoseNodesDie(t *testing.T) {
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		f, a, b, c := threeNodes(t)
		defer f.stop()
		s := a.watches(t)
		c.dialsWithWill("w", 30).connected(t)
		c.kill()
		b.dialsWithWill("w", 30).connected(t)
		b.kill()
		if n := s.seen(t, 2*time.Minute); n != 1 {
			t.Errorf("the will was published %d times", n)
		}
	})
}
