package scylla

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
)

// No more are under way at once than there are turns, none is passed over, and who
// waits for one while the database ceases to answer is told so.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{ctx: context.Background()}
		s.opts = s.opts.withDefaults()
		s.circuit.init(s)
		s.turns.init(4)
		var flying, most, served atomic.Int64
		var wg sync.WaitGroup
		ask := func() error {
			return s.retry(context.Background(), func() error {
				n := flying.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				time.Sleep(time.Second)
				flying.Add(-1)
				served.Add(1)
				return nil
			})
		}
		for range 40 {
			wg.Go(func() {
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if most.Load() != 4 || served.Load() != 40 {
			t.Errorf("%d at once, %d served", most.Load(), served.Load())
		}
		var refused atomic.Int64
		for range 40 {
			wg.Go(func() {
				if err := ask(); errors.Is(err, herald.ErrUnavailable) {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		why := error(herald.ErrUnavailable)
		s.circuit.why.Store(&why)
		wg.Wait()
		if refused.Load() != 36 {
			t.Errorf("%d were refused, want all that waited", refused.Load())
		}
		// Who stops waiting has no turn.
		s.circuit.why.Store(nil)
		for range 4 {
			wg.Go(func() { _ = ask() })
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() {
			if _, err := s.turn(ctx, s.turns.reads); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		if err := ask(); err != nil {
			t.Error(err)
		}
	})
}
