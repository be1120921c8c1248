package listen

import (
	"bytes"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// How many pollers are in use follows the load. Two pollers that are half busy
// each wake up twice as often as one that is busy: at 20,000 messages a second on
// 1,000 connections two take 13.5 µs of CPU a message, one takes 10, and what is
// saved are wake-ups. So everything starts on one poller; when it has too much
// to do, and a processor is free, half of its busy connections move to another,
// and so on; when there is little to do they come back. Connections move when
// they have an event, by the hand of the poller that owns them, so nothing is
// searched and idle ones stay where they are.
const (
	hotAbove     = 0.85 // of the time
	hotWindow    = 50 * time.Millisecond
	lookAtMost   = 100 * time.Millisecond
	coldBelow    = 0.45 // all of it together, per poller that would be left
	coldLooks    = 4
	freeAtLeast  = 0.10 // of the machine
	skewedBelow  = 0.6  // the coolest, of the hottest
	planLifetime = 2    // looks
)

// plan tells a poller which of its connections to move.
type plan struct {
	seq   uint32
	every uint32 // one in so many
	to    []*poller
	seen  uint32 // owned by the poller
	looks int    // owned by the balancer
}

// consider moves c if it is its turn.
func (p *poller) consider(c *Conn, plan *plan) {
	if c.ended || c.considered == plan.seq || c.worker.Load() || c.stopped.Load() {
		return
	}
	c.considered = plan.seq
	plan.seen++
	if plan.seen%plan.every != 0 {
		return
	}
	to := plan.to[int(plan.seen/plan.every)%len(plan.to)]
	if to == p {
		return
	}
	fd := c.out.fd
	if unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil) != nil {
		return
	}
	c.loop.counts.moved.Add(1)
	// What is readable or writable now is reported by the new epoll at once, and
	// may reach the other poller before it owns c: it notes that and posts c.
	err := to.watch(c, fd)
	c.poll.Store(to) // from here on c, and closing fd, is the other's
	if err != nil {
		c.loop.log.Warn("cannot watch a connection, closing it", "error", err)
		c.Shutdown()
	}
}

// meter measures how busy a poller is.
type meter struct {
	p           *poller
	base        time.Time
	since       time.Duration // begin of the work under way
	total       time.Duration
	window      time.Duration // begin of the window
	windowTotal time.Duration
}

func (m *meter) work() {
	if m.base.IsZero() {
		m.base = time.Now()
	}
	m.since = time.Since(m.base)
}

func (m *meter) idle() {
	if m.base.IsZero() {
		return
	}
	now := time.Since(m.base)
	m.total += now - m.since
	m.p.busy.Store(int64(m.total))
	if w := now - m.window; w >= hotWindow {
		if float64(m.total-m.windowTotal) > hotAbove*float64(w) {
			select {
			case m.p.loop.hot <- struct{}{}:
			default:
			}
		}
		m.window, m.windowTotal = now, m.total
	}
}

// balancer decides how many pollers are in use. It runs on the sweeper.
type balancer struct {
	loop *Loop
	last time.Time
	busy []int64
	util []float64
	seq  uint32
	cold int

	cpuAll, cpuIdle uint64
	stat            [512]byte
}

func newBalancer(l *Loop) *balancer {
	b := &balancer{loop: l, last: time.Now(), busy: make([]int64, len(l.pollers)), util: make([]float64, len(l.pollers))}
	b.free()
	return b
}

// look measures, and moves connections if that is called for. ticked: it comes
// at its regular time, not because a poller is hot.
func (b *balancer) look(now time.Time, ticked bool) {
	passed := now.Sub(b.last)
	if len(b.busy) < 2 || passed < lookAtMost {
		return
	}
	b.last = now
	sum := 0.0
	for i, p := range b.loop.pollers {
		busy := p.busy.Load()
		b.util[i] = float64(busy-b.busy[i]) / float64(passed)
		b.busy[i] = busy
		sum += b.util[i]
		if pl := p.plan.Load(); pl != nil && pl.looks > 0 {
			if pl.looks--; pl.looks == 0 {
				p.plan.Store(nil)
			}
		}
	}
	b.decide(sum, b.free(), ticked)
}

func (b *balancer) decide(sum, free float64, ticked bool) {
	n := int(b.loop.active.Load())
	use := b.util[:n]
	hottest, coolest := slices.Index(use, slices.Max(use)), slices.Index(use, slices.Min(use))
	switch {
	case use[hottest] > hotAbove && n < len(b.util) && free >= freeAtLeast:
		b.cold = 0
		b.loop.pollers[n].plan.Store(nil)
		b.loop.active.Store(uint32(n + 1))
		b.shed(hottest, 2, b.loop.pollers[n:n+1])
	case use[hottest] > hotAbove && use[coolest] < skewedBelow*use[hottest]:
		b.cold = 0
		share := (use[hottest] - use[coolest]) / 2 / use[hottest]
		b.shed(hottest, uint32(1/share+0.5), b.loop.pollers[coolest:coolest+1])
	case n > 1 && sum < coldBelow*float64(n-1):
		if ticked {
			b.cold++
		}
		if b.cold >= coldLooks {
			b.cold = 0
			b.loop.active.Store(uint32(n - 1))
			for i := n - 1; i < len(b.util); i++ {
				b.shed(i, 1, b.loop.pollers[:n-1])
				b.loop.pollers[i].plan.Load().looks = 0 // until it is needed again
			}
		}
	default:
		b.cold = 0
	}
}

func (b *balancer) shed(from int, every uint32, to []*poller) {
	b.seq++
	b.loop.pollers[from].plan.Store(&plan{seq: b.seq, every: max(every, 1), to: slices.Clone(to), looks: planLifetime})
}

// free is the share of the machine's processors that was idle since the last
// call; 1 if nobody tells.
func (b *balancer) free() float64 {
	fd, err := unix.Open("/proc/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 1
	}
	n, _ := unix.Read(fd, b.stat[:])
	_ = unix.Close(fd)
	all, idle, ok := parseStat(b.stat[:max(n, 0)])
	if !ok {
		return 1
	}
	dAll, dIdle := all-b.cpuAll, idle-b.cpuIdle
	b.cpuAll, b.cpuIdle = all, idle
	if dAll == 0 {
		return 1
	}
	return float64(dIdle) / float64(dAll)
}

// parseStat adds up the first line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq, steal, in ticks since boot.
func parseStat(b []byte) (all, idle uint64, ok bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	line, isCPU := bytes.CutPrefix(line, []byte("cpu "))
	if !whole || !isCPU {
		return 0, 0, false
	}
	i, v, digits := 0, uint64(0), false
	for _, c := range append(line, ' ') {
		switch {
		case c >= '0' && c <= '9':
			v, digits = v*10+uint64(c-'0'), true
		case digits:
			if i < 8 { // the guests' time behind it is contained in user's
				all += v
			}
			if i == 3 || i == 4 {
				idle += v
			}
			i, v, digits = i+1, 0, false
		}
	}
	return all, idle, i >= 5
}
