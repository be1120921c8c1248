package scylla

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
)

// life is the time from a Join until this node left or was taken for dead.
type life struct {
	node   uint16
	number uint64

	// No timestamp above it is written in this life, nor an ID that the node makes:
	// the node's row says so. Whoever comes after it goes on from there.
	ceiling atomic.Int64
	raising sync.Mutex // held by who raises it because he needs it raised
	leaving atomic.Bool

	once sync.Once
	over chan struct{} // closed when it is known to be over
}

func (l *life) end() { l.once.Do(func() { close(l.over) }) }

// ended tells whether a life is over; without a cluster it never is.
func (l *life) ended() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// errFenced: a batch was committed, or its rows would be written, at a time when
// this node has no lease.
var (
	errFenced    = fmt.Errorf("%w: this node has no lease", herald.ErrUnavailable)
	errNotJoined = fmt.Errorf("%w: it has not joined yet", errFenced)
	errOver      = fmt.Errorf("%w: it has left, or was taken for dead", errFenced)
)

// Fence implements [persistence.Cluster].
func (s *Store) Fence(valid func() bool) { s.lease.Store(&valid) }

// fenced tells why nothing may be written in a life at this moment; nil: it may.
//
// It is asked when a batch is committed (its timestamps have been taken), before its
// intent is written, and by the executor before each attempt to write rows of it, so
// after the intent was confirmed, too. A process can be stopped between being told
// "yes" and sending the rows, for as long as it likes, and a row can take its time on
// the way. That is enough all the same, since a life is declared dead only when its
// lease has run out:
//
//   - Rows of a batch with an intent are sent after the intent was confirmed. If that
//     was before the lease had run out, Finish sees the intent and writes the very same
//     rows; late ones change nothing. If it was not, the answer here was "no", and
//     there are no rows.
//   - An intent that arrives late has no rows, is not in the plan of those who finish
//     this life (finish.go), and lies in a bucket that no later life looks into.
//   - Late rows without an intent were never acknowledged. Entries of inboxes and
//     retained messages may turn up. Rows of a window are shadowed by Seal, all others
//     lose against what the session's next owner writes: their timestamps are not above
//     the ceiling, and every node's clock is by the time that it sees the life Finished.
func (s *Store) fenced(l *life) error {
	if s.opts.Cluster {
		switch {
		case l == nil:
			return errNotJoined
		case l.ended() || l.leaving.Load():
			return errOver
		}
	}
	if valid := s.lease.Load(); valid != nil && !(*valid)() {
		return errFenced
	}
	return nil
}

// clockAhead is how far ahead the ceiling is set. It is raised every second; should
// that take longer, commits wait.
const clockAhead = 2 * time.Second

// raiseCeiling writes down how far the clock may go.
func (s *Store) raiseCeiling(ctx context.Context, l *life) error {
	to := max(s.clock.last.Load(), idStamp(herald.ID(s.ownID.Load())), s.clock.now()) + clockAhead.Microseconds()
	if to <= l.ceiling.Load() {
		to = l.ceiling.Load() // it was raised meanwhile, or the clock was set back
	}
	if err := s.query(ctx, putClock, int32(l.node), to, int32(0), s.clock.next()).Exec(); err != nil {
		return err
	}
	for {
		old := l.ceiling.Load()
		if to <= old || l.ceiling.CompareAndSwap(old, to) {
			return nil
		}
	}
}

// awaitCeiling returns when a batch's timestamps are below the ceiling.
func (s *Store) awaitCeiling(j *job) error {
	l := j.life
	for tries := 0; ; tries++ {
		l.raising.Lock()
		var err error
		if s.above(j, l) {
			ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timeout)
			err = s.raiseCeiling(ctx, l)
			cancel()
		}
		l.raising.Unlock()
		switch {
		case err == nil && !s.above(j, l):
			return nil
		case err == nil:
			continue
		case s.fenced(l) != nil:
			return s.fenced(l)
		case mono()-j.since > int64(s.opts.GiveUp) || !s.exec.pauseFor(tries, s.opts.GiveUp, l.over):
			return unavailable(err)
		}
	}
}

// above tells whether a batch needs the ceiling to be raised.
func (s *Store) above(j *job, l *life) bool {
	return max(j.until, idStamp(herald.ID(s.ownID.Load()))) > l.ceiling.Load()
}

// mayKeepClock tells whether the row of this node's number is its own to write.
func (s *Store) mayKeepClock() bool {
	l := s.life.Load()
	return !s.opts.Cluster || l != nil && !l.ended()
}

// Observe implements [persistence.Cluster].
func (s *Store) Observe(id herald.ID) { s.clock.saw(idStamp(id) + 1000) }
