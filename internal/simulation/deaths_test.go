package simulation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// scene is a cluster to which things happen as a test says, with durable clients.
type scene struct{ *Fleet }

// scenes runs what a test says under some seeds, which decide about what of writes that
// are under way when a process dies lands. In the end everybody comes back, and what
// was promised is checked.
func scenes(t *testing.T, nodes int, clients string, run func(s scene)) {
	t.Helper()
	oneAtATime(t)
	for seed := uint64(1); seed <= 12; seed++ {
		var f *Fleet
		synctest.Test(t, func(*testing.T) {
			f = newFleet(seed, FleetOptions{Faults: true, Outage: true})
			f.nodes, f.w.clients, f.w.receive, f.w.bound, f.db.lose = nil, nil, 1024, 1<<20, 0
			f.cfg.ReceiveMaximum, f.cfg.Memory, f.cfg.BackgroundAbove = 1024, session.Memory{}, 1
			for i := range nodes {
				f.nodes = append(f.nodes, &node{f: f, name: fmt.Sprintf("n%d", i)})
			}
			for _, name := range strings.Fields(clients) {
				c := &client{
					w: f.w, name: name, version: herald.V5, durable: true, receive: 1024,
					asked: map[uint16]*request{}, aliasOf: map[uint16]string{},
				}
				c.newSession()
				f.w.clients = append(f.w.clients, c)
			}
			run(scene{f})
			if f.w.err == nil {
				f.finish()
			}
			f.stop()
		})
		if f.w.err != nil {
			t.Fatalf("seed %d: %v\n  %s", seed, f.w.err, strings.Join(f.w.log, "\n  "))
		}
	}
}

func (s scene) client(name string) *client {
	return s.w.clients[slices.IndexFunc(s.w.clients, func(c *client) bool { return c.name == name })]
}

// until has clients go on until done, in small steps.
func (s scene) until(what string, done func() bool, names ...string) {
	for range 400_000 {
		if s.w.err != nil || done() {
			return
		}
		for _, name := range names {
			s.goOn(s.client(name))
		}
		time.Sleep(100 * time.Microsecond)
		s.look()
	}
	s.w.fail(fmt.Errorf("waited in vain: %s", what))
}

func (s scene) goOn(c *client) {
	if c.conn == nil {
		if !c.hanging() && s.home() != nil {
			c.connect(false)
		}
		return
	}
	s.w.fail(c.read(1 << 20))
	if c.conn != nil {
		c.answer(1 << 20)
		c.carry(1 << 20)
	}
}

// begin starts a node and waits until it serves.
func (s scene) begin(n *node) {
	n.start()
	s.until(n.name+" serves", n.serves)
}

// attend has clients connected at a node, which then have nothing under way.
func (s scene) attend(at *node, names ...string) {
	for _, n := range s.nodes {
		n.hide(n != at)
	}
	s.idle(names...)
	for _, n := range s.nodes {
		n.hide(false)
	}
}

func (n *node) hide(hidden bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now != nil && n.now.engine.Load() != nil {
		n.now.mu.Lock()
		n.now.serving = !hidden
		n.now.mu.Unlock()
	}
}

// subscribed has clients subscribe to t/#.
func (s scene) subscribed(names ...string) {
	s.idle(names...)
	for _, name := range names {
		s.client(name).subscribe("t/#", 1)
	}
	s.idle(names...)
}

// idle waits until clients are connected and have nothing under way.
func (s scene) idle(names ...string) {
	s.until("nothing is under way", func() bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			c := s.client(name)
			return !c.up || len(c.out)+len(c.net)+len(c.owed)+len(c.asked) > 0
		})
	}, names...)
}

func (s scene) publish(name, topic string) {
	c := s.client(name)
	c.publish(s.w.ledger.message(c.gen, topic, 1, false, false))
}

// member is a node's row.
func (s scene) member(name string) persistence.Member {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, m := range s.db.members {
		if m.Name == name {
			return m
		}
	}
	return persistence.Member{}
}

// A node that comes back when nobody is there, and dies before it has spread what its
// last life had acknowledged, is not the only one who knows of that.
func TestWhatIsOwedIsFinishedByOthers(t *testing.T) {
	scenes(t, 2, "a b c", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		s.begin(n0)
		s.subscribed("a", "b")
		s.idle("c")
		s.client("a").lose(true)
		s.client("b").lose(true)
		time.Sleep(time.Second)
		s.publish("c", "t/0")
		s.idle("c")
		n0.kill()
		n0.start()
		s.until("n0 is no longer dead", func() bool {
			m := s.member("n0")
			return m.Life > 1 || m.State != persistence.Live && m.State != persistence.Dead
		})
		n0.kill()
		s.nodes = []*node{n1} // n0 never comes back
		s.begin(n1)
	})
}

// A node that comes back when nobody is there serves when what other nodes had
// acknowledged is spread: till then a mark could pass it.
func TestServesWhenTheDeadAreFinished(t *testing.T) {
	scenes(t, 2, "a b c d", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		s.begin(n1)
		s.subscribed("a", "b")
		s.idle("d")
		s.begin(n0)
		s.attend(n0, "c")
		s.client("a").lose(true)
		s.client("b").lose(true)
		time.Sleep(3 * time.Second)
		s.publish("c", "t/0")
		s.idle("c")
		n0.kill()
		s.until("n0 is found dead", func() bool { return s.member("n0").State == persistence.Dead })
		n1.kill()
		s.begin(n1)
		s.idle("a", "d")
		for range 3 { // marks are stored
			s.publish("d", "t/1")
			s.idle("a", "d")
			end := time.Now().Add(time.Second)
			s.until("a while", func() bool { return time.Now().After(end) }, "a", "d")
		}
	})
}

// What a node publishes for a client comes after what that had published at one which
// died, whatever the two clocks say and although no other node was there.
func TestOrderAfterAnOutage(t *testing.T) {
	scenes(t, 2, "a c", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		n0.ahead = 12 * time.Second
		s.begin(n0)
		s.subscribed("a")
		s.idle("c")
		s.client("a").lose(true)
		time.Sleep(time.Duration(s.rng.IntN(1000)) * time.Millisecond)
		for range 3 {
			s.publish("c", "t/0")
			s.idle("c")
			time.Sleep(time.Duration(s.rng.IntN(300)) * time.Millisecond)
		}
		n0.kill()
		s.client("c").lose(true)
		s.nodes = []*node{n1}
		s.begin(n1)
		s.publishWhenUp("c", "t/0")
		s.idle("c")
	})
}

func (s scene) publishWhenUp(name, topic string) {
	c := s.client(name)
	s.until(name+" is connected", func() bool { return c.up }, name)
	s.publish(name, topic)
}

// A node that starts and reads for long does not hold back up to where the sessions of
// the others are done.
func TestClosedTimeWhileOneLoads(t *testing.T) {
	scenes(t, 2, "a c", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		s.begin(n0)
		s.subscribed("a")
		s.idle("c")
		gate, held := make(chan struct{}), make(chan struct{}, 1)
		n1.start()
		s.db.mu.Lock()
		n1.now.store.hold = func(what string) error {
			if what == "subscriptions" {
				select {
				case held <- struct{}{}:
				default:
				}
				<-gate
			}
			return nil
		}
		s.db.mu.Unlock()
		s.until("n1 loads", func() bool { return len(held) > 0 }, "a", "c")
		from, until := time.Now(), time.Now().Add(5*time.Second)
		s.until("a while", func() bool { return time.Now().After(until) }, "a", "c")
		if n1.serves() {
			s.w.fail(fmt.Errorf("n1 serves already"))
		}
		covered := n0.now.engine.Load().Status().Covered[n1.now.Self().Node].Time()
		if covered.Before(from.Add(3 * time.Second)) {
			s.w.fail(fmt.Errorf("closed time stands at %v for %v", covered.Sub(from), time.Since(from)))
		}
		close(gate)
		s.until("n1 serves", n1.serves, "a", "c")
	})
}
