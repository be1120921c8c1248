package engine

import (
	"sync/atomic"
	"testing"
)

// Whoever waits for what runs in the background waits for what that begins, too; what
// is begun after it does not run, and nothing panics at the moment in between.
func TestTheEndOfWhatRunsInTheBackground(t *testing.T) {
	for range 2000 {
		var j jobs
		var running atomic.Int32
		var begin func(depth int)
		begin = func(depth int) {
			j.run(func() {
				running.Add(1)
				defer running.Add(-1)
				if depth > 0 {
					begin(depth - 1)
				}
			})
		}
		begin(3)
		outside := make(chan struct{})
		go func() { // a frame that comes meanwhile
			defer close(outside)
			for range 10 {
				begin(1)
			}
		}()
		j.end()
		if n := running.Load(); n != 0 {
			t.Fatalf("%d run when all have ended", n)
		}
		<-outside
		if n := running.Load(); n != 0 {
			t.Fatalf("%d run after all have ended", n)
		}
	}
}
