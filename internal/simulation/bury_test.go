package simulation

import (
	"fmt"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// leaves commits rows of a client at a node, as they stand when its process dies.
func (s scene) leaves(at *node, b *persistence.Batch) {
	m := s.member(at.name)
	for i := range b.Sessions {
		b.Sessions[i].Node, b.Sessions[i].Life = m.Node, m.Life
	}
	for i := range b.Wills {
		b.Wills[i].Node, b.Wills[i].Life = m.Node, m.Life
	}
	done := make(chan error, 1)
	at.now.store.Commit(b, func(err error) { done <- err })
	s.w.fail(<-done)
}

func (s scene) will(id herald.SessionID) (will persistence.Will, found bool) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, r := range s.db.rowsLocked(place{table: tableWill}) {
		if w := r.value.(persistence.Will); w.Session == id {
			return w, true
		}
	}
	return will, false
}

// Of two nodes that finish a dead one at the same time, one publishes its wills,
// whichever is slow and where, and although the one that has them dies over it.
func TestWillsOfTheDeadAreSentOnce(t *testing.T) {
	for _, hold := range []string{"wills", "sessions"} {
		for _, then := range []string{"goes on", "fails", "dies"} {
			t.Run(fmt.Sprintf("slow after %s, %s", hold, then), func(t *testing.T) {
				scenes(t, 3, "a", func(s scene) {
					n0, n1, n2 := s.nodes[0], s.nodes[1], s.nodes[2]
					for _, n := range s.nodes {
						s.begin(n)
					}
					s.attend(n1, "a")
					s.client("a").subscribe("t/#", 2)
					s.idle("a")
					m := s.w.ledger.message(nil, "t/w", 2, false, false)
					s.leaves(n2, &persistence.Batch{Wills: []persistence.Will{{
						Session: 1 << 40, Client: "w",
						Message: herald.Message{Topic: m.topic, Payload: []byte(m.payload), QoS: 2},
					}}})
					n2.kill()
					s.until("n2 is dead", func() bool { return s.member("n2").State == persistence.Dead }, "a")
					gate, held := make(chan struct{}), make(chan struct{}, 1)
					n0.now.store.hold = func(what string) error {
						if what != hold {
							return nil
						}
						select {
						case held <- struct{}{}:
							<-gate
						default: // it was slow once
							return nil
						}
						if then == "fails" {
							return herald.ErrUnavailable
						}
						return nil
					}
					s.until("n0 is slow", func() bool { return len(held) > 0 }, "a")
					s.until("n1 has finished n2", func() bool { return s.member("n2").State == persistence.Finished }, "a")
					end := time.Now().Add(3 * time.Second)
					s.until("a while", func() bool { return time.Now().After(end) }, "a")
					if then == "dies" {
						go n0.kill()
						time.Sleep(time.Millisecond)
					}
					close(gate)
					s.nodes = []*node{n1}
					if then != "dies" {
						s.nodes = []*node{n0, n1}
					}
					got := s.client("a").gen
					s.until("the will comes", func() bool { return got.twice[m] > 0 }, "a")
				})
			})
		}
	}
}

// A will whose client had been put away counts its delay, although only the session's
// row had got in.
func TestWillOfOnePutAway(t *testing.T) {
	scenes(t, 2, "a", func(s scene) {
		n0, n1 := s.nodes[0], s.nodes[1]
		s.begin(n0)
		s.begin(n1)
		at := time.Now().UnixMilli()
		row := persistence.Session{
			ID: 1 << 40, Kind: persistence.Client, Name: "w", Version: herald.V5, ExpiryInterval: 7200,
			Connected: at - 5000, Disconnected: at, Expires: at + 7_200_000,
		}
		s.leaves(n1, &persistence.Batch{Sessions: []persistence.Session{row}, Wills: []persistence.Will{{
			Session: row.ID, Client: "w", Message: herald.Message{Topic: "t/w", Payload: []byte("never"), QoS: 1}, Delay: 3600,
		}}})
		n1.kill()
		s.until("n1 is finished", func() bool { return s.member("n1").State == persistence.Finished })
		if w, found := s.will(row.ID); !found || w.Due != at+3_600_000 || w.Node != s.member("n0").Node {
			s.w.fail(fmt.Errorf("the will is %+v, it was put away at %d", w, at))
		}
		s.nodes = []*node{n0}
	})
}
