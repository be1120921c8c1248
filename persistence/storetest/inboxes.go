package storetest

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// inbox pages through a session's inbox, with pages of an awkward size.
func (h *harness) inbox(s herald.SessionID, after, upTo herald.ID) []persistence.Entry {
	h.Helper()
	return h.inboxBy(s, after, upTo, 77, 1<<30)
}

func (h *harness) inboxBy(s herald.SessionID, after, upTo herald.ID, limit, maxBytes int) []persistence.Entry {
	h.Helper()
	var all []persistence.Entry
	for {
		n := len(all)
		var err error
		all, err = h.store.Inbox(ctx, s, after, upTo, limit, maxBytes, all)
		h.noError("inbox", err)
		if len(all) == n {
			return all
		}
		if len(all) > n+limit {
			h.Fatalf("%d entries for a limit of %d", len(all)-n, limit)
		}
		for _, e := range all[n:] {
			if e.Message.ID <= after || e.Message.ID > upTo {
				h.Fatalf("entry %d does not lie in (%d, %d], or does not rise", e.Message.ID, after, upTo)
			}
			after = e.Message.ID
		}
	}
}

func entries(msgs []*herald.Message, qos byte) []persistence.Entry {
	var all []persistence.Entry
	for _, m := range msgs {
		all = append(all, persistence.Entry{Message: m, QoS: min(qos, m.QoS)})
	}
	return all
}

func to(sessions ...herald.SessionID) []persistence.Target {
	var ts []persistence.Target
	for _, s := range sessions {
		ts = append(ts, persistence.Target{Session: s, QoS: 2})
	}
	return ts
}

var inboxTests = []test{
	{"an entry is read back as it was written", func(h *harness) {
		s := h.session()
		m1 := &herald.Message{ID: newID(), Publisher: 3, Topic: "a/b", Properties: []byte{0x26, 0, 1, 'k', 0, 1, 'v'}, Payload: []byte("p"), Expires: 1 << 50, QoS: 2, Retain: true}
		m2 := &herald.Message{ID: newID(), Topic: "a/b", QoS: 1}
		m3 := &herald.Message{ID: newID(), Topic: strings.Repeat("x", herald.MaxTopic), Payload: make([]byte, 1<<20), QoS: 1, Properties: []byte{}}
		ident := []uint32{1, 268435455}
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{
			{Messages: []*herald.Message{m1, m2}, Targets: []persistence.Target{{Session: s, QoS: 1, Retain: true, Identifiers: ident}}},
			{Messages: []*herald.Message{m3}, Targets: []persistence.Target{{Session: s, QoS: 2}}},
		}})
		ident[0] = 99 // the batch is done, the target is the caller's again
		h.twice(func() {
			h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), []persistence.Entry{
				{Message: m1, QoS: 1, Retain: true, Identifiers: []uint32{1, 268435455}},
				{Message: m2, QoS: 1, Retain: true, Identifiers: []uint32{1, 268435455}},
				{Message: m3, QoS: 1},
			})
		})
		if h.store.MaxID() < m3.ID {
			h.Fatalf("MaxID %d, want %d or more", h.store.MaxID(), m3.ID)
		}
	}},
	{"an entry with a lower ID that comes late stands in its place", func(h *harness) {
		s := h.session()
		msgs := messages(200, "t")
		order := rand.New(rand.NewPCG(1, 2)).Perm(len(msgs))
		for _, i := range order {
			h.store.Commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs[i : i+1], Targets: to(s)}}}, nil)
		}
		h.commit(&persistence.Batch{})
		h.twice(func() { h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), entries(msgs, 2)) })
	}},
	{"the same entry again changes nothing", func(h *harness) {
		s := h.session()
		msgs := messages(10, "t")
		for range 3 {
			h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s)}}})
		}
		h.twice(func() { h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), entries(msgs, 2)) })
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s)}}})
		h.twice(func() { h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), entries(msgs, 2)) })
	}},
	{"the range is open below and closed above", func(h *harness) {
		s := h.session()
		msgs := messages(10, "t")
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s)}}})
		h.twice(func() {
			h.equal("inbox", h.inbox(s, msgs[2].ID, msgs[5].ID), entries(msgs[3:6], 2))
			h.equal("empty", h.inbox(s, msgs[5].ID, msgs[5].ID), []persistence.Entry(nil))
			h.equal("turned round", h.inbox(s, msgs[5].ID, msgs[2].ID), []persistence.Entry(nil))
			h.equal("behind all", h.inbox(s, msgs[9].ID, ^herald.ID(0)), []persistence.Entry(nil))
		})
	}},
	{"a page ends when its messages weigh enough", func(h *harness) {
		s := h.session()
		msgs := messages(10, "t")
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s)}}})
		size := msgs[0].Size()
		h.twice(func() {
			for _, c := range []struct{ maxBytes, least, most int }{{0, 1, 1}, {1, 1, 1}, {3 * size, 3, 4}, {1 << 30, 10, 10}} {
				got, err := h.store.Inbox(ctx, s, 0, ^herald.ID(0), 100, c.maxBytes, nil)
				h.noError("inbox", err)
				if len(got) < c.least || len(got) > c.most {
					h.Fatalf("%d entries for %d bytes", len(got), c.maxBytes)
				}
			}
			got, err := h.store.Inbox(ctx, s, 0, ^herald.ID(0), 0, 1<<30, nil)
			h.noError("inbox", err)
			h.equal("limit 0", len(got), 0)
		})
	}},
	{"what was in dst stays", func(h *harness) {
		s := h.session()
		msgs := messages(3, "t")
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s)}}})
		h.twice(func() {
			first, err := h.store.Inbox(ctx, s, 0, ^herald.ID(0), 1, 1<<30, nil)
			h.noError("inbox", err)
			all, err := h.store.Inbox(ctx, s, msgs[0].ID, ^herald.ID(0), 10, 1<<30, first)
			h.noError("inbox", err)
			h.equal("all", all, entries(msgs, 2))
		})
	}},
	{"a mark settles what is below it and what it names", func(h *harness) {
		s, other := h.session(), h.session()
		msgs := messages(100, "t")
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s, other)}}})
		low, above := msgs[29].ID, []herald.ID{msgs[31].ID, msgs[99].ID}
		h.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: s, Low: low, Above: above}}})
		want := append([]*herald.Message{msgs[30]}, msgs[32:99]...)
		h.twice(func() {
			// Settled entries may still be there; the window says which.
			w, left := h.window(s), []persistence.Entry(nil)
			h.equal("window", w, persistence.Window{Low: low, Above: above})
			for _, e := range h.inbox(s, w.Low, ^herald.ID(0)) {
				if e.Message.ID != above[0] && e.Message.ID != above[1] {
					left = append(left, e)
				}
			}
			h.equal("inbox", left, entries(want, 2))
			h.equal("the other one's", h.inbox(other, 0, ^herald.ID(0)), entries(msgs, 2))
		})
	}},
	{"a released QoS 2 entry is settled whatever the mark says [MQTT-4.3.3-6]", func(h *harness) {
		s := h.session()
		msgs := messages(3, "t")
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(s)}}})
		h.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: s, PacketID: 1, ID: msgs[0].ID, Step: persistence.Published}, {Session: s, PacketID: 2, ID: msgs[1].ID, Step: persistence.Published}}})
		h.twice(func() { h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), entries(msgs, 2)) })
		h.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: s, PacketID: 2, ID: msgs[1].ID, Step: persistence.Released}}})
		h.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: s, PacketID: 2, ID: msgs[1].ID, Step: persistence.Done}}})
		h.twice(func() {
			h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), entries([]*herald.Message{msgs[0], msgs[2]}, 2))
		})
	}},
	{"a message for many sessions reaches each", func(h *harness) {
		var sessions []herald.SessionID
		b := &persistence.Batch{}
		for i := range 500 {
			id := herald.SessionID(newID())
			sessions = append(sessions, id)
			b.Sessions = append(b.Sessions, persistence.Session{ID: id, Name: fmt.Sprintf("wide-%d", i)})
		}
		h.commit(b)
		msgs := messages(5, "t")
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(sessions...)}}})
		h.twice(func() {
			for _, s := range sessions {
				h.equal("inbox", h.inbox(s, 0, ^herald.ID(0)), entries(msgs, 2))
			}
		})
	}},
	{"a large inbox is paged through", func(h *harness) {
		s, n := h.session(), h.d.large()
		msgs := messages(n, "a/topic/of/some/length")
		for at := 0; at < n; at += 200 {
			h.store.Commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs[at:min(at+200, n)], Targets: to(s)}}}, nil)
		}
		h.commit(&persistence.Batch{})
		check := func(after int) {
			got := h.inboxBy(s, msgs[after].ID-1, ^herald.ID(0), 500, 64<<10)
			h.equal("number", len(got), n-after)
			for i, e := range got {
				if e.Message.ID != msgs[after+i].ID || string(e.Message.Payload) != string(msgs[after+i].Payload) {
					h.Fatalf("entry %d is not what was put there", i)
				}
			}
		}
		h.twice(func() { check(0); check(n - 10) })
		h.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: s, Low: msgs[n/2-1].ID}}})
		h.twice(func() { check(n / 2) })
	}},
	{"random histories leave what a model leaves", randomInbox},
}

// randomInbox compares with a model: every unsettled entry, nothing twice,
// nothing that was never put there.
func randomInbox(h *harness) {
	all := map[herald.ID]*herald.Message{}
	sessions := []herald.SessionID{h.session(), h.session(), h.session()}
	type state struct {
		due     map[herald.ID]bool
		settled map[herald.ID]bool
		low     herald.ID
	}
	model := map[herald.SessionID]*state{}
	for _, s := range sessions {
		model[s] = &state{due: map[herald.ID]bool{}, settled: map[herald.ID]bool{}}
	}
	put := func(t *rapid.T) {
		msgs := messages(rapid.IntRange(1, 30).Draw(t, "messages"), "t")
		targets := rapid.SliceOfNDistinct(rapid.SampledFrom(sessions), 1, 3, rapid.ID).Draw(t, "targets")
		for _, m := range msgs {
			all[m.ID] = m
			for _, s := range targets {
				model[s].due[m.ID] = true
			}
		}
		h.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: to(targets...)}}})
	}
	mark := func(t *rapid.T) {
		s := rapid.SampledFrom(sessions).Draw(t, "session")
		st := model[s]
		ids := unsettled(st.due, st.settled, st.low)
		if len(ids) == 0 {
			return
		}
		n := rapid.IntRange(0, len(ids)).Draw(t, "below")
		if n > 0 {
			st.low = ids[n-1]
		}
		var above []herald.ID
		for _, id := range ids[n:] {
			if rapid.IntRange(0, 9).Draw(t, "above") == 0 {
				above = append(above, id)
			}
		}
		for id := range st.settled {
			if id > st.low {
				above = append(above, id)
			}
		}
		sort.Slice(above, func(i, j int) bool { return above[i] < above[j] })
		for _, id := range above {
			st.settled[id] = true
		}
		h.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: s, Low: st.low, Above: above}}})
	}
	check := func(t *rapid.T) {
		for _, s := range sessions {
			st := model[s]
			left := map[herald.ID]bool{}
			for _, e := range h.inbox(s, 0, ^herald.ID(0)) {
				id := e.Message.ID
				if !st.due[id] || all[id] == nil || string(all[id].Payload) != string(e.Message.Payload) {
					t.Fatalf("entry %d was never put there", id)
				}
				left[id] = true
			}
			for _, id := range unsettled(st.due, st.settled, st.low) {
				if !left[id] {
					t.Fatalf("entry %d of session %d is lost", id, s)
				}
			}
		}
	}
	rapid.Check(h.TB.(rapid.TB), func(t *rapid.T) {
		t.Repeat(map[string]func(*rapid.T){
			"put": put, "mark": mark, "": check,
			"reopen": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "rarely") == 0 {
					h.reopen()
				}
			},
		})
	})
}

func unsettled(due, settled map[herald.ID]bool, low herald.ID) []herald.ID {
	var ids []herald.ID
	for id := range due {
		if id > low && !settled[id] {
			ids = append(ids, id)
		}
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}
