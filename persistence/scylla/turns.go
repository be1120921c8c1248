package scylla

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// turns bound what is asked of the database at the same time, first come, first
// served: who waits for a turn does not time out in the database's queues, and what
// is refused for that does not come back to make them longer.
type turns struct {
	reads  *semaphore.Weighted
	claims *semaphore.Weighted // lightweight transactions, which cost many times as much
}

func (t *turns) init(n int) {
	t.reads = semaphore.NewWeighted(int64(n))
	t.claims = semaphore.NewWeighted(int64(max(n/2, 1)))
}

// turn waits for a turn, or returns why there will be none: ctx has ended, or the
// database has ceased to answer meanwhile. done ends it.
func (s *Store) turn(ctx context.Context, of *semaphore.Weighted) (done func(), err error) {
	if !of.TryAcquire(1) {
		if err := of.Acquire(ctx, 1); err != nil {
			return nil, err
		}
		if err := s.circuit.reason(); err != nil {
			of.Release(1)
			return nil, err
		}
	}
	return func() { of.Release(1) }, nil
}
