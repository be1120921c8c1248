package storetest

import (
	"errors"
	"sort"
	"testing/quick"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

var sessionTests = []test{
	{"a row is read back as it was written", func(h *harness) {
		rows := []persistence.Session{
			{ID: herald.SessionID(newID()), Name: "c1", Version: herald.V5, Epoch: 3, ExpiryInterval: 4294967295, Connected: 1700000000123},
			{ID: herald.SessionID(newID()), Name: "", Version: herald.V311, Expires: 99, Disconnected: 17},
			{ID: herald.SessionID(newID()), Kind: persistence.Group, Name: "c1"},
			{ID: herald.SessionID(newID()), Kind: persistence.Group, Name: "g/a/+/ü\u0001"},
		}
		h.commit(&persistence.Batch{Sessions: rows})
		h.twice(func() {
			for _, want := range rows {
				got, err := h.store.Session(ctx, want.Kind, want.Name)
				h.noError("read", err)
				h.equal("row", got, want)
			}
			h.equal("scan", h.scanSessions(), rows)
		})
		if got, want := h.store.MaxID(), herald.ID(rows[3].ID); got < want {
			h.Fatalf("MaxID %d is below a session's ID %d", got, want)
		}
	}},
	{"a row that is not there is ErrNotFound", func(h *harness) {
		h.session()
		if _, err := h.store.Session(ctx, persistence.Group, "client-1"); !errors.Is(err, herald.ErrNotFound) {
			h.Fatalf("got %v", err)
		}
		if _, err := h.store.Session(ctx, persistence.Client, "client-"); !errors.Is(err, herald.ErrNotFound) {
			h.Fatalf("got %v", err)
		}
	}},
	{"a session that starts anew replaces the old one", func(h *harness) {
		old := persistence.Session{ID: herald.SessionID(newID()), Name: "c", Expires: 5}
		h.commit(&persistence.Batch{Sessions: []persistence.Session{old},
			Subscribe: []persistence.SubscriptionOf{{Session: old.ID, Subscription: persistence.Subscription{Filter: "a"}}}})
		fresh := persistence.Session{ID: herald.SessionID(newID()), Name: "c", Expires: 6}
		h.commit(&persistence.Batch{Sessions: []persistence.Session{fresh}, Delete: []persistence.Session{old}})
		h.twice(func() {
			got, err := h.store.Session(ctx, persistence.Client, "c")
			h.noError("read", err)
			h.equal("row", got, fresh)
			h.equal("expired", h.expired(10, 10), []persistence.Session{fresh})
			subs, err := h.store.Subscriptions(ctx, old.ID)
			h.noError("subscriptions", err)
			h.equal("subscriptions of the old one", subs, []persistence.Subscription(nil))
		})
	}},
	{"put and deleted in one batch is deleted", func(h *harness) {
		row := persistence.Session{ID: herald.SessionID(newID()), Name: "c", Expires: 5}
		h.commit(&persistence.Batch{Sessions: []persistence.Session{row}, Delete: []persistence.Session{row},
			Subscribe: []persistence.SubscriptionOf{{Session: row.ID, Subscription: persistence.Subscription{Filter: "a"}}},
			Held:      []persistence.Held{{Session: row.ID, PacketID: 1, ID: newID()}}})
		h.twice(func() {
			h.equal("rows", h.scanSessions(), []persistence.Session(nil))
			h.equal("expired", h.expired(10, 10), []persistence.Session(nil))
			h.equal("subscriptions", h.scanSubscriptions(), map[herald.SessionID][]persistence.Subscription{})
			w, err := h.store.Window(ctx, row.ID)
			h.noError("window", err)
			h.equal("window", w, persistence.Window{})
		})
	}},
	{"delete takes everything but the will", func(h *harness) {
		a, b := h.session(), h.session()
		for _, s := range []herald.SessionID{a, b} {
			batch := &persistence.Batch{
				Spreads: []persistence.Spread{{Messages: messages(100, "t"), Targets: []persistence.Target{{Session: s, QoS: 1}}}},
				Marks:   []persistence.Mark{{Session: s, Low: 1}},
				Wills:   []persistence.Will{{Session: s, Client: "c", Message: *message("w", "x"), Due: 9}},
			}
			for i := range 100 {
				batch.Held = append(batch.Held, persistence.Held{Session: s, PacketID: uint16(i + 1), ID: newID()})
				batch.Subscribe = append(batch.Subscribe, persistence.SubscriptionOf{Session: s,
					Subscription: persistence.Subscription{Filter: string(rune('A' + i))}})
			}
			h.commit(batch)
		}
		h.commit(&persistence.Batch{Delete: []persistence.Session{{ID: a, Name: "client-1"}}})
		h.twice(func() {
			for s, want := range map[herald.SessionID]int{a: 0, b: 100} {
				w, err := h.store.Window(ctx, s)
				h.noError("window", err)
				subs, err := h.store.Subscriptions(ctx, s)
				h.noError("subscriptions", err)
				entries := h.inbox(s, 0, ^herald.ID(0))
				h.equal("held, subscriptions, entries", []int{len(w.Held), len(subs), len(entries)}, []int{want, want, want})
			}
			wills, err := h.store.Wills(ctx, 10, false, 10)
			h.noError("wills", err)
			h.equal("wills", len(wills), 2)
			h.equal("rows", len(h.scanSessions()), 1)
		})
	}},
	{"expired sessions come earliest first, and only while they are", func(h *harness) {
		row := func(name string, expires int64) persistence.Session {
			return persistence.Session{ID: herald.SessionID(newID()), Name: name, Expires: expires}
		}
		a, b, c, d := row("a", 300), row("b", 100), row("c", 200), row("d", 0)
		h.commit(&persistence.Batch{Sessions: []persistence.Session{a, b, c, d}})
		h.equal("up to 250", h.expired(250, 10), []persistence.Session{b, c})
		h.equal("up to 99", h.expired(99, 10), []persistence.Session(nil))
		h.equal("limit", h.expired(1000, 2), []persistence.Session{b, c})
		c.Expires, b.Expires = 0, 400
		h.commit(&persistence.Batch{Sessions: []persistence.Session{b, c}})
		h.twice(func() { h.equal("all", h.expired(1000, 10), []persistence.Session{a, b}) })
		h.commit(&persistence.Batch{Delete: []persistence.Session{a}})
		h.twice(func() { h.equal("all", h.expired(1000, 10), []persistence.Session{b}) })
	}},
	{"names do not run into each other", func(h *harness) {
		seen := map[string]persistence.Session{}
		f := func(name string, group bool) bool {
			row := persistence.Session{ID: herald.SessionID(newID()), Name: name}
			if group {
				row.Kind = persistence.Group
			}
			seen[string(rune(row.Kind))+name] = row
			return commit(h.store, &persistence.Batch{Sessions: []persistence.Session{row}}) == nil
		}
		h.noError("quick", quick.Check(f, &quick.Config{MaxCount: 50}))
		for _, want := range seen {
			got, err := h.store.Session(ctx, want.Kind, want.Name)
			h.noError("read", err)
			h.equal("row", got, want)
		}
	}},
	{"a scan ends with the error of its function", func(h *harness) {
		h.session()
		h.session()
		stop, calls := errors.New("stop"), 0
		err := h.store.ScanSessions(ctx, func(persistence.Session) error { calls++; return stop })
		if !errors.Is(err, stop) || calls != 1 {
			h.Fatalf("%v after %d calls", err, calls)
		}
	}},
}

func (h *harness) expired(now int64, limit int) []persistence.Session {
	h.Helper()
	rows, err := h.store.ExpiredSessions(ctx, now, limit)
	h.noError("expired sessions", err)
	return rows
}

// scanSessions returns all rows by ID.
func (h *harness) scanSessions() []persistence.Session {
	h.Helper()
	var rows []persistence.Session
	h.noError("scan", h.store.ScanSessions(ctx, func(s persistence.Session) error {
		rows = append(rows, s)
		return nil
	}))
	sort.Slice(rows, func(i, j int) bool { return rows[i].ID < rows[j].ID })
	return rows
}

func (h *harness) scanSubscriptions() map[herald.SessionID][]persistence.Subscription {
	h.Helper()
	all := map[herald.SessionID][]persistence.Subscription{}
	var last herald.SessionID
	h.noError("scan", h.store.ScanSubscriptions(ctx, func(s herald.SessionID, sub persistence.Subscription) error {
		if s != last && len(all[s]) > 0 {
			h.Fatalf("the subscriptions of session %d do not come together", s)
		}
		last = s
		all[s] = append(all[s], sub)
		return nil
	}))
	return all
}

var subscriptionTests = []test{
	{"subscriptions come by filter, as they were written last", func(h *harness) {
		s, other := h.session(), h.session()
		subs := []persistence.Subscription{
			{Filter: "#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2, Identifier: 268435455},
			{Filter: "$share/g/a", QoS: 1, RetainHandling: 1},
			{Filter: "a", RetainedUpTo: newID()},
			{Filter: "a/b", RetainedUpTo: newID(), RetainedAfter: "a/c", Identifier: 1},
		}
		of := func(s herald.SessionID, sub persistence.Subscription) persistence.SubscriptionOf {
			return persistence.SubscriptionOf{Session: s, Subscription: sub}
		}
		h.commit(&persistence.Batch{Subscribe: []persistence.SubscriptionOf{
			of(s, persistence.Subscription{Filter: "a", QoS: 2}), of(s, subs[3]), of(other, subs[1]), of(s, subs[0]), of(s, subs[1])}})
		h.commit(&persistence.Batch{Subscribe: []persistence.SubscriptionOf{of(s, subs[2])}})
		h.twice(func() {
			got, err := h.store.Subscriptions(ctx, s)
			h.noError("read", err)
			h.equal("subscriptions", got, subs)
			h.equal("scan", h.scanSubscriptions(), map[herald.SessionID][]persistence.Subscription{s: subs, other: subs[1:2]})
		})
		h.commit(&persistence.Batch{Unsubscribe: []persistence.FilterOf{{Session: s, Filter: "a"}, {Session: s, Filter: "none"}}})
		h.twice(func() {
			got, err := h.store.Subscriptions(ctx, s)
			h.noError("read", err)
			h.equal("subscriptions", got, append(append([]persistence.Subscription(nil), subs[:2]...), subs[3]))
		})
	}},
	{"a scan ends with the error of its function", func(h *harness) {
		s := h.session()
		h.commit(&persistence.Batch{Subscribe: []persistence.SubscriptionOf{
			{Session: s, Subscription: persistence.Subscription{Filter: "a"}}, {Session: s, Subscription: persistence.Subscription{Filter: "b"}}}})
		stop, calls := errors.New("stop"), 0
		err := h.store.ScanSubscriptions(ctx, func(herald.SessionID, persistence.Subscription) error { calls++; return stop })
		if !errors.Is(err, stop) || calls != 1 {
			h.Fatalf("%v after %d calls", err, calls)
		}
	}},
	{"many sessions are scanned completely", func(h *harness) {
		n := h.d.large() / 10
		b := &persistence.Batch{}
		for range n {
			id := herald.SessionID(newID())
			b.Sessions = append(b.Sessions, persistence.Session{ID: id, Name: "many" + string(rune(id%1000)) + hex(id)})
			b.Subscribe = append(b.Subscribe, persistence.SubscriptionOf{Session: id, Subscription: persistence.Subscription{Filter: "x/" + hex(id)}})
			if len(b.Sessions) == 1000 {
				h.commit(b)
				b = &persistence.Batch{}
			}
		}
		h.commit(b)
		h.twice(func() {
			h.equal("sessions", len(h.scanSessions()), n)
			h.equal("subscriptions", len(h.scanSubscriptions()), n)
		})
	}},
}

func hex(id herald.SessionID) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[15-i] = digits[id>>(4*i)&15]
	}
	return string(b[:])
}

var willTests = []test{
	{"wills come by due time, connected ones only if asked for", func(h *harness) {
		will := func(due int64) persistence.Will {
			m := *message("will/topic", "gone")
			m.Properties, m.Retain, m.QoS = []byte{1, 2}, true, 2
			return persistence.Will{Session: herald.SessionID(newID()), Client: "c", Message: m, Delay: 5, Due: due}
		}
		a, b, c := will(200), will(0), will(100)
		h.commit(&persistence.Batch{Wills: []persistence.Will{a, b, c}})
		read := func(now int64, connected bool, limit int) []persistence.Will {
			ws, err := h.store.Wills(ctx, now, connected, limit)
			h.noError("wills", err)
			return ws
		}
		h.twice(func() {
			h.equal("due", read(1000, false, 10), []persistence.Will{c, a})
			h.equal("connected", read(150, true, 10), []persistence.Will{b, c})
			h.equal("limit", read(1000, false, 1), []persistence.Will{c})
			h.equal("none", read(99, false, 10), []persistence.Will(nil))
		})
		b.Due = 150
		h.commit(&persistence.Batch{Wills: []persistence.Will{b}, WillsGone: []herald.SessionID{a.Session, 12345}})
		h.twice(func() {
			h.equal("due", read(1000, true, 10), []persistence.Will{c, b})
			r, ok := h.store.(persistence.WillReader)
			if !ok {
				return
			}
			got, err := r.Will(ctx, b.Session)
			h.noError("one", err)
			h.equal("one", got, b)
			_, err = r.Will(ctx, a.Session)
			h.equal("one that is gone", errors.Is(err, herald.ErrNotFound), true)
		})
	}},
}
