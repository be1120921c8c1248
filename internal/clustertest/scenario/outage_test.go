package scenario

import (
	"context"
	"testing"
	"time"
)

// All nodes are killed, and one comes back alone, is killed again at once, and comes
// back: it finishes what all of them had begun before it takes clients. What was
// acknowledged is there, the wills are sent once.
func TestAllNodesKilled(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("there is no other node")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	name := names(t)
	start := func(nodes ...int) {
		t.Helper()
		for _, n := range nodes {
			if err := box.Nodes[n].Start(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	kill := func(nodes ...int) {
		t.Helper()
		for _, n := range nodes {
			if err := box.Nodes[n].Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	watch := connect(t, B, name("watch"))
	watch.subscribe(name("will"), 2)
	sub := connect(t, C, name("sub"))
	sub.subscribe(name("t"), 2)
	sub.leave()
	for i, id := range []string{"at a", "at b", "at c"} {
		connect(t, i, name(id), will(name("will"), id, 0))
	}
	pub := connect(t, A, name("pub"))
	pub.publish(name("t"), "one", 2)
	pub.publish(name("t"), "two", 1)

	kill(A, B, C)
	start(A)
	kill(A)
	begun := time.Now()
	start(A)
	t.Logf("alone again %v after it was started", time.Since(begun).Round(time.Millisecond))
	sub = returns(t, A, name("sub")).wantPresent(true)
	sub.takes("one", "two")
	watch = returns(t, A, name("watch")).wantPresent(true)
	wills := map[string]int{}
	for range 3 {
		wills[string(watch.take().Payload)]++
	}
	for _, id := range []string{"at a", "at b", "at c"} {
		if wills[id] != 1 {
			t.Errorf("wills: %v", wills)
			break
		}
	}
	start(B, C)
	watch.quietFor(2 * time.Second)
	pub = returns(t, B, name("pub")).wantPresent(true)
	pub.publish(name("t"), "three", 1)
	sub.takes("three")
	sub.quiet()
}
