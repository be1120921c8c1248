package simulation

import (
	"time"
)

// fleetKinds are what a step can be.
var fleetKinds = [...]struct {
	name   string
	weight int
	fault  bool
	do     func(*Fleet)
}{
	{"publish", 20, false, func(f *Fleet) { f.w.doPublish() }},
	{"carry", 30, false, func(f *Fleet) { f.w.doCarry() }},
	{"read", 40, false, func(f *Fleet) { f.w.doRead() }},
	{"answer", 30, false, func(f *Fleet) { f.w.doAnswer() }},
	{"connect", 20, false, (*Fleet).doConnect},
	{"drop", 3, false, func(f *Fleet) { f.w.doDrop() }},
	{"notice", 4, false, func(f *Fleet) { f.w.doNotice() }},
	{"subscribe", 5, false, func(f *Fleet) { f.w.doSubscribe() }},
	{"unsubscribe", 1, false, func(f *Fleet) { f.w.doUnsubscribe() }},
	{"disconnect", 1, false, func(f *Fleet) { f.w.doDisconnect() }},
	{"takeover", 3, false, (*Fleet).doTakeOver},
	{"kill", 2, true, (*Fleet).doKill},
	{"stop", 1, true, (*Fleet).doStop},
	{"start", 4, true, (*Fleet).doStart},
	{"stand still", 2, true, (*Fleet).doPause},
	{"database", 2, true, (*Fleet).doLine},
	{"transport", 3, true, (*Fleet).doTransport},
	{"clock", 2, true, (*Fleet).doClock},
	{"heal", 4, true, (*Fleet).doHeal},
}

func (f *Fleet) step() {
	sum := 0
	for _, k := range fleetKinds {
		if f.opts.Faults || !k.fault {
			sum += k.weight
		}
	}
	n := f.rng.IntN(sum)
	for _, k := range fleetKinds {
		if !f.opts.Faults && k.fault {
			continue
		}
		if n -= k.weight; n < 0 {
			k.do(f)
			return
		}
	}
}

func (f *Fleet) any() *node { return f.nodes[f.rng.IntN(len(f.nodes))] }

// runs tells whether there is a process, be it one that is about to end.
func (n *node) runs() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now != nil || n.leaving
}

func (f *Fleet) doConnect() {
	if c := f.w.some(func(c *client) bool { return c.conn == nil && !c.hanging() }); c != nil {
		f.w.connect(c)
	}
}

func (f *Fleet) doTakeOver() {
	if c := f.w.some(func(c *client) bool { return c.up }); c != nil {
		f.w.connect(c)
	}
}

// hanging tells whether a node may still be about to carry out a CONNECT that the
// client has given up, without knowing that it has. It would take the session from the
// client's next connection, and a clean start would end it; so the client waits.
func (c *client) hanging() bool {
	for _, g := range c.ghosts {
		if !g.answered.Load() && !g.closed() && g.life.ctx.Err() == nil {
			return true
		}
	}
	return false
}

func (n *node) serves() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now == nil {
		return false
	}
	n.now.mu.Lock()
	defer n.now.mu.Unlock()
	return n.now.serving
}

// spare tells whether the cluster goes on without a node. That all are gone at the same
// time is another matter: see FleetOptions.Outage.
func (f *Fleet) spare(n *node) bool {
	for _, o := range f.nodes {
		if o != n && o.serves() && !o.still() && o.line() != lineCut {
			return true
		}
	}
	return f.opts.Outage
}

func (f *Fleet) doKill() {
	if n := f.any(); n.runs() && f.spare(n) {
		f.logf("%s is killed", n.name)
		f.w.epoch++
		n.kill()
	}
}

func (f *Fleet) doStop() {
	if n := f.any(); n.runs() && !n.still() && n.line() == lineUp && f.spare(n) {
		f.logf("%s is stopped", n.name)
		f.w.epoch++
		f.later.Go(func() {
			if err := n.leave(); err != nil {
				f.logf("%s has not left: %v", n.name, err)
			}
		})
	}
}

func (f *Fleet) doStart() {
	for _, n := range f.nodes {
		if !n.runs() {
			f.logf("%s is started", n.name)
			n.start()
			return
		}
	}
}

func (f *Fleet) doPause() {
	n := f.any()
	if !f.spare(n) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now == nil || n.gate != nil {
		return
	}
	d := pick(f.rng, 500*time.Millisecond, 4*time.Second, 7*time.Second, 12*time.Second)
	f.logf("%s stands still for %v", n.name, d)
	f.w.epoch++
	gate := make(chan struct{})
	n.gate = gate
	f.later.Go(func() {
		time.Sleep(d)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.gate == gate {
			f.logf("%s goes on", n.name)
			n.gate = nil
			close(gate)
		}
	})
}

func (f *Fleet) doLine() {
	n := f.any()
	if !f.spare(n) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = pick(f.rng, lineSlow, lineCut)
	f.w.epoch++
	f.logf("%s: the database is slow (1) or out of reach (2): %d", n.name, n.state)
}

func (f *Fleet) doTransport() {
	f.w.epoch++
	if f.rng.IntN(4) == 0 {
		f.logf("redis goes away")
		f.net.change(func() { f.net.down = true })
		return
	}
	n := f.any()
	n.mu.Lock()
	l := n.now
	n.mu.Unlock()
	if l == nil {
		return
	}
	if e := l.opened.Load(); e != nil {
		how := f.rng.IntN(3)
		f.logf("%s is deaf (0), mute (1), cut off from redis (2): %d", n.name, how)
		f.net.change(func() {
			switch how {
			case 0:
				e.deaf = true
			case 1:
				e.mute = true
			default:
				e.cut = true
			}
		})
	}
}

// doClock sets the clock of a node: more often back, and of one that is in trouble.
func (f *Fleet) doClock() {
	n := f.any()
	for range 3 {
		if n.still() || n.line() == lineCut {
			break
		}
		n = f.any()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d := pick(f.rng, -8*time.Second, -4*time.Second, -4*time.Second, -500*time.Millisecond, 700*time.Millisecond, 2*time.Second)
	if a := n.ahead + d; a < -12*time.Second || a > 6*time.Second {
		d = -n.ahead
	}
	n.ahead += d
	f.skewed()
	f.logf("the clock of %s is set by %v", n.name, d)
}

func (f *Fleet) doHeal() {
	switch f.rng.IntN(3) {
	case 0:
		f.healRedis()
	case 1:
		n := f.any()
		n.mu.Lock()
		n.state = lineUp
		n.mu.Unlock()
	default:
		f.healLinks()
	}
}

func (f *Fleet) healRedis() {
	was := false
	f.net.change(func() { was, f.net.down = f.net.down, false })
	if was {
		f.logf("redis is back")
		if f.rng.IntN(2) == 0 {
			f.logf("it is empty")
			f.net.lose()
		}
	}
}

func (f *Fleet) healLinks() {
	f.net.change(func() {
		for _, e := range f.net.ends {
			e.deaf, e.mute, e.cut = false, false, false
		}
	})
}
