package cassandra

import (
	"context"
	"testing"
)

// Start starts a cluster of n nodes for a test, which is stopped when the test
// ends.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	return StartWith(t, Options{Nodes: n})
}

// StartWith is Start with options.
func StartWith(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if opts.Log == nil {
		opts.Log = t.Logf
	}
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	c, err := Launch(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}
