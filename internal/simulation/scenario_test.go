package simulation

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
)

// scenario runs by hand what a schedule has found, in a world with clients a
// and b, durable both, of which a shares a subscription and sees all wills.
func scenario(t *testing.T, receiveMaximum int, run func(w *World, a, b *client)) {
	t.Helper()
	var w *World
	synctest.Test(t, func(*testing.T) {
		w = newWorld(1, Options{})
		w.receive, w.bound = receiveMaximum, 1<<20
		w.cfg.ReceiveMaximum, w.cfg.Memory = receiveMaximum, session.Memory{}
		w.store = NewStore(false, false)
		w.clients = nil
		for _, name := range []string{"a", "b"} {
			c := &client{w: w, name: name, version: herald.V5, durable: true, receive: receiveMaximum}
			c.newSession()
			w.clients = append(w.clients, c)
		}
		w.ledger.groups["$share/g/s/#"].exact = true
		w.script = func() {
			b := w.clients[1]
			b.connect(false)
			w.settle(1)
			run(w, w.clients[0], b)
		}
		w.run()
	})
	if w.err != nil {
		t.Fatalf("%v\n  %s", w.err, strings.Join(w.log, "\n  "))
	}
}

// send publishes n messages of c.
func (w *World) send(c *client, topic string, qos byte, n int) {
	for range n {
		c.publish(w.ledger.message(c.gen, topic, qos, strings.HasPrefix(topic, "r/"), false))
	}
}

// A shared group deals on when its member has room again, although it was no
// message of the group's that took the room.
func TestGroupWaitsForBusyMember(t *testing.T) {
	scenario(t, 2, func(w *World, a, b *client) {
		a.subscribe("t/#", 1)
		w.settle(1)
		w.send(b, "t/0", 1, 2) // fills a's window
		b.carry(2)
		w.flush()
		w.fail(b.read(10)) // b may publish on
		w.send(b, "s/0", 1, 1)
		b.carry(1)
		w.flush()
	})
}

// A client that comes back with as many QoS 2 publishes under way as it may have
// sends them again, and is not told that they are too many [MQTT-3.3.4-9].
func TestResendAtReceiveMaximum(t *testing.T) {
	scenario(t, 2, func(w *World, _, b *client) {
		w.send(b, "t/0", 2, 2)
		b.carry(2)
		w.flush()
		b.lose(true)
	})
}

// A queue of which more settles than a session remembers is delivered after a
// restart although nobody publishes.
func TestQueueAfterRestart(t *testing.T) {
	scenario(t, 4, func(w *World, a, b *client) {
		w.cfg.Memory = session.Memory{Settled: 8}
		a.subscribe("t/#", 1)
		w.settle(1)
		a.lose(true)
		for range 5 {
			w.send(b, "t/0", 1, 4)
			w.settle(1)
		}
		w.die(0)
	})
}

// What is retained is owed from SUBACK on [MQTT-3.3.1-9].
func TestRetainedOwedFromSuback(t *testing.T) {
	for _, filter := range []string{"r/#", "r/b"} {
		t.Run(filter, func(t *testing.T) {
			scenario(t, 20, func(w *World, a, b *client) {
				w.send(b, "r/b", 1, 1)
				b.carry(1)
				w.settle(1)
				a.subscribe(filter, 1)
				a.carry(1)
				synctest.Wait()
				for n, _ := w.store.Queued(); n > 0; n, _ = w.store.Queued() { // up to SUBACK
					w.store.Sync(n)
					w.store.Tell(n)
					synctest.Wait()
					if a.conn.pending.Load() > 0 {
						break
					}
				}
				w.fail(a.read(10))
				w.die(0)
			})
		})
	}
}

// Will delay and session expiry count from the end of the connection, not from
// when the store has caught up [MQTT-3.1.3-9].
func TestWillDelayWhileStoreIsSlow(t *testing.T) {
	scenario(t, 20, func(w *World, _, b *client) {
		b.lose(true)
		w.settle(1)
		b.will = &willSpec{delay: 2}
		b.connect(false)
		w.settle(1)
		w.send(b, "t/0", 2, 1)
		b.carry(1)
		synctest.Wait()
		b.lose(true)
		synctest.Wait()
		w.look()
		time.Sleep(5 * time.Second)
		w.flush()
		time.Sleep(time.Second)
		w.flush()
		b.connect(false) // too late to cancel it
		w.settle(1)
	})
}

// Who leaves a shared group finishes what it was dealt at QoS 2, and nobody else gets
// it, although the process dies meanwhile, twice [MQTT-4.8.2-5].
func TestLeaverKeepsWhatItHas(t *testing.T) {
	const group = "$share/g/s/#"
	for name, ends := range map[string]func(w *World, a *client){
		"goes on": func(w *World, a *client) { a.connect(false) },
		"ends": func(w *World, a *client) {
			w.ledger.groups[group].expect = nil // it may have read it
			a.connect(true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, 4, func(w *World, a, b *client) {
				a.subscribe(group, 2)
				w.settle(1)
				w.send(b, "s/0", 2, 1)
				b.carry(1)
				w.flush()
				w.fail(a.read(10)) // PUBLISH, and no PUBREC is sent
				w.fail(b.read(10))
				b.carry(10)
				w.flush()
				w.fail(b.read(10)) // PUBCOMP
				b.subscribe(group, 2)
				b.carry(1)
				a.unsubscribe(group)
				a.carry(10)
				w.flush()
				w.fail(a.read(10))
				w.fail(b.read(10))
				for range 2 {
					w.die(0)
					b.connect(false)
					for range 3 { // the group is loaded, and deals what it thinks is its to deal
						w.flush()
						w.fail(b.read(10))
						b.answer(10)
						b.carry(10)
					}
				}
				ends(w, a)
				w.settle(1)
				if n := len(w.ledger.groups[group].count); n != 1 {
					t.Errorf("%d messages came to the group, want 1", n)
				}
			})
		})
	}
}
