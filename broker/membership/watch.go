package membership

import (
	"time"

	"github.com/herald-mqtt/herald/persistence"
)

// timing is how long things take: see [Options]. Times are those of this process's
// monotonic clock, since an arbitrary beginning.
//
//	a node's own lease        counted from the start of a beat, less margin
//	what others wait for      counted from when they have seen it, and margin more
//
// Between the two lies what clocks may run faster or slower: a tenth of a lease.
type timing struct {
	lease, beat, margin time.Duration
}

// watch tells how long the rows have stood still. It is pure.
type watch struct {
	rows map[uint16]*sighting
	// again: rows could not be read, or nobody could beat. What stood still in the
	// meantime tells nothing.
	again bool
}

// sighting is a row and since when it has been seen like that.
type sighting struct {
	life, beat uint64
	state      persistence.MemberState
	since      time.Duration
	beats      bool // this life was seen to beat
}

// see takes a reading that ended at now. A beat that it shows began before, so now
// is not too early to count from; the start of the reading would be.
func (w *watch) see(now time.Duration, rows []persistence.Member) {
	if w.rows == nil {
		w.rows = map[uint16]*sighting{}
	}
	for _, m := range rows {
		s := w.rows[m.Node]
		switch {
		case s == nil || s.life != m.Life:
			w.rows[m.Node] = &sighting{life: m.Life, beat: m.Beat, state: m.State, since: now}
		case s.state != m.State:
			s.beat, s.state, s.since = m.Beat, m.State, now
		case s.beat != m.Beat:
			s.beat, s.since, s.beats = m.Beat, now, true
		case w.again:
			s.since = now
		}
	}
	w.again = false
}

// restart has all rows watched from the next reading on.
func (w *watch) restart() { w.again = true }

// still is how long the row was seen as it is.
func (w *watch) still(now time.Duration, m persistence.Member) time.Duration {
	s := w.rows[m.Node]
	if s == nil || w.again || s.life != m.Life || s.beat != m.Beat || s.state != m.State {
		return 0
	}
	return now - s.since
}

// beats tells whether this life was seen to beat.
func (w *watch) beats(m persistence.Member) bool {
	s := w.rows[m.Node]
	return s != nil && s.life == m.Life && s.beats
}

// candidate decides what one who wants a name has to do next. It is pure.
type candidate struct {
	timing
	name   string
	former persistence.Member // its process is dead for certain

	watch watch
	begun bool
	first time.Duration // the first reading
}

type move byte

const (
	moveWait    move = iota // read again in a moment
	moveJoin                // the name is free, as far as one can see
	moveTaken               // somebody has it, and beats
	moveBury                // change the row from Live to Dead
	moveSucceed             // nobody is there to finish the dead row: go on in its place
)

// step takes a reading that ended at now.
func (c *candidate) step(now time.Duration, rows []persistence.Member) (move, persistence.Member) {
	c.watch.see(now, rows)
	var own persistence.Member
	for _, m := range rows {
		if m.Name == c.name && (own.State == 0 || m.Life > own.Life) {
			own = m
		}
	}
	if !c.begun {
		c.begun, c.first = true, now
	}
	switch own.State {
	case persistence.Live:
		switch {
		case own.Node == c.former.Node && own.Life == c.former.Life:
			return moveBury, own
		case c.watch.beats(own):
			return moveTaken, own
		case c.watch.still(now, own) >= c.lease+max(c.beat, c.margin):
			return moveBury, own
		}
		return moveWait, own
	case persistence.Dead:
		// It comes after all who are there, as if it had the highest number.
		if c.watch.still(now, own) < time.Duration(c.alive(now, rows))*c.lease {
			return moveWait, own
		}
	}
	switch {
	case !c.clocksKnown(now, rows):
		return moveWait, own
	case own.State == persistence.Dead:
		return moveSucceed, own
	}
	return moveJoin, own
}

// alive is how many nodes may be alive.
func (c *candidate) alive(now time.Duration, rows []persistence.Member) int {
	n := 0
	for _, m := range rows {
		if m.State == persistence.Live && m.Name != c.name && c.watch.still(now, m) < c.lease+c.margin {
			n++
		}
	}
	return n
}

// clocksKnown tells whether what the rows say of clocks may be believed: one that
// nobody beats any more says when its node died.
func (c *candidate) clocksKnown(now time.Duration, rows []persistence.Member) bool {
	others := false
	for _, m := range rows {
		if m.State != persistence.Live {
			continue
		}
		if c.watch.beats(m) {
			return true
		}
		others = true
	}
	return !others || now-c.first >= 2*c.beat+c.margin
}
