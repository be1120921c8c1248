package scenario

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// A retained message that one node has acknowledged is seen on all others at once,
// and so is its replacement and its end.
func TestRetained(t *testing.T) {
	name := names(t)
	pub := connect(t, A, name("pub"))
	for i := range 20 {
		m := message(name("t"), fmt.Sprint(i), 1)
		m.Retain = true
		pub.publishMessage(m)
		for node := A; node <= C; node++ {
			sub := connect(t, node, name(fmt.Sprint("sub", i, node)), clean, expires(0))
			sub.subscribe(name("+"), 1)
			if m := sub.take(); string(m.Payload) != fmt.Sprint(i) || !m.Retain {
				t.Fatalf("node %d: %q, retain %t, want %d", node, m.Payload, m.Retain, i)
			}
			sub.leave()
		}
	}
	end := message(name("t"), "", 1)
	end.Retain = true
	connect(t, B, name("end")).publishMessage(end)
	for node := A; node <= C; node++ {
		sub := connect(t, node, name(fmt.Sprint("after", node)), clean, expires(0))
		sub.subscribe(name("t"), 1)
		sub.quiet()
	}
}

// Of two nodes that set a retained message one after the other, the later wins
// everywhere.
func TestRetainedTheLaterWins(t *testing.T) {
	name := names(t)
	pubs := []*client{connect(t, A, name("a")), connect(t, B, name("b")), connect(t, C, name("c"))}
	for i := range 30 {
		m := message(name("t"), fmt.Sprint(i), 1)
		m.Retain = true
		pubs[i%3].publishMessage(m)
		sub := connect(t, (i+1)%3, name(fmt.Sprint("sub", i)), clean, expires(0))
		sub.subscribe(name("t"), 0)
		sub.takes(fmt.Sprint(i))
		sub.leave()
	}
}

// What has expired while a session was away is not delivered on another node; what
// has not carries the rest of its time [MQTT-3.3.2-6].
func TestMessageExpiry(t *testing.T) {
	name := names(t)
	sub := connect(t, B, name("sub"))
	sub.subscribe(name("t"), 1)
	sub.leave()
	pub := connect(t, A, name("pub"))
	for payload, seconds := range map[string]uint32{"short": 1, "long": 600} {
		m := message(name("t"), payload, 1)
		m.Properties.MessageExpiry = &seconds
		pub.publishMessage(m)
	}
	<-time.After(2500 * time.Millisecond)
	sub = connect(t, C, name("sub")).wantPresent(true)
	m := sub.take()
	if string(m.Payload) != "long" {
		t.Fatalf("%q came, want long", m.Payload)
	}
	if e := m.Properties.MessageExpiry; e == nil || *e > 598 || *e < 580 {
		t.Errorf("expiry %v, want a little less than 598", e)
	}
	sub.quiet()
}

// A will is delivered on another node when its client's connection breaks, and not
// when the client says goodbye.
func TestWillCrossesNodes(t *testing.T) {
	name := names(t)
	watch := connect(t, B, name("watch"))
	watch.subscribe(name("will/#"), 1)
	connect(t, A, name("polite"), will(name("will/polite"), "?", 0)).leave()
	connect(t, A, name("rude"), will(name("will/rude"), "gone", 0)).drop()
	watch.takes("gone")
	watch.quiet()
}

// A will that is delayed does not go out when its client comes back, on another
// node, in time [MQTT-3.1.3-9].
func TestWillDelayElsewhere(t *testing.T) {
	name := names(t)
	watch := connect(t, B, name("watch"))
	watch.subscribe(name("will"), 1)
	connect(t, A, name("c"), will(name("will"), "?", 2)).drop()
	returns(t, C, name("c")).wantPresent(true)
	watch.quietFor(4 * time.Second)
}

// The wills of a killed node's clients are published by the others, once, and its
// sessions are there on the others.
func TestNodeKilled(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("there is no other node")
	}
	name := names(t)
	watch := []*client{connect(t, A, name("watch-a")), connect(t, B, name("watch-b"))}
	for _, w := range watch {
		w.subscribe(name("will"), 1)
	}
	victim := connect(t, C, name("victim"), will(name("will"), "gone", 0))
	victim.subscribe(name("t"), 1)
	sub := connect(t, C, name("sub"))
	sub.subscribe(name("t"), 2)
	watch[0].publish(name("t"), "before", 2)
	begun := sub.message()
	sub.ack(packets.PUBREC, begun.PacketID)
	sub.acked(packets.PUBREL, begun.PacketID)

	node := box.Nodes[C]
	if err := node.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	watch[0].publish(name("t"), "during", 2)
	sub = returns(t, B, name("sub")).wantPresent(true)
	t.Logf("the session was there %v after the kill", time.Since(killed).Round(time.Millisecond))
	sub.acked(packets.PUBREL, begun.PacketID)
	sub.ack(packets.PUBCOMP, begun.PacketID)
	sub.takes("during")
	for _, w := range watch {
		for end := time.Now().Add(20 * time.Second); len(w.in) == 0 && time.Now().Before(end); {
			<-time.After(20 * time.Millisecond)
		}
		w.takes("gone")
	}
	t.Logf("the will was there %v after the kill", time.Since(killed).Round(time.Millisecond))

	if err := node.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, w := range watch {
		w.quietFor(2 * time.Second)
	}
	again := connect(t, C, name("victim")).wantPresent(true)
	watch[0].publish(name("t"), "after", 1)
	var got []string
	for range 3 {
		got = append(got, string(again.take().Payload))
	}
	if fmt.Sprint(got) != "[before during after]" {
		t.Errorf("the victim's session got %v", got)
	}
	sub.takes("after")
	sub.quiet()
}

// $SYS is each node's own: what it says of its clients is about that node, and no
// other node's values come.
func TestSysIsPerNode(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("there is no other node")
	}
	name := names(t)
	const topic = "$SYS/broker/clients/connected"
	a := connect(t, A, name("watch-a"), clean, expires(0))
	b := connect(t, B, name("watch-b"), clean, expires(0))
	a.subscribe(topic, 0)
	b.subscribe(topic, 0)
	for i := range 10 {
		connect(t, A, name(fmt.Sprint("a", i)), clean, expires(0))
	}
	for i := range 30 {
		connect(t, C, name(fmt.Sprint("c", i)), clean, expires(0))
	}
	<-time.After(3500 * time.Millisecond) // some intervals
	// A client of a test before this one may still be counted at first.
	if v := said(a); len(v) == 0 || v[len(v)-1] < 10 || slices.Max(v) > 20 {
		t.Errorf("A, with eleven clients, says %v", v)
	}
	if v := said(b); len(v) == 0 || slices.Max(v) > 8 {
		t.Errorf("B, with one client, says %v", v)
	}
	late := connect(t, C, name("late"), clean, expires(0))
	late.subscribe(topic, 0)
	<-time.After(1500 * time.Millisecond)
	if v := said(late); len(v) == 0 || slices.Min(v) < 25 {
		t.Errorf("C, with more than thirty clients, says %v: what is retained is its own too", v)
	}
}

// said are the numbers that have come.
func said(c *client) (all []int) {
	c.t.Helper()
	c.ping()
	for _, p := range c.ahead {
		n, err := strconv.Atoi(string(p.Content.(*packets.Publish).Payload))
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, n)
	}
	c.ahead = nil
	return all
}
