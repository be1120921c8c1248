package membership_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/broker/membership/membershiptest"
	"github.com/herald-mqtt/herald/persistence"
)

func ahead(d time.Duration) func(*membership.Options) {
	return func(o *membership.Options) { o.Now = func() time.Time { return time.Now().Add(d) } }
}

func TestNameIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		if err := newProcess(&rows).join(t.Context(), "a"); !errors.Is(err, herald.ErrInUse) {
			t.Errorf("joined a second time: %v", err)
		}
		// Nor if it once had another life of that name.
		if err := newProcess(&rows).join(t.Context(), "a", func(o *membership.Options) {
			o.Former = persistence.Member{Node: a.Self().Node, Life: a.Self().Life + 1}
		}); !errors.Is(err, herald.ErrInUse) {
			t.Errorf("joined with a former life: %v", err)
		}
		if !a.Valid() || state(&rows, a) != persistence.Live {
			t.Error("the first one is no longer valid")
		}
	})
}

func TestJoinAfterCrash(t *testing.T) {
	for _, c := range []struct {
		name     string
		same     bool
		others   bool
		min, max time.Duration
	}{
		{"alone, elsewhere", false, false, lease + beat, lease + 2*beat},
		{"alone, same host", true, false, 0, beat / 2},
		{"others, elsewhere", false, true, lease, lease + 3*beat},
		{"others, same host", true, true, 0, 2 * beat},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var rows membershiptest.Rows
				a := begin(t, &rows, "a")
				var b *process
				if c.others {
					b = begin(t, &rows, "b")
				}
				a.crash()
				begun := time.Now()
				again := newProcess(&rows)
				if err := again.join(t.Context(), "a", func(o *membership.Options) {
					if c.same {
						o.Former = a.Self()
					}
				}); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(again.Close)
				if took := time.Since(begun); took < c.min || took > c.max {
					t.Errorf("took %s, wanted %s to %s", took, c.min, c.max)
				}
				if !again.Valid() || again.Self().Life != a.Self().Life+1 || again.Self().Node != a.Self().Node {
					t.Errorf("joined as %+v", again.Self())
				}
				m, owes := again.Owes()
				if owes == c.others || m.Node != a.Self().Node || m.Life != a.Self().Life {
					t.Errorf("owes what %+v had begun: %v", m, owes)
				}
				again.Start()
				if c.others {
					if died, _, _ := b.count(); died != 1 {
						t.Errorf("finished %d times", died)
					}
				} else {
					if err := settled(t, again, a.Self().Node, a.Self().Life, 10*beat); err == nil {
						t.Error("settled, and nobody has finished it")
					}
					again.Paid()
				}
				if err := settled(t, again, a.Self().Node, a.Self().Life, 2*beat); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// All processes died at once. The first one back finishes what was its own, and what
// was the others'.
func TestWholeClusterDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b, c := begin(t, &rows, "a"), begin(t, &rows, "b"), begin(t, &rows, "c")
		for _, p := range []*process{a, b, c} {
			p.crash()
		}
		time.Sleep(time.Hour) // the clocks in their rows are old
		again := newProcess(&rows)
		fails := 2
		again.onDied = func(persistence.Member) error {
			fails--
			if fails >= 0 {
				return errors.New("not yet")
			}
			return nil
		}
		if err := again.join(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		again.Start()
		t.Cleanup(again.Close)
		again.Paid()
		for _, p := range []*process{a, b, c} {
			if err := settled(t, again, p.Self().Node, p.Self().Life, lease+5*beat); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestJoinWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := newProcess(&rows)
		a.store.Faults(func(string) membershiptest.Fault { return membershiptest.Fault{Refuse: true} })
		time.AfterFunc(time.Minute, func() { a.store.Faults(nil) })
		if err := a.join(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		a.Close()

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		b := newProcess(&rows)
		b.store.Faults(func(string) membershiptest.Fault { return membershiptest.Fault{Refuse: true} })
		if err := b.join(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, herald.ErrUnavailable) {
			t.Errorf("a store that does not come back: %v", err)
		}
	})
}

// The answer to Join is lost, and with it the life.
func TestJoinsAnswerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := newProcess(&rows)
		once := false
		a.store.Faults(func(op string) (f membershiptest.Fault) {
			f.Lose = op == "join" && !once
			once = once || f.Lose
			return f
		})
		if err := a.join(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if a.Self().Life != 2 || !a.Valid() {
			t.Errorf("joined as %+v", a.Self())
		}
	})
}

func TestNoNumberIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		store := rows.Open(nil)
		for i := range herald.MaxNode + 1 {
			if _, err := store.Join(t.Context(), fmt.Sprint(i), nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := newProcess(&rows).join(t.Context(), "a"); !errors.Is(err, herald.ErrInUse) {
			t.Error(err)
		}
	})
}

func TestClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(herald.Epoch.AddDate(0, 6, 0))) // a bubble begins before
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		clockOf := func(p *process, of *process) herald.ID {
			peer, _ := p.Live(of.Self().Node, of.Self().Life)
			return peer.Status.Clock
		}

		// Ahead of all others: refused. Ahead within the bound: followed.
		if err := newProcess(&rows).join(t.Context(), "b", ahead(11*time.Second)); !errors.Is(err, membership.ErrClock) {
			t.Errorf("11 s ahead: %v", err)
		}
		b := begin(t, &rows, "b", ahead(8*time.Second))
		b.set(membership.Status{Clock: herald.IDAt(time.Now().Add(8 * time.Second).UnixMilli())})
		within(t, 3*beat, "a follows b", func() bool { return clockOf(a, b) == b.Status().Clock })

		// An hour behind: it may join, and follows them.
		c := begin(t, &rows, "c", ahead(-time.Hour))
		within(t, 3*beat, "c follows a", func() bool { return clockOf(c, a) != 0 })

		// One that runs away is followed by nobody, c included.
		b.set(membership.Status{Clock: herald.IDAt(time.Now().Add(time.Minute).UnixMilli())})
		within(t, 3*beat, "nobody follows b", func() bool { return clockOf(a, b) == 0 && clockOf(c, b) == 0 })
	})
}

func TestKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		gate := make(chan struct{})
		a.hold(gate)
		b := begin(t, &rows, "b")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := b.Known(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a's handler was not told, and b is known: %v", err)
		}
		close(gate)
		begun := time.Now()
		if err := b.Known(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 2*beat {
			t.Errorf("known after %s", took)
		}
	})
}
