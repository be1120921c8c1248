package listen

import (
	"cmp"
	"slices"
	"time"
)

// pressure is how often it is looked how much waits to be written in all.
const pressure = 100 * time.Millisecond

// relieve ends the connections on which the most waits while more waits on all of them
// together than may, until it is three quarters of that. Their sessions go on when
// their clients come back.
func (l *Loop) relieve() {
	most := l.cfg.MaxPending
	if most <= 0 || l.Stats().Pending <= most {
		return
	}
	type waiting struct {
		c     *Conn
		bytes int64
	}
	var all []waiting
	sum := int64(0)
	l.slots.each(func(c *Conn) {
		// What is being ended lets go of its bytes soon.
		if n := c.out.pending.Load(); n > 0 && !c.dead.Load() {
			all = append(all, waiting{c, n})
			sum += n
		}
	})
	if sum <= most {
		return
	}
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Compare(b.bytes, a.bytes) })
	ended, before := 0, sum
	for _, w := range all {
		if sum <= most/4*3 {
			break
		}
		w.c.Shutdown()
		sum -= w.bytes
		ended++
	}
	l.counts.slow.Add(int64(ended))
	l.log.Warn("too much waits to be written: the slowest connections are ended", "bytes", before, "bound", most, "connections", ended)
}
