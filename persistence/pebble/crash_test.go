package pebble

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// history is a fixed row of batches that touch everything a store has, and what
// a store that took the first n of them must hold.
type history struct {
	batches []*persistence.Batch
}

const (
	historySessions = 5
	historyStart    = herald.ID(1) << 40
)

func historyName(i int) string { return fmt.Sprintf("client-%d", i) }

// newHistory makes n batches from a seed. Batch i writes i as the epoch of the
// session "count", so that a store says how many it took.
func newHistory(seed uint64, n int) *history {
	rng := rand.New(rand.NewPCG(seed, 1))
	h := &history{}
	id := historyStart
	next := func() herald.ID { id++; return id }
	var sessions []persistence.Session
	b := &persistence.Batch{}
	for i := range historySessions {
		sessions = append(sessions, persistence.Session{ID: herald.SessionID(next()), Name: historyName(i), Expires: int64(i)})
	}
	b.Sessions = append(b.Sessions, sessions...)
	var sent []herald.ID
	for i := 1; i <= n; i++ {
		b.Sessions = append(b.Sessions, persistence.Session{ID: 1, Name: "count", Epoch: uint64(i)})
		for range rng.IntN(4) {
			m := &herald.Message{ID: next(), Topic: fmt.Sprintf("t/%d", rng.IntN(7)), Payload: make([]byte, rng.IntN(3000)), QoS: 2}
			sp := persistence.Spread{Messages: []*herald.Message{m}}
			for _, t := range rng.Perm(historySessions)[:1+rng.IntN(historySessions)] {
				sp.Targets = append(sp.Targets, persistence.Target{Session: sessions[t].ID, QoS: 2})
			}
			b.Spreads = append(b.Spreads, sp)
			sent = append(sent, m.ID)
			if rng.IntN(3) == 0 {
				b.Retain = append(b.Retain, m)
			}
		}
		s := &sessions[1+rng.IntN(historySessions-1)] // nobody settles the first one's
		switch rng.IntN(8) {
		case 0:
			if len(sent) > 0 {
				b.Marks = append(b.Marks, persistence.Mark{Session: s.ID, Low: sent[len(sent)*3/4]})
			}
		case 1:
			b.Held = append(b.Held, persistence.Held{Session: s.ID, PacketID: uint16(1 + rng.IntN(9)), ID: next() * herald.ID(rng.IntN(2))})
		case 2:
			if len(sent) > 0 {
				b.Sent = append(b.Sent, persistence.Sent{Session: s.ID, PacketID: uint16(1 + rng.IntN(9)), ID: sent[rng.IntN(len(sent))],
					Step: persistence.Step(rng.IntN(3))})
			}
		case 3:
			b.Subscribe = append(b.Subscribe, persistence.SubscriptionOf{Session: s.ID,
				Subscription: persistence.Subscription{Filter: fmt.Sprintf("f/%d", rng.IntN(5)), QoS: byte(rng.IntN(3))}})
		case 4:
			b.Unsubscribe = append(b.Unsubscribe, persistence.FilterOf{Session: s.ID, Filter: fmt.Sprintf("f/%d", rng.IntN(5))})
		case 5:
			b.Wills = append(b.Wills, persistence.Will{Session: s.ID, Due: int64(rng.IntN(50)), Message: herald.Message{Topic: "w"}})
		case 6:
			b.WillsGone = append(b.WillsGone, s.ID)
		case 7:
			old := *s
			s.ID, s.Expires = herald.SessionID(next()), int64(rng.IntN(90))
			b.Sessions = append(b.Sessions, *s)
			b.Delete = append(b.Delete, old)
		}
		h.batches = append(h.batches, b)
		b = &persistence.Batch{}
	}
	return h
}

// contents is everything a store holds that its contract promises.
type contents struct {
	Sessions map[string]persistence.Session
	Subs     map[herald.SessionID]map[string]persistence.Subscription
	Held     map[herald.SessionID]map[uint16]herald.ID
	Sent     map[herald.SessionID]map[uint16]persistence.Sent
	Low      map[herald.SessionID]herald.ID
	Inbox    map[herald.SessionID][]herald.ID // above Low
	Retained map[string]herald.ID
	Wills    map[herald.SessionID]int64
}

func newContents() *contents {
	return &contents{
		Sessions: map[string]persistence.Session{}, Subs: map[herald.SessionID]map[string]persistence.Subscription{},
		Held: map[herald.SessionID]map[uint16]herald.ID{}, Sent: map[herald.SessionID]map[uint16]persistence.Sent{},
		Low: map[herald.SessionID]herald.ID{}, Inbox: map[herald.SessionID][]herald.ID{},
		Retained: map[string]herald.ID{}, Wills: map[herald.SessionID]int64{},
	}
}

func put[A, B comparable, V any](m map[A]map[B]V, a A, b B, v V) {
	if m[a] == nil {
		m[a] = map[B]V{}
	}
	m[a][b] = v
}

// after is what a store that took the first n batches holds.
func (h *history) after(n int) *contents {
	c := newContents()
	inbox := map[herald.SessionID]map[herald.ID]bool{}
	newest := map[string]herald.ID{}
	for _, b := range h.batches[:n] {
		for _, sp := range b.Spreads {
			for _, t := range sp.Targets {
				for _, m := range sp.Messages {
					put(inbox, t.Session, m.ID, true)
				}
			}
		}
		for _, m := range b.Retain {
			if m.ID < newest[m.Topic] {
				continue
			}
			newest[m.Topic] = m.ID
			if delete(c.Retained, m.Topic); len(m.Payload) > 0 {
				c.Retained[m.Topic] = m.ID
			}
		}
		for _, v := range b.Held {
			if put(c.Held, v.Session, v.PacketID, v.ID); v.ID == 0 {
				delete(c.Held[v.Session], v.PacketID)
			}
		}
		for _, v := range b.Sent {
			put(c.Sent, v.Session, v.PacketID, v)
			switch v.Step {
			case persistence.Done:
				delete(c.Sent[v.Session], v.PacketID)
			case persistence.Released:
				delete(inbox[v.Session], v.ID)
			}
		}
		for _, m := range b.Marks {
			c.Low[m.Session] = m.Low
			for id := range inbox[m.Session] {
				if id <= m.Low {
					delete(inbox[m.Session], id)
				}
			}
		}
		for _, s := range b.Sessions {
			c.Sessions[s.Name] = s
		}
		for _, v := range b.Subscribe {
			put(c.Subs, v.Session, v.Filter, v.Subscription)
		}
		for _, v := range b.Unsubscribe {
			delete(c.Subs[v.Session], v.Filter)
		}
		for _, v := range b.Wills {
			c.Wills[v.Session] = v.Due
		}
		for _, v := range b.WillsGone {
			delete(c.Wills, v)
		}
		for _, s := range b.Delete {
			if c.Sessions[s.Name].ID == s.ID {
				delete(c.Sessions, s.Name)
			}
			delete(c.Subs, s.ID)
			delete(c.Held, s.ID)
			delete(c.Sent, s.ID)
			delete(c.Low, s.ID)
			delete(inbox, s.ID)
		}
	}
	for _, s := range c.Sessions {
		for id := range inbox[s.ID] {
			c.Inbox[s.ID] = append(c.Inbox[s.ID], id)
		}
		sort.Slice(c.Inbox[s.ID], func(i, j int) bool { return c.Inbox[s.ID][i] < c.Inbox[s.ID][j] })
	}
	return c
}

// read reads everything out of s.
func read(s *Store) (*contents, error) {
	ctx, c := context.Background(), newContents()
	err := s.ScanSessions(ctx, func(row persistence.Session) error { c.Sessions[row.Name] = row; return nil })
	if err != nil {
		return nil, err
	}
	if err := s.ScanSubscriptions(ctx, func(id herald.SessionID, sub persistence.Subscription) error {
		put(c.Subs, id, sub.Filter, sub)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, row := range c.Sessions {
		w, err := s.Window(ctx, row.ID)
		if err != nil {
			return nil, err
		}
		for _, v := range w.Held {
			put(c.Held, v.Session, v.PacketID, v.ID)
		}
		for _, v := range w.Sent {
			put(c.Sent, v.Session, v.PacketID, v)
		}
		if w.Low != 0 {
			c.Low[row.ID] = w.Low
		}
		var page []persistence.Entry
		for at := w.Low; ; at = page[len(page)-1].Message.ID {
			if page, err = s.Inbox(ctx, row.ID, at, ^herald.ID(0), 7, 1<<20, page[:0]); err != nil {
				return nil, err
			}
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				c.Inbox[row.ID] = append(c.Inbox[row.ID], e.Message.ID)
			}
		}
	}
	msgs, _, err := s.ScanRetained(ctx, "#", "", 1000, 1<<30, nil)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		c.Retained[m.Topic] = m.ID
	}
	if n := s.RetainedCount(); n != int64(len(msgs)) {
		return nil, fmt.Errorf("%d retained messages are counted, there are %d", n, len(msgs))
	}
	wills, err := s.Wills(ctx, 1000, true, 1000)
	for _, w := range wills {
		c.Wills[w.Session] = w.Due
	}
	return c, err
}

// verify checks that s holds the result of a whole number of batches, no fewer
// than acked.
func (h *history) verify(s *Store, acked int) error {
	got, err := read(s)
	if err != nil {
		return err
	}
	n := int(got.Sessions["count"].Epoch)
	if n < acked {
		return fmt.Errorf("%d batches were acknowledged, %d are there", acked, n)
	}
	if diff := cmp.Diff(h.after(n), got, cmpopts.EquateEmpty(), dropEmpty); diff != "" {
		return fmt.Errorf("what is there is not the result of the first %d batches (-want +got):\n%s", n, diff)
	}
	return nil
}

// dropEmpty takes sessions without anything out of a comparison.
var dropEmpty = cmp.Options{
	cmpopts.IgnoreMapEntries(func(_ herald.SessionID, v map[uint16]herald.ID) bool { return len(v) == 0 }),
	cmpopts.IgnoreMapEntries(func(_ herald.SessionID, v map[uint16]persistence.Sent) bool { return len(v) == 0 }),
	cmpopts.IgnoreMapEntries(func(_ herald.SessionID, v map[string]persistence.Subscription) bool { return len(v) == 0 }),
	cmpopts.IgnoreMapEntries(func(_ herald.SessionID, v []herald.ID) bool { return len(v) == 0 }),
}

// drive commits the history, atOnce batches at a time, and counts in acked how
// many were acknowledged from the front. It ends with the first error: a store
// may recover, and what it takes then is no beginning of the history.
func (h *history) drive(s *Store, atOnce int, acked *atomic.Int64) error {
	window := make(chan struct{}, atOnce)
	var failed atomic.Bool
	var once sync.Once
	var first error
	for i, b := range h.batches {
		window <- struct{}{}
		if failed.Load() {
			<-window
			break
		}
		for i%20 == 0 && s.journal.oldSegment(keepSealed*s.opts.SegmentBytes) != 0 && s.Health() == nil {
			time.Sleep(100 * time.Microsecond) // so that the keeper takes part
		}
		s.Commit(b, func(err error) {
			if err != nil {
				once.Do(func() { first = err })
				failed.Store(true)
			} else if first == nil {
				acked.Add(1)
			}
			<-window
		})
	}
	for range cap(window) {
		window <- struct{}{}
	}
	return first
}

func crashOptions(fs vfs.FS) Options {
	return Options{FS: fs, SegmentBytes: 64 << 10, MemTableBytes: 64 << 10, SweepInterval: time.Millisecond, InlineUpTo: 2}
}

// countWrites wraps fs: at is called before each operation that writes, with
// its number, and may fail it.
func countWrites(fs vfs.FS, at func(n int64, op errorfs.Op) error) vfs.FS {
	var n atomic.Int64
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		return at(n.Add(1), op)
	}))
}

// writes is how many operations a whole history takes.
func writes(t *testing.T, h *history) int64 {
	t.Helper()
	var total atomic.Int64
	s := mustOpen(t, "data", crashOptions(countWrites(vfs.NewCrashableMem(), func(n int64, _ errorfs.Op) error {
		total.Store(n)
		return nil
	})))
	var acked atomic.Int64
	if err := h.drive(s, 3, &acked); err != nil {
		t.Fatal(err)
	}
	if err := h.verify(s, len(h.batches)); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Spilled == 0 || st.SegmentsFreed == 0 {
		t.Fatalf("the history does not exercise the store: %+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return total.Load()
}

// inTime fails the test if f does not return in time, as when a goroutine hangs.
func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

// TestPowerLoss cuts the power at every so many-th write: of what was not
// synced, some blocks are there and some are not. What was acknowledged is there,
// and nothing is half there.
func TestPowerLoss(t *testing.T) {
	h := newHistory(1, 150)
	total := writes(t, h)
	runs := int64(150)
	if testing.Short() {
		runs = 30
	}
	for run := range runs {
		seed := uint64(run)
		rng := rand.New(rand.NewPCG(seed, 7))
		cut := 1 + run*total/runs + rng.Int64N(max(total/runs, 1))
		mem := vfs.NewCrashableMem()
		var acked, ackedAtCut atomic.Int64
		var after *vfs.MemFS
		fs := countWrites(mem, func(n int64, _ errorfs.Op) error {
			if n == cut {
				ackedAtCut.Store(acked.Load())
				after = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			}
			return nil
		})
		s := mustOpen(t, "data", crashOptions(fs))
		if err := h.drive(s, 3, &acked); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if after == nil {
			continue // this run took fewer writes
		}
		s, err := Open("data", crashOptions(after))
		if err != nil {
			t.Fatalf("cut at write %d of %d: %v", cut, total, err)
		}
		if err := h.verify(s, int(ackedAtCut.Load())); err != nil {
			t.Fatalf("cut at write %d of %d: %v", cut, total, err)
		}
		// What was recovered is recovered again, and the store goes on.
		s = reopen(t, s).(*Store)
		if err := h.verify(s, int(ackedAtCut.Load())); err != nil {
			t.Fatalf("cut at write %d of %d, opened twice: %v", cut, total, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailedWrite fails every so many-th write, once. Commits that were told nil
// are there after a restart, those that were told an error say ErrUnavailable,
// and nothing hangs.
func TestFailedWrite(t *testing.T) {
	h := newHistory(2, 100)
	total := writes(t, h)
	runs := int64(200)
	if testing.Short() {
		runs = 40
	}
	for run := range runs {
		rng := rand.New(rand.NewPCG(uint64(run), 8))
		cut := 1 + run*total/runs + rng.Int64N(max(total/runs, 1))
		mem := vfs.NewCrashableMem()
		var failed atomic.Value
		fs := countWrites(mem, func(n int64, op errorfs.Op) error {
			if n == cut {
				failed.Store(fmt.Sprintf("%v of %s", op.Kind, op.Path))
				return errorfs.ErrInjected
			}
			if n > cut && op.Kind == errorfs.OpRename {
				time.Sleep(time.Millisecond) // who takes a name before it is given is seen
			}
			return nil
		})
		what := fmt.Sprintf("write %d of %d", cut, total)
		var acked atomic.Int64
		inTime(t, what, func() {
			s, err := Open("data", crashOptions(fs))
			if err != nil {
				if !errors.Is(err, herald.ErrUnavailable) {
					t.Errorf("%s: open: %v", what, err)
				}
				return
			}
			if err := h.drive(s, 1, &acked); err != nil && !errors.Is(err, herald.ErrUnavailable) {
				t.Errorf("%s: commit: %v", what, err)
			}
			if err := s.Close(); err != nil && !errors.Is(err, herald.ErrUnavailable) {
				t.Errorf("%s: close: %v", what, err)
			}
		})
		after := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		s, err := Open("data", crashOptions(after))
		if err != nil {
			t.Fatalf("%s (%v): open again: %v", what, failed.Load(), err)
		}
		if acked.Load() > 0 {
			if err := h.verify(s, int(acked.Load())); err != nil {
				t.Fatalf("%s (%v): %v", what, failed.Load(), err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
