package broker_test

import (
	"fmt"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// retain sets n retained messages r/0, r/1, ...
func retain(t *testing.T, addr string, n int) {
	t.Helper()
	p := connect(t, addr, wire.Connect{ClientID: []byte("retains"), Clean: true})
	for i := range n {
		p.send(publish(0, fmt.Sprint("r/", i), 0, true, "x"))
	}
	p.send(publish(1, "r/last", 1, true, "x")) // its answer comes when all are stored
	p.until(wire.TypePuback)
}

// all reads PUBLISHes, acknowledges them, and returns when n topics have come.
func (p *peer) all(n int) {
	p.t.Helper()
	seen := make(map[string]bool, n)
	for len(seen) < n {
		first, body, err := p.next()
		if err != nil {
			p.t.Fatalf("%d of %d retained messages came: %v", len(seen), n, err)
		}
		if wire.Type(first) != wire.TypePublish {
			continue
		}
		topic, pid, _ := received(first, body)
		seen[topic] = true
		if pid != 0 {
			p.send(wire.AppendAck(nil, herald.V5, wire.TypePuback, pid, 0))
		}
	}
}

// A subscription whose retained messages are on their way is replaced, or goes,
// in the middle: what comes after it gets its own.
func TestRetainedSubscriptionReplaced(t *testing.T) {
	const n = 3000
	addr := startNode(t)
	retain(t, addr, n)
	for name, again := range map[string][]byte{
		"same filter":     subscribe(2, "r/#", 1),
		"existed already": subscribe(2, "r/#", 1|1<<4),
		"other filter":    append(unsubscribe(2, "r/#"), subscribe(3, "r/+", 1)...),
	} {
		for _, expiry := range []uint32{0, 100} {
			t.Run(fmt.Sprintf("%s/expiry %d", name, expiry), func(t *testing.T) {
				p := connect(t, addr, wire.Connect{ClientID: []byte("reads"), Clean: true, SessionExpiry: expiry})
				p.send(subscribe(1, "r/#", 1))
				p.until(wire.TypePublish) // they are on their way
				p.send(again)
				p.all(n)
			})
		}
	}
}
