package listen

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/herald-mqtt/herald/broker/wire"
)

// tick is the resolution of keepalive and of deadlines.
const tick = 500 * time.Millisecond

// LoopConfig is what all listeners share. The zero value is usable.
type LoopConfig struct {
	// Pollers is how many event loops there may be; 0 is GOMAXPROCS. As many are
	// in use as the load needs.
	Pollers int
	// WriteBound is how many bytes may wait to be written to one client before
	// [Conn.Room] says no; 0 is 1 MiB.
	WriteBound int64
	// MaxPending bounds the bytes that wait to be written to all clients together.
	// When there are more, the connections with the most are ended. It is looked at
	// ten times a second. 0 is no bound.
	MaxPending int64
	// MaxPacketSize bounds what a client may send, in bytes, fixed header
	// included; 0 is no bound but MQTT's.
	MaxPacketSize int
	// MaxConnectSize bounds CONNECT, whose sender nobody knows yet; 0 is 256 KiB.
	MaxConnectSize int
	// ConnectTimeout is how long a connection may take to bring a complete
	// CONNECT, handshakes before it included; 0 is 10 s.
	ConnectTimeout time.Duration
	// MaxConnections bounds the connections of all listeners together: one too
	// many is closed at once. It keeps descriptors for whatever else the process
	// has open. 0 is no bound.
	MaxConnections int
	// MaxWorkers bounds the goroutines that run mochi (CONNECT, SUBSCRIBE, ...)
	// at a time; what is beyond waits. 0 is 4096.
	MaxWorkers int
	// Log may be nil.
	Log *slog.Logger
}

// Loop is what all listeners share: pollers, workers, the sweeper that keeps the
// deadlines, and the table of connections.
type Loop struct {
	// Fixed by NewLoop and Attach.
	cfg     LoopConfig
	handler Handler
	log     *slog.Logger
	server  *mqtt.Server
	pollers []*poller
	unread  int64 // bytes that may wait for one client, answers included

	now     atomic.Uint32 // ticks since the start, at least 1
	next    atomic.Uint32 // round robin over the active pollers
	active  atomic.Uint32 // pollers[:active] get connections
	hot     chan struct{} // room for one: a poller has too much to do
	slots   slots
	shared  counters
	sockets atomic.Int64 // admitted by all listeners
	counts  gauges

	pool workerPool

	started atomic.Bool
	done    chan struct{}  // closed by Stop
	wg      sync.WaitGroup // connections until Closed returned
	own     sync.WaitGroup // pollers, sweeper, workers
}

// NewLoop makes the pollers, which do not run before Start.
func NewLoop(cfg LoopConfig, h Handler) (*Loop, error) {
	if cfg.Pollers <= 0 {
		cfg.Pollers = runtime.GOMAXPROCS(0)
	}
	if cfg.WriteBound <= 0 {
		cfg.WriteBound = 1 << 20
	}
	if cfg.MaxConnectSize <= 0 {
		cfg.MaxConnectSize = 256 << 10
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.MaxWorkers <= 0 {
		cfg.MaxWorkers = 4096
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Loop{cfg: cfg, handler: h, log: cfg.Log, done: make(chan struct{})}
	l.unread = 2*cfg.WriteBound + 2*int64(cfg.MaxPacketSize)
	if cfg.MaxPacketSize == 0 {
		l.unread += 2 * wire.MaxRemaining
	}
	l.pool.max = cfg.MaxWorkers
	l.hot = make(chan struct{}, 1)
	l.now.Store(1)
	l.active.Store(1)
	l.slots.init()
	if err := l.newPollers(); err != nil {
		return nil, fmt.Errorf("listen: event loop: %w", err)
	}
	return l, nil
}

// Attach tells the loop which mochi server handles control frames, and adds a
// hook to it. Once, before Start.
func (l *Loop) Attach(server *mqtt.Server) error {
	l.server = server
	return server.AddHook(&detachHook{server: server}, nil)
}

// Start runs the pollers and the sweeper.
func (l *Loop) Start() {
	if l.started.Swap(true) {
		return
	}
	for _, p := range l.pollers {
		l.own.Go(p.run)
	}
	l.own.Go(l.sweep)
}

// begin counts a connection in; gone counts it out.
func (l *Loop) begin(c *Conn) {
	l.counts.accepted.Add(1)
	l.counts.conns.Add(1)
	l.wg.Add(1)
	l.slots.add(c)
}

// Each calls f for every connection.
func (l *Loop) Each(f func(*Conn)) { l.slots.each(f) }

// Stop ends every connection, waits until Handler.Closed has returned for each,
// and ends the goroutines. A connection for which CloseAfter was called gets the
// time to take what it is told, two seconds at most. Listeners must have been
// closed. If ctx ends first, it returns the context's error and leaves the rest
// running.
func (l *Loop) Stop(ctx context.Context) error {
	if !l.started.Load() {
		l.closePollers()
		return nil
	}
	l.Each(func(c *Conn) {
		if !c.stopped.Load() {
			c.Shutdown()
		}
	})
	gone := make(chan struct{})
	go func() {
		l.wg.Wait()
		select {
		case <-l.done:
		default:
			close(l.done)
		}
		for _, p := range l.pollers {
			p.stop()
		}
		l.own.Wait()
		l.closePollers()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("listen: stop: %w", ctx.Err())
	}
}

// sweep keeps the clock of ticks and looks at connections whose deadline may
// have come.
func (l *Loop) sweep() {
	t := time.NewTicker(tick)
	defer t.Stop()
	begin := time.Now()
	balance := newBalancer(l)
	press := time.NewTicker(pressure)
	defer press.Stop()
	for {
		select {
		case <-press.C:
			l.relieve()
			continue
		case <-l.hot:
			balance.look(time.Now(), false)
			continue
		case <-l.done:
			l.pool.trim(0, true)
			return
		case <-t.C:
		}
		now := uint32(time.Since(begin)/tick) + 1
		if before := l.now.Load(); now > before+stoppedTicks {
			// The process was stopped, or the machine asleep: what the clients sent
			// meanwhile has not been read yet.
			l.slots.each(func(c *Conn) { c.heard.Store(now) })
		}
		l.now.Store(now)
		l.slots.sweep(now, func(c *Conn) uint32 { return c.overdue(now) })
		l.pool.trim(now, false)
		balance.look(time.Now(), true)
	}
}

const never = 1<<32 - 1

// stoppedTicks is how long a sweep may be late before silence meanwhile is not
// held against the clients.
const stoppedTicks = 4 // 2 s

// overdue acts on a deadline that has passed, and says when to look again.
func (c *Conn) overdue(now uint32) uint32 {
	if c.stopped.Load() {
		by := c.closeBy.Load()
		switch {
		case c.dead.Load():
			c.post()
			return now + 2
		case by == 0:
			return now + 1 // the owner is about to close it
		case now < by:
			return by
		}
		c.Shutdown()
		return now + 2
	}
	allowed, from := c.keepalive.Load(), c.heard.Load()
	if c.version.Load() == 0 { // a byte now and then buys no time
		allowed, from = uint32(c.loop.cfg.ConnectTimeout/tick)+1, c.since
	} else if c.paused.Load() || c.worker.Load() {
		return now + 2
	}
	if allowed == 0 {
		return never
	}
	if due := from + allowed; now < due {
		return due
	}
	c.timedOut.Store(true)
	c.post()
	return now + 2
}
