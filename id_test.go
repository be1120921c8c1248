package herald_test

import (
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
)

func TestIDTellsTimeAndNode(t *testing.T) {
	at := time.Date(2026, 11, 24, 8, 0, 0, 123e6, time.UTC)
	id := herald.NewIDs(7, 0).Next(at.UnixMilli(), 1).At(0)
	if !id.Time().Equal(at) || id.Node() != 7 {
		t.Errorf("%d tells %v of node %d, want %v of node 7", id, id.Time(), id.Node(), at)
	}
	if first := herald.IDAt(at.UnixMilli()); id < first || id >= herald.IDAt(at.UnixMilli()+1) {
		t.Errorf("%d lies outside its millisecond", id)
	}
	if herald.IDAt(0) != 0 {
		t.Error("a moment before the epoch has an ID")
	}
}

// IDs rise whatever the wall clock does, and run ahead of it when there are more
// than a millisecond holds.
func TestIDsRise(t *testing.T) {
	ids := herald.NewIDs(herald.MaxNode, 0)
	now := herald.Epoch.UnixMilli() + 1000
	var last herald.ID
	for _, at := range []int64{now, now, now - 500, 0, now + 1, now} {
		r := ids.Next(at, 5000)
		for i := range 5000 {
			if id := r.At(i); id <= last || id.Node() != herald.MaxNode {
				t.Fatalf("%d of node %d after %d", id, id.Node(), last)
			} else {
				last = id
			}
		}
	}
}

func TestIDsGoOnFromTheFloorAndFromWhatWasSeen(t *testing.T) {
	floor := herald.IDAt(herald.Epoch.UnixMilli()+5000) | 5
	ids := herald.NewIDs(1, floor)
	if id := ids.Next(herald.Epoch.UnixMilli(), 1).At(0); id <= floor {
		t.Errorf("%d is not above the floor %d", id, floor)
	}
	seen := herald.IDAt(herald.Epoch.UnixMilli() + 9000)
	ids.Observe(seen)
	if id := ids.Next(herald.Epoch.UnixMilli(), 1).At(0); id <= seen {
		t.Errorf("%d is not above %d, which was seen", id, seen)
	}
}

func TestIDsAreUnique(t *testing.T) {
	ids := herald.NewIDs(1, 0)
	var mu sync.Mutex
	seen := make(map[herald.ID]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				r := ids.Next(time.Now().UnixMilli(), 7)
				mu.Lock()
				for i := range 7 {
					if seen[r.At(i)] {
						t.Errorf("%d was given out twice", r.At(i))
					}
					seen[r.At(i)] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
