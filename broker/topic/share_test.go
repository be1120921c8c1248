package topic

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
)

func TestStrategyNames(t *testing.T) {
	for _, s := range []Strategy{RoundRobin, LeastInflight, Sticky, Hash} {
		if got, err := ParseStrategy(s.String()); err != nil || got != s {
			t.Errorf("%v: %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "Hash", "random", "Strategy(7)"} {
		if _, err := ParseStrategy(bad); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
	if s := Strategy(7).String(); s != "Strategy(7)" {
		t.Error(s)
	}
}

// group has members with so much in flight; a negative number is a busy one.
func group(inflight ...int) []Member {
	m := make([]Member, len(inflight))
	for i, n := range inflight {
		m[i] = Member{Session: herald.SessionID(100 + i), Inflight: max(n, 0), Busy: n < 0}
	}
	return m
}

func TestPick(t *testing.T) {
	const busy = -1
	type step struct {
		members []Member
		want    int
	}
	for name, test := range map[string]struct {
		strategy Strategy
		steps    []step
	}{
		"round robin": {RoundRobin, []step{
			{nil, -1},
			{group(0, 0, 0), 0}, {group(0, 0, 0), 1}, {group(0, 0, 0), 2}, {group(0, 0, 0), 0},
			{group(0, busy, 0), 2}, {group(0, 0, 0), 0}, {group(0), 0},
			{group(busy, busy), -1}, {group(9, 0), 1},
		}},
		"least in flight": {LeastInflight, []step{
			{nil, -1},
			{group(3, 1, 2), 1}, {group(3, busy, 2), 2},
			{group(0, 0, 0), 0}, {group(0, 0, 0), 1}, {group(0, 0, 0), 2}, // ties in turn
			{group(busy, busy), -1},
		}},
		"sticky": {Sticky, []step{
			{nil, -1}, {group(busy, busy), -1},
			{group(busy, 0, 0), 1}, {group(0, 5, 0), 1}, {group(0, busy, 0), -1}, {group(0, 0, 0), 1},
			{group(0, 0, 0)[1:], 0}, // it moved up
			{group(0), 0},           // it went
			{group(0, 0), 0},
		}},
	} {
		p := Picker{Strategy: test.strategy}
		for i, s := range test.steps {
			if got := p.Pick(s.members, 1); got != s.want {
				t.Errorf("%s, step %d: %d, want %d", name, i, got, s.want)
			}
		}
	}
}

// Hash gives a publisher one member, whoever else publishes, waits for it, and
// gives every member some publishers.
func TestPickByPublisher(t *testing.T) {
	p := Picker{Strategy: Hash}
	counts := make([]int, 4)
	of := map[herald.SessionID]int{}
	for round := range 2 {
		for i := range 1000 {
			publisher := herald.SessionID(herald.IDAt(1_800_000_000_000+int64(i)) + 1)
			got := p.Pick(group(0, 0, 0, 0), publisher)
			if round == 0 {
				of[publisher] = got
				counts[got]++
			} else if got != of[publisher] {
				t.Fatalf("%d, was %d", got, of[publisher])
			}
		}
	}
	if slices.Min(counts) < 150 {
		t.Errorf("spread %v", counts)
	}
	for publisher, i := range of {
		m := group(0, 0, 0, 0)
		m[i].Busy = true
		if got := p.Pick(m, publisher); got != -1 {
			t.Fatalf("picked %d while %d is busy", got, i)
		}
	}
}

// Whatever happened before, who is picked is there and not busy, and nobody
// waits under RoundRobin and LeastInflight while somebody is free. Two pickers
// that saw the same agree.
func TestPickAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Strategy(rapid.IntRange(0, 3).Draw(t, "strategy"))
		p, q := Picker{Strategy: s}, Picker{Strategy: s}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			m := make([]Member, rapid.SampledFrom([]int{0, 1, 2, 3, 200}).Draw(t, "n"))
			free := false
			for i := range m {
				m[i] = Member{
					Session:  herald.SessionID(rapid.IntRange(1, 4).Draw(t, "id")*1000 + i),
					Inflight: i * 7 % 5,
					Busy:     rapid.IntRange(0, 3).Draw(t, "busy") > 0,
				}
				free = free || !m[i].Busy
			}
			publisher := herald.SessionID(rapid.Uint64().Draw(t, "publisher"))
			i := p.Pick(m, publisher)
			if i != q.Pick(m, publisher) {
				t.Fatal("not deterministic")
			}
			if i >= len(m) || (i >= 0 && m[i].Busy) {
				t.Fatalf("picked %d of %v", i, m)
			}
			if i < 0 && free && (s == RoundRobin || s == LeastInflight) {
				t.Fatalf("waits although one of %v is free", m)
			}
		}
	})
}
