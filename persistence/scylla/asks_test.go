package scylla

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Many who ask at once share an answer, and nobody gets one that was being sought
// when he asked.
func TestAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{ctx: context.Background()}
		s.opts = s.opts.withDefaults()
		var truth, asked atomic.Int64
		get := func() int64 {
			v, err := s.once(context.Background(), "k", func(context.Context) (any, error) {
				asked.Add(1)
				v := truth.Load()
				time.Sleep(time.Second)
				return v, nil
			})
			if err != nil {
				t.Error(err)
			}
			return v.(int64)
		}
		var wg sync.WaitGroup
		for i := range int64(5) {
			truth.Store(i)
			for range 10 {
				wg.Go(func() {
					if got := get(); got < i {
						t.Errorf("asked when it was %d and got %d", i, got)
					}
				})
			}
			time.Sleep(300 * time.Millisecond)
		}
		wg.Wait()
		if n := asked.Load(); n > 3 {
			t.Errorf("%d questions", n)
		}
		if len(s.reads.of) != 0 {
			t.Error("questions are left")
		}
		// Whoever stops waiting does not stop the others.
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := s.once(ctx, "k", func(context.Context) (any, error) { return 1, nil }); err != nil && err != context.Canceled {
			t.Error(err)
		}
		synctest.Wait()
	})
}
