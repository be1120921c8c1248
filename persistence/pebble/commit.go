package pebble

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// committer gathers batches into groups. One goroutine, the writer, takes the
// group that has gathered, writes and syncs it as one record of the journal,
// applies its batches and calls their dones, in order, while the next group
// gathers. So the worse the disk, the larger the groups.
//
// Batches are encoded under the lock by those who commit them: that orders
// them, costs no second pass, and is cheap beside what a batch costs elsewhere.
type committer struct {
	// Fixed at construction.
	s     *Store
	bound int
	delay time.Duration
	wake  chan struct{}

	mu      sync.Mutex // guards below
	room    sync.Cond  // the gathering group was taken
	gather  group
	stopped bool
	late    []func(error) // dones of batches that came when it was stopped
	ended   chan struct{} // closed by the writer

	// Owned by the writer.
	write group

	// turn is odd while the writer works on a group. Whoever makes it even
	// calls the group's dones: the writer, or, if Pebble died under it and it
	// does not come back, the undertaker.
	turn atomic.Uint64
}

// group is what one record of the journal holds.
type group struct {
	buf     []byte // room for the record's header, then the batches
	batches []queued
	urgent  bool // somebody waits: not only lazy batches
}

type queued struct {
	b    *persistence.Batch
	done func(error)
}

const (
	// maxKeptBuf is the largest buffer that is kept for the next group.
	maxKeptBuf = 8 << 20
	// maxSealedSegments bounds the journal when Pebble cannot keep up.
	maxSealedSegments = 8
)

var errTooLarge = fmt.Errorf("%w: batch does not fit into a record of the journal", herald.ErrUnavailable)

func newCommitter(s *Store) *committer {
	c := &committer{
		s: s, bound: s.opts.MaxPendingBytes, delay: s.opts.LazyDelay,
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	c.room.L = &c.mu
	c.gather.reset()
	c.write.reset()
	return c
}

func (g *group) reset() {
	if cap(g.buf) > maxKeptBuf || cap(g.buf) < recHeader {
		g.buf = make([]byte, recHeader, 64<<10)
	}
	g.buf = g.buf[:recHeader]
	clear(g.batches)
	g.batches = g.batches[:0]
	g.urgent = false
}

// Commit implements [persistence.Store].
func (s *Store) Commit(b *persistence.Batch, done func(error)) {
	c := s.commits
	c.mu.Lock()
	for len(c.gather.buf) > c.bound && !c.stopped {
		c.room.Wait()
	}
	if c.stopped {
		if done != nil {
			if c.late = append(c.late, done); len(c.late) == 1 {
				go c.refuse()
			}
		}
		c.mu.Unlock()
		return
	}
	first := len(c.gather.batches) == 0
	before := len(c.gather.buf)
	c.gather.buf = record.AppendBatch(c.gather.buf, b)
	if len(c.gather.buf)-before > maxRecord-c.bound-page {
		c.gather.buf = c.gather.buf[:before]
		done, b = failing(done, errTooLarge), &persistence.Batch{}
		c.gather.buf = record.AppendBatch(c.gather.buf, b)
	}
	c.gather.batches = append(c.gather.batches, queued{b, done})
	urgent := !b.Lazy && !c.gather.urgent
	if urgent {
		c.gather.urgent = true
	}
	c.mu.Unlock()
	if urgent || first {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// refuse calls the dones of what came too late, behind those of what did not.
func (c *committer) refuse() {
	<-c.ended
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.late) > 0 {
		done := c.late[0]
		c.mu.Unlock()
		done(herald.ErrClosed)
		c.mu.Lock()
		c.late = c.late[1:]
	}
}

// failing returns a done that reports err whatever became of the group.
func failing(done func(error), err error) func(error) {
	if done == nil {
		return nil
	}
	return func(error) { done(err) }
}

// run is the body of the writer.
func (c *committer) run() {
	if c.gatherAndCommit() {
		close(c.ended)
	}
}

// gatherAndCommit returns true when all is done, and false if the undertaker
// does the rest.
func (c *committer) gatherAndCommit() bool {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		c.mu.Lock()
		n, urgent, stopped := len(c.gather.batches), c.gather.urgent, c.stopped
		if n == 0 && stopped {
			c.mu.Unlock()
			return true
		}
		if urgent || (n > 0 && stopped) {
			c.takeLocked()
			c.mu.Unlock()
			if !c.commit() {
				return false
			}
			continue
		}
		c.mu.Unlock()
		if n == 0 {
			<-c.wake
			continue
		}
		timer.Reset(c.delay)
		select {
		case <-c.wake:
		case <-timer.C:
			c.mu.Lock()
			c.takeLocked()
			c.mu.Unlock()
			if !c.commit() {
				return false
			}
		}
	}
}

func (c *committer) takeLocked() {
	c.gather, c.write = c.write, c.gather
	c.room.Broadcast()
}

// stop ends the writer once everything that was committed is done.
func (c *committer) stop() {
	c.mu.Lock()
	c.stopped = true
	c.room.Broadcast()
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	<-c.ended
}

// commit makes the group in c.write durable, or not. It returns false if the
// undertaker was faster.
func (c *committer) commit() bool {
	g := &c.write
	turn := c.turn.Add(1)
	err := c.store(g)
	if !c.turn.CompareAndSwap(turn, turn+1) {
		return false
	}
	c.finish(g, err)
	return true
}

// lastRites is how long the writer may take to come back from a database that
// has died.
const lastRites = 2 * time.Second

// undertake is the body of the undertaker. When Pebble has died it waits a
// little for the writer, which may be waiting for what will never come, and
// then fails everything in its place.
func (c *committer) undertake() {
	select {
	case <-c.ended:
		return
	case <-c.s.health.died:
	}
	turn := c.turn.Load()
	select {
	case <-c.ended:
		return
	case <-time.After(lastRites):
	}
	if turn%2 == 0 || !c.turn.CompareAndSwap(turn, turn+1) {
		return // it works
	}
	// The writer's own group is left as it is: the writer may come back to it yet.
	c.finish(&group{batches: slices.Clone(c.write.batches)}, c.s.health.fatal())
	for {
		c.mu.Lock()
		g := c.gather
		c.gather = group{}
		c.gather.reset()
		stopped := c.stopped
		c.room.Broadcast()
		c.mu.Unlock()
		c.finish(&g, c.s.health.fatal())
		if stopped {
			close(c.ended)
			return
		}
		<-c.wake
	}
}

// finish calls the dones of a group.
func (c *committer) finish(g *group, err error) {
	if err != nil {
		err = readable(err)
		c.s.stats.failed.Add(int64(len(g.batches)))
	}
	for i := range g.batches {
		if done := g.batches[i].done; done != nil {
			done(err)
		}
	}
	g.reset()
}

// store writes, syncs and applies a group.
func (c *committer) store(g *group) error {
	s := c.s
	if err := s.health.reason(); err != nil {
		return err
	}
	at, err := c.log(g)
	if err != nil {
		return err
	}
	s.applier.Add(1)
	s.applying.Lock()
	defer s.applying.Unlock()
	s.applier.Add(-1)
	for i := range g.batches {
		if err = s.apply.apply(g.batches[i].b, at.seg, true); err != nil {
			break
		}
	}
	if err == nil {
		err = s.apply.end(at)
	}
	if err != nil {
		// It is in the journal, and the next start applies it.
		s.health.fail(fmt.Errorf("%w: restart needed: apply: %w", herald.ErrUnavailable, err))
		s.log.Error("committed batches could not be applied, restart needed", zap.Error(err))
		return err
	}
	return nil
}

// log appends the group to the journal.
func (c *committer) log(g *group) (position, error) {
	s, j := c.s, c.s.journal
	if !j.fits(len(g.buf)) {
		if err := c.rotate(); err != nil {
			return position{}, err
		}
	}
	at := position{j.cur.seq, j.cur.end}
	start := time.Now()
	buf, err := j.write(g.buf, recBatches)
	g.buf = buf
	if err != nil {
		return position{}, c.broken(err)
	}
	s.stats.group(len(g.batches), len(buf), time.Since(start))
	return at, nil
}

func (c *committer) rotate() error {
	err := c.s.journal.rotate(maxSealedSegments)
	c.s.keeper.poke()
	if err != nil && !errors.Is(err, herald.ErrClosed) && !errors.Is(err, errBlocked) {
		return c.broken(err)
	}
	return err
}

// broken handles a failure of the journal. A full disk passes; the next group
// gets a fresh segment, and what was not synced of the old one never counts.
// After any other failure nobody knows what the device still does, so nothing
// is acknowledged any more until somebody has looked and restarted.
func (c *committer) broken(err error) error {
	s := c.s
	if s.journal.cur != nil {
		s.journal.abandon()
	}
	if noSpace(err) {
		err = fmt.Errorf("%w: disk full: %w", herald.ErrUnavailable, err)
		s.health.setFull(err)
	} else {
		err = fmt.Errorf("%w: journal failed, restart needed: %w", herald.ErrUnavailable, err)
		s.health.fail(err)
	}
	s.log.Error("journal cannot be written", zap.Error(err))
	return err
}

// begin opens the first segment of this run. The writer has nothing to do yet.
func (c *committer) begin() error {
	return c.s.journal.rotate(1 << 20)
}
