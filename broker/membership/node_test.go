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
	defer h.mu.Unlock()
	h.peers = live
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
	defer h.mu.Unlock()
	h.lost++
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
