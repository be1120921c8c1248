package simulation

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/persistence"
)

// What a node begins to commit, and cannot tell whether it got in, is carried out by
// others when it was declared dead. It comes back before they have, finds its life over
// and gives up; the others do not take that for the end of the matter, or their marks
// would pass what is about to be put into inboxes.
func TestLastWordsOfTheDead(t *testing.T) {
	scenes(t, 2, "a p", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		s.begin(n0)
		s.begin(n1)
		s.attend(n0, "a")
		s.client("a").subscribe("t/#", 1)
		s.idle("a")
		s.attend(n1, "p")

		s.line(n1, lineCut)
		s.passes(10*time.Millisecond, "a", "p") // what was about to get through has
		p := s.client("p")
		p.publish(s.w.ledger.message(p.gen, "t/0", 2, false, false))
		s.until("the intent has landed", func() bool { return s.landsIntent(n1) }, "a", "p")
		s.passes(4*time.Second, "a", "p")
		for s.member("n1").State != persistence.Dead {
			time.Sleep(10 * time.Microsecond)
		}
		// From here on n0 does not get to know what became of what it does; and n1's store
		// knows that the life is over before n1 itself does.
		s.loses(1)
		s.line(n1, lineUp)
		s.until("its life is over", func() bool {
			s.db.mu.Lock()
			defer s.db.mu.Unlock()
			return n1.now.store.over
		}, "a", "p")
		s.passes(time.Second, "a", "p")
		s.loses(0)
	})
}

// passes lets time pass.
func (s scene) passes(d time.Duration, names ...string) {
	end := time.Now().Add(d)
	s.until("a while", func() bool { return time.Now().After(end) }, names...)
}

// line says how a node reaches the database.
func (s scene) line(n *node, state lineState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = state
}

// loses has one answer of so many be lost; 0: none.
func (s scene) loses(of int) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.lose = of
}

// landsIntent lets an intent that a node is writing land, without an answer.
func (s scene) landsIntent(n *node) bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, w := range n.now.store.writes {
		if w.place.table == tableIntent {
			s.db.landLocked(w)
			return true
		}
	}
	return false
}

// A node that is stopped before it has spread what it has acknowledged does not leave: then
// nobody would finish that.
func TestWhoOwesDoesNotLeave(t *testing.T) {
	subscribers := strings.Fields("a b c d e f")
	scenes(t, 2, "a b c d e f p", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		s.client("p").durable = false // there is nothing to be put away
		s.begin(n0)
		s.begin(n1)
		s.attend(n0, subscribers...)
		s.subscribed(subscribers...)
		s.attend(n1, "p")
		s.line(n1, lineSlow)
		s.publish("p", "t/0")
		s.until("it is acknowledged", func() bool { return len(s.client("p").out) == 0 }, "p")
		s.line(n1, lineCut)
		store, left := n1.now.store, make(chan error, 1)
		go func() { left <- n1.leave() }()
		s.passes(500*time.Millisecond, subscribers...)
		s.givesUp(store)
		s.passes(2*time.Second, subscribers...)
		s.line(n1, lineUp) // its lease has not run out
		s.until("it has stopped", func() bool { return len(left) > 0 }, subscribers...)
		s.logf("it has stopped: %v", <-left)
		s.nodes = []*node{n0} // it never comes back
	})
}

// givesUp has a store give up what it commits, as if that had taken for long.
func (s scene) givesUp(store *Shared) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, j := range slices.Clone(store.line) {
		if !j.finished && !j.begun {
			store.fail(j)
		}
	}
}
