package model

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
)

// world tells the model what happens, in few words.
type world struct {
	*Model
	t *testing.T
}

func begin(t *testing.T) world { return world{New(), t} }

// v5 and v3 connect; the session of v5 lasts for expiry seconds.
func (w world) v5(client string, clean bool, expiry uint32) bool {
	return w.Connect(Connect{Client: client, Version: herald.V5, Clean: clean, Expiry: expiry})
}

func (w world) v3(client string, clean bool) bool {
	return w.Connect(Connect{Client: client, Version: herald.V311, Clean: clean})
}

func (w world) sub(client, filter string, qos byte) {
	w.Subscribe(client, Subscription{Filter: filter, QoS: qos})
}

// pub publishes the payload at the QoS, from "p".
func (w world) pub(topic, payload string, qos byte) {
	w.Publish("p", Message{Topic: topic, Payload: payload, QoS: qos})
}

func (w world) gets(client string, d Delivery) {
	w.t.Helper()
	if err := w.Receive(client, d, false); err != nil {
		w.t.Error(err)
	}
}

func (w world) getsDup(client string, d Delivery) {
	w.t.Helper()
	if err := w.Receive(client, d, true); err != nil {
		w.t.Error(err)
	}
}

// not: receiving that would be wrong.
func (w world) not(client string, d Delivery, dup bool) {
	w.t.Helper()
	if err := w.Receive(client, d, dup); err == nil {
		w.t.Errorf("%s may receive %v, DUP %v", client, d, dup)
	}
}

// missing: those payloads have still to arrive.
func (w world) missing(payloads ...string) {
	w.t.Helper()
	var got []string
	for _, s := range w.Missing() {
		got = append(got, strings.Split(s, `"`)[1])
	}
	slices.Sort(got)
	if !slices.Equal(got, payloads) {
		w.t.Errorf("missing %q, want %q", got, payloads)
	}
}

func at(topic, payload string, qos byte) Delivery {
	return Delivery{Topic: topic, Payload: payload, QoS: qos}
}

func TestWhatIsNoticed(t *testing.T) {
	w := begin(t)
	w.v5("c", true, 0)
	w.sub("c", "a/+", 1)
	w.pub("a/b", "1", 1)
	w.pub("a/b", "2", 2)
	w.pub("a/b", "3", 1)
	w.pub("b", "4", 1)
	w.missing("1", "2", "3")             // lost
	w.not("c", at("b", "4", 1), false)   // not subscribed
	w.not("d", at("a/b", "1", 1), false) // not connected
	w.not("c", at("a/b", "1", 0), false) // other QoS
	w.not("c", at("a/b", "2", 2), false) // more than granted
	w.not("c", at("a/c", "1", 1), false) // other topic
	w.not("c", at("a/b", "1", 1), true)  // DUP on the first [MQTT-3.3.1-1]
	w.not("c", Delivery{"a/b", "1", 1, true, nil, 0}, false)
	w.not("c", Delivery{"a/b", "1", 1, false, []uint32{1}, 0}, false)
	w.not("c", Delivery{"a/b", "1", 1, false, nil, 5}, false)
	w.not("c", at("a/b", "3", 1), false) // reordered
	w.gets("c", at("a/b", "2", 1))       // another QoS: another order
	w.gets("c", at("a/b", "1", 1))
	w.not("c", at("a/b", "1", 1), false) // duplicated
	w.not("c", at("a/b", "1", 1), true)
	w.missing("3")
	w.gets("c", at("a/b", "3", 1))
	w.missing()

	w.Strict = true
	w.pub("a/b", "5", 1)
	w.pub("a/b", "6", 0)
	w.not("c", at("a/b", "6", 0), false)
	w.gets("c", at("a/b", "5", 1))
	w.gets("c", at("a/b", "6", 0))
}

func TestSessionPresent(t *testing.T) {
	w := begin(t)
	for i, step := range []struct {
		connect func() bool
		present bool
		after   int64 // seconds until the next
	}{
		{func() bool { return w.v3("c", false) }, false, 1},
		{func() bool { return w.v3("c", false) }, true, 1e9},
		{func() bool { return w.v3("c", true) }, false, 0},  // [MQTT-3.1.2-4]
		{func() bool { return w.v3("c", false) }, false, 0}, // the clean one ended
		{func() bool { return w.v5("c", false, 10) }, true, 9},
		{func() bool { return w.v5("c", false, 10) }, true, 10},
		{func() bool { return w.v5("c", false, 0) }, false, 0},
		{func() bool { return w.v5("c", false, 1<<32-1) }, false, 1e9},
		{func() bool { return w.v5("c", true, 10) }, false, 0},
		{func() bool { return w.v5("c", false, 0) }, true, 0},
	} {
		if got := step.connect(); got != step.present {
			t.Errorf("step %d: session present %v", i, got)
		}
		w.Drop("c")
		w.Advance(w.now + step.after*1000)
	}
	w.v5("c", false, 10)
	longer := uint32(20)
	w.Disconnect("c", false, &longer)
	w.Advance(w.now + 19_000)
	if !w.v5("c", false, 10) || len(w.Sessions()) != 1 {
		t.Error("the expiry of DISCONNECT was not kept")
	}
	if !w.v5("c", false, 0) { // take-over [MQTT-3.1.4-3]
		t.Error("the session ended with the take-over")
	}
	if w.v5("c", false, 0) {
		t.Error("a session without expiry was taken over")
	}
}

func TestOfflineQueue(t *testing.T) {
	w := begin(t)
	w.v3("c", false)
	w.sub("c", "#", 2)
	w.Drop("c")
	for qos := range byte(3) {
		w.pub("a", fmt.Sprint(qos), qos)
	}
	w.missing()
	w.v3("c", false)
	w.missing("1", "2")
	w.not("c", at("a", "1", 1), true) // never sent
	w.Drop("c")
	w.v3("c", false)
	w.getsDup("c", at("a", "1", 1)) // it may have been sent on the first connection
	w.not("c", at("a", "1", 1), true)
	w.gets("c", at("a", "2", 2))
	w.Drop("c")
	w.v3("c", false)
	w.not("c", at("a", "1", 1), false)
	w.getsDup("c", at("a", "1", 1)) // not acknowledged
	w.Ack("c", at("a", "1", 1))
	w.Drop("c")
	w.v3("c", false)
	w.not("c", at("a", "1", 1), true)
	w.not("c", at("a", "2", 2), true)
	w.gets("c", at("a", "0", 0)) // may be kept
	w.pub("a", "3", 1)
	w.v3("c", true)
	w.missing()
	w.not("c", at("a", "3", 1), true)
}

func TestSubscriptions(t *testing.T) {
	w := begin(t)
	w.v5("c", true, 0)
	w.Subscribe("c", Subscription{Filter: "a/#", QoS: 0, Identifier: 7},
		Subscription{Filter: "+/b", QoS: 1, Identifier: 3}, Subscription{Filter: "a/b", QoS: 0},
		Subscription{Filter: "own", NoLocal: true, RetainAsPublished: true})
	w.pub("a/b", "1", 2) // [MQTT-3.3.4-2] to -4
	w.gets("c", Delivery{"a/b", "1", 1, false, []uint32{7, 3}, 0})
	w.missing()
	w.Publish("c", Message{Topic: "own", Payload: "2"}) // [MQTT-3.8.3-3]
	w.not("c", at("own", "2", 0), false)
	w.Publish("p", Message{Topic: "own", Payload: "3", Retain: true}) // [MQTT-3.3.1-13]
	w.gets("c", Delivery{"own", "3", 0, true, nil, 0})
	w.sub("c", "own", 0) // replaces; retained again
	w.gets("c", Delivery{"own", "3", 0, true, nil, 0})
	w.Publish("p", Message{Topic: "own", Payload: "4", Retain: true}) // [MQTT-3.3.1-12]
	w.gets("c", at("own", "4", 0))
	w.missing()

	w.pub("a/x", "5", 0)
	if !w.Unsubscribe("c", "a/#") || w.Unsubscribe("c", "a/#") {
		t.Error("unsubscribed wrongly")
	}
	w.missing() // [MQTT-3.10.4-3] may still come
	w.gets("c", Delivery{"a/x", "5", 0, false, []uint32{7}, 0})
	w.pub("a/x", "6", 0)
	w.not("c", Delivery{"a/x", "6", 0, false, []uint32{7}, 0}, false)
}

func TestRetained(t *testing.T) {
	w := begin(t)
	keep := func(topic, payload string, expiry uint32) {
		w.Publish("p", Message{Topic: topic, Payload: payload, QoS: 1, Retain: true, Expiry: expiry})
	}
	keep("a", "1", 0)
	keep("a/b", "2", 10)
	keep("$x", "3", 0)
	keep("c", "4", 0)
	keep("c", "", 0) // [MQTT-3.3.1-6]
	w.v5("c", true, 0)
	retained := func(topic, payload string, left uint32) Delivery {
		return Delivery{topic, payload, 1, true, nil, left}
	}
	w.sub("c", "+/#", 2)
	w.missing("1", "2")
	w.not("c", retained("a/b", "2", 8), false) // [MQTT-3.3.2-6]
	w.gets("c", retained("a/b", "2", 10))
	w.gets("c", retained("a", "1", 0))
	w.Subscribe("c", Subscription{Filter: "+/#", QoS: 2, RetainHandling: 1}, Subscription{Filter: "a", QoS: 1, RetainHandling: 2})
	w.missing()
	w.Subscribe("c", Subscription{Filter: "a/+", QoS: 1, RetainHandling: 1})
	w.missing("2")
	keep("a/b", "5", 10)
	w.missing("5")
	w.gets("c", Delivery{"a/b", "5", 1, false, nil, 10})
	w.Advance(9_500)
	w.Subscribe("c", Subscription{Filter: "a/+", QoS: 1})
	w.gets("c", retained("a/b", "5", 0))
	w.Advance(10_000)
	w.Subscribe("c", Subscription{Filter: "a/+", QoS: 1})
	w.missing()
	if r := w.Retained(); len(r) != 2 || r["a"].Payload != "1" || r["$x"].Payload != "3" {
		t.Error(r)
	}
}

func TestMessageExpiry(t *testing.T) {
	w := begin(t)
	w.v5("c", true, 100)
	w.sub("c", "#", 1)
	w.Drop("c")
	w.Publish("p", Message{Topic: "a", Payload: "1", QoS: 1, Expiry: 5})
	w.Publish("p", Message{Topic: "a", Payload: "2", QoS: 1, Expiry: 6})
	w.Advance(5_000)
	w.v5("c", false, 100)
	w.not("c", at("a", "1", 1), false) // [MQTT-3.3.2-5]
	w.not("c", Delivery{"a", "2", 1, false, nil, 6}, false)
	w.missing("2")
	w.Drop("c")
	w.v3("c", false)
	w.gets("c", at("a", "2", 1)) // MQTT 3.1.1 knows no expiry
}

func TestWills(t *testing.T) {
	w := begin(t)
	w.v5("watch", true, 0)
	w.sub("watch", "#", 1)
	connect := func(clean bool, expiry, delay uint32, payload string) {
		w.Connect(Connect{Client: "c", Version: herald.V5, Clean: clean, Expiry: expiry,
			Will: &Will{Message{Topic: "w", Payload: payload, QoS: 1}, delay}})
	}
	sent := func(payload string) {
		t.Helper()
		w.missing(payload)
		w.gets("watch", at("w", payload, 1))
	}
	connect(true, 0, 0, "dropped")
	w.Drop("c")
	sent("dropped")
	connect(true, 0, 0, "gone well")
	w.Disconnect("c", false, nil) // [MQTT-3.14.4-3]
	w.missing()
	connect(true, 0, 0, "reason 4")
	w.Disconnect("c", true, nil)
	sent("reason 4")
	connect(true, 0, 60, "session ends first") // [MQTT-3.1.2-8]
	w.Drop("c")
	sent("session ends first")
	connect(true, 100, 5, "delayed")
	w.Drop("c")
	w.Advance(w.now + 4_999)
	w.missing()
	w.Advance(w.now + 1)
	sent("delayed")
	connect(false, 100, 5, "cancelled") // [MQTT-3.1.3-9]
	w.Drop("c")
	connect(false, 100, 5, "clean start ends it")
	w.missing()
	connect(true, 100, 0, "taken over")
	sent("clean start ends it")
	connect(false, 3, 5, "expiry")
	sent("taken over")
	w.Drop("c")
	w.Advance(w.now + 3_000)
	sent("expiry")
	w.Advance(w.now + 1e9)
	w.missing()
}

func TestSharedSubscriptions(t *testing.T) {
	w := begin(t)
	w.Publish("p", Message{Topic: "a", Payload: "0", Retain: true})
	for i, c := range []string{"x", "y"} {
		w.v5(c, true, 100)
		w.Subscribe(c, Subscription{Filter: "$share/g/a", QoS: byte(i + 1), Identifier: uint32(i + 1)})
	}
	w.missing() // no retained messages
	x := func(payload string, qos byte) Delivery { return Delivery{"a", payload, qos, false, []uint32{1}, 0} }
	y := func(payload string, qos byte) Delivery { return Delivery{"a", payload, qos, false, []uint32{2}, 0} }
	w.pub("a", "1", 2)
	w.missing("1")
	w.not("x", y("1", 2), false)
	w.gets("x", x("1", 1)) // one of them
	w.not("y", y("1", 2), false)
	w.missing()
	w.Drop("x")
	w.pub("a", "2", 1)
	w.missing() // x may have it
	w.gets("y", y("2", 1))
	w.Ack("y", y("2", 1))
	w.Drop("y")
	w.pub("a", "3", 2)
	w.pub("a", "4", 1)
	w.Advance(99_000)
	w.v5("y", false, 100)
	w.Advance(100_000) // x ends: what it did not acknowledge goes to y
	w.missing("1", "3", "4")
	w.gets("y", y("3", 2))
	w.gets("y", y("1", 2))
	w.not("y", y("2", 1), true)
	w.Unsubscribe("y", "$share/g/a")
	w.missing()
	w.pub("a", "5", 1)
	w.sub("y", "$share/g/a", 1)
	w.sub("y", "$share/h/+", 1)
	w.sub("y", "a", 0)
	w.gets("y", Delivery{"a", "0", 0, true, nil, 0})
	w.missing()
	w.pub("a", "6", 1) // each on its own
	w.missing("6", "6", "6")
	w.gets("y", at("a", "6", 1))
	w.gets("y", at("a", "6", 1))
	w.gets("y", at("a", "6", 0))
	w.not("y", at("a", "6", 1), false)
}

// A group loses what was begun with a member at QoS 2 [MQTT-4.8.2-5], and what
// was sent at QoS 0 over a connection that broke. What came later is kept.
func TestGroupLosesWithItsMember(t *testing.T) {
	w := begin(t)
	w.v5("x", true, 10)
	w.v5("y", true, 10)
	w.sub("x", "$share/g/a", 2)
	w.sub("y", "$share/g/a", 2)
	for qos := range byte(3) {
		w.pub("a", fmt.Sprint(qos), qos)
	}
	w.missing("0", "1", "2")
	w.Drop("x")
	w.pub("a", "later", 2)
	w.Advance(10_000)
	w.missing("1", "later")
	w.getsDup("y", at("a", "2", 2)) // or not begun with x at all
	w.Drop("y")
	w.Advance(20_000)
	w.v5("y", true, 0)
	w.sub("y", "$share/g/a", 2)
	w.missing() // nobody was there
	w.gets("y", at("a", "1", 1))
}

// What the model says is missing may be received, each once, in the order in
// which it is named for a session; then nothing is missing.
func TestMissingCanBeReceived(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New()
		clients := rapid.SampledFrom([]string{"a", "b", "c"})
		filters := rapid.SampledFrom([]string{"t", "t/u", "+", "t/#", "#", "$share/g/t", "$share/h/#"})
		n := 0
		connected := func(t *rapid.T) *session {
			c := clients.Draw(t, "client")
			if s := m.sessions[c]; s == nil || s.conn == 0 {
				m.Connect(Connect{Client: c, Version: herald.V5, Expiry: 5})
			}
			return m.sessions[c]
		}
		message := func(t *rapid.T) Message {
			n++
			return Message{Topic: rapid.SampledFrom([]string{"t", "t/u", "x"}).Draw(t, "topic"), Payload: fmt.Sprint(n),
				QoS: byte(rapid.IntRange(0, 2).Draw(t, "qos")), Retain: rapid.Bool().Draw(t, "retain"),
				Expiry: uint32(rapid.SampledFrom([]int{0, 0, 3, 30}).Draw(t, "expiry"))}
		}
		t.Repeat(map[string]func(*rapid.T){
			"connect": func(t *rapid.T) {
				c := Connect{Client: clients.Draw(t, "client"), Version: herald.V311, Clean: rapid.Bool().Draw(t, "clean")}
				if rapid.Bool().Draw(t, "v5") {
					c.Version, c.Expiry = herald.V5, uint32(rapid.IntRange(0, 10).Draw(t, "expiry"))
				}
				if rapid.Bool().Draw(t, "will") {
					c.Will = &Will{message(t), uint32(rapid.IntRange(0, 5).Draw(t, "delay"))}
				}
				had := slices.Contains(m.Sessions(), c.Client)
				if present := m.Connect(c); present && (c.Clean || !had) {
					t.Fatal("session present")
				}
			},
			"drop":       func(t *rapid.T) { m.Drop(connected(t).client) },
			"disconnect": func(t *rapid.T) { m.Disconnect(connected(t).client, rapid.Bool().Draw(t, "will"), nil) },
			"time":       func(t *rapid.T) { m.Advance(m.now + int64(rapid.IntRange(0, 4000).Draw(t, "ms"))) },
			"publish":    func(t *rapid.T) { m.Publish(clients.Draw(t, "client"), message(t)) },
			"":           func(t *rapid.T) { nothingOverdue(t, m) },
			"subscribe": func(t *rapid.T) {
				sub := Subscription{Filter: filters.Draw(t, "filter"), QoS: byte(rapid.IntRange(0, 2).Draw(t, "qos")),
					RetainAsPublished: rapid.Bool().Draw(t, "rap"), RetainHandling: byte(rapid.IntRange(0, 2).Draw(t, "rh"))}
				sub.NoLocal = sub.Filter[0] != '$' && rapid.Bool().Draw(t, "nl")
				m.Subscribe(connected(t).client, sub)
			},
			"unsubscribe": func(t *rapid.T) { m.Unsubscribe(connected(t).client, filters.Draw(t, "filter")) },
			"receive": func(t *rapid.T) {
				s := connected(t)
				for len(s.due) > 0 {
					if err := m.Receive(s.client, m.delivery(s, s.due[0]), false); err != nil {
						t.Fatal(err)
					}
				}
				for _, g := range m.groups {
					if mem := g.members[s]; mem != nil && len(g.due) > 0 {
						it := *g.due[0]
						it.grant = mem.Subscription
						d := m.delivery(s, &it)
						if err := m.Receive(s.client, d, false); err != nil {
							t.Fatal(err)
						}
						m.Ack(s.client, d)
					}
				}
				for _, miss := range m.Missing() {
					if strings.HasPrefix(miss, s.client+":") {
						t.Fatal(miss)
					}
				}
			},
		})
	})
}

func nothingOverdue(t *rapid.T, m *Model) {
	for _, s := range m.sessions {
		if s.ends <= m.now || s.willDue <= m.now || s.conn != 0 && s.ends != never {
			t.Fatalf("%s should have ended, or not: %+v", s.client, s)
		}
	}
	for topic, x := range m.Retained() {
		if !x.Retain || x.Payload == "" || topic != x.Topic {
			t.Fatalf("%q is retained as %+v", topic, x)
		}
	}
}
