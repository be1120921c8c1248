package pebble

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	crdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// small options make segments turn over with every few batches.
func small() Options {
	return Options{FS: vfs.NewMem(), SegmentBytes: 64 << 10, MemTableBytes: 256 << 10, SweepInterval: 5 * time.Millisecond, InlineUpTo: 2}
}

// filler is something that fills segments and is settled at once.
type filler struct {
	t  testing.TB
	s  *Store
	id herald.ID
}

func newFiller(t testing.TB, s *Store) *filler {
	f := &filler{t: t, s: s, id: herald.IDAt(time.Now().UnixMilli())}
	f.session("filler")
	return f
}

func (f *filler) commit(b *persistence.Batch) {
	f.t.Helper()
	if err := <-f.begin(b); err != nil {
		f.t.Fatal(err)
	}
}

// begin commits what may fail.
func (f *filler) begin(b *persistence.Batch) (done chan error) {
	done = make(chan error, 1)
	f.s.Commit(b, func(err error) { done <- err })
	return done
}

func (f *filler) session(name string) herald.SessionID {
	f.t.Helper()
	f.id++
	f.commit(&persistence.Batch{Sessions: []persistence.Session{{ID: herald.SessionID(f.id), Name: name}}})
	return herald.SessionID(f.id)
}

func (f *filler) messages(n, size int) []*herald.Message {
	var all []*herald.Message
	for range n {
		f.id++
		all = append(all, &herald.Message{ID: f.id, Topic: "t", Payload: make([]byte, size), QoS: 2})
	}
	return all
}

func (f *filler) spread(msgs []*herald.Message, to ...herald.SessionID) {
	f.t.Helper()
	f.commit(spreadTo(msgs, to...))
}

func spreadTo(msgs []*herald.Message, to ...herald.SessionID) *persistence.Batch {
	sp := persistence.Spread{Messages: msgs}
	for _, s := range to {
		sp.Targets = append(sp.Targets, persistence.Target{Session: s, QoS: 2})
	}
	return &persistence.Batch{Spreads: []persistence.Spread{sp}}
}

// turnOver fills segments until everything before it is out of the journal.
func (f *filler) turnOver() {
	f.t.Helper()
	row, err := f.s.Session(context.Background(), persistence.Client, "filler")
	if err != nil {
		f.t.Fatal(err)
	}
	freed := f.s.Stats().SegmentsFreed
	upTo := freed + int64(f.s.Stats().Segments) + keepSealed + 1
	f.until("segments are freed", func() bool {
		f.spread(f.messages(1, 20<<10), row.ID)
		f.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: row.ID, Low: f.id}}})
		return f.s.Stats().SegmentsFreed >= upTo
	})
}

func (f *filler) until(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("waited in vain until %s; %+v", what, f.s.Stats())
		}
	}
}

func (f *filler) inbox(s herald.SessionID) []herald.ID {
	f.t.Helper()
	page, err := f.s.Inbox(context.Background(), s, 0, ^herald.ID(0), 1<<20, 1<<30, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	var ids []herald.ID
	for _, e := range page {
		ids = append(ids, e.Message.ID)
	}
	return ids
}

func idsOf(msgs []*herald.Message) []herald.ID {
	var ids []herald.ID
	for _, m := range msgs {
		ids = append(ids, m.ID)
	}
	return ids
}

func (f *filler) same(what string, got, want []herald.ID) {
	f.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		f.t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// keys counts the keys of a kind in Pebble.
func keys(t testing.TB, s *Store, kind byte) int {
	t.Helper()
	it, err := s.db.NewIter(&crdb.IterOptions{LowerBound: []byte{kind}, UpperBound: []byte{kind + 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	return n
}

func TestSettledEntriesAreNeverWritten(t *testing.T) {
	s := mustOpen(t, "data", small())
	defer s.Close()
	f := newFiller(t, s)
	for range 5 {
		f.turnOver()
	}
	// The filler's newest message may be caught between commit and mark.
	if n := s.Stats().Spilled; n > 5 {
		t.Fatalf("%d entries were written for a session that keeps up", n)
	}
}

func TestLaggardsEntriesMoveToPebbleAndGo(t *testing.T) {
	s := mustOpen(t, "data", small())
	defer func() { s.Close() }()
	f := newFiller(t, s)
	a, b := f.session("a"), f.session("b")
	msgs := f.messages(200, 100)
	f.spread(msgs, a, b)
	f.turnOver()
	if n := keys(t, s, kInbox); n < 400 {
		t.Fatalf("%d entries in Pebble, want 400", n)
	}
	f.same("spilled", f.inbox(a), idsOf(msgs))
	late := f.messages(3, 100)
	f.spread(late, a)
	late = append(late, &herald.Message{ID: msgs[0].ID - 1, Topic: "t", QoS: 1}) // behind everything, and late
	f.spread(late[3:], a)
	want := append(append([]herald.ID{late[3].ID}, idsOf(msgs)...), idsOf(late[:3])...)
	f.same("spilled and newer", f.inbox(a), want)
	s = reopen(t, s).(*Store)
	f.s = s
	f.same("after a restart", f.inbox(a), want)

	// Released takes an entry out of Pebble, too.
	f.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: a, PacketID: 1, ID: msgs[5].ID, Step: persistence.Released}}})
	f.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: 99, Source: b, PacketID: 1, ID: msgs[0].ID, Step: persistence.Released}}})
	f.same("released", f.inbox(a), append(append([]herald.ID{late[3].ID}, idsOf(msgs[:5])...), append(idsOf(msgs[6:]), idsOf(late[:3])...)...))
	f.same("released in a group's inbox", f.inbox(b), idsOf(msgs[1:]))

	f.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: a, Low: late[2].ID}, {Session: b, Low: msgs[149].ID}}})
	f.until("the settled are swept", func() bool { return len(f.inbox(a)) == 0 && len(f.inbox(b)) == 50 })
	f.commit(&persistence.Batch{Delete: []persistence.Session{{ID: b, Name: "b"}}})
	f.until("the deleted session's are swept", func() bool { return keys(t, s, kInbox) <= 2 })
}

func TestWideMessagesAreWrittenOnce(t *testing.T) {
	s := mustOpen(t, "data", small())
	defer s.Close()
	f := newFiller(t, s)
	var all []herald.SessionID
	for i := range 20 {
		all = append(all, f.session(fmt.Sprint("wide", i)))
	}
	msgs := f.messages(4, 1000)
	f.spread(msgs, all...)
	f.turnOver()
	if n, p := keys(t, s, kPayload), keys(t, s, kPointer); n != 4 || p != 80 {
		t.Fatalf("%d payload rows and %d pointers, want 4 and 80", n, p)
	}
	for i, id := range all {
		f.same("inbox", f.inbox(id), idsOf(msgs))
		switch {
		case i == 0:
			for j, m := range msgs {
				f.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: id, PacketID: uint16(j + 1), ID: m.ID, Step: persistence.Released}}})
			}
		case i%2 == 0:
			f.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: id, Low: f.id}}})
		default:
			f.commit(&persistence.Batch{Delete: []persistence.Session{{ID: id, Name: fmt.Sprint("wide", i)}}})
		}
		if i < len(all)-1 {
			f.same("the last one's", f.inbox(all[19]), idsOf(msgs))
		}
	}
	f.until("payloads go with their last pointer", func() bool { return keys(t, s, kPayload) == 0 && keys(t, s, kPointer) == 0 })
}

func TestExpiredDataGoes(t *testing.T) {
	now := time.Now()
	clock := make(chan time.Time, 1)
	clock <- now
	opts := small()
	opts.Now = func() time.Time { t := <-clock; clock <- t; return t }
	s := mustOpen(t, "data", opts)
	defer s.Close()
	f := newFiller(t, s)
	a := f.session("a")
	msgs := f.messages(3, 10)
	msgs[0].Expires = now.Add(time.Minute).UnixMilli()
	msgs[2].Expires = now.Add(24 * time.Hour).UnixMilli()
	f.spread(msgs, a)
	wide := f.messages(1, 10)
	wide[0].Expires = msgs[0].Expires
	f.spread(wide, a, f.session("b"), f.session("c"))
	kept := &herald.Message{ID: f.id + 1, Topic: "kept", Payload: []byte("x"), Expires: now.Add(time.Minute).UnixMilli()}
	renewed := &herald.Message{ID: f.id + 2, Topic: "renewed", Payload: []byte("x"), Expires: kept.Expires}
	again := &herald.Message{ID: f.id + 3, Topic: "renewed", Payload: []byte("x")}
	f.id += 3
	f.commit(&persistence.Batch{Retain: []*herald.Message{kept, renewed, again}})
	f.turnOver()
	f.same("before", f.inbox(a), append(idsOf(msgs), wide[0].ID))
	<-clock
	clock <- now.Add(time.Hour)
	f.until("expired entries go", func() bool { return len(f.inbox(a)) == 2 && keys(t, s, kPayload) == 0 })
	f.same("after", f.inbox(a), []herald.ID{msgs[1].ID, msgs[2].ID})
	f.until("expired retained messages go", func() bool { return s.RetainedCount() == 1 && keys(t, s, kRetainExpiry) == 0 })
	f.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: a, Low: f.id}}})
	f.until("no trace is left", func() bool { return keys(t, s, kEntryExpiry) == 0 && len(f.inbox(a)) == 0 })
}

func TestWhatIsLeftOverIsFound(t *testing.T) {
	opts := small()
	opts.SweepInterval = time.Hour
	opts.Now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	s := mustOpen(t, "data", opts)
	defer s.Close()
	f := newFiller(t, s)
	a, gone := f.session("a"), f.session("gone")
	f.commit(&persistence.Batch{Delete: []persistence.Session{{ID: gone, Name: "gone"}}, Retain: []*herald.Message{{ID: f.id, Topic: "removed"}}})
	for _, id := range []herald.SessionID{a, gone} { // as a mark that comes too late
		f.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: id, Low: 1}},
			Subscribe: []persistence.SubscriptionOf{{Session: id, Subscription: persistence.Subscription{Filter: "f"}}}})
	}
	if err := s.db.Set(key1(nil, kPayload, 77), nil, crdb.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := s.keeper.sweepOrphans(); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[byte]int{kWindow: 1, kSubscription: 1, kPayload: 0, kRetainedGone: 0} {
		if n := keys(t, s, kind); n != want {
			t.Errorf("%d keys of kind %c, want %d", n, kind, want)
		}
	}
}

// TestSpaceIsGivenBack fills a store on disk, settles everything, and looks at
// the folder.
func TestSpaceIsGivenBack(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{SegmentBytes: 1 << 20, SweepInterval: 50 * time.Millisecond})
	defer s.Close()
	f := newFiller(t, s)
	var laggards []herald.SessionID
	for i := range 20 {
		laggards = append(laggards, f.session(fmt.Sprint("laggard", i)))
	}
	f.turnOver()
	empty := size(t, dir)
	noise := rand.NewChaCha8([32]byte{1})
	for range 10 {
		for _, id := range laggards {
			msgs := f.messages(100, 2000)
			for _, m := range msgs {
				_, _ = noise.Read(m.Payload) // what cannot be compressed
			}
			f.spread(msgs, id)
		}
	}
	f.turnOver()
	full := size(t, dir)
	if full < empty+30<<20 {
		t.Fatalf("the folder grew from %d to only %d bytes", empty, full)
	}
	for _, id := range laggards {
		f.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: id, Low: f.id}}})
	}
	f.until("the folder shrinks", func() bool { return size(t, dir) < empty+(full-empty)/5 })
	t.Logf("empty %d KiB, full %d KiB, settled %d KiB", empty>>10, full>>10, size(t, dir)>>10)
}

func size(t testing.TB, dir string) (n int64) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil { // files come and go
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// Bans that have ended go; one that cannot be decoded is skipped and stays.
func TestBansThatHaveEndedGo(t *testing.T) {
	opts := small()
	opts.SweepInterval = time.Hour
	s := mustOpen(t, "data", opts)
	defer s.Close()
	now := time.Now().UnixMilli()
	for who, until := range map[string]int64{"ever": 0, "long": now + 1000_000, "ended": now - 2*grace.Milliseconds()} {
		if _, err := s.ChangeBan(t.Context(), persistence.BanChange{Ban: persistence.Ban{
			BanKey: persistence.BanKey{Kind: persistence.BanClient, Who: who}, Until: until}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Set(banKey(nil, persistence.BanKey{Kind: persistence.BanClient, Who: "broken"}), []byte{1, 0, 9}, crdb.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := s.keeper.sweepBans(); err != nil {
		t.Fatal(err)
	}
	if n := keys(t, s, kBan); n != 3 {
		t.Errorf("%d rows are left, want 3", n)
	}
	news, err := s.BanNews(t.Context(), 0)
	if err != nil || len(news.Changes) != 2 || news.Unreadable != 1 {
		t.Errorf("%+v, %v", news, err)
	}
}
