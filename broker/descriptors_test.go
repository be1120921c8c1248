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
