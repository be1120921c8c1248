package pebble

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// What can be seen, or lost, between two effects that belong together.

// inject wraps fs: before each operation at is called, and may fail it.
func inject(fs vfs.FS, at func(op errorfs.Op) error) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(at))
}

func inJournal(op errorfs.Op, kind errorfs.OpKind) bool {
	return op.Kind == kind && strings.Contains(op.Path, "journal")
}

// powerCut is what a power loss before some write leaves.
type powerCut struct {
	at string
	fs *vfs.MemFS
}

// opens looks whether each opens, and its session's inbox begins with what was kept, and
// returns how many there were.
func (f *filler) opens(cuts chan powerCut, opts Options, a herald.SessionID, kept []*herald.Message) (n int) {
	f.t.Helper()
	close(cuts)
	for c := range cuts {
		n++
		opts.FS = c.fs
		s, err := Open("data", opts)
		if err != nil {
			f.t.Errorf("power lost before %s: %v", c.at, err)
			continue
		}
		f.s = s
		got := f.inbox(a)
		f.same("power lost before "+c.at, got[:min(len(got), len(kept))], idsOf(kept))
		if err := s.Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	return n
}

// TestKilledThenPowerLoss: a process is killed between the write of a record and
// its sync, the next one finds the record whole and goes on behind it, and then
// the power fails. What rests on the record must not be there without it.
func TestKilledThenPowerLoss(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var armed, killed atomic.Bool
	opts := small()
	opts.FS = inject(mem, func(op errorfs.Op) error {
		if armed.Load() && inJournal(op, errorfs.OpFileSyncData) {
			killed.Store(true)
		}
		if killed.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errorfs.ErrInjected // as if nobody did anything any more
		}
		return nil
	})
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	kept := f.messages(3, 100)
	f.spread(kept, a)
	armed.Store(true)
	found := f.messages(1, 100)
	if err := <-f.begin(spreadTo(found, a)); err == nil {
		t.Fatal("acknowledged what was not synced")
	}
	_ = s.Close()

	opts.FS = mem
	f.s = mustOpen(t, "data", opts)
	f.same("the page cache has it", f.inbox(a), append(idsOf(kept), idsOf(found)...))
	more := f.messages(1, 100)
	f.spread(more, a)
	after := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}

	opts.FS = after
	f.s = mustOpen(t, "data", opts)
	defer f.s.Close()
	f.same("after the power loss", f.inbox(a), append(append(idsOf(kept), idsOf(found)...), idsOf(more)...))
}

// TestPowerLossAtStart cuts the power before each write of a start: the folder
// opens, and has everything.
func TestPowerLossAtStart(t *testing.T) {
	mem := vfs.NewCrashableMem()
	opts := small()
	opts.FS = mem
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	kept := f.messages(3, 100)
	f.spread(kept, a)
	f.until("the next segment is ready", func() bool { s.journal.mu.Lock(); defer s.journal.mu.Unlock(); return s.journal.ready != nil })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cuts := make(chan powerCut, 10_000)
	opts.FS = inject(mem, func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			cuts <- powerCut{fmt.Sprintf("%v of %s", op.Kind, op.Path), mem.CrashClone(vfs.CrashCloneCfg{})}
		}
		return nil
	})
	f.s = mustOpen(t, "data", opts)
	f.spread(f.messages(1, 100), a)
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := f.opens(cuts, opts, a, kept); n < 20 {
		t.Fatalf("only %d writes were cut", n)
	}
}

// TestPowerLossAfterFullDisk: the beginning of a segment cannot be written, its
// file is used for the next one, and at each write from then on the power may
// fail.
func TestPowerLossAfterFullDisk(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var failing, cutting atomic.Bool
	cuts := make(chan powerCut, 10_000)
	opts := small()
	opts.SweepInterval = 50 * time.Millisecond
	opts.FS = inject(mem, func(op errorfs.Op) error {
		if failing.Load() && inJournal(op, errorfs.OpFileSyncData) && failing.CompareAndSwap(true, false) {
			cutting.Store(true)
			return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
		}
		if cutting.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			cuts <- powerCut{fmt.Sprintf("%v of %s", op.Kind, op.Path), mem.CrashClone(vfs.CrashCloneCfg{})}
		}
		return nil
	})
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	kept := f.messages(3, 10<<10)
	f.spread(kept, a)
	f.until("the next segment is ready", func() bool { s.journal.mu.Lock(); defer s.journal.mu.Unlock(); return s.journal.ready != nil })
	failing.Store(true)
	big := f.messages(1, 60<<10) // does not fit any more
	if err := <-f.begin(spreadTo(big, a)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("commit on a full disk: %v", err)
	}
	f.until("there is space again", func() bool { return s.Health() == nil })
	more := f.messages(3, 40<<10)
	for _, m := range more {
		f.spread([]*herald.Message{m}, a)
	}
	cutting.Store(false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := f.opens(cuts, opts, a, kept); n == 0 {
		t.Fatal("no write was cut")
	}
}

// TestPreparedAgain: a segment could not be prepared, and the writer asks again.
// Nobody else wakes the preparer.
func TestPreparedAgain(t *testing.T) {
	var failing atomic.Bool
	fs := inject(vfs.NewMem(), func(op errorfs.Op) error {
		if failing.Load() && op.Kind == errorfs.OpFileSync {
			return syscall.ENOSPC
		}
		return nil
	})
	if err := fs.MkdirAll("journal", 0o700); err != nil {
		t.Fatal(err)
	}
	j := newJournal(fs, "journal", storeID{1}, 64<<10)
	over := make(chan struct{})
	go func() { defer close(over); j.prepare() }()
	failing.Store(true)
	if err := j.rotate(8); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	failing.Store(false)
	inTime(t, "the next attempt", func() {
		if err := j.rotate(8); err != nil {
			t.Error(err)
		}
	})
	j.shut()
	<-over
	j.close()
}

// TestFoldersAreDurable: the store's folder is made together with those above it,
// and all of them are there after a power loss.
func TestFoldersAreDurable(t *testing.T) {
	mem := vfs.NewCrashableMem()
	opts := small()
	opts.FS = mem
	s := mustOpen(t, "var/lib/herald/data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	kept := f.messages(1, 10)
	f.spread(kept, a)
	opts.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.s = mustOpen(t, "var/lib/herald/data", opts)
	defer f.s.Close()
	f.same("after a power loss", f.inbox(a), idsOf(kept))
}

// TestWriterComesBackLate: the database dies while the writer waits for the disk,
// what it had is failed in its place, and then the disk answers.
func TestWriterComesBackLate(t *testing.T) {
	var slow atomic.Bool
	entered, release := make(chan struct{}), make(chan struct{})
	opts := small()
	opts.FS = inject(vfs.NewMem(), func(op errorfs.Op) error {
		if inJournal(op, errorfs.OpFileSyncData) && slow.CompareAndSwap(true, false) {
			close(entered)
			<-release
		}
		return nil
	})
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	slow.Store(true)
	done := f.begin(spreadTo(f.messages(1, 10), a))
	<-entered
	s.die("a test")
	if err := <-done; !errors.Is(err, herald.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	close(release)
	inTime(t, "close", func() {
		if err := s.Close(); !errors.Is(err, herald.ErrUnavailable) {
			t.Errorf("close: %v", err)
		}
	})
}

// TestCloseOnFullDisk: the disk has no room for tables and does not get any. Whoever
// waits for them is told so, and the store can be closed.
func TestCloseOnFullDisk(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		var full atomic.Bool
		mem := vfs.NewCrashableMem()
		opts := small()
		opts.FS = inject(mem, func(op errorfs.Op) error {
			if full.Load() && strings.Contains(op.Path, "db") && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpCreate) {
				return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
			}
			return nil
		})
		s := mustOpen(t, "data", opts)
		f := newFiller(t, s)
		a := f.session("a")
		kept := f.messages(3, 100)
		f.spread(kept, a)
		full.Store(true)
		for checkpoint && s.Health() == nil { // until the keeper wants a table
			m := f.messages(1, 20<<10)
			if err := <-f.begin(spreadTo(m, a)); err == nil {
				kept = append(kept, m...)
			}
		}
		inTime(t, "close", func() {
			if err := s.Close(); err != nil && !errors.Is(err, herald.ErrUnavailable) {
				t.Errorf("close: %v", err)
			}
		})
		opts.FS = mem
		f.s = mustOpen(t, "data", opts)
		f.same("what was acknowledged", f.inbox(a), idsOf(kept))
		if err := f.s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDonesKeepTheirOrderWhenClosed: what is committed after Close has begun is told so
// behind what was committed before, and in its order.
func TestDonesKeepTheirOrderWhenClosed(t *testing.T) {
	var slow atomic.Bool
	entered, release := make(chan struct{}), make(chan struct{})
	opts := small()
	opts.FS = inject(vfs.NewMem(), func(op errorfs.Op) error {
		if inJournal(op, errorfs.OpFileSyncData) && slow.CompareAndSwap(true, false) {
			close(entered)
			<-release
		}
		return nil
	})
	s := mustOpen(t, "data", opts)
	newFiller(t, s)
	slow.Store(true)
	const n = 100
	dones := make(chan int, n)
	commit := func(i int) {
		s.Commit(&persistence.Batch{}, func(err error) {
			if i > 0 != errors.Is(err, herald.ErrClosed) {
				t.Errorf("%d: %v", i, err)
			}
			dones <- i
		})
	}
	commit(0)
	<-entered
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	for stopped := false; !stopped; {
		s.commits.mu.Lock()
		stopped = s.commits.stopped
		s.commits.mu.Unlock()
	}
	for i := 1; i < n; i++ {
		commit(i)
	}
	select {
	case i := <-dones:
		t.Fatalf("done of %d, while the first is under way", i)
	case <-time.After(20 * time.Millisecond): // long enough for one that does not wait
	}
	close(release)
	for i := range n {
		if got := <-dones; got != i {
			t.Fatalf("done of %d, want %d", got, i)
		}
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}
