package membership_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/broker/membership/membershiptest"
	"github.com/herald-mqtt/herald/persistence"
)

const (
	lease  = 5 * time.Second
	beat   = time.Second
	margin = lease / 20
)

// process is a node with what its handler was told.
type process struct {
	*membership.Node
	*handler
	store *membershiptest.Store
}

// Peers is the node's, not the handler's.
func (p *process) Peers() []membership.Peer { return p.Node.Peers() }

type handler struct {
	mu       sync.Mutex
	status   membership.Status
	peers    []membership.Peer
	died     []persistence.Member
	finished []persistence.Member
	lost     int
	onDied   func(persistence.Member) error // nil: succeeds
	onLook   func(persistence.Member) error
	onLost   func()
	gate     chan struct{} // Peers waits for it
}

func (h *handler) set(s membership.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = s
}

func (h *handler) hold(gate chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gate = gate
}

func (h *handler) Status() membership.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.status
	if s.Clock == 0 {
		s.Clock = herald.IDAt(time.Now().UnixMilli())
	}
	return s
}

func (h *handler) Peers(live []membership.Peer) {
	h.mu.Lock()
	h.peers = live
	gate := h.gate
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

func (h *handler) Died(m persistence.Member) error {
	h.mu.Lock()
	h.died = append(h.died, m)
	f := h.onDied
	h.mu.Unlock()
	if f != nil {
		return f(m)
	}
	return nil
}

func (h *handler) Finished(m persistence.Member) error {
	h.mu.Lock()
	h.finished = append(h.finished, m)
	f := h.onLook
	h.mu.Unlock()
	if f != nil {
		return f(m)
	}
	return nil
}

func (h *handler) Lost() {
	h.mu.Lock()
	h.lost++
	f := h.onLost
	h.mu.Unlock()
	if f != nil {
		f()
	}
}

func (h *handler) count() (died, finished, lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.died), len(h.finished), h.lost
}

// newProcess is a process that has not joined yet.
func newProcess(rows *membershiptest.Rows) *process {
	return &process{store: rows.Open(nil), handler: &handler{}}
}

func (p *process) join(ctx context.Context, name string, change ...func(*membership.Options)) error {
	o := membership.Options{Store: p.store, Name: name, Lease: lease, Beat: beat, Handler: p.handler, Address: name + ":1883"}
	for _, f := range change {
		f(&o)
	}
	n, err := membership.Join(ctx, o)
	p.Node = n
	return err
}

// begin joins and starts; the test ends it.
func begin(t *testing.T, rows *membershiptest.Rows, name string, change ...func(*membership.Options)) *process {
	t.Helper()
	p := newProcess(rows)
	if err := p.join(t.Context(), name, change...); err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(func() { p.store.Resume(); p.Close() })
	return p
}

// crash ends the process as a kill would.
func (p *process) crash() {
	p.store.Kill()
	p.Close()
}

func state(rows *membershiptest.Rows, p *process) persistence.MemberState {
	for _, m := range rows.All() {
		if m.Node == p.Self().Node && m.Life == p.Self().Life {
			return m.State
		}
	}
	return 0
}

// within waits, in steps of 50 ms, until f holds, and returns how long that took.
func within(t *testing.T, limit time.Duration, what string, f func() bool) time.Duration {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if f() {
			return time.Since(begun)
		}
		if time.Since(begun) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func settled(t *testing.T, p *process, node uint16, life uint64, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return p.Settled(ctx, node, life)
}

func TestDeathIsFinishedAndSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b, c := begin(t, &rows, "a"), begin(t, &rows, "b"), begin(t, &rows, "c")
		within(t, 3*beat, "everybody sees everybody", func() bool {
			return len(a.Peers()) == 2 && len(b.Peers()) == 2 && len(c.Peers()) == 2
		})
		if p, ok := a.Live(c.Self().Node, c.Self().Life); !ok || p.Name != "c" || p.Status.Address != "c:1883" {
			t.Fatalf("a sees c as %+v, %v", p, ok)
		}
		dead := a.Self()
		begun := time.Now()
		a.crash()
		if a.Valid() {
			t.Error("valid after Close")
		}
		if err := settled(t, c, dead.Node, dead.Life, time.Minute); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		if took < lease || took > lease+3*beat {
			t.Errorf("settled after %s", took)
		}
		if died, looked, _ := b.count(); died != 1 || looked != 1 {
			t.Errorf("b, the lowest, finished %d times and looked %d times", died, looked)
		}
		if died, looked, _ := c.count(); died != 0 || looked != 1 {
			t.Errorf("c finished %d times and looked %d times", died, looked)
		}
		if state(&rows, a) != persistence.Finished {
			t.Errorf("row is %d", state(&rows, a))
		}

		// The name comes back with the next life, and the former one stays settled.
		again := begin(t, &rows, "a")
		if s := again.Self(); s.Node != dead.Node || s.Life != dead.Life+1 {
			t.Errorf("joined again as %+v", s)
		}
		if err := settled(t, again, dead.Node, dead.Life, time.Minute); err != nil {
			t.Error(err)
		}
		if err := settled(t, b, dead.Node, dead.Life, time.Minute); err != nil {
			t.Error(err)
		}
		if err := settled(t, b, dead.Node, dead.Life+1, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a live life: %v", err)
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b := begin(t, &rows, "a"), begin(t, &rows, "b")
		within(t, 3*beat, "b sees a", func() bool { return len(b.Peers()) == 1 })
		if err := a.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a.Valid() {
			t.Error("valid after Leave")
		}
		if err := settled(t, b, a.Self().Node, a.Self().Life, 2*beat); err != nil {
			t.Fatal(err)
		}
		if died, looked, _ := b.count(); died+looked != 0 {
			t.Errorf("%d deaths, %d looks", died, looked)
		}
		begun := time.Now()
		begin(t, &rows, "a")
		if took := time.Since(begun); took > 3*beat {
			t.Errorf("joined again after %s", took)
		}
		if i := slices.IndexFunc(b.Peers(), func(p membership.Peer) bool { return p.Name == "a" }); i >= 0 {
			t.Error("b sees a before it has read it")
		}
	})
}

func refuse(string) membershiptest.Fault {
	return membershiptest.Fault{Refuse: true, After: 100 * time.Millisecond}
}

// The store is away for all, for longer than a lease: nobody is valid, nobody is
// declared dead, and all carry on.
func TestStoreIsAwayForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		all := []*process{begin(t, &rows, "a"), begin(t, &rows, "b"), begin(t, &rows, "c")}
		time.Sleep(3 * beat)
		for _, p := range all {
			p.store.Faults(refuse)
		}
		time.Sleep(lease)
		for _, p := range all {
			if p.Valid() {
				t.Error("valid a lease after the last beat")
			}
		}
		time.Sleep(time.Minute)
		for i, p := range all {
			time.Sleep(time.Duration(i) * beat) // they do not find it back at once
			p.store.Faults(nil)
		}
		within(t, beat, "all are valid", func() bool { return all[0].Valid() && all[1].Valid() && all[2].Valid() })
		time.Sleep(3 * lease)
		for _, p := range all {
			if died, _, lost := p.count(); died != 0 || lost != 0 || !p.Valid() {
				t.Errorf("%d deaths, lost %d times, valid %v", died, lost, p.Valid())
			}
		}
	})
}

// The store is away for one: less than a lease is nothing, more is its death.
func TestStoreIsAwayForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b := begin(t, &rows, "a"), begin(t, &rows, "b")
		time.Sleep(3 * beat)
		a.store.Faults(refuse)
		time.Sleep(lease - beat - 2*margin)
		if !a.Valid() {
			t.Error("not valid before its lease has run out")
		}
		a.store.Faults(nil)
		time.Sleep(3 * lease)
		if !a.Valid() || state(&rows, a) != persistence.Live {
			t.Fatal("it does not carry on")
		}

		a.store.Faults(refuse)
		within(t, lease, "it is no longer valid", func() bool { return !a.Valid() })
		if state(&rows, a) != persistence.Live {
			t.Error("declared dead while it was valid")
		}
		within(t, 2*beat, "it is declared dead", func() bool { return state(&rows, a) != persistence.Live })
		a.store.Faults(nil)
		within(t, 2*beat, "it knows", func() bool { _, _, lost := a.count(); return lost == 1 })
		if err := a.Settled(t.Context(), b.Self().Node, b.Self().Life); !errors.Is(err, herald.ErrClosed) {
			t.Errorf("Settled of one that is lost: %v", err)
		}
		a.Close()
		if err := settled(t, b, a.Self().Node, a.Self().Life, 2*beat); err != nil {
			t.Error(err)
		}
		if _, _, lost := a.count(); lost != 1 {
			t.Errorf("Lost was called %d times", lost)
		}
	})
}

// What stood in the row may be an attempt whose answer was lost: the lease does not
// count from the attempt that was answered.
func TestLeaseCountsFromTheFirstAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b := begin(t, &rows, "a"), begin(t, &rows, "b")
		time.Sleep(3*beat + beat/2)
		calls := 0
		a.store.Faults(func(op string) membershiptest.Fault {
			if op != "beat" {
				return membershiptest.Fault{}
			}
			calls++
			switch {
			case calls == 1:
				return membershiptest.Fault{Lose: true}
			case calls == 12: // 11 attempts, a quarter of a beat apart, later
				return membershiptest.Fault{}
			}
			return membershiptest.Fault{Refuse: true}
		})
		for range 4 * int(lease/time.Millisecond) / 10 {
			time.Sleep(5 * time.Millisecond)
			if s := state(&rows, a); s != persistence.Live && a.Valid() {
				t.Fatal("valid, and declared dead")
			}
		}
		if state(&rows, a) == persistence.Live || !b.Valid() || calls < 13 {
			t.Errorf("nobody was declared dead, %d beats", calls)
		}
	})
}

// The lease of a life begins when it joins, not when it knows that it has.
func TestLeaseCountsFromBeforeJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := newProcess(&rows)
		a.store.Faults(func(op string) (f membershiptest.Fault) {
			if op == "join" {
				f.After = 4 * time.Second
			}
			return f
		})
		begun := time.Now()
		if err := a.join(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if !a.Valid() {
			t.Error("not valid after Join")
		}
		time.Sleep(time.Until(begun.Add(lease)))
		if a.Valid() {
			t.Error("valid a lease after the row was written")
		}
	})
}

// Either way a node learns that it was declared dead.
func TestLost(t *testing.T) {
	for _, fails := range []string{"beat", "members", ""} {
		t.Run("without "+fails, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var rows membershiptest.Rows
				a := begin(t, &rows, "a")
				a.store.Faults(func(op string) membershiptest.Fault { return membershiptest.Fault{Refuse: op == fails} })
				time.Sleep(2 * beat)
				// By somebody who does not keep to the rules, so that it is not for its lease.
				if ok, err := rows.Open(nil).Change(t.Context(), rows.All()[0], persistence.Live, persistence.Dead); !ok || err != nil {
					t.Fatal(ok, err)
				}
				within(t, beat+beat/2, "it knows", func() bool { _, _, lost := a.count(); return lost == 1 && !a.Valid() })
			})
		})
	}
}

// Somebody whose reads fail declares nobody dead.
func TestNoDeathsWithoutReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b := begin(t, &rows, "a"), begin(t, &rows, "b")
		time.Sleep(3 * beat)
		reads := 0
		b.store.Faults(func(op string) membershiptest.Fault {
			if op != "members" {
				return membershiptest.Fault{}
			}
			reads++
			return membershiptest.Fault{Refuse: reads%4 == 0} // every few seconds
		})
		a.crash()
		time.Sleep(10 * lease)
		if state(&rows, a) != persistence.Live {
			t.Error("declared dead")
		}
		b.store.Faults(nil)
		within(t, lease+3*beat, "it is declared dead", func() bool { return state(&rows, a) != persistence.Live })
	})
}

// Who is to finish a death hangs, and the one after it fails at first.
func TestOthersTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		dead := begin(t, &rows, "dead")
		a, b, c := begin(t, &rows, "a"), begin(t, &rows, "b"), begin(t, &rows, "c")
		gate := make(chan struct{})
		a.onDied = func(persistence.Member) error { <-gate; return nil }
		b.onDied = func(persistence.Member) error {
			if n, _, _ := b.count(); n < 3 {
				return errors.New("not yet")
			}
			return nil
		}
		time.Sleep(3 * beat)
		dead.crash()
		took := within(t, time.Minute, "it is finished", func() bool { return state(&rows, dead) == persistence.Finished })
		if took < 2*lease || took > 2*lease+5*beat {
			t.Errorf("finished after %s", took)
		}
		if n, _, _ := b.count(); n != 3 {
			t.Errorf("b tried %d times", n)
		}
		if n, _, _ := c.count(); n != 0 {
			t.Errorf("c tried %d times", n)
		}
		close(gate)
	})
}

func TestSeveralDeathsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		var all []*process
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			all = append(all, begin(t, &rows, name))
		}
		time.Sleep(3 * beat)
		for _, p := range all[:4] {
			p.crash()
		}
		for _, p := range all[:4] {
			for _, q := range all[4:] {
				if err := settled(t, q, p.Self().Node, p.Self().Life, lease+4*beat); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// A store that is slow is not asked more often, and a status that changes all the
// time is not written all the time.
func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		var mu sync.Mutex
		calls := map[string]int{}
		count := func(after time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			clear(calls)
			a.store.Faults(func(op string) membershiptest.Fault {
				mu.Lock()
				defer mu.Unlock()
				calls[op]++
				return membershiptest.Fault{After: after}
			})
		}
		count(2 * beat)
		time.Sleep(20 * beat)
		mu.Lock()
		if calls["beat"] > 11 || calls["members"] > 11 || calls["beat"] < 8 {
			t.Errorf("in 20 beats, each call takes two: %v", calls)
		}
		mu.Unlock()
		time.Sleep(3 * beat)
		count(0)
		for range 1000 {
			a.BeatNow()
			time.Sleep(beat / 100)
		}
		mu.Lock()
		if calls["beat"] > 210 || calls["beat"] < 100 || calls["members"] > 12 {
			t.Errorf("in 10 beats: %v", calls)
		}
		mu.Unlock()
		if !a.Valid() {
			t.Error("not valid")
		}
	})
}

// Leave succeeds though the last beat's answer was lost, and fails if the node was
// declared dead.
func TestLeaveWhenTheRowIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a, b := begin(t, &rows, "a"), begin(t, &rows, "b")
		a.store.Faults(func(op string) membershiptest.Fault { return membershiptest.Fault{Lose: op == "beat"} })
		time.Sleep(2 * beat)
		if err := a.Leave(t.Context()); err != nil || state(&rows, a) != persistence.Left {
			t.Errorf("%v, the row is %d", err, state(&rows, a))
		}

		c := begin(t, &rows, "c")
		b.store.Pause()
		within(t, lease+3*beat, "b is dead", func() bool { return state(&rows, b) != persistence.Live })
		b.store.Resume()
		if err := b.Leave(t.Context()); !errors.Is(err, herald.ErrClosed) {
			t.Error(err)
		}
		c.store.Faults(refuse)
		ctx, cancel := context.WithTimeout(t.Context(), beat)
		defer cancel()
		if err := c.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// Lost may close the node.
func TestLostMayClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rows membershiptest.Rows
		a := begin(t, &rows, "a")
		closed := make(chan struct{})
		a.onLost = func() { a.Close(); close(closed) }
		b := begin(t, &rows, "b")
		a.store.Pause()
		if err := b.Settled(t.Context(), a.Self().Node, a.Self().Life); err != nil {
			t.Fatal(err)
		}
		a.store.Resume()
		<-closed
	})
}

// BenchmarkValid: it is asked for every batch of acknowledgements.
func BenchmarkValid(b *testing.B) {
	var rows membershiptest.Rows
	p := newProcess(&rows)
	if err := p.join(b.Context(), "a"); err != nil {
		b.Fatal(err)
	}
	p.Start()
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		if !p.Valid() {
			b.Fatal("not valid")
		}
	}
}
