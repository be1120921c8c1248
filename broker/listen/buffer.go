package listen

import (
	"math/bits"
	"sync"
)

// buffer is a byte slice from a pool; the struct is what is pooled, so that
// giving it back allocates nothing.
type buffer struct{ b []byte }

const (
	bufMinBits = 9  // 512 bytes
	bufMaxBits = 18 // 256 KiB; what has grown beyond that is not kept
)

// The classes are four times apart: a buffer that is too small by one class is
// grown by append once or twice, and idle pools hold few sizes.
var bufPools [(bufMaxBits-bufMinBits)/2 + 1]sync.Pool

// bufClass is the smallest class that holds n bytes, or -1.
func bufClass(n int) int {
	if n <= 1<<bufMinBits {
		return 0
	}
	c := (bits.Len(uint(n-1)) - bufMinBits + 1) / 2
	if c >= len(bufPools) {
		return -1
	}
	return c
}

// getBuffer returns an empty buffer with room for n bytes.
func getBuffer(n int) *buffer {
	c := bufClass(n)
	if c < 0 {
		return &buffer{make([]byte, 0, n)}
	}
	if x := bufPools[c].Get(); x != nil {
		return x.(*buffer)
	}
	return &buffer{make([]byte, 0, 1<<(bufMinBits+2*c))}
}

// putBuffer gives b back; nobody may hold a slice of it.
func putBuffer(b *buffer) {
	n := cap(b.b)
	if n < 1<<bufMinBits || n >= 2<<bufMaxBits {
		return
	}
	// The largest class that it can serve.
	c := min((bits.Len(uint(n))-1-bufMinBits)/2, len(bufPools)-1)
	b.b = b.b[:0]
	bufPools[c].Put(b)
}
