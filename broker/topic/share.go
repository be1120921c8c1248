package topic

import (
	"fmt"
	"slices"

	"github.com/herald-mqtt/herald"
)

// Strategy is how a shared group chooses the member that gets a message.
type Strategy byte

// The strategies.
const (
	// RoundRobin takes the members in turn.
	RoundRobin Strategy = iota
	// LeastInflight takes the member with the fewest messages under way.
	LeastInflight
	// Sticky takes the same member until it is gone.
	Sticky
	// Hash takes the member by publisher, so that one member gets all that a
	// publisher sends, as long as the members stay the same.
	Hash
)

var strategies = []string{"round_robin", "least_inflight", "sticky", "hash"}

// ParseStrategy understands round_robin, least_inflight, sticky and hash.
func ParseStrategy(s string) (Strategy, error) {
	if i := slices.Index(strategies, s); i >= 0 {
		return Strategy(i), nil
	}
	return 0, fmt.Errorf("unknown strategy %q, want one of %q", s, strategies)
}

// String is the name that ParseStrategy understands.
func (s Strategy) String() string {
	if int(s) < len(strategies) {
		return strategies[s]
	}
	return fmt.Sprintf("Strategy(%d)", byte(s))
}

// Member is a member of a group to which a message can be sent now or soon.
type Member struct {
	Session herald.SessionID
	// Inflight is how many messages are under way to it.
	Inflight int
	// Busy: it takes no message now, because its receive maximum is reached or
	// its connection is slow.
	Busy bool
}

// window is how many members are compared for the least in flight. It keeps
// the cost of one message in a group of 100,000 members that of one in 64.
const window = 64

// Picker chooses for one group. It is deterministic: the same calls give the
// same choices. The zero value is one for RoundRobin. Not safe for concurrent
// use.
type Picker struct {
	Strategy Strategy

	next   int              // where the next round begins
	holder herald.SessionID // of Sticky; 0: nobody yet
}

// Pick returns the index of the member that gets a message of publisher, or -1
// if that must wait. RoundRobin and LeastInflight wait when everybody is busy.
// Sticky and Hash wait for the one member that they mean: passing it over would
// give up the order for which they were chosen. members are in an order which
// the caller keeps from call to call, save for who comes and goes; it is Pick's
// only until it returns.
func (p *Picker) Pick(members []Member, publisher herald.SessionID) int {
	n := len(members)
	if n == 0 {
		return -1
	}
	p.next %= n
	switch p.Strategy {
	case LeastInflight:
		best := -1
		for i, seen := p.next, 0; seen < n && (seen < window || best < 0); seen++ {
			if m := &members[i]; !m.Busy && (best < 0 || m.Inflight < members[best].Inflight) {
				best = i
			}
			i = (i + 1) % n
		}
		return p.chosen(best)
	case Sticky:
		i := p.next
		if members[i].Session != p.holder {
			i = slices.IndexFunc(members, func(m Member) bool { return m.Session == p.holder })
		}
		if p.holder == 0 || i < 0 {
			if i = p.firstReady(members); i < 0 {
				return -1
			}
			p.holder = members[i].Session
		}
		if p.next = i; members[i].Busy {
			return -1
		}
		return i
	case Hash:
		if i := int(mix(uint64(publisher)) % uint64(n)); !members[i].Busy {
			return i
		}
		return -1
	default:
		return p.chosen(p.firstReady(members))
	}
}

// chosen makes the next round begin behind member i.
func (p *Picker) chosen(i int) int {
	if i >= 0 {
		p.next = i + 1
	}
	return i
}

// firstReady is the first member from next on that is not busy, or -1.
func (p *Picker) firstReady(members []Member) int {
	for k := range members {
		if i := (p.next + k) % len(members); !members[i].Busy {
			return i
		}
	}
	return -1
}

// mix spreads a session's number, whose bits are mostly time, over 64 bits (the
// finalizer of splitmix64).
func mix(v uint64) uint64 {
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}
