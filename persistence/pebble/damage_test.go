package pebble

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	crdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// written makes a store on disk with n groups in its journal's last segment, and
// returns the segment's path and where its records begin and end. It leaves the
// folder as a kill would: the copy is taken before the store is closed.
func written(t *testing.T, n int) (dir, segment string, ends []int64) {
	t.Helper()
	live := t.TempDir()
	s := mustOpen(t, live, Options{SegmentBytes: 256 << 10})
	f := newFiller(t, s)
	a := f.session("a")
	for range n {
		ends = append(ends, s.journal.cur.end)
		f.spread(f.messages(1, 1000), a)
	}
	ends = append(ends, s.journal.cur.end)
	name := liveName(s.journal.cur.seq)
	f.until("the next segment is ready, and the folder at rest", func() bool {
		s.journal.mu.Lock()
		defer s.journal.mu.Unlock()
		return s.journal.ready != nil
	})
	dir = filepath.Join(t.TempDir(), "killed")
	if err := os.CopyFS(dir, os.DirFS(live)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, "journal", name), ends
}

func damage(t *testing.T, path string, at int64, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(with, at); err != nil {
		t.Fatal(err)
	}
}

func TestTornTailIsTheEnd(t *testing.T) {
	dir, segment, ends := written(t, 10)
	damage(t, segment, ends[9]+500, []byte{1, 2, 3}) // within the last record
	s := mustOpen(t, dir, Options{SegmentBytes: 256 << 10})
	f := &filler{t: t, s: s, id: herald.IDAt(time.Now().UnixMilli())}
	row, err := s.Session(context.Background(), persistence.Client, "a")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.inbox(row.ID)); n != 9 {
		t.Fatalf("%d messages, want 9", n)
	}
	f.spread(f.messages(1, 10), row.ID)
	s = reopen(t, s).(*Store)
	defer s.Close()
	f.s = s
	if n := len(f.inbox(row.ID)); n != 10 {
		t.Fatalf("%d messages, want 10: the one behind the torn record is lost", n)
	}
}

func TestDamageIsNotSilent(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(dir, segment string, ends []int64)
	}{
		{"in the middle", func(_, seg string, ends []int64) { damage(t, seg, ends[5]+100, []byte{1, 2, 3}) }},
		{"in a record's header", func(_, seg string, ends []int64) { damage(t, seg, ends[5], []byte{9}) }},
		{"zeros in the middle", func(_, seg string, ends []int64) { damage(t, seg, ends[3], make([]byte, 3000)) }},
		{"in the segment's header", func(_, seg string, _ []int64) { damage(t, seg, 20, []byte{1}) }},
		{"in the beginning", func(_, seg string, _ []int64) { damage(t, seg, page+17, []byte{1}) }},
		{"a segment is missing", func(_, seg string, _ []int64) {
			s := mustOpen(t, filepath.Dir(filepath.Dir(seg)), Options{SegmentBytes: 256 << 10}) // begins another one
			newFiller(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(seg); err != nil {
				t.Fatal(err)
			}
		}},
		{"the last record before another segment", func(dir, seg string, ends []int64) {
			s := mustOpen(t, dir, Options{SegmentBytes: 256 << 10})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, seg, ends[9]+100, []byte{1, 2, 3})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, segment, ends := written(t, 10)
			c.do(dir, segment, ends)
			s, err := Open(dir, Options{SegmentBytes: 256 << 10})
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, herald.ErrCorrupt) || !strings.Contains(err.Error(), filepath.Base(segment)) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestOneProcessOnly(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{SegmentBytes: 64 << 10})
	if _, err := Open(dir, Options{}); !errors.Is(err, herald.ErrInUse) {
		t.Fatalf("second open: %v", err)
	}
	if os.Getenv("HERALD_STORE_DIR") == "" { // and another process
		out, err := child(t, dir, "TestChildOpens").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "in use") {
			t.Fatalf("another process: %v: %s", err, out)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, Options{SegmentBytes: 64 << 10})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// child is this test binary, running one test on the store in dir.
func child(t *testing.T, dir, test string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	c.Env = append(os.Environ(), "HERALD_STORE_DIR="+dir)
	return c
}

// TestChildOpens is run by TestOneProcessOnly.
func TestChildOpens(t *testing.T) {
	dir := os.Getenv("HERALD_STORE_DIR")
	if dir == "" {
		t.Skip("runs in another process, started by TestOneProcessOnly")
	}
	_, err := Open(dir, Options{})
	fmt.Println(err)
}

// TestChildCommits is run by TestKill: it commits until it is killed, and says
// what was acknowledged.
func TestChildCommits(t *testing.T) {
	dir := os.Getenv("HERALD_STORE_DIR")
	if dir == "" {
		t.Skip("runs in another process, started by TestKill")
	}
	s := mustOpen(t, dir, Options{SegmentBytes: 128 << 10, SweepInterval: 10 * time.Millisecond})
	h := newHistory(3, 20_000)
	got, err := read(s)
	if err != nil {
		t.Fatal(err)
	}
	window := make(chan struct{}, 5)
	for i := int(got.Sessions["count"].Epoch); i < len(h.batches); i++ {
		window <- struct{}{}
		s.Commit(h.batches[i], func(err error) {
			if err == nil {
				fmt.Println("acknowledged", i+1)
			}
			<-window
		})
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	h := newHistory(3, 20_000)
	for round := range 4 {
		c := child(t, dir, "TestChildCommits")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		acked, lines := 0, bufio.NewScanner(out)
		for first := 0; lines.Scan(); {
			if v, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				if acked, err = strconv.Atoi(v); err != nil {
					t.Fatal(err)
				}
				if first == 0 {
					first = acked
				}
				if acked == first+300*(round+1) {
					_ = c.Process.Signal(syscall.SIGKILL)
				}
			}
		}
		_ = c.Wait()
		s := mustOpen(t, dir, Options{SegmentBytes: 128 << 10})
		if acked == 0 {
			t.Fatal("nothing was acknowledged")
		}
		if err := h.verify(s, acked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSchema(t *testing.T) {
	opts := Options{FS: vfs.NewMem(), SegmentBytes: 64 << 10}
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	if err := s.db.Set([]byte("Mold"), []byte("x"), crdb.NoSync); err != nil { // as version 1 might have had it
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	runs := 0
	step := migration{from: 1, run: func(db *crdb.DB) error {
		runs++
		if err := db.Delete([]byte("Mold"), crdb.NoSync); err != nil {
			return err
		}
		return db.Set([]byte("Mnew"), []byte("x"), crdb.NoSync)
	}}
	failing := migration{from: 1, run: func(*crdb.DB) error { return errors.New("no") }}
	if _, err := open("data", opts, []migration{failing}); err == nil {
		t.Fatal("a failed migration opens")
	}
	for range 2 { // migrated once
		s, err := open("data", opts, []migration{step})
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]bool{"Mold": false, "Mnew": true} {
			if _, ok, err := s.get([]byte(key)); err != nil || ok != want {
				t.Fatalf("%s: %v, %v", key, ok, err)
			}
		}
		f.s = s
		f.session("more")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if runs != 1 {
		t.Fatalf("migrated %d times", runs)
	}
	if _, err := Open("data", opts); !errors.Is(err, herald.ErrSchemaNewer) {
		t.Fatalf("an older release opens newer data: %v", err)
	}
}

func TestNewerJournalIsRefused(t *testing.T) {
	head := appendSegmentHeader(nil, storeID{}, 1)
	binary.BigEndian.PutUint32(head[8:], segFormat+1)
	resum(head)
	if err := checkSegmentHeader(head, storeID{}, 1); !errors.Is(err, herald.ErrSchemaNewer) {
		t.Fatalf("got %v", err)
	}
}

// TestFullDisk has writes of new blocks fail for a while, as a full disk does.
// Nothing is acknowledged meanwhile, the reason is said, and it goes on by
// itself.
func TestFullDisk(t *testing.T) {
	var full atomic.Bool
	mem := vfs.NewCrashableMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		grows := op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileWriteAt
		if full.Load() && grows {
			return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
		}
		return nil
	}))
	opts := small()
	opts.FS = fs
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	kept := f.messages(50, 1000)
	f.spread(kept, a)
	full.Store(true)
	lost := f.messages(50, 1000)
	if err := <-f.begin(spreadTo(lost, a)); !errors.Is(err, herald.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("commit on a full disk: %v", err)
	}
	if err := s.Health(); !errors.Is(err, herald.ErrUnavailable) {
		t.Fatalf("health: %v", err)
	}
	f.same("what was acknowledged", f.inbox(a), idsOf(kept))
	full.Store(false)
	f.until("there is space again", func() bool { return s.Health() == nil })
	more := f.messages(5, 1000)
	f.spread(more, a)
	f.same("it goes on", f.inbox(a), append(idsOf(kept), idsOf(more)...))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opts.FS = mem
	s = mustOpen(t, "data", opts)
	defer s.Close()
	f.s = s
	f.same("and is there", f.inbox(a), append(idsOf(kept), idsOf(more)...))
}

func TestReserve(t *testing.T) {
	mem := vfs.NewMem()
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 1 << 30})
	opts := small()
	opts.FS, opts.ReserveBytes = mem, 1<<20
	s := mustOpen(t, "data", opts)
	defer s.Close()
	f := newFiller(t, s)
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 19, TotalBytes: 1 << 30})
	f.until("it is full", func() bool { return s.Health() != nil })
	done := make(chan error, 1)
	s.Commit(&persistence.Batch{}, func(err error) { done <- err })
	if err := <-done; !errors.Is(err, herald.ErrUnavailable) || !strings.Contains(err.Error(), "disk full") {
		t.Fatalf("got %v", err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 29, TotalBytes: 1 << 30})
	f.until("there is space again", func() bool { return s.Health() == nil })
	f.session("more")
}

// TestFailedSyncIsFinal: after a failed sync nobody knows what the disk has, so
// the store takes nothing more until it is opened again, and says so.
func TestFailedSyncIsFinal(t *testing.T) {
	var failing atomic.Bool
	mem := vfs.NewCrashableMem()
	opts := small()
	opts.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && op.Kind == errorfs.OpFileSyncData && strings.Contains(op.Path, "journal") {
			return syscall.EIO
		}
		return nil
	}))
	s := mustOpen(t, "data", opts)
	f := newFiller(t, s)
	a := f.session("a")
	kept := f.messages(3, 100)
	f.spread(kept, a)
	failing.Store(true)
	for range 3 {
		done := make(chan error, 1)
		s.Commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: f.messages(1, 10), Targets: []persistence.Target{{Session: a}}}}},
			func(err error) { done <- err })
		if err := <-done; !errors.Is(err, herald.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
		failing.Store(false) // it does not get better by itself
	}
	if err := s.Health(); !errors.Is(err, herald.ErrUnavailable) || !strings.Contains(err.Error(), "restart") {
		t.Fatalf("health: %v", err)
	}
	f.same("reads go on", f.inbox(a), idsOf(kept))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opts.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	s = mustOpen(t, "data", opts)
	defer s.Close()
	f.s = s
	f.same("what was acknowledged", f.inbox(a), idsOf(kept))
}
