package scenario

import (
	"fmt"
	"slices"
	"testing"

	"github.com/eclipse/paho.golang/packets"
)

// A publish on one node reaches a subscriber on another, at every QoS, whether the
// subscriber's session is durable or ends with its connection.
func TestPublishCrossesNodes(t *testing.T) {
	for _, durable := range []bool{false, true} {
		for qos := byte(0); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("durable %t, QoS %d", durable, qos), func(t *testing.T) {
				name := names(t)
				session := []option{clean, expires(0)}
				if durable {
					session = nil
				}
				sub := connect(t, B, name("sub"), session...)
				sub.subscribe(name("t"), qos)
				pub := connect(t, A, name("pub"), clean, expires(0))
				for _, payload := range numbers(50) {
					pub.publish(name("t"), payload, qos)
				}
				sub.takes(numbers(50)...)
				sub.quiet()
			})
		}
	}
}

// A publish that any node accepts after SUBACK reaches the subscriber: it is sent
// the moment SUBACK is there, again and again.
func TestPublishRightAfterSuback(t *testing.T) {
	name := names(t)
	pubs := []*client{connect(t, A, name("pub-a")), connect(t, B, name("pub-b")), connect(t, C, name("pub-c"))}
	for i := range 60 {
		opts := []option{clean, expires(0)}
		if i%2 == 1 {
			opts = nil
		}
		topic := name(fmt.Sprint("t", i))
		sub := connect(t, i%3, name(fmt.Sprint("sub", i)), opts...)
		sub.subscribe(topic, 1)
		for j, pub := range pubs {
			pub.post(message(topic, fmt.Sprint(j), byte(i%2)))
		}
		var got []string
		for range pubs {
			got = append(got, string(sub.take().Payload))
		}
		if slices.Sort(got); !slices.Equal(got, numbers(3)) {
			t.Fatalf("%v came, want one of each node", got)
		}
		sub.leave()
	}
}

// Order holds across nodes for one publisher, with many publishes under way.
func TestOrderAcrossNodes(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			name := names(t)
			sub := connect(t, C, name("sub"))
			sub.subscribe(name("#"), qos)
			pub := connect(t, A, name("pub"))
			const n = 500
			for i := range n {
				pub.post(message(name("t"), fmt.Sprint(i), qos))
			}
			sub.takes(numbers(n)...)
			sub.quiet()
		})
	}
}

// A wildcard subscription on one node gets what other nodes are sent, once, and
// nothing after it was removed.
func TestWildcard(t *testing.T) {
	name := names(t)
	sub := connect(t, B, name("sub"), clean, expires(0))
	sub.subscribe(name("+/x"), 1)
	sub.subscribe(name("#"), 0)
	a, c := connect(t, A, name("a")), connect(t, C, name("c"))
	a.publish(name("1/x"), "0", 1)
	if m := sub.take(); string(m.Payload) != "0" || m.QoS != 1 {
		t.Errorf("%q at QoS %d, want 0 at the higher QoS", m.Payload, m.QoS)
	}
	c.publish(name("1/y"), "1", 1)
	if m := sub.take(); string(m.Payload) != "1" || m.QoS != 0 {
		t.Errorf("%q at QoS %d, want 1 at QoS 0", m.Payload, m.QoS)
	}
	sub.unsubscribe(name("#"))
	c.publish(name("1/y"), "2", 1)
	a.publish(name("2/x"), "3", 1)
	sub.takes("3")
	sub.quiet()
}

// A client that wants none of its own messages gets none, and all others do; the
// same when its session has moved.
func TestNoLocal(t *testing.T) {
	name := names(t)
	own := connect(t, A, name("own"))
	own.subscribeWith(packets.SubOptions{Topic: name("t"), QoS: 1, NoLocal: true})
	other := connect(t, B, name("other"))
	other.subscribe(name("t"), 1)
	own.publish(name("t"), "mine", 1)
	other.takes("mine")
	other.publish(name("t"), "yours", 1)
	own.takes("yours")
	other.takes("yours")
	own.quiet()

	own = connect(t, C, name("own")).wantPresent(true)
	own.publish(name("t"), "mine again", 1)
	other.takes("mine again")
	other.publish(name("t"), "yours again", 1)
	own.takes("yours again")
	own.quiet()
}

// Each message for a shared group reaches one member, whichever nodes they are on.
func TestSharedGroupAcrossNodes(t *testing.T) {
	for _, durable := range []bool{false, true} {
		for qos := byte(0); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("durable %t, QoS %d", durable, qos), func(t *testing.T) {
				name := names(t)
				opts := []option{clean, expires(0)}
				if durable {
					opts = nil
				}
				var members []*client
				for node := A; node <= C; node++ {
					m := connect(t, node, name(fmt.Sprint("member", node)), opts...)
					m.subscribe("$share/g/"+name("t"), qos)
					members = append(members, m)
				}
				const n = 90
				pub := connect(t, A, name("pub"))
				for _, payload := range numbers(n) {
					pub.publish(name("t"), payload, qos)
				}
				seen := make(map[string]int)
				shares := make([]int, len(members))
				for total := 0; total < n; {
					i, m, ok := anyOf(t, members)
					if !ok {
						t.Fatalf("%d of %d messages came, the members got %v", total, n, shares)
					}
					seen[m]++
					shares[i]++
					total++
				}
				for _, m := range members {
					m.quiet()
				}
				if len(seen) != n {
					t.Errorf("%d of %d messages came, some of them twice", len(seen), n)
				}
				if slices.Min(shares) == 0 {
					t.Errorf("the members got %v messages", shares)
				}
			})
		}
	}
}

// anyOf takes the next message of any of the three clients; ok false: none comes.
func anyOf(t *testing.T, clients []*client) (which int, payload string, ok bool) {
	t.Helper()
	for {
		for i, c := range clients {
			if len(c.ahead) > 0 || len(c.in) > 0 {
				return i, string(c.take().Payload), true
			}
		}
		// Whichever comes first; it is left to take.
		select {
		case p := <-clients[0].in:
			clients[0].ahead = append(clients[0].ahead, mustPacket(t, p))
		case p := <-clients[1].in:
			clients[1].ahead = append(clients[1].ahead, mustPacket(t, p))
		case p := <-clients[2].in:
			clients[2].ahead = append(clients[2].ahead, mustPacket(t, p))
		case <-timeout():
			return 0, "", false
		}
	}
}
