package simulation

import (
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// bug is a store that does not do what the engine asks: to those who look from
// outside, it is the engine that has the bug.
type bug struct {
	*Store
	// change changes what is stored, and tells whether done is to be called at
	// once, before anything is durable.
	change func(s *Store, b *persistence.Batch) (early bool)
}

func (g bug) Commit(b *persistence.Batch, done func(error)) {
	c := *b
	if !g.change(g.Store, &c) {
		g.Store.Commit(&c, done)
		return
	}
	g.Store.Commit(&c, nil)
	if done != nil {
		go done(nil)
	}
}

// nextUnsettled is the lowest entry of an inbox that a mark leaves, or 0.
func (s *Store) nextUnsettled(m persistence.Mark) herald.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.seen.inboxes[m.Session] {
		if e.Message.ID > m.Low && !slices.Contains(m.Above, e.Message.ID) {
			return e.Message.ID
		}
	}
	return 0
}

func without(sent []persistence.Sent, step persistence.Step) []persistence.Sent {
	return slices.DeleteFunc(slices.Clone(sent), func(s persistence.Sent) bool { return s.Step == step })
}

func has(sent []persistence.Sent, step persistence.Step) bool {
	return slices.ContainsFunc(sent, func(s persistence.Sent) bool { return s.Step == step })
}

// TestFindsBugs: the simulation finds bugs that were put in by hand.
func TestFindsBugs(t *testing.T) {
	oneAtATime(t)
	for _, b := range []struct {
		name   string
		change func(s *Store, b *persistence.Batch) bool
	}{
		{"acknowledge before commit", func(_ *Store, b *persistence.Batch) bool {
			return len(b.Spreads) > 0
		}},
		{"mark past an unsettled entry", func(s *Store, b *persistence.Batch) bool {
			b.Marks = slices.Clone(b.Marks)
			for i, m := range b.Marks {
				b.Marks[i].Low = max(m.Low, s.nextUnsettled(m))
			}
			return false
		}},
		{"PUBREL before it is stored that PUBREC came", func(_ *Store, b *persistence.Batch) bool {
			return has(b.Sent, persistence.Released)
		}},
		{"PUBLISH at QoS 2 before its packet id is stored", func(_ *Store, b *persistence.Batch) bool {
			return has(b.Sent, persistence.Published)
		}},
		{"PUBLISH at QoS 2 without storing its packet id", func(_ *Store, b *persistence.Batch) bool {
			b.Sent = without(b.Sent, persistence.Published)
			return false
		}},
		{"PUBREC without storing the packet id", func(_ *Store, b *persistence.Batch) bool {
			b.Held = slices.DeleteFunc(slices.Clone(b.Held), func(h persistence.Held) bool { return h.ID != 0 })
			return false
		}},
		{"PUBCOMP without storing that the packet id is free", func(_ *Store, b *persistence.Batch) bool {
			b.Held = slices.DeleteFunc(slices.Clone(b.Held), func(h persistence.Held) bool { return h.ID == 0 })
			return false
		}},
		{"packet id freed without the mark", func(_ *Store, b *persistence.Batch) bool {
			if has(b.Sent, persistence.Done) {
				b.Marks = nil
			}
			return false
		}},
		{"SUBACK before the subscription is stored", func(_ *Store, b *persistence.Batch) bool {
			return len(b.Subscribe) > 0
		}},
		{"CONNACK before the session is stored", func(_ *Store, b *persistence.Batch) bool {
			return len(b.Sessions) > 0
		}},
		{"will not removed when it is published", func(_ *Store, b *persistence.Batch) bool {
			if len(b.Spreads) > 0 {
				b.WillsGone = nil
			}
			return false
		}},
		{"will not stored", func(_ *Store, b *persistence.Batch) bool {
			b.Wills = nil
			return false
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			o := Options{Steps: 300, Wrap: func(s *Store) persistence.Store { return bug{s, b.change} }}
			for seed := uint64(1); seed <= 5000; seed++ {
				if _, err := simulate(t, seed, o); err != nil {
					t.Logf("found by seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}

// TestFindsSharedBugs: so it does where single rows are atomic and batches are not.
func TestFindsSharedBugs(t *testing.T) {
	oneAtATime(t)
	for _, b := range []struct {
		bug   string
		steps int // what needs a window that is in use for long is found in long schedules
	}{{bugIntentEarly, steps}, {bugRowsFirst, steps}, {bugAnyOrder, 4 * steps}, {bugMarkPast, steps}, {bugWillApart, steps}} {
		t.Run(b.bug, func(t *testing.T) {
			for seed := uint64(1); seed <= 5000; seed++ {
				if _, err := simulate(t, seed, Options{Steps: b.steps, Shared: true, Bug: b.bug}); err != nil {
					t.Logf("found by seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}
