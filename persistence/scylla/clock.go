package scylla

import (
	"sync/atomic"

	"github.com/herald-mqtt/herald"
)

// stamps makes the timestamps of writes: microseconds since 1970 of a hybrid
// clock, so that a later write wins whatever the machine's clock says. It never
// gives out the same twice, and what it gives out is above everything that it
// has seen.
type stamps struct {
	now  func() int64 // microseconds
	last atomic.Int64
}

func (c *stamps) next() int64 { return c.take(1) }

// take returns the first of n consecutive stamps.
func (c *stamps) take(n int) int64 {
	now := c.now()
	for {
		last := c.last.Load()
		v := max(now, last+1)
		if c.last.CompareAndSwap(last, v+int64(n)-1) {
			return v
		}
	}
}

// saw keeps the clock above v.
func (c *stamps) saw(v int64) {
	for {
		last := c.last.Load()
		if last >= v || c.last.CompareAndSwap(last, v) {
			return
		}
	}
}

// idStamp is the timestamp of what a message's ID alone decides: its entries in
// inboxes, which are the same whoever writes them, and the retained message of
// its topic, where the newest ID wins. It never falls as IDs rise. IDs of one
// millisecond and node share one; between those the greater value wins, and
// every such value begins with its ID.
func idStamp(id herald.ID) int64 {
	return id.Time().UnixMilli()*1000 + int64(id.Node())*1000/(herald.MaxNode+1)
}

// Clock is an ID at or above all that this node has seen, in what it wrote, in what it
// read, and of lives that [Store.Members] has shown to be Finished.
func (s *Store) Clock() herald.ID {
	return max(herald.IDAt(s.clock.last.Load()/1000+1), s.MaxID())
}
