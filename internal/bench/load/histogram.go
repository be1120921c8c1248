//go:build linux

package load

import (
	"math/bits"
	"time"
)

const (
	subBits   = 6 // 64 steps per power of two: at most 1.6 % off
	subCount  = 1 << subBits
	histSlots = (64 - subBits) * subCount
)

// Histogram counts durations in steps of at most 1.6 %. The zero value is
// ready. It is not safe for concurrent use.
type Histogram struct {
	count uint64
	max   uint64
	slots [histSlots]uint32
}

func slotOf(ns uint64) int {
	if ns < subCount {
		return int(ns)
	}
	exp := bits.Len64(ns) - subBits - 1
	return exp*subCount + int(ns>>exp)
}

// upper is the largest value that falls into slot.
func upper(slot int) uint64 {
	if slot < 2*subCount {
		return uint64(slot)
	}
	exp := slot/subCount - 1
	return uint64(slot-exp*subCount+1)<<exp - 1
}

// Add counts one duration in nanoseconds; a negative one counts as 0.
func (h *Histogram) Add(ns int64) {
	v := uint64(max(ns, 0))
	h.count++
	h.max = max(h.max, v)
	h.slots[min(slotOf(v), histSlots-1)]++
}

// Merge adds what other counted.
func (h *Histogram) Merge(other *Histogram) {
	h.count += other.count
	h.max = max(h.max, other.max)
	for i, n := range other.slots {
		h.slots[i] += n
	}
}

// Count is the number of durations added.
func (h *Histogram) Count() uint64 { return h.count }

// Max is the longest duration added.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max) }

// Quantile returns the duration below or at which the share q (0 to 1) of the
// durations lies, rounded up to the end of its step; 0 if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	want := max(uint64(q*float64(h.count)+0.5), 1)
	seen := uint64(0)
	for i, n := range h.slots {
		seen += uint64(n)
		if seen >= want {
			return time.Duration(min(upper(i), h.max))
		}
	}
	return time.Duration(h.max)
}
