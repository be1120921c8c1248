package scylla

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
)

// What is asked for at the same time goes together, within bounds; who asks for the same
// topic shares an answer, and nobody gets one that was being sought when he asked.
func TestLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{ctx: context.Background()}
		s.opts = s.opts.withDefaults()
		s.lookups.init(s)
		l := &s.lookups
		var truth, lanes, most, largest, topics, statements atomic.Int64
		raise := func(v *atomic.Int64, to int64) {
			for old := v.Load(); to > old && !v.CompareAndSwap(old, to); old = v.Load() {
			}
		}
		l.read = func(asked []*lookup) {
			statements.Add(1)
			topics.Add(int64(len(asked)))
			raise(&most, lanes.Add(1))
			raise(&largest, int64(len(asked)))
			id := herald.ID(truth.Load())
			time.Sleep(time.Second)
			for _, a := range asked {
				a.m = &herald.Message{ID: id, Topic: a.topic}
			}
			lanes.Add(-1)
		}
		const rounds, n = 5, 3000
		var wg sync.WaitGroup
		for round := range int64(rounds) {
			truth.Store(round)
			for i := range n {
				for range 2 {
					wg.Go(func() {
						topic := fmt.Sprint(i)
						m, err := s.retained(context.Background(), topic)
						if err != nil || m.Topic != topic || int64(m.ID) < round {
							t.Errorf("asked for %s when it was %d and got %+v, %v", topic, round, m, err)
						}
					})
				}
			}
			time.Sleep(300 * time.Millisecond)
		}
		wg.Wait()
		if most.Load() != lookupLanes || largest.Load() != lookupTopics {
			t.Errorf("%d statements at once, of up to %d topics", most.Load(), largest.Load())
		}
		if topics.Load() >= 2*rounds*n || statements.Load() > topics.Load()/32 {
			t.Errorf("%d topics were asked for with %d statements", topics.Load(), statements.Load())
		}
		synctest.Wait() // the lanes end when all are answered
		if len(l.of) > 0 || len(l.waiting) > 0 || l.lanes > 0 {
			t.Error("something is left")
		}
		// Whoever stops waiting does not stop the others.
		ctx, cancel := context.WithCancel(context.Background())
		other := l.ask("a")
		cancel()
		if _, err := s.retained(ctx, "a"); err != context.Canceled {
			t.Errorf("got %v", err)
		}
		if m, err := other.answer(context.Background()); err != nil || m.Topic != "a" {
			t.Errorf("got %+v, %v", m, err)
		}
		synctest.Wait()
	})
}
