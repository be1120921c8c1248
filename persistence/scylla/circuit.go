package scylla

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocql/gocql"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
)

// circuit knows whether the database can be written to. It opens when something
// was asked and nothing has succeeded for as long as Options.Patience, or for
// patienceCut if no server is connected and none takes a connection; then commits and
// reads are refused at once instead of being queued without end. It closes when a
// probe has been written.
type circuit struct {
	// Fixed at construction.
	s        *Store
	patience time.Duration

	good    atomic.Int64 // when something last succeeded (monotonic nanoseconds)
	bad     atomic.Int64 // when something last failed
	trouble atomic.Bool  // something failed since something succeeded
	cut     atomic.Int64 // since when no server is connected; 0: one is
	why     atomic.Pointer[error]

	mu     sync.Mutex
	closed chan struct{} // closed when the circuit closes; nil while it is closed
}

// patienceCut is for a database that is not there: a server that only collects garbage
// keeps its connections, and one that has lost them takes others.
const patienceCut = 400 * time.Millisecond

// refuses tells whether every host that was given refuses a connection. It takes
// 300 ms at most: a host that does not answer is none that refuses.
func (s *Store) refuses() bool {
	var dial gocql.Dialer = new(net.Dialer)
	if s.opts.Dial != nil {
		dial = s.opts.Dial
	}
	ctx, cancel := context.WithTimeout(s.ctx, 300*time.Millisecond)
	defer cancel()
	for _, host := range s.opts.Hosts {
		conn, err := dial.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(s.opts.Port)))
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
	}
	return true
}

var started = time.Now()

func mono() int64 { return int64(time.Since(started)) }

func (c *circuit) init(s *Store) {
	c.s, c.patience = s, s.opts.Patience
	c.good.Store(mono())
}

// reason is nil while the circuit is closed.
func (c *circuit) reason() error {
	if p := c.why.Load(); p != nil {
		return *p
	}
	return nil
}

func (c *circuit) succeeded() {
	now := mono()
	if now-c.good.Load() > int64(10*time.Millisecond) || c.trouble.Load() {
		c.good.Store(now)
		c.trouble.Store(false)
		c.cut.Store(0)
	}
}

// failed notes why something did not succeed.
func (c *circuit) failed(err error) {
	now := mono()
	c.bad.Store(now)
	c.trouble.Store(true)
	if errors.Is(err, gocql.ErrNoConnections) {
		c.cut.CompareAndSwap(0, now)
	}
}

// wait returns a channel that is closed when the circuit is closed again; nil if
// it is closed now.
func (c *circuit) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// check opens the circuit if it is time to. oldest is when the oldest statement
// that is under way was sent; 0: none is.
func (c *circuit) check(oldest int64) bool {
	now := mono()
	since := now - c.good.Load()
	asked := c.trouble.Load() || oldest != 0 && now-oldest > int64(c.patience)
	cut := c.cut.Load()
	gone := c.reason() == nil && cut != 0 && min(now-cut, since) >= int64(patienceCut) && c.s.refuses()
	if c.reason() != nil || !gone && (!asked || since < int64(c.patience)) {
		return false
	}
	what := "the database has not answered"
	if gone {
		what = "no server of the database takes a connection"
	}
	err := fmt.Errorf("%w: %s for %v", herald.ErrUnavailable, what, time.Duration(since).Round(100*time.Millisecond))
	c.mu.Lock()
	c.closed = make(chan struct{})
	c.why.Store(&err)
	c.mu.Unlock()
	c.s.log.Error("the database does not answer: nothing is acknowledged", zap.Error(err))
	return true
}

// close ends an outage.
func (c *circuit) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil {
		return
	}
	c.good.Store(mono())
	c.trouble.Store(false)
	c.cut.Store(0)
	c.why.Store(nil)
	close(c.closed)
	c.closed = nil
	c.s.log.Info("the database answers again")
}

// probe tries a write; a read, while this node has no row to write.
func (s *Store) probe() error {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timeout)
	defer cancel()
	if s.mayKeepClock() {
		return s.saveClock(ctx)
	}
	var clock, low, high *int64
	err := s.query(ctx, getNode, int32(0)).Scan(&clock, &low, &high)
	if errors.Is(err, gocql.ErrNotFound) {
		err = nil
	}
	return err
}

// saveClock keeps the highest timestamp and ID for the next run; in a cluster,
// those that will not be passed before this is called again.
func (s *Store) saveClock(ctx context.Context) error {
	if l := s.life.Load(); l != nil {
		return s.raiseCeiling(ctx, l)
	}
	seen := max(s.clock.last.Load(), idStamp(herald.ID(s.maxID.Load())))
	return s.query(ctx, putClock, int32(s.number.Load()), max(seen, s.clock.now()), int32(0), s.clock.next()).Exec()
}

// keep watches the circuit and keeps the clock.
func (s *Store) keep() {
	tick := time.NewTicker(min(s.opts.Patience/4, patienceCut/4))
	defer tick.Stop()
	saved := make(chan error, 1)
	busy, last := false, mono()
	for {
		select {
		case <-s.ctx.Done():
			if busy {
				<-saved
			}
			return
		case err := <-saved:
			busy = false
			if err != nil {
				s.circuit.failed(err)
				continue
			}
			s.circuit.succeeded()
			if s.circuit.reason() != nil {
				s.circuit.close()
			}
		case <-tick.C:
			if s.circuit.check(s.exec.oldest()) {
				s.exec.wake()
			}
			s.line.pass(s.circuit.reason() != nil || s.fenced(s.life.Load()) != nil, mono()-int64(s.opts.GiveUp))
			every := int64(time.Second)
			if s.circuit.reason() != nil {
				every = int64(s.opts.Patience) / 4
			}
			// While nothing is committed this is also what notices that the
			// database has gone.
			if !busy && mono()-last >= every {
				busy, last = true, mono()
				go func() { saved <- s.probe() }()
			}
		}
		if busy && mono()-last > int64(s.opts.Patience) {
			s.circuit.failed(nil)
		}
	}
}
