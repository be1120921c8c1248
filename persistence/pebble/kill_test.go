package pebble

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// killable is a file system as one process sees it: when that is killed, its files
// stay as they are, written or synced, and whoever wanted to write waits for ever.
type killable struct {
	vfs.FS
	gone chan struct{}
	once sync.Once
}

// Lock holds nothing: who has been killed gives everything back.
func (*killable) Lock(string) (io.Closer, error) { return nothing{}, nil }

type nothing struct{}

func (nothing) Close() error { return nil }

func (k *killable) kill() { k.once.Do(func() { close(k.gone) }) }

func (k *killable) running() bool {
	select {
	case <-k.gone:
		return false
	default:
		return true
	}
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
					cuts <- cut{mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent,
						RNG: rand.New(rand.NewPCG(seed, 1))}), before + int(now.Load())}
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
