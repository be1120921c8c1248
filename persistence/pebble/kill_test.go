package pebble

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// killable is a file system as one process sees it: when that is killed, its files
// stay as they are, written or synced, and whoever wanted to write waits for ever.
// Nothing of it is carried out later, beside what the next process does.
type killable struct {
	vfs.FS
	gone chan struct{}
	once sync.Once
	busy sync.RWMutex // held while something is carried out
}

// Lock holds nothing: who has been killed gives everything back.
func (*killable) Lock(string) (io.Closer, error) { return nothing{}, nil }

type nothing struct{}

func (nothing) Close() error { return nil }

func (k *killable) kill() {
	k.once.Do(func() {
		k.busy.Lock()
		defer k.busy.Unlock()
		close(k.gone)
	})
}

func (k *killable) running() bool {
	select {
	case <-k.gone:
		return false
	default:
		return true
	}
}

// do carries f out, or waits for ever.
func (k *killable) do(f func() error) error {
	k.busy.RLock()
	if !k.running() {
		k.busy.RUnlock()
		select {}
	}
	defer k.busy.RUnlock()
	return f()
}

func (k *killable) open(f func() (vfs.File, error)) (file vfs.File, err error) {
	err = k.do(func() (err error) { file, err = f(); return err })
	if err != nil {
		return nil, err
	}
	return killableFile{file, k}, nil
}

func (k *killable) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return k.open(func() (vfs.File, error) { return k.FS.Create(name, c) })
}

func (k *killable) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return k.open(func() (vfs.File, error) { return k.FS.OpenReadWrite(name, c, opts...) })
}

func (k *killable) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return k.open(func() (vfs.File, error) { return k.FS.ReuseForWrite(from, to, c) })
}

func (k *killable) OpenDir(name string) (vfs.File, error) {
	return k.open(func() (vfs.File, error) { return k.FS.OpenDir(name) })
}

func (k *killable) Link(from, to string) error {
	return k.do(func() error { return k.FS.Link(from, to) })
}

func (k *killable) Rename(from, to string) error {
	return k.do(func() error { return k.FS.Rename(from, to) })
}

func (k *killable) Remove(name string) error {
	return k.do(func() error { return k.FS.Remove(name) })
}

func (k *killable) RemoveAll(name string) error {
	return k.do(func() error { return k.FS.RemoveAll(name) })
}

func (k *killable) MkdirAll(dir string, perm os.FileMode) error {
	return k.do(func() error { return k.FS.MkdirAll(dir, perm) })
}

// killableFile is a file that is written.
type killableFile struct {
	vfs.File
	k *killable
}

func (f killableFile) Write(p []byte) (n int, err error) {
	err = f.k.do(func() (err error) { n, err = f.File.Write(p); return err })
	return n, err
}

func (f killableFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.k.do(func() (err error) { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

func (f killableFile) Sync() error     { return f.k.do(f.File.Sync) }
func (f killableFile) SyncData() error { return f.k.do(f.File.SyncData) }

func (f killableFile) SyncTo(length int64) (full bool, err error) {
	err = f.k.do(func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}

// process is the file system of a new process on mem: at is called before each write,
// with its number.
func process(mem vfs.FS, at func(n int64, k *killable)) (vfs.FS, *killable) {
	k := &killable{FS: mem, gone: make(chan struct{})}
	return countWrites(k, func(n int64, _ errorfs.Op) error {
		if at(n, k); !k.running() {
			select {}
		}
		return nil
	}), k
}

// TestKillsAndPowerLoss kills one process after the other at some write, with what it
// had not synced left in the page cache for the next, and cuts the power at some write
// of each: what was acknowledged by any of them is there.
func TestKillsAndPowerLoss(t *testing.T) {
	h := newHistory(4, 600)
	runs := 40
	if testing.Short() {
		runs = 8
	}
	for run := range runs {
		rng := rand.New(rand.NewPCG(uint64(run), 9))
		mem := vfs.NewCrashableMem()
		acked := 0 // by the processes before
		for life := range 6 {
			what := fmt.Sprintf("run %d, process %d", run, life)
			killAt, cutAt := 1+rng.Int64N(60), 1+rng.Int64N(60)
			var now atomic.Int64
			before := acked // who was killed may still be about to write
			type cut struct {
				fs    *vfs.MemFS
				acked int
			}
			cuts := make(chan cut, 1)
			percent, seed := rng.IntN(101), rng.Uint64()
			fs, k := process(mem, func(n int64, k *killable) {
				if n == cutAt {
					acked := before + int(now.Load()) // what is acknowledged later may not be there
					cuts <- cut{mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent,
						RNG: rand.New(rand.NewPCG(seed, 1))}), acked}
				}
				if n == killAt {
					k.kill()
				}
			})
			inTime(t, what, func() { live(t, what, h, fs, k, acked, &now) })
			acked += int(now.Load())
			select {
			case c := <-cuts:
				if c.fs == nil {
					break
				}
				s, err := Open("data", crashOptions(c.fs))
				if err != nil {
					t.Fatalf("%s, power lost at write %d: %v", what, cutAt, err)
				}
				if c.acked > 0 {
					if err := h.verify(s, c.acked); err != nil {
						t.Fatalf("%s, power lost at write %d: %v", what, cutAt, err)
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			default: // it was killed before
			}
			if t.Failed() {
				return
			}
		}
	}
}

// live opens the store, looks whether it has what was acknowledged, and commits what
// follows until it is killed or has nothing more. now counts what is acknowledged.
func live(t *testing.T, what string, h *history, fs vfs.FS, k *killable, acked int, now *atomic.Int64) {
	over := make(chan struct{})
	failed := func(err error) bool {
		if err != nil && k.running() {
			t.Errorf("%s: %v", what, err)
		}
		return err != nil
	}
	opts := crashOptions(fs)
	opts.Now = func() time.Time {
		if !k.running() {
			select {} // the keeper does nothing any more, either
		}
		return time.Now()
	}
	go func() {
		defer close(over)
		s, err := Open("data", opts)
		if failed(err) {
			return
		}
		if acked > 0 && failed(h.verify(s, acked)) {
			return
		}
		got, err := read(s)
		if failed(err) {
			return
		}
		from := int(got.Sessions["count"].Epoch)
		now.Store(int64(from - acked)) // those are there for good
		window := make(chan struct{}, 3)
		for _, b := range h.batches[from:min(from+120, len(h.batches))] {
			window <- struct{}{}
			s.Commit(b, func(err error) {
				if !failed(err) {
					now.Add(1)
				}
				<-window
			})
		}
		for range cap(window) {
			window <- struct{}{}
		}
		k.kill()
	}()
	select {
	case <-over:
	case <-k.gone:
	}
}
