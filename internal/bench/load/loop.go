//go:build linux

package load

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readSize = 256 << 10
	maxRun   = 128 << 10 // bytes of prebuilt frames per publisher
)

// ErrClosed ends a run: the broker closed a connection without a word.
var ErrClosed = errors.New("the broker closed a connection")

// Phases of a run, told to the loops by the coordinator.
const (
	phaseWarm int32 = iota
	phaseMeasure
	phaseDrain // no new messages; a loop ends when everything has arrived
	phaseAbort
)

// loop is one thread with its connections.
type loop struct {
	// Fixed at construction.
	config *Config
	flows  []*flow
	start  time.Time
	phase  *atomic.Int32
	rate   float64 // messages per nanosecond of this loop's publishers

	// Owned by the loop's goroutine.
	poller  *poller
	conns   []*conn
	events  []unix.EpollEvent
	buf     []byte // shared by all reads
	acks    []byte // answers to one read
	touched []*flow
	pubs    []*publisher // of all flows, for the schedule
	issued  uint64       // messages given to publishers by the schedule
	now     int64        // ns since start, once per wait
	latency [2]Histogram
	moved   bool  // progress since the last wait
	lastMov int64 // when there was progress

	// Read by the coordinator.
	delivered atomic.Uint64
	published atomic.Uint64
	local     struct{ delivered, published uint64 } // owned by the loop, copied per iteration
}

func newLoop(c *Config, start time.Time, phase *atomic.Int32) (*loop, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &loop{
		config: c, start: start, phase: phase, poller: p,
		events: make([]unix.EpollEvent, 512), buf: make([]byte, readSize), acks: make([]byte, 0, readSize),
	}, nil
}

// add takes over a connection; rest is what was read from it already.
func (l *loop) add(c *conn, fd int, rest []byte) error {
	c.fd, c.number = fd, len(l.conns)
	c.in = append(make([]byte, 0, max(2*l.config.Payload, 512)), rest...)
	l.conns = append(l.conns, c)
	return l.poller.add(fd, unix.EPOLLIN, c.number)
}

func (l *loop) close() {
	for _, c := range l.conns {
		_, _ = unix.Write(c.fd, []byte{typeDisconnect, 0})
		_ = unix.Close(c.fd)
	}
	l.poller.close()
}

// run works until everything has arrived after phaseDrain, until phaseAbort,
// or until nothing moves.
func (l *loop) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Without this the kernel rounds a wait up by 50 µs.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	l.now = int64(time.Since(l.start))
	l.lastMov = l.now
	for _, f := range l.flows {
		l.touch(f)
	}
	for {
		phase := l.phase.Load()
		if phase == phaseAbort {
			return nil
		}
		wait := 100 * time.Millisecond
		if l.rate > 0 && phase < phaseDrain {
			wait = l.schedule()
		}
		if err := l.pump(phase); err != nil {
			return err
		}
		l.delivered.Store(l.local.delivered)
		l.published.Store(l.local.published)
		if done, err := l.check(phase); done || err != nil {
			return err
		}
		n, err := l.poller.wait(l.events, wait)
		if err != nil {
			return err
		}
		l.now = int64(time.Since(l.start))
		for _, ev := range l.events[:n] {
			c := l.conns[ev.Fd]
			if ev.Events&unix.EPOLLOUT != 0 {
				if err := l.flush(c); err != nil {
					return err
				}
			}
			if ev.Events&^unix.EPOLLOUT != 0 {
				if err := l.readable(c, phase); err != nil {
					return err
				}
			}
		}
	}
}

func (l *loop) touch(f *flow) {
	if !f.dirty {
		f.dirty = true
		l.touched = append(l.touched, f)
	}
}

// schedule hands out the messages that are due, round robin over the
// publishers, and returns how long it is to the next one.
func (l *loop) schedule() time.Duration {
	due := uint64(float64(l.now) * l.rate)
	for ; l.issued < due; l.issued++ {
		p := l.pubs[l.issued%uint64(len(l.pubs))]
		p.due++
		l.touch(p.conn.flow)
	}
	next := int64(float64(l.issued+1) / l.rate)
	return time.Duration(min(max(next-int64(time.Since(l.start)), 0), int64(100*time.Millisecond)))
}

// dueAt is when message seq of p should be sent, for the latency of runs with
// a rate.
func (l *loop) dueAt(p *publisher, seq uint64) int64 {
	return int64(float64(seq*uint64(len(l.pubs))+uint64(p.ordinal)+1) / l.rate)
}

// pump sends what the windows of the touched flows allow.
func (l *loop) pump(phase int32) error {
	for _, f := range l.touched {
		f.dirty = false
		if phase >= phaseDrain && l.config.Count == 0 {
			continue
		}
		for _, p := range f.pubs {
			if err := l.send(p); err != nil {
				return err
			}
		}
	}
	l.touched = l.touched[:0]
	return nil
}

func (l *loop) send(p *publisher) error {
	for !p.conn.waiting {
		n := p.ready()
		if p.limit > 0 {
			n = min(n, int(p.limit-p.sent))
		}
		if l.rate > 0 {
			n = min(n, int(p.due-p.sent))
		}
		if n <= 0 {
			return nil
		}
		now := l.now
		at := func(uint64) int64 { return now }
		if l.rate > 0 {
			at = func(seq uint64) int64 { return l.dueAt(p, seq) }
		}
		before := p.sent
		run := p.fill(n, l.config.QoS, at)
		l.local.published += p.sent - before
		if len(run) == 0 {
			return nil
		}
		if err := l.write(&p.conn, run); err != nil {
			return err
		}
	}
	return nil
}

// write sends b or keeps a copy of what the kernel does not take.
func (l *loop) write(c *conn, b []byte) error {
	if !c.waiting {
		n, err := unix.Write(c.fd, b)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return fmt.Errorf("write: %w", err)
		}
		b = b[max(n, 0):]
		if len(b) == 0 {
			return nil
		}
		c.waiting = true
		if err := l.poller.modify(c.fd, unix.EPOLLIN|unix.EPOLLOUT, c.number); err != nil {
			return err
		}
	}
	c.out = append(c.out, b...)
	return nil
}

func (l *loop) flush(c *conn) error {
	n, err := unix.Write(c.fd, c.out)
	if err != nil {
		if err == unix.EAGAIN || err == unix.EINTR {
			return nil
		}
		return fmt.Errorf("write: %w", err)
	}
	c.out = append(c.out[:0], c.out[n:]...)
	if len(c.out) > 0 {
		return nil
	}
	c.waiting = false
	l.touch(c.flow)
	return l.poller.modify(c.fd, unix.EPOLLIN, c.number)
}

// readable reads once and handles all complete frames.
func (l *loop) readable(c *conn, phase int32) error {
	kept := copy(l.buf, c.in)
	n, err := unix.Read(c.fd, l.buf[kept:])
	if err != nil {
		if err == unix.EAGAIN || err == unix.EINTR {
			return nil
		}
		return fmt.Errorf("read: %w", err)
	}
	if n == 0 {
		return ErrClosed
	}
	l.acks = l.acks[:0]
	var used int
	if c.sub != nil {
		used, err = l.receive(c.sub, l.buf[:kept+n], phase == phaseMeasure)
	} else {
		used, err = l.acknowledged(c.pub, l.buf[:kept+n])
	}
	if err != nil {
		return err
	}
	c.in = append(c.in[:0], l.buf[used:kept+n]...)
	l.touch(c.flow)
	l.moved = true
	if len(l.acks) > 0 {
		return l.write(c, l.acks)
	}
	return nil
}

// receive walks the frames that a subscriber got and returns how many bytes
// they take. Hot: a few nanoseconds per message, no allocation.
func (l *loop) receive(s *subscriber, data []byte, measure bool) (int, error) {
	at := 0
	now := int64(0)
	var latency *Histogram
	if measure {
		now = int64(time.Since(l.start))
		latency = &l.latency[0]
		if p := l.config.Part; p != nil {
			latency = &l.latency[p.Load()&1]
		}
	}
	for {
		body, size, err := nextFrame(data[at:])
		if err != nil {
			return at, err
		}
		if size == 0 {
			if len(data)-at >= readSize-1 {
				return at, errMalformed
			}
			return at, nil
		}
		first, frame := data[at], data[at+body:at+size]
		at += size
		switch first & 0xf0 {
		case typePublish:
			p, ok := parsePublish(l.config.Protocol, first, frame)
			if !ok {
				return at, errMalformed
			}
			var stamp int64
			var fresh bool
			if l.acks, stamp, fresh = s.message(p, l.acks); fresh {
				l.local.delivered++
				if measure {
					latency.Add(now - stamp)
				}
			}
		case typePubrel:
			l.acks = s.release(frame, l.acks)
		case typeDisconnect:
			return at, errors.New("the broker disconnected a subscriber")
		default:
			s.badAcks++
		}
	}
}

// acknowledged walks the frames that a publisher got.
func (l *loop) acknowledged(p *publisher, data []byte) (int, error) {
	at := 0
	for {
		body, size, err := nextFrame(data[at:])
		if err != nil {
			return at, err
		}
		if size == 0 {
			if len(data)-at >= readSize-1 {
				return at, errMalformed
			}
			return at, nil
		}
		first := data[at]
		if first&0xf0 == typeDisconnect {
			return at, errors.New("the broker disconnected a publisher")
		}
		l.acks = p.acknowledge(first&0xf0, data[at+body:at+size], l.acks)
		at += size
	}
}

// check tells whether the loop is done, and ends a run that does not move.
func (l *loop) check(phase int32) (bool, error) {
	if l.moved {
		l.moved = false
		l.lastMov = l.now
		if phase < phaseDrain {
			return false, nil
		}
	}
	idle := time.Duration(l.now - l.lastMov)
	if phase < phaseDrain && idle < l.config.Stall {
		return false, nil
	}
	lost, unacked, unsent := l.outstanding()
	if lost == 0 && unacked == 0 {
		if unsent == 0 && phase >= phaseDrain {
			return true, nil
		}
		if unsent == 0 || l.rate > 0 { // slower than one message per Stall
			l.lastMov = l.now
			return false, nil
		}
	}
	if idle >= l.config.Stall {
		return true, &StallError{Lost: lost, Unacked: unacked}
	}
	return false, nil
}

// outstanding counts deliveries and handshakes that are missing, and messages
// that a run with a count has not sent yet.
func (l *loop) outstanding() (lost, unacked, unsent uint64) {
	for _, p := range l.pubs {
		for _, s := range p.conn.flow.subs {
			lost += p.sent - s.from[p.index].received
		}
		if p.handshakes {
			unacked += p.sent - p.acked
		}
		if p.limit > 0 {
			unsent += p.limit - p.sent
		}
	}
	return lost, unacked, unsent
}
