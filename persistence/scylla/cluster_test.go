package scylla

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

func joined(t *testing.T, o Options, name string) (*Store, persistence.Member) {
	t.Helper()
	o.Cluster = true
	s := mustOpen(t, o)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	m, err := s.Join(context.Background(), name, []byte("status"))
	if err != nil {
		t.Fatal(err)
	}
	return s, m
}

func tryCommit(s *Store, b *persistence.Batch) error {
	done := make(chan error, 1)
	s.Commit(b, func(err error) { done <- err })
	return <-done
}

// A store that has not joined a cluster commits nothing, and keeps away from the row
// of a number that is not its own.
func TestNothingBeforeJoin(t *testing.T) {
	o := options(t)
	o.Cluster = true
	s := mustOpen(t, o)
	defer s.Close()
	if err := tryCommit(s, &persistence.Batch{Sessions: []persistence.Session{{ID: 1, Name: "c"}}}); !errors.Is(err, herald.ErrUnavailable) {
		t.Errorf("commit: %v", err)
	}
	if err := s.probe(); err != nil {
		t.Errorf("probe: %v", err)
	}
	if clock, _, _, err := s.nodeRow(context.Background(), 0); clock != 0 || err != nil {
		t.Errorf("clock %d, %v", clock, err)
	}
	ms, err := s.Members(context.Background())
	if err != nil || len(ms) != 0 {
		t.Errorf("members: %v, %v", ms, err)
	}
}

// A life from its beginning to the next one.
func TestLife(t *testing.T) {
	ctx := context.Background()
	o := options(t)
	a, m := joined(t, o, "a")
	b, mb := joined(t, o, "b")
	if m.Node != 0 || m.Life != 1 || mb.Node != 1 || mb.Life != 1 || m.State != persistence.Live {
		t.Fatalf("joined as %+v and %+v", m, mb)
	}
	var valid atomic.Bool
	valid.Store(true)
	a.Fence(valid.Load)
	commitTo(t, a, &persistence.Batch{Sessions: []persistence.Session{{ID: 1, Name: "c"}}})
	m, ok, err := a.Beat(ctx, m, []byte("two"))
	if !ok || err != nil || m.Beat != 2 {
		t.Fatalf("beat: %+v, %v, %v", m, ok, err)
	}
	valid.Store(false)
	if err := tryCommit(a, &persistence.Batch{Sessions: []persistence.Session{{ID: 2, Name: "d"}}}); !errors.Is(err, herald.ErrUnavailable) {
		t.Errorf("commit: %v", err)
	}
	if ok, err := b.Change(ctx, m, persistence.Live, persistence.Dead); !ok || err != nil {
		t.Fatalf("bury: %v, %v", ok, err)
	}
	if _, ok, err := a.Beat(ctx, m, nil); ok || err != nil {
		t.Fatalf("beat of the dead: %v, %v", ok, err)
	}
	if ok, err := b.Change(ctx, m, persistence.Dead, persistence.Finished); ok || err == nil {
		t.Errorf("finished before Finish: %v, %v", ok, err)
	}
	if err := b.Finish(ctx, m); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.Change(ctx, m, persistence.Dead, persistence.Finished); !ok || err != nil {
		t.Fatalf("finished: %v, %v", ok, err)
	}
	valid.Store(true)
	again, err := a.Join(ctx, "a", nil)
	if err != nil || again.Node != 0 || again.Life != 2 {
		t.Fatalf("join: %+v, %v", again, err)
	}
	commitTo(t, a, &persistence.Batch{Sessions: []persistence.Session{{ID: 2, Name: "d"}}})
	if err := a.Seal(ctx, 1); err != nil {
		t.Error(err)
	}
	if ok, err := a.Change(ctx, again, persistence.Live, persistence.Left); !ok || err != nil {
		t.Fatalf("leave: %v, %v", ok, err)
	}
	if err := tryCommit(a, &persistence.Batch{Sessions: []persistence.Session{{ID: 3, Name: "e"}}}); !errors.Is(err, herald.ErrUnavailable) {
		t.Errorf("commit: %v", err)
	}
}
