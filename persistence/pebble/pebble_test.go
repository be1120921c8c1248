package pebble

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"

	"github.com/herald-mqtt/herald"
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
		Large:  large(),
	}
}

// large keeps the suite short where it is asked for.
func large() int {
	if testing.Short() {
		return 10_000
	}
	return 0
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
			Large:  large(),
		})
	})
}

func TestNothingIsLeftRunning(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := mustOpen(t, t.TempDir(), Options{SegmentBytes: 64 << 10, SweepInterval: time.Millisecond})
	f := newFiller(t, s)
	f.spread(f.messages(50, 1000), f.session("a"))
	f.turnOver()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAllocations guards the price of a commit: a batch of 200 messages for one
// session is encoded, written, applied and settled with hardly any allocation.
func TestAllocations(t *testing.T) {
	s := mustOpen(t, "data", Options{FS: vfs.NewMem()})
	defer s.Close()
	f := newFiller(t, s)
	a := f.session("a")
	msgs := f.messages(200, 64)
	batch := &persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: a, QoS: 1}}}}}
	mark := &persistence.Batch{Marks: []persistence.Mark{{Session: a, Low: f.id}}}
	done := make(chan error, 1)
	report := func(err error) { done <- err }
	n := testing.AllocsPerRun(200, func() {
		s.Commit(batch, nil)
		s.Commit(mark, report)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if n > 40 {
		t.Errorf("%.0f allocations for 200 messages", n)
	}
}

// TestFailedRead fails every read for a while, at every place: an error is said,
// with one of the contract's names, and later the same read succeeds.
func TestFailedRead(t *testing.T) {
	var reads, failAt atomic.Int64
	opts := small()
	mem := opts.FS
	opts.CacheBytes = 1 // nothing is cached
	opts.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt || op.Kind == errorfs.OpOpen {
			if n := reads.Add(1); n == failAt.Load() {
				return errorfs.ErrInjected
			}
		}
		return nil
	}))
	s := mustOpen(t, "data", opts)
	defer s.Close()
	f := newFiller(t, s)
	a := f.session("a")
	msgs := f.messages(100, 500)
	f.spread(msgs, a)
	for i := range 50 {
		f.commit(&persistence.Batch{Retain: []*herald.Message{{ID: f.id, Topic: fmt.Sprint("t/", i), Payload: []byte("x")}},
			Subscribe: []persistence.SubscriptionOf{{Session: a, Subscription: persistence.Subscription{Filter: fmt.Sprint(i)}}},
			Held:      []persistence.Held{{Session: a, PacketID: uint16(i + 1), ID: f.id}}})
	}
	f.turnOver()
	failures := 0
	for step := int64(1); step <= 40; step++ {
		failAt.Store(reads.Load() + step)
		c, err := read(s)
		failAt.Store(0)
		if err != nil {
			failures++
			if !errors.Is(err, herald.ErrUnavailable) && !errors.Is(err, herald.ErrCorrupt) {
				t.Fatalf("step %d: %v", step, err)
			}
			if c, err = read(s); err != nil {
				t.Fatalf("step %d: again: %v", step, err)
			}
		}
		if len(c.Inbox[a]) != 100 || len(c.Retained) != 50 || len(c.Subs[a]) != 50 || len(c.Held[a]) != 50 {
			t.Fatalf("step %d: %d entries, %d retained, %d subscriptions, %d held", step,
				len(c.Inbox[a]), len(c.Retained), len(c.Subs[a]), len(c.Held[a]))
		}
	}
	if failures == 0 {
		t.Fatal("no read failed")
	}
}
