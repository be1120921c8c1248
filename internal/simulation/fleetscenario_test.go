package simulation

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
)

// fleetScenario runs by hand what a schedule of a cluster has found, once for each of
// some seeds, which say how long everything takes: nodes whose clocks agree, clients
// that take whatever comes, durable and of MQTT 5.
func fleetScenario(t *testing.T, nodes int, clients []string, setup func(*Fleet), run func(f *Fleet, c []*client)) {
	t.Helper()
	oneAtATime(t)
	for seed := uint64(1); seed <= 20; seed++ {
		var f *Fleet
		synctest.Test(t, func(*testing.T) {
			f = newFleet(seed, FleetOptions{})
			f.w.receive, f.w.bound, f.db.lose, f.db.again = 1000, 1<<20, 0, 0
			f.cfg.ReceiveMaximum, f.cfg.Memory, f.cfg.BackgroundAbove = 1000, session.Memory{}, 0
			f.nodes = nil
			for i := range nodes {
				f.nodes = append(f.nodes, &node{f: f, name: string(rune('a' + i))})
			}
			f.w.clients = nil
			for _, name := range clients {
				c := &client{w: f.w, name: name, version: herald.V5, durable: true, receive: 1000}
				c.newSession()
				f.w.clients = append(f.w.clients, c)
			}
			if setup != nil {
				setup(f)
			}
			f.script = func() {
				f.until("all nodes serve", func() bool {
					for _, n := range f.nodes {
						if !n.serves() {
							return false
						}
					}
					return true
				})
				run(f, f.w.clients)
			}
			f.run()
		})
		if f.w.err != nil {
			t.Fatalf("seed %d: %v\n  %s", seed, f.w.err, strings.Join(f.w.log, "\n  "))
		}
	}
}

// until lets time pass, and everything through between clients and nodes, until
// something is true.
func (f *Fleet) until(what string, is func() bool) {
	for n := 0; f.w.err == nil && !is(); n++ {
		if n == 60000 {
			f.logf("waiting until %s", what)
			f.w.fail(errNever)
		}
		time.Sleep(500 * time.Microsecond)
		for _, c := range f.w.clients {
			if c.conn != nil {
				f.serve(c)
			}
		}
	}
}

// dialTo has clients connect to one node until further notice; it waits for CONNACK.
func (f *Fleet) dialTo(n *node, cs ...*client) {
	f.only = n
	defer func() { f.only = nil }()
	for _, c := range cs {
		c.connect(false)
		f.until(c.name+" is connected", func() bool { return c.up })
	}
}

// subscribed waits for SUBACK.
func (f *Fleet) subscribed(c *client, filter string, qos byte) {
	c.subscribe(filter, qos)
	f.until(c.name+" has subscribed", func() bool { return len(c.asked) == 0 })
}

// A publish to very many is acknowledged before it is spread. What its client publishes
// at the next node does not come before it.
func TestTakeOverAfterWidePublish(t *testing.T) {
	fleetScenario(t, 2, []string{"p", "s", "r", "1", "2", "3", "4", "5", "6"}, func(f *Fleet) { f.cfg.BackgroundAbove = 1 }, func(f *Fleet, c []*client) {
		p, others, a, b := c[0], c[3:], f.nodes[0], f.nodes[1]
		f.dialTo(b, c[1], c[2])
		f.subscribed(c[1], "t/#", 1)
		f.subscribed(c[2], "t/#", 1)
		f.dialTo(a, append(others, p)...)
		for range 20 {
			for _, o := range others {
				f.w.send(o, "t/1", 1, 1)
				o.carry(1)
			}
		}
		f.w.send(p, "t/0", 1, 1)
		f.until("the publish is acknowledged", func() bool { return len(p.out) == 0 })
		f.dialTo(b, p)
		f.w.send(p, "t/0", 1, 1)
	})
}

// A session that moves gets its messages at once, although all clocks are ahead of the
// time of day, and stand still until that has caught up.
func TestTakeOverWhileClocksStandStill(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("redis away %v", away), func(t *testing.T) {
			fleetScenario(t, 2, []string{"p", "s"}, func(f *Fleet) { f.nodes[0].ahead = 30 * time.Second }, func(f *Fleet, c []*client) {
				p, s, a, b := c[0], c[1], f.nodes[0], f.nodes[1]
				f.dialTo(a, p, s)
				f.subscribed(s, "t/#", 1)
				f.w.send(p, "t/0", 1, 1)
				f.until("it has come", func() bool { return s.count() == 1 })
				a.mu.Lock()
				a.ahead = 0
				a.mu.Unlock()
				time.Sleep(2 * time.Second) // both know how late it was
				if away {
					f.net.change(func() { f.net.down = true })
				}
				f.dialTo(b, s)
				began := time.Now()
				f.w.send(p, "t/0", 1, 1)
				f.until("it has come", func() bool { return s.count() == 2 })
				if d := time.Since(began); d > 6*time.Second || !away && d > time.Second {
					f.w.fail(fmt.Errorf("it took %v", d))
				}
				f.healRedis()
			})
		})
	}
}

// count is how many messages a client has had.
func (c *client) count() (n int) {
	for _, k := range c.gen.count {
		n += k
	}
	return n
}

// Who takes over from a dead node whose clock was ahead gives out higher IDs than that
// had, although nobody has told how far ahead it was at last.
func TestTakeOverFromADeadNodeThatWasAhead(t *testing.T) {
	fleetScenario(t, 2, []string{"p", "s"}, func(f *Fleet) { f.nodes[0].ahead = 30 * time.Second }, func(f *Fleet, c []*client) {
		p, s, a, b := c[0], c[1], f.nodes[0], f.nodes[1]
		f.dialTo(b, s)
		f.subscribed(s, "t/#", 1)
		s.lose(true)
		f.dialTo(a, p)
		time.Sleep(2 * time.Second)
		f.net.change(func() { f.net.down = true })
		time.Sleep(900 * time.Millisecond)
		f.w.send(p, "t/0", 1, 1)
		f.until("the publish is acknowledged", func() bool { return len(p.out) == 0 })
		a.kill()
		a.mu.Lock()
		a.ahead = 0
		a.mu.Unlock()
		f.net.change(func() { f.net.down = false })
		f.dialTo(b, p)
		f.w.send(p, "t/0", 1, 1)
		f.until("the publish is acknowledged", func() bool { return len(p.out) == 0 })
	})
}

// Of what a client has under way when its node dies nothing stands in an inbox that is
// ahead of what does not, and comes again.
func TestNothingOvertakesWhatDiesWithItsNode(t *testing.T) {
	setup := func(f *Fleet) { f.storeOpts.InlineUpTo = 0 } // the payload is written before the entries
	fleetScenario(t, 2, []string{"p", "s"}, setup, func(f *Fleet, c []*client) {
		p, s, a, b := c[0], c[1], f.nodes[0], f.nodes[1]
		f.dialTo(b, s)
		f.subscribed(s, "t/#", 1)
		f.dialTo(a, p)
		for i := range 20 {
			f.w.send(p, "t/0", 1, 1)
			p.carry(1)
			if i%4 == 3 {
				time.Sleep(time.Millisecond)
			}
		}
		a.kill()
		p.lose(true)
		f.dialTo(b, p)
	})
}

// A session moves when what it published has been received: it is not overtaken by what
// the session publishes then.
func TestTakeOverWaitsForFrames(t *testing.T) {
	fleetScenario(t, 2, []string{"p", "s"}, nil, func(f *Fleet, c []*client) {
		p, s, a, b := c[0], c[1], f.nodes[0], f.nodes[1]
		f.dialTo(b, s)
		f.subscribed(s, "t/#", 1)
		f.dialTo(a, p)
		end := a.now.opened.Load()
		f.net.change(func() { end.mute = true })
		f.w.send(p, "t/0", 1, 1)
		f.until("the publish is acknowledged", func() bool { return len(p.out) == 0 })
		f.only = b
		p.connect(false)
		f.only = nil
		began, sent := time.Now(), false
		f.until("some time has passed", func() bool {
			if p.up && !sent {
				f.w.send(p, "t/0", 1, 1)
				sent = true
			}
			return time.Since(began) > 4*time.Second
		})
		f.net.change(func() { end.mute = false })
	})
}
