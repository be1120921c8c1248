//go:build !linux

package broker

import (
	"math"
	"runtime/debug"
)

// memory is how many bytes this process may use, as GOMEMLIMIT says; 0 if it does not.
func memory() uint64 {
	if n := debug.SetMemoryLimit(-1); n < math.MaxInt64 {
		return uint64(n)
	}
	return 0
}
