package scylla

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

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

// qos2 is a QoS 2 publish, as one batch.
func qos2(s, publisher herald.SessionID, pid uint16) (*herald.Message, *persistence.Batch) {
	m := benchMessage()
	m.QoS = 2
	return m, &persistence.Batch{
		Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: []persistence.Target{{Session: s, QoS: 2}}}},
		Held:    []persistence.Held{{Session: publisher, PacketID: pid, ID: m.ID}},
	}
}

// whole checks that all of a publish is there, or nothing.
func whole(t *testing.T, s *Store, session, publisher herald.SessionID, m *herald.Message, want bool) {
	t.Helper()
	w, err := s.Window(context.Background(), publisher)
	if err != nil {
		t.Fatal(err)
	}
	page, err := s.Inbox(context.Background(), session, m.ID-1, m.ID, 10, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	held := false
	for _, h := range w.Held {
		held = held || h.ID == m.ID
	}
	if held != want || (len(page) == 1) != want {
		t.Fatalf("packet id %v, %d entries; want %v", held, len(page), want)
	}
}

// What was begun under a lease that is renewed in time is done, and acknowledged,
// then: nobody else will do it, and its publisher must not hear of a failure.
func TestBegunWorkWaitsForTheLease(t *testing.T) {
	s, _ := joined(t, options(t), "a")
	session, publisher := herald.SessionID(benchID()), herald.SessionID(benchID())
	commitTo(t, s, &persistence.Batch{Sessions: []persistence.Session{{ID: session, Name: "c"}}})
	for n := int64(0); ; n++ {
		var asked atomic.Int64
		var renewed atomic.Bool
		s.Fence(func() bool { return renewed.Load() || asked.Add(1) <= n })
		m, b := qos2(session, publisher, uint16(n+1))
		done := make(chan error, 1)
		s.Commit(b, func(err error) { done <- err })
		var err error
		waited := false
		select {
		case err = <-done:
		case <-time.After(200 * time.Millisecond):
			waited = true
			renewed.Store(true)
			if err = <-done; err != nil {
				t.Fatalf("asked %d times, then renewed: %v", n, err)
			}
		}
		renewed.Store(true)
		whole(t, s, session, publisher, m, err == nil)
		if err == nil && !waited {
			if n < 3 {
				t.Fatalf("asked only %d times", n)
			}
			return
		}
	}
}

// An intent that one survivor has not seen is void for all of them: it was never
// confirmed, and its publisher may have begun anew.
func TestSurvivorsAgree(t *testing.T) {
	ctx := context.Background()
	o := options(t)
	a, m := joined(t, o, "a")
	b, _ := joined(t, o, "b")
	c, _ := joined(t, o, "c")
	session, publisher := herald.SessionID(benchID()), herald.SessionID(benchID())
	commitTo(t, b, &persistence.Batch{Sessions: []persistence.Session{{ID: session, Name: "c"}}})
	intent := func(pid uint16) (*herald.Message, write) {
		msg, batch := qos2(session, publisher, pid)
		j := &job{s: a, batch: batch}
		if err := a.plan(j); err != nil {
			t.Fatal(err)
		}
		a.intents.begin(a, j)
		return msg, j.steps[0].writes[0]
	}
	put := func(w write) {
		t.Helper()
		if err := a.query(ctx, w.stmt, w.args...).Exec(); err != nil {
			t.Fatal(err)
		}
	}
	seen, row := intent(1)
	put(row)
	if err := b.Finish(ctx, m); !errors.Is(err, herald.ErrInUse) {
		t.Fatalf("a life that is not over is finished: %v", err)
	}
	if ok, err := b.Change(ctx, m, persistence.Live, persistence.Dead); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := b.agree(ctx, m); err != nil { // and then b is slow
		t.Fatal(err)
	}
	late, row := intent(2)
	put(row)
	if err := c.Finish(ctx, m); err != nil {
		t.Fatal(err)
	}
	whole(t, c, session, publisher, seen, true)
	whole(t, c, session, publisher, late, false)
	put(row)
	if ok, err := c.Change(ctx, m, persistence.Dead, persistence.Finished); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := b.Finish(ctx, m); err != nil {
		t.Fatal(err)
	}
	d, again := joined(t, o, "a")
	if again.Node != m.Node {
		t.Fatalf("joined as %+v", again)
	}
	if err := b.Finish(ctx, m); err != nil { // of a life that nobody remembers
		t.Fatal(err)
	}
	whole(t, d, session, publisher, late, false)
}

// A beat whose answer was lost is known again when it is tried again, and only then.
func TestBeatWithoutAnAnswer(t *testing.T) {
	ctx := context.Background()
	s, m := joined(t, options(t), "a")
	// What two attempts leave whose answers do not come.
	const proof = 77
	for i := range uint64(2) {
		if ok, err := s.cas(ctx, beatMember, int64(m.Beat+i+1), []byte("old"), int64(proof), members, int32(m.Node), int64(m.Life), int8(persistence.Live), int64(m.Beat+i)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if _, ok, err := s.Beat(ctx, m, nil); ok || err != nil {
		t.Fatalf("another's beat is taken for its own: %v, %v", ok, err)
	}
	s.beating.of, s.beating.proof = m, proof
	now, ok, err := s.Beat(ctx, m, []byte("new"))
	if !ok || err != nil || string(now.Status) != "new" || now.Beat <= m.Beat {
		t.Fatalf("%+v, %v, %v", now, ok, err)
	}
	all, err := s.Members(ctx)
	if err != nil || len(all) != 1 || all[0].Beat != now.Beat || string(all[0].Status) != "new" {
		t.Fatalf("%+v, %v", all, err)
	}
	if s.life.Load().ended() {
		t.Error("the life is over")
	}
}

// No timestamp is used that the node's row does not allow.
func TestCeiling(t *testing.T) {
	s, m := joined(t, options(t), "a")
	l := s.life.Load()
	l.ceiling.Store(1)
	commitTo(t, s, &persistence.Batch{Sessions: []persistence.Session{{ID: herald.SessionID(benchID()), Name: "c"}}})
	clock, _, _, err := s.nodeRow(context.Background(), m.Node)
	if used := s.clock.last.Load(); err != nil || l.ceiling.Load() < used || clock < l.ceiling.Load() {
		t.Errorf("ceiling %d, row %d, used %d: %v", l.ceiling.Load(), clock, used, err)
	}
}

// Who had the database for himself, and crashed, may come back as a node of a cluster.
func TestFirstLifeFinishesWhatASingleNodeBegan(t *testing.T) {
	o := options(t)
	s := mustOpen(t, o)
	session, publisher := herald.SessionID(benchID()), herald.SessionID(benchID())
	commitTo(t, s, &persistence.Batch{Sessions: []persistence.Session{{ID: session, Name: "c"}}})
	m, b := qos2(session, publisher, 1)
	j := &job{s: s, batch: b}
	if err := s.plan(j); err != nil {
		t.Fatal(err)
	}
	s.intents.begin(s, j)
	w := j.steps[0].writes[0]
	if err := s.query(context.Background(), w.stmt, w.args...).Exec(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	a, _ := joined(t, o, "a")
	whole(t, a, session, publisher, m, true)
}

// A plan is read back, and one that makes no sense is an error.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		todo := make(unfinished)
		for range rapid.IntRange(0, 4).Draw(t, "buckets") {
			ids := rapid.SliceOfNDistinct(rapid.Int64Range(0, 1<<40), 1, 5, rapid.ID[int64]).Draw(t, "ids")
			slices.Sort(ids)
			todo[rapid.Int64Range(0, 1<<40).Draw(t, "bucket")] = ids
		}
		b := encodePlan(todo)
		got, err := decodePlan(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(todo, got); diff != "" {
			t.Fatal(diff)
		}
		if len(todo) > 0 {
			if got, err := decodePlan(b[:len(b)-1]); err == nil {
				t.Fatalf("a plan that was cut off: %v", got)
			}
		}
		if got, err := decodePlan(rapid.SliceOf(rapid.Byte()).Draw(t, "junk")); err == nil && len(got) > 1000 {
			t.Fatal("out of nothing")
		}
	})
}

// BenchmarkBeat has ten nodes beat and look once a second, each when it likes, and
// says how long a beat takes.
func BenchmarkBeat(b *testing.B) {
	o := options(b)
	o.Cluster = true
	const nodes = 10
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for i := range nodes {
		s := mustOpen(b, o)
		defer s.Close()
		m, err := s.Join(context.Background(), fmt.Sprint("node ", i), make([]byte, 200))
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
			for range 10 {
				next := time.Now().Add(time.Second)
				now, ok, err := s.Beat(context.Background(), m, make([]byte, 200))
				t := time.Since(next.Add(-time.Second))
				if err != nil || !ok {
					b.Errorf("beat: %v, %v", ok, err)
				}
				m = now
				if _, err := s.Members(context.Background()); err != nil {
					b.Error(err)
				}
				mu.Lock()
				took = append(took, t)
				mu.Unlock()
				time.Sleep(time.Until(next))
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms-max")
}
