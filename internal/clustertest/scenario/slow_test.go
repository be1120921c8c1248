package scenario

import (
	"testing"

	"github.com/herald-mqtt/herald/internal/clustertest"
)

// A SUBACK waits for the other nodes, not for retained messages, which the store has: it
// comes while that does not answer, and they come when it does.
func TestSubackWaitsForNoRetainedMessage(t *testing.T) {
	links := box.Nodes[A].ToStore
	if len(links) == 0 {
		t.Skip("the database that is given is reached without a link that could be cut")
	}
	name := names(t)
	kept := message(name("t"), "kept", 1)
	kept.Retain = true
	pub := connect(t, A, name("pub"))
	pub.publishMessage(kept)
	sub := connect(t, A, name("sub"), clean, expires(0))
	harm := func(h clustertest.Harm) {
		for _, l := range links {
			l.Set(h)
		}
	}
	harm(clustertest.SilentIn)
	defer harm(clustertest.Healed)
	sub.subscribe(name("t"), 1)
	harm(clustertest.Healed)
	sub.takes("kept")
}
