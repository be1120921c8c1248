package clustertest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// Start starts a cluster for a test and stops it when the test ends. If the test
// has failed, the brokers' logs are shown; HERALD_TEST_KEEP names a folder in
// which they are kept.
func Start(t testing.TB, opts Options) *Cluster {
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
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			return
		}
		for _, n := range c.Nodes {
			output := n.Output()
			t.Logf("the end of what %s has logged:\n%s", n.Name, output[max(0, len(output)-4<<10):])
			if keep := os.Getenv("HERALD_TEST_KEEP"); keep != "" {
				_ = os.WriteFile(filepath.Join(keep, n.Name+".log"), []byte(output), 0o600) // a convenience
			}
		}
	})
	return c
}
