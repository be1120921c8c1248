package membership

import (
	"cmp"
	"slices"
	"time"

	"github.com/herald-mqtt/herald/persistence"
)

// op is a kind of effect. At most one of each kind is under way.
type op byte

const (
	opBeat   op = iota // Beat
	opRead             // Members
	opBury             // Change from Live to Dead
	opDied             // Handler.Died
	opFinish           // Change from Dead to Finished
	opLook             // Handler.Finished
	opPeers            // Handler.Peers
	opLost             // Handler.Lost, the last one
	ops
)

// effect is to be carried out, not earlier than the tick that returned it.
type effect struct {
	op     op
	member persistence.Member
}

// result is what came of an effect.
type result struct {
	effect                      // of opBeat: the row as it is now, if ok
	rows   []persistence.Member // of opRead
	ok     bool                 // of opBeat, opBury and opFinish
	err    error
}

// machine is a life of a node. It reads no clock and blocks on nothing; its owner
// calls tick, carries the effects out, and calls done with the result of each. now
// never goes back.
type machine struct {
	timing
	self persistence.Member
	busy [ops]bool
	lost bool

	// The lease counts from lease0: the start of the first attempt at the newest
	// beat that is known to have succeeded. Not from the attempt that was answered:
	// an earlier one whose answer was lost may be the one that others have seen.
	lease0   time.Duration
	attempts int           // at the next beat
	attempt0 time.Duration // start of the first of them
	lastBeat time.Duration // start of the newest one
	nextBeat time.Duration
	failing  bool // the newest beat failed
	nextRead time.Duration
	readAt   time.Duration // start of the newest one
	lastRead time.Duration // end of the newest one that succeeded
	everRead bool
	eager    bool // somebody waits for what others do: read more often
	peersDue bool
	copied   bool // the owner has copies of looked and met

	rows   []persistence.Member // as last read, by node
	watch  watch
	buried map[uint16]bool // tried since the last reading
	deaths map[uint16]*death
	looked map[uint16]uint64
	look0  map[uint16]time.Duration // not to be tried before
	met    map[uint16]uint64        // newest lives that Handler.Peers was told of
	owes   uint64                   // Status.Owes
	paying payment                  // when that is 0
	told   []persistence.Member     // what it is being told of
}

// payment is how far one is of which the others are to know: like a death it is looked
// at with a reading that begins after it, since it shows whoever was there before.
type payment byte

const (
	payNone payment = iota
	payMade
	payRead // a reading has begun
)

// death is a dead life that is not finished.
type death struct {
	life  uint64
	since time.Duration
	done  bool          // Died has returned nil
	next  time.Duration // not to be tried before
}

func newMachine(t timing, self persistence.Member, joined time.Duration, looked map[uint16]uint64, owes uint64) *machine {
	looked[self.Node] = self.Life - 1 // whoever had the number before is over
	if owes != 0 {
		looked[self.Node] = owes - 1
	}
	return &machine{
		timing: t, self: self, lease0: joined, looked: looked, lastBeat: joined, nextBeat: joined, nextRead: joined,
		buried: map[uint16]bool{}, deaths: map[uint16]*death{}, look0: map[uint16]time.Duration{},
		met: map[uint16]uint64{}, owes: owes,
	}
}

// until is when the lease runs out, for this node itself.
func (m *machine) until() time.Duration {
	if m.lost {
		return -1
	}
	return m.lease0 + m.lease - m.margin
}

func (m *machine) valid(now time.Duration) bool { return now < m.until() }

// beatNow has the next beat brought forward.
func (m *machine) beatNow(now time.Duration) {
	m.nextBeat = min(m.nextBeat, max(now, m.lastBeat+m.beat/20))
}

// readNow has the next reading brought forward.
func (m *machine) readNow(now time.Duration) { m.nextRead = min(m.nextRead, now) }

// waited tells whether somebody waits for what others do. Who begins to wait has the next
// reading brought forward, to a quarter of a beat after the one before.
func (m *machine) waited(now time.Duration, is bool) {
	if is && !m.eager {
		m.nextRead = min(m.nextRead, max(now, m.readAt+m.beat/4))
	}
	m.eager = is
}

// paid: what this life owes is finished.
func (m *machine) paid(now time.Duration) {
	if m.owes != 0 {
		m.owes, m.paying, m.copied = 0, payMade, false
		m.beatNow(now)
		m.readNow(now)
	}
}

// next is when tick is to be called if nothing happens before.
func (m *machine) next(now time.Duration) time.Duration {
	at := now + m.beat/4
	if !m.busy[opBeat] {
		at = min(at, m.nextBeat)
	}
	if !m.busy[opRead] {
		at = min(at, m.nextRead)
	}
	return at
}

// tick returns what is to be done.
func (m *machine) tick(now time.Duration) []effect {
	var out []effect
	do := func(op op, member persistence.Member) {
		m.busy[op] = true
		out = append(out, effect{op, member})
	}
	if m.lost {
		if !m.busy[opLost] {
			do(opLost, m.self)
		}
		return out
	}
	if !m.busy[opBeat] && now >= m.nextBeat {
		if m.attempts == 0 {
			m.attempt0 = now
		}
		m.attempts++
		m.lastBeat, m.nextBeat = now, now+m.beat
		do(opBeat, m.self)
	}
	if !m.busy[opRead] && now >= m.nextRead {
		m.readAt, m.nextRead = now, now+m.beat
		if m.eager {
			m.nextRead = now + m.beat/2
		}
		if m.paying == payMade {
			m.paying = payRead
		}
		do(opRead, persistence.Member{})
	}
	if !m.busy[opPeers] && m.peersDue {
		m.peersDue, m.told = false, m.rows
		do(opPeers, persistence.Member{})
	}
	for _, row := range m.rows {
		if row.Node == m.self.Node {
			continue
		}
		if !m.busy[opBury] && m.mayBury(now, row) {
			m.buried[row.Node] = true
			do(opBury, row)
		}
		if d := m.deaths[row.Node]; d != nil && now >= d.next && m.valid(now) {
			if !m.busy[opDied] && !d.done && now >= d.since+time.Duration(m.rank())*m.lease {
				do(opDied, row)
			}
			if !m.busy[opFinish] && d.done {
				d.next = now + m.beat
				do(opFinish, row)
			}
		}
		if need := over(row); !m.busy[opLook] && m.looked[row.Node] < need && now >= m.look0[row.Node] {
			life := row
			if need != row.Life {
				life = persistence.Member{Node: row.Node, Life: need, State: persistence.Finished}
			}
			do(opLook, life)
		}
	}
	return out
}

// mayBury tells whether the row's lease has run out. It has not for sure if this
// node could not beat or read either: then the store is away, perhaps for all.
func (m *machine) mayBury(now time.Duration, row persistence.Member) bool {
	return row.State == persistence.Live && m.valid(now) && !m.failing && !m.buried[row.Node] &&
		m.watch.still(now, row) >= m.lease+m.margin
}

// rank is how many live nodes come before this one. Each has a lease's time to
// finish a dead node before the next one begins with it too.
func (m *machine) rank() int {
	n := 0
	for _, row := range m.rows {
		if row.State == persistence.Live && row.Node < m.self.Node {
			n++
		}
	}
	return n
}

// over is the newest life of the row's node that is over and must be looked at.
func over(row persistence.Member) uint64 {
	if row.State == persistence.Finished {
		return row.Life
	}
	if owes := owedBy(row); owes != 0 {
		return min(owes, row.Life) - 1
	}
	return max(row.Life, 1) - 1
}

// done takes the result of an effect.
func (m *machine) done(now time.Duration, r result) {
	m.busy[r.op] = r.op == opLost
	if m.lost {
		return
	}
	switch r.op {
	case opBeat:
		m.beaten(now, r)
	case opRead:
		m.read(now, r)
	case opBury:
		// It is Dead, or has beaten, or nothing is known: the rows tell. Each is tried
		// once for a reading.
		if r.err != nil {
			m.watch.restart()
		}
		m.readNow(now)
	case opDied:
		if d := m.deaths[r.member.Node]; d != nil && d.life == r.member.Life {
			d.done = r.err == nil
			if !d.done {
				d.next = now + m.beat
			}
		}
	case opFinish:
		if r.err == nil {
			m.readNow(now)
		}
	case opPeers:
		for _, row := range m.told {
			if row.Life > m.met[row.Node] {
				m.met[row.Node], m.copied = row.Life, false
				m.beatNow(now)
			}
		}
	case opLook:
		node := r.member.Node
		if r.err != nil {
			m.look0[node] = now + m.beat
			return
		}
		delete(m.look0, node)
		m.looked[node] = max(m.looked[node], r.member.Life)
		m.copied = false
		m.beatNow(now)
	}
}

func (m *machine) beaten(now time.Duration, r result) {
	switch {
	case r.err != nil:
		m.failing = true
		m.watch.restart()
		m.nextBeat = min(m.nextBeat, now+m.beat/4)
	case !r.ok:
		m.lost = true
	default:
		if !m.valid(now) {
			m.watch.restart()
		}
		m.self.Beat = r.member.Beat
		m.lease0, m.failing = m.attempt0, false
		if m.attempts > 1 {
			m.beatNow(now) // this one counts from too early
		}
		m.attempts = 0
	}
}

func (m *machine) read(now time.Duration, r result) {
	if r.err != nil {
		if m.paying == payRead {
			m.paying = payMade
		}
		m.watch.restart()
		m.nextRead = max(m.nextRead, now+m.beat/4)
		return
	}
	if m.everRead && now-m.lastRead > m.lease*3/4 {
		m.watch.restart()
	}
	m.everRead, m.lastRead = true, now
	if m.paying == payRead {
		m.paying, m.looked[m.self.Node], m.copied = payNone, m.self.Life-1, false
		m.beatNow(now)
	}
	slices.SortFunc(r.rows, func(a, b persistence.Member) int { return cmp.Compare(a.Node, b.Node) })
	m.rows = r.rows
	m.watch.see(now, m.rows)
	clear(m.buried)
	m.peersDue = true
	for _, row := range m.rows {
		if row.Node == m.self.Node {
			m.lost = m.lost || row.Life > m.self.Life || row.Life == m.self.Life && row.State != persistence.Live
			continue
		}
		d := m.deaths[row.Node]
		switch {
		case row.State != persistence.Dead:
			delete(m.deaths, row.Node)
		case d == nil || d.life != row.Life:
			m.deaths[row.Node] = &death{life: row.Life, since: now}
		}
	}
	for _, row := range m.rows {
		// Of a life that has left there is nothing to look for.
		if row.State == persistence.Left && m.looked[row.Node] == row.Life-1 {
			m.looked[row.Node], m.copied = row.Life, false
		}
	}
}
