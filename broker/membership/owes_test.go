package membership_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/broker/membership/membershiptest"
	"github.com/herald-mqtt/herald/persistence"
)

func soon(t *testing.T, wait func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(t.Context(), 3*lease)
	defer cancel()
	return wait(ctx)
}

// A life that goes on in the place of a dead one, and dies before it has finished what
// that had begun, leaves both: nobody takes the first one for finished, however often
// it happens, until the last one is.
func TestWhatIsOwedIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		first := a.Self()
		a.crash()
		var last *process
		for range 3 {
			last = newProcess(&rows)
			if err := last.join(t.Context(), "a", func(o *membership.Options) { o.Former = a.Self() }); err != nil {
				t.Fatal(err)
			}
			last.Start()
			if m, owes := last.Owes(); !owes || m.Life != last.Self().Life-1 || m.Node != first.Node {
				t.Fatalf("owes what %+v had begun: %v", m, owes)
			}
			time.Sleep(2 * beat)
			last.crash()
			a = last
		}
		gate := make(chan error, 1)
		b := newProcess(&rows)
		b.onDied = func(m persistence.Member) error {
			if m.Life != last.Self().Life {
				t.Errorf("%+v died", m)
			}
			return <-gate
		}
		if err := b.join(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		b.Start()
		defer b.Close()
		if err := soon(t, func(ctx context.Context) error { return b.Settled(ctx, first.Node, first.Life) }); err == nil {
			t.Error("settled before anybody has finished it")
		}
		gate <- nil
		for life := first.Life; life <= last.Self().Life; life++ {
			if err := settled(t, b, first.Node, life, 3*beat); err != nil {
				t.Errorf("life %d: %v", life, err)
			}
		}
	})
}

// Clear: a node that starts waits until what others owe is finished, too, and only
// for that.
func TestClear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		if err := soon(t, a.Clear); err != nil {
			t.Errorf("nobody was there before: %v", err)
		}
		b := begin(t, &rows, "b")
		a.crash()
		b.crash()
		again := newProcess(&rows)
		if err := again.join(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		again.Start()
		defer again.Close()
		if err := soon(t, again.Known); err != nil {
			t.Fatal(err)
		}
		within(t, 2*beat, "b is finished", func() bool { return rows.All()[b.Self().Node].State == persistence.Finished })
		if err := soon(t, again.Clear); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it owes something itself: %v", err)
		}
		again.Paid()
		if err := soon(t, again.Clear); err != nil {
			t.Error(err)
		}

		// c goes on in the place of one that died, beside a node that does not get on.
		c := begin(t, &rows, "c")
		again.onDied = func(persistence.Member) error { return errors.New("not yet") }
		c.crash()
		heir := newProcess(&rows)
		if err := heir.join(t.Context(), "c", func(o *membership.Options) { o.Former = c.Self() }); err != nil {
			t.Fatal(err)
		}
		heir.Start()
		defer heir.Close()
		if _, owes := heir.Owes(); !owes {
			t.Fatal("nobody has finished it, and it owes nothing")
		}
		d := begin(t, &rows, "d")
		within(t, 3*beat, "d sees c", func() bool { return len(d.Peers()) == 2 })
		if err := soon(t, d.Clear); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("c has not finished what it owes: %v", err)
		}
		heir.Paid()
		if err := soon(t, d.Clear); err != nil {
			t.Error(err)
		}
	})
}

// One that died while it was finishing another may still have something of that in
// flight: the first death is settled when the second one is finished.
func TestDeathOfWhoFinishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b, c := begin(t, &rows, "a"), begin(t, &rows, "b"), begin(t, &rows, "c")
		within(t, 3*beat, "everybody sees everybody", func() bool { return len(a.Peers()) == 2 && len(b.Peers()) == 2 })
		hang := make(chan struct{})
		defer close(hang)
		a.onDied = func(persistence.Member) error { <-hang; return nil }
		second := make(chan struct{})
		b.onDied = func(m persistence.Member) error {
			if m.Node == a.Self().Node {
				<-second
			}
			return nil
		}
		c.crash()
		within(t, 2*lease, "a finishes c", func() bool { died, _, _ := a.count(); return died > 0 })
		a.store.Kill()
		within(t, 4*lease, "c is finished by b", func() bool { return rows.All()[c.Self().Node].State == persistence.Finished })
		within(t, 4*lease, "a is dead", func() bool { return rows.All()[a.Self().Node].State == persistence.Dead })
		if err := settled(t, b, c.Self().Node, c.Self().Life, lease); err == nil {
			t.Error("settled, though a may have something of it in flight")
		}
		close(second)
		if err := settled(t, b, c.Self().Node, c.Self().Life, lease); err != nil {
			t.Error(err)
		}
	})
}
