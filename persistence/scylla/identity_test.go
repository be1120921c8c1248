package scylla

import (
	"context"
	"sync"
	"testing"
)

// Nodes that ask for the first time at once agree, and so does who asks later.
func TestOneIdentity(t *testing.T) {
	o := options(t)
	stores := []*Store{mustOpen(t, o), mustOpen(t, o)}
	var ids [16]string
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = stores[i%2].Identity(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	last, err := stores[0].Identity(context.Background())
	if err != nil || last == "" {
		t.Fatalf("%q, %v", last, err)
	}
	for _, id := range ids {
		if id != last {
			t.Fatalf("identities %q, and %q later", ids, last)
		}
	}
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
