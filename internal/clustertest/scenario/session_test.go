package scenario

import (
	"fmt"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

func timeout() <-chan time.Time { return time.After(patience) }

func mustPacket(t *testing.T, p *packets.ControlPacket) *packets.ControlPacket {
	t.Helper()
	if p == nil {
		t.Fatal("a connection is closed")
	}
	return p
}

// What was published on one node while a session of another was away is picked up
// on a third, in order.
func TestQueueIsPickedUpElsewhere(t *testing.T) {
	name := names(t)
	sub := connect(t, B, name("sub")).wantPresent(false)
	sub.subscribe(name("t"), 2)
	sub.leave()
	pub := connect(t, A, name("pub"))
	for i, payload := range numbers(200) {
		pub.publish(name("t"), payload, byte(1+i%2))
	}
	sub = connect(t, C, name("sub"), atMost(7)).wantPresent(true)
	sub.takes(numbers(200)...)
	sub.quiet()
	// Settled: it does not come again, wherever the session goes.
	sub.leave()
	sub = connect(t, A, name("sub")).wantPresent(true)
	sub.quiet()
}

// A session that is half done with its queue goes on with it on another node.
func TestHalfReadQueueMoves(t *testing.T) {
	name := names(t)
	sub := connect(t, A, name("sub"))
	sub.subscribe(name("t"), 1)
	sub.leave()
	pub := connect(t, B, name("pub"))
	for _, payload := range numbers(100) {
		pub.publish(name("t"), payload, 1)
	}
	sub = connect(t, B, name("sub"), atMost(10)).wantPresent(true)
	sub.takes(numbers(50)...)
	sub.ping() // the acknowledgements are read
	sub.drop()
	sub = returns(t, C, name("sub"), atMost(10)).wantPresent(true)
	// Nothing that was acknowledged is owed, and nothing is skipped. What was
	// acknowledged just before a session moves may come again at QoS 1.
	first := sub.take()
	var n int
	if _, err := fmt.Sscan(string(first.Payload), &n); err != nil || n > 50 {
		t.Fatalf("%q comes first, %v", first.Payload, err)
	}
	if n < 50 {
		t.Logf("goes on with %d, acknowledged up to 49", n)
	}
	sub.takes(numbers(100)[n+1:]...)
	sub.quiet()
}

// A QoS 2 publish that one node has answered with PUBREC is the same publish on
// another node: it is not delivered again, and PUBREL ends it there.
func TestPublisherContinuesQoS2Elsewhere(t *testing.T) {
	name := names(t)
	sub := connect(t, C, name("sub"))
	sub.subscribe(name("t"), 2)
	pub := connect(t, A, name("pub")).wantPresent(false)
	pub.post(&packets.Publish{Topic: name("t"), Payload: []byte("once"), QoS: 2, PacketID: 77, Properties: &packets.Properties{}})
	pub.acked(packets.PUBREC, 77)
	pub.drop()

	pub = returns(t, B, name("pub")).wantPresent(true)
	pub.post(&packets.Publish{Topic: name("t"), Payload: []byte("once"), QoS: 2, PacketID: 77, Duplicate: true, Properties: &packets.Properties{}})
	pub.acked(packets.PUBREC, 77)
	pub.ack(packets.PUBREL, 77)
	if r := pub.acked(packets.PUBCOMP, 77); r != 0 {
		t.Errorf("PUBCOMP %#02x", r)
	}
	// The packet id is free: the next one is a new message.
	pub.lastID = 76
	pub.publish(name("t"), "twice", 2)
	sub.takes("once", "twice")
	sub.quiet()
}

// The same when only PUBREL is left to be sent, and again when that is repeated
// on a third node because its answer was lost.
func TestPubrelElsewhere(t *testing.T) {
	name := names(t)
	sub := connect(t, B, name("sub"))
	sub.subscribe(name("t"), 2)
	pub := connect(t, A, name("pub"))
	pub.post(message(name("t"), "once", 2))
	pub.acked(packets.PUBREC, 1)
	pub.drop()
	pub = returns(t, B, name("pub")).wantPresent(true)
	pub.ack(packets.PUBREL, 1)
	if r := pub.acked(packets.PUBCOMP, 1); r != 0 {
		t.Errorf("PUBCOMP %#02x", r)
	}
	pub.drop()
	pub = returns(t, C, name("pub")).wantPresent(true)
	pub.ack(packets.PUBREL, 1)
	if r := pub.acked(packets.PUBCOMP, 1); r != 0 && r != 0x92 {
		t.Errorf("PUBCOMP %#02x for a PUBREL that was answered before", r)
	}
	sub.takes("once")
	sub.quiet()
}

// A QoS 2 delivery that one node has begun goes on where it stands on another:
// with PUBREL if PUBREC was received, else with the same PUBLISH.
func TestReceiverContinuesQoS2Elsewhere(t *testing.T) {
	name := names(t)
	sub := connect(t, A, name("sub"))
	sub.subscribe(name("t"), 2)
	pub := connect(t, B, name("pub"))
	pub.publish(name("t"), "first", 2)
	pub.publish(name("t"), "second", 2)
	first, second := sub.message(), sub.message()
	sub.ack(packets.PUBREC, first.PacketID)
	sub.acked(packets.PUBREL, first.PacketID) // so PUBREC was taken
	sub.drop()

	sub = returns(t, C, name("sub")).wantPresent(true)
	sub.acked(packets.PUBREL, first.PacketID)
	again := sub.message()
	if again.PacketID != second.PacketID || string(again.Payload) != "second" || !again.Duplicate {
		t.Errorf("%v came, want the second message again under packet id %d", again, second.PacketID)
	}
	sub.ack(packets.PUBCOMP, first.PacketID)
	sub.ack(packets.PUBREC, again.PacketID)
	sub.acked(packets.PUBREL, again.PacketID)
	sub.ack(packets.PUBCOMP, again.PacketID)
	sub.quiet()
	sub.leave()
	sub = connect(t, B, name("sub")).wantPresent(true)
	sub.quiet()
}

// A session that connects to another node is taken over from the one where it is:
// the old connection is told so, and the new one has everything.
func TestTakeOver(t *testing.T) {
	name := names(t)
	id := name("sub")
	old := connect(t, A, id).wantPresent(false)
	old.subscribe(name("t"), 1)
	pub := connect(t, C, name("pub"))
	for round, node := range []int{B, C, A, B} {
		pub.publish(name("t"), fmt.Sprint("unacknowledged ", round), 1)
		if got := old.message(); string(got.Payload) != fmt.Sprint("unacknowledged ", round) {
			t.Fatalf("%q", got.Payload)
		}
		now := connect(t, node, id).wantPresent(true)
		old.disconnected(0x8E)
		now.takes(fmt.Sprint("unacknowledged ", round))
		pub.publish(name("t"), fmt.Sprint("new ", round), 1)
		now.takes(fmt.Sprint("new ", round))
		now.quiet()
		old = now
	}
}

// A clean start on another node ends the session: its subscriptions and its queue
// are gone, everywhere.
func TestCleanStartElsewhere(t *testing.T) {
	name := names(t)
	id := name("sub")
	old := connect(t, A, id)
	old.subscribe(name("t"), 1)
	pub := connect(t, C, name("pub"))
	pub.publish(name("t"), "old", 1)
	old.message() // in flight
	now := connect(t, B, id, clean).wantPresent(false)
	old.disconnected(0x8E)
	pub.publish(name("t"), "nobody's", 1)
	now.quiet()
	now.subscribe(name("u"), 1)
	pub.publish(name("u"), "new", 1)
	now.takes("new")
	now.leave()
	now = connect(t, C, id).wantPresent(true)
	pub.publish(name("t"), "nobody's", 1)
	pub.publish(name("u"), "newer", 1)
	now.takes("newer")
	now.quiet()
}

// Subscriptions that a session changes on one node hold on all.
func TestSubscriptionsMove(t *testing.T) {
	name := names(t)
	sub := connect(t, A, name("sub"))
	sub.subscribe(name("gone"), 1)
	sub.subscribe(name("kept"), 2)
	sub = connect(t, B, name("sub")).wantPresent(true)
	sub.unsubscribe(name("gone"))
	sub.subscribe(name("kept"), 1)
	sub.subscribe(name("added"), 0)
	sub.leave()
	sub = connect(t, C, name("sub")).wantPresent(true)
	pub := connect(t, A, name("pub"))
	pub.publish(name("gone"), "0", 1)
	pub.publish(name("kept"), "1", 2)
	pub.publish(name("added"), "2", 1)
	got := map[string]byte{}
	for range 2 {
		m := sub.take()
		got[string(m.Payload)] = m.QoS
	}
	if len(got) != 2 || got["1"] != 1 || got["2"] != 0 {
		t.Errorf("payload and QoS %v, want 1 at QoS 1 and 2 at QoS 0", got)
	}
	sub.quiet()
}

// A session that ends with its connection on one node is not there on another.
func TestEphemeralSessionEnds(t *testing.T) {
	name := names(t)
	c := connect(t, A, name("c"), expires(0)).wantPresent(false)
	c.subscribe(name("t"), 1)
	now := connect(t, B, name("c"), expires(0)).wantPresent(false)
	c.disconnected(0x8E)
	connect(t, C, name("pub")).publish(name("t"), "x", 1)
	now.quiet()
}

// A session's expiry is one for the cluster: it is there on any node before, on
// none after, and its will goes out once.
func TestSessionExpiry(t *testing.T) {
	name := names(t)
	watchers := []*client{connect(t, B, name("watch-b")), connect(t, C, name("watch-c"))}
	for _, w := range watchers {
		w.subscribe(name("will"), 1)
	}
	c := connect(t, A, name("c"), expires(2), will(name("will"), "gone", 60))
	c.subscribe(name("t"), 1)
	c.drop()
	c = returns(t, B, name("c"), expires(2), will(name("will"), "gone", 60)).wantPresent(true)
	c.drop()
	// The will is due when the session ends, before its delay is over.
	for _, w := range watchers {
		w.takes("gone")
	}
	for _, w := range watchers {
		w.quietFor(3 * time.Second)
	}
	connect(t, C, name("c")).wantPresent(false).quiet()
}
