package pebble

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/storetest"
)

// memory is a driver on a file system in memory.
func memory(opts Options) storetest.Driver {
	return storetest.Driver{
		Open: func(t testing.TB) persistence.Store {
			o := opts
			o.FS = vfs.NewMem()
			return mustOpen(t, "data", o)
		},
		Reopen: reopen,
	}
}

func reopen(t testing.TB, s persistence.Store) persistence.Store {
	t.Helper()
	old := s.(*Store)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, old.dir, old.opts)
}

func mustOpen(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	t.Run("small segments", func(t *testing.T) {
		// Everything is spilled and swept all the time.
		storetest.Run(t, memory(Options{SegmentBytes: 64 << 10, MemTableBytes: 256 << 10, SweepInterval: 20 * time.Millisecond, InlineUpTo: 2}))
	})
	t.Run("on disk", func(t *testing.T) {
		storetest.Run(t, storetest.Driver{
			Open:   func(t testing.TB) persistence.Store { return mustOpen(t, t.TempDir(), Options{SegmentBytes: 4 << 20}) },
			Reopen: reopen,
		})
	})
}
