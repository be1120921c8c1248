package simulation

import (
	"fmt"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// witness connects the first client, which is there for good: it sees all wills, and
// keeps the group alive.
func (f *Fleet) witness() {
	c := f.w.clients[0]
	wants := map[string]byte{"w/#": 2}
	for filter, g := range f.w.ledger.groups {
		wants[filter] = g.qos()
	}
	for filter, qos := range wants {
		for sub := c.subs[filter]; f.w.err == nil && (sub == nil || !sub.active); sub = c.subs[filter] {
			switch {
			case c.conn == nil && !c.hanging():
				c.connect(false)
			case c.up && len(c.asked) == 0:
				c.subscribe(filter, qos)
			}
			time.Sleep(10 * time.Millisecond)
			if c.conn != nil {
				f.serve(c)
			}
			f.look()
		}
	}
}

// awayForLong chooses clients that do not come back until their wills must have been
// published, and their sessions have expired.
func (f *Fleet) awayForLong() (away []*client) {
	if f.rng.IntN(4) > 0 {
		return nil
	}
	for _, c := range f.w.clients[1:] {
		if sub := c.subs["$share/g/s/#"]; sub != nil && f.w.ledger.groups[sub.filter].exact {
			continue
		}
		if (c.expiry > 0 || c.will != nil) && f.rng.IntN(2) == 0 {
			c.lose(true)
			for _, g := range c.ghosts {
				g.hangUp()
			}
			away = append(away, c)
		}
	}
	return away
}

// expire lets the time pass that this takes, and looks at what is left of the sessions.
func (f *Fleet) expire(away []*client) {
	w := f.w
	for _, c := range away {
		f.logf("%s stays away", c.name)
		for _, wl := range c.pendingW {
			wl.must = wl.must || !wl.unsure && !wl.leftClean
		}
	}
	for range 100 {
		time.Sleep(time.Second)
		for _, c := range w.clients {
			if c.conn != nil {
				f.serve(c)
			}
		}
		f.look()
	}
	f.db.mu.Lock()
	defer f.db.mu.Unlock()
	for _, c := range away {
		if c.durable && c.expiry == 0 {
			continue
		}
		if f.db.oneLocked(sessionPlace(persistence.Client, c.name), column{}) != nil {
			w.fail(fmt.Errorf("the session of %s has expired, and its row is there", c.name))
		}
		for id, name := range f.db.names {
			if name == claimKey(persistence.Client, c.name) {
				w.fail(f.leftover(c, id))
			}
		}
	}
}

// leftover tells what is stored of a session that has ended. In its inbox something may
// turn up later: a publish was on its way.
func (f *Fleet) leftover(c *client, id herald.SessionID) error {
	left := f.db.rowsLocked(subscriptionsOf(id))
	if len(left) > 0 {
		return fmt.Errorf("the session %d of %s has ended, and %d rows of it are left: %+v", id, c.name, len(left), left)
	}
	return nil
}

// slack is how much earlier and later than a client thinks something may be due that the
// nodes date.
func (w *World) slack() (early, late time.Duration) {
	if w.fleet == nil {
		return 0, 100 * time.Millisecond
	}
	return w.fleet.skew + time.Second, w.fleet.skew + 30*time.Second
}

// died notes when a life was found dead: its connections count as ended from then on,
// although it may be about to go on.
func (f *Fleet) died(m persistence.Member) {
	f.logMu.Lock()
	defer f.logMu.Unlock()
	k := bridge.Peer{Node: m.Node, Incarnation: m.Life}
	if _, ok := f.deaths[k]; !ok {
		f.deaths[k] = time.Now()
	}
}

// ended is when a connection that is lost now has ended at the earliest, for the nodes.
func (w *World) ended(c *conn) time.Time {
	now := w.now()
	if c.life == nil || c.life.member == nil {
		return now
	}
	c.st.Lock()
	if c.closing {
		now = c.since
	}
	c.st.Unlock()
	w.fleet.logMu.Lock()
	defer w.fleet.logMu.Unlock()
	if at, ok := w.fleet.deaths[c.life.Self()]; ok && at.Before(now) {
		return at
	}
	return now
}
