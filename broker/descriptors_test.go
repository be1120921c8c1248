package broker

import "testing"

// Clients never get all descriptors: a store that cannot open a file stops.
func TestConnectionsFor(t *testing.T) {
	for descriptors, want := range map[uint64]int{0: 0, 100: 50, 1024: 512, 20_000: 19_360, 1 << 63: 1<<31 - 1} {
		if got := connectionsFor(descriptors); got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
	}
}

// A quarter of the memory may wait to be written, unless configuration says how much.
func TestPendingFor(t *testing.T) {
	for _, tt := range []struct {
		configured int64
		memory     uint64
		want       int64
	}{{0, 8 << 30, 2 << 30}, {1 << 20, 8 << 30, 1 << 20}, {0, 0, 0}, {5, 0, 5}} {
		if got := pendingFor(tt.configured, tt.memory); got != tt.want {
			t.Errorf("configured %d of %d: %d, want %d", tt.configured, tt.memory, got, tt.want)
		}
	}
	if n := memory(); n > 0 && n < 1<<26 {
		t.Errorf("this process may use %d bytes", n)
	}
}
