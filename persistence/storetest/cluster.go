package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// clusterTests are for stores that several nodes have at the same time.
var clusterTests = append(memberTests, fenceTests...)

// memberTests are about the rows of the nodes.
var memberTests = []clusterTest{
	{"a name is one node's at a time, and keeps its number", func(h *clusterHarness) {
		a, b := h.open(0), h.open(0)
		m, err := a.Join(ctx, "a", []byte("hello"))
		h.noError("join", err)
		h.equal("first", []any{m.Life, m.Name, m.State, string(m.Status)}, []any{uint64(1), "a", persistence.Live, "hello"})
		a.self = m
		taken := func(what string) {
			h.Helper()
			if _, err := b.Join(ctx, "a", nil); !errors.Is(err, herald.ErrInUse) {
				h.Fatalf("%s: %v, want %v", what, err, herald.ErrInUse)
			}
		}
		taken("live")
		if _, err := a.Join(ctx, "another", nil); !errors.Is(err, herald.ErrInUse) {
			h.Fatalf("one store is two nodes: %v", err)
		}
		b.change(m, persistence.Live, persistence.Dead)
		taken("dead")
		h.noError("finish", b.Finish(ctx, m))
		taken("dead, with nothing left")
		b.change(m, persistence.Dead, persistence.Finished)
		b.join("a")
		h.equal("again", []any{b.self.Node, b.self.Life}, []any{m.Node, m.Life + 1})
		b.change(b.self, persistence.Live, persistence.Left)
		c := h.join("c", 0)
		if c.self.Node == m.Node {
			h.Fatalf("a number that is free is not taken before one that was had")
		}
		b.join("a")
		h.equal("after it left", []any{b.self.Node, b.self.Life}, []any{m.Node, m.Life + 2})
		all, err := c.Members(ctx)
		h.noError("members", err)
		h.equal("members", all, []persistence.Member{b.self, c.self})
		// A life that is over stays over.
		for _, to := range []persistence.MemberState{persistence.Dead, persistence.Left} {
			if ok, err := c.Change(ctx, m, persistence.Live, to); ok || err != nil {
				h.Fatalf("an old life changes: %v, %v", ok, err)
			}
		}
		if _, ok, err := a.Beat(ctx, m, nil); ok || err != nil {
			h.Fatalf("an old life beats: %v, %v", ok, err)
		}
	}},
	{"a life that is dead is succeeded once, and never finished then", func(h *clusterHarness) {
		a, b, c := h.join("a", 0), h.open(0), h.open(0)
		m := a.self
		refused := func(what string, n *node, of persistence.Member) {
			h.Helper()
			if _, err := n.Succeed(ctx, of, nil); !errors.Is(err, herald.ErrInUse) {
				h.Fatalf("%s: %v, want %v", what, err, herald.ErrInUse)
			}
		}
		refused("live", b, m)
		b.change(m, persistence.Live, persistence.Dead)
		h.noError("finish", b.Finish(ctx, m))
		next, err := b.Succeed(ctx, m, []byte("owes"))
		h.noError("succeed", err)
		h.equal("next", []any{next.Node, next.Life, next.Name, next.State, string(next.Status)},
			[]any{m.Node, m.Life + 1, "a", persistence.Live, "owes"})
		b.self = next
		refused("succeeded", c, m)
		if ok, err := c.Change(ctx, m, persistence.Dead, persistence.Finished); ok || err != nil {
			h.Fatalf("a life that was succeeded is finished: %v, %v", ok, err)
		}
		b.session() // it works

		// What others write is newer than what the one that was succeeded has written,
		// although it was never Finished.
		late := h.join("late", time.Minute)
		row := persistence.Session{ID: herald.SessionID(late.id()), Name: "moved", Epoch: 1}
		late.commit(&persistence.Batch{Sessions: []persistence.Session{row}})
		c.join("c")
		b.change(late.self, persistence.Live, persistence.Dead)
		h.noError("finish", b.Finish(ctx, late.self))
		after := h.open(0)
		_, err = after.Succeed(ctx, late.self, nil)
		h.noError("succeed", err)
		_, err = c.Members(ctx)
		h.noError("members", err)
		row.Epoch = 2
		c.commit(&persistence.Batch{Sessions: []persistence.Session{row}})
		got, err := c.Session(ctx, persistence.Client, "moved")
		h.noError("session", err)
		h.equal("who wrote last", got.Epoch, uint64(2))

		// Of one that is dead and one that finishes it one wins.
		for range 10 {
			c.change(b.self, persistence.Live, persistence.Dead)
			h.noError("finish", c.Finish(ctx, b.self))
			old := b.self
			_, err := b.Members(ctx) // it learns that it was taken for dead
			h.noError("members", err)
			var wg sync.WaitGroup
			var won bool
			var lost error
			wg.Go(func() { won, err = c.Change(ctx, old, persistence.Dead, persistence.Finished) })
			wg.Go(func() { b.self, lost = b.Succeed(ctx, old, nil) })
			wg.Wait()
			h.noError("change", err)
			if won != errors.Is(lost, herald.ErrInUse) || !won && lost != nil {
				h.Fatalf("finished: %v, succeeded: %v", won, lost)
			}
			if won {
				b.join("a")
			}
		}
	}},
	{"nodes that join at the same moment get different numbers, and of one name one", func(h *clusterHarness) {
		const nodes, rounds = 3, 50
		all := make([]*node, nodes)
		for i := range all {
			all[i] = h.open(0)
		}
		for round := range rounds {
			var wg sync.WaitGroup
			errs := make([]error, nodes)
			for i, n := range all {
				name := fmt.Sprintf("node %d of round %d", i, round)
				if round%2 == 1 {
					name = fmt.Sprintf("round %d", round)
				}
				wg.Go(func() { n.self, errs[i] = n.Join(ctx, name, nil) })
			}
			wg.Wait()
			numbers, in := make(map[uint16]bool), 0
			for i, n := range all {
				if errs[i] != nil && (round%2 == 0 || !errors.Is(errs[i], herald.ErrInUse)) {
					h.Fatalf("round %d: %v", round, errs[i])
				}
				if errs[i] == nil {
					numbers[n.self.Node] = true
					in++
					n.change(n.self, persistence.Live, persistence.Left)
				}
			}
			if want := []int{nodes, 1}[round%2]; in != want || len(numbers) != want {
				h.Fatalf("round %d: %d have joined, as %v; want %d", round, in, numbers, want)
			}
		}
	}},
	{"a beat is of one life, and follows the one before", func(h *clusterHarness) {
		a, b := h.join("a", 0), h.join("b", 0)
		m := a.self
		now, ok, err := a.Beat(ctx, m, []byte("two"))
		h.noError("beat", err)
		h.equal("beat", []any{ok, now.Beat > m.Beat, string(now.Status), now.Life, now.Name}, []any{true, true, "two", m.Life, "a"})
		if _, ok, err := b.Beat(ctx, m, nil); ok || err != nil {
			h.Fatalf("an old beat: %v, %v", ok, err)
		}
		if ok, err := b.Change(ctx, m, persistence.Live, persistence.Dead); ok || err != nil {
			h.Fatalf("buried, though it has beaten: %v, %v", ok, err)
		}
		all, err := b.Members(ctx)
		h.noError("members", err)
		h.equal("seen", all[now.Node], now)
		b.change(now, persistence.Live, persistence.Dead)
		b.change(now, persistence.Live, persistence.Dead) // who asks again learns the same
		if _, ok, err := a.Beat(ctx, now, nil); ok || err != nil {
			h.Fatalf("the dead beats: %v, %v", ok, err)
		}
		if ok, err := a.Change(ctx, now, persistence.Live, persistence.Left); ok || err != nil {
			h.Fatalf("the dead leaves: %v, %v", ok, err)
		}
	}},
	{"either a node beats or it is buried", func(h *clusterHarness) {
		a, b, c := h.join("a", 0), h.join("b", 0), h.join("c", 0)
		for round := range 30 {
			m := a.self
			var wg sync.WaitGroup
			var beaten, buried, left bool
			var now persistence.Member
			var errs [3]error
			wg.Go(func() { now, beaten, errs[0] = a.Beat(ctx, m, nil) })
			wg.Go(func() { buried, errs[1] = b.Change(ctx, m, persistence.Live, persistence.Dead) })
			if round%2 == 0 {
				wg.Go(func() { left, errs[2] = c.Change(ctx, m, persistence.Live, persistence.Left) })
			}
			wg.Wait()
			h.noError("race", errors.Join(errs[:]...))
			n := 0
			for _, won := range []bool{beaten, buried, left} {
				if won {
					n++
				}
			}
			if n != 1 {
				h.Fatalf("round %d: beaten %v, buried %v, left %v", round, beaten, buried, left)
			}
			if beaten {
				a.self = now
				continue
			}
			if buried {
				h.noError("finish", c.Finish(ctx, m))
				c.change(m, persistence.Dead, persistence.Finished)
			}
			// Beaten or not, a knows by now, or learns it.
			if _, ok, err := a.Beat(ctx, m, nil); ok || err != nil {
				h.Fatalf("beat: %v, %v", ok, err)
			}
			a.join("a")
		}
	}},
}

// fenceTests are about what becomes of the work of a node whose life is over.
var fenceTests = []clusterTest{
	{"a node reads before it has joined, and commits nothing", func(h *clusterHarness) {
		a := h.join("a", 0)
		s := a.session()
		b := h.open(0)
		_, err := b.Session(ctx, persistence.Client, fmt.Sprintf("client-%d", s))
		h.noError("session", err)
		b.fenced("commit", held(s, 1, 5))
		b.join("b")
		b.commit(held(s, 1, 5))
		b.change(b.self, persistence.Live, persistence.Left)
		b.fenced("commit", held(s, 1, 0))
		h.equal("window", a.window(s).Held, []persistence.Held{{Session: s, PacketID: 1, ID: 5}})
	}},
	{"without a lease nothing is committed, and with it again all is", func(h *clusterHarness) {
		a, b := h.join("a", 0), h.join("b", 0)
		s := a.session()
		var valid atomic.Bool
		a.Fence(valid.Load)
		m := message("t", "x")
		a.fenced("commit", &persistence.Batch{Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: []persistence.Target{{Session: s, QoS: 1}}}}})
		a.fenced("packet id", held(s, 1, 5))
		a.fenced("QoS 2", &persistence.Batch{Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: []persistence.Target{{Session: s, QoS: 2}}}},
			Held: []persistence.Held{{Session: s, PacketID: 2, ID: m.ID}}})
		valid.Store(true)
		h.equal("held", b.window(s).Held, []persistence.Held(nil))
		page, err := b.Inbox(ctx, s, 0, ^herald.ID(0), 10, 1<<20, nil)
		h.noError("inbox", err)
		h.equal("inbox", page, []persistence.Entry(nil))
		a.commit(held(s, 1, 6))
		h.equal("held", b.window(s).Held, []persistence.Held{{Session: s, PacketID: 1, ID: 6}})
	}},
	{"a node that dies anywhere in a QoS 2 publish leaves all or nothing of it, once it is finished", diesAnywhere},
	{"what was written before a session was sealed arrives in vain", func(h *clusterHarness) {
		a := h.join("a", 0)
		s, open := a.session(), a.session()
		// What it writes is a minute old, as if it had been on its way for so long.
		late := h.join("late", -time.Minute)
		dead := h.join("dead", 0)
		src, base := a.session(), a.id()
		full := &persistence.Batch{
			Held:  []persistence.Held{{Session: s, PacketID: 1, ID: base + 11}, {Session: s, PacketID: 9, ID: base + 19}, {Session: s, PacketID: 9}},
			Sent:  []persistence.Sent{{Session: s, PacketID: 2, ID: base + 12, Source: src, Step: persistence.Published}, {Session: s, PacketID: 3, ID: base + 13, Step: persistence.Released}},
			Marks: []persistence.Mark{{Session: s, Low: base + 10, Above: []herald.ID{base + 14}}},
		}
		dead.commit(full)
		a.finish(dead)
		before := a.window(s)
		if len(before.Held) != 1 || len(before.Sent) != 2 || before.Low != base+10 {
			h.Fatalf("before: %+v", before)
		}
		a.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: []*herald.Message{{ID: base + 13, Topic: "t", QoS: 2}, {ID: base + 15, Topic: "t", QoS: 2}}, Targets: []persistence.Target{{Session: s, QoS: 2}}}}})
		h.noError("seal", a.Seal(ctx, s))
		h.equal("sealed", a.window(s), before)
		for _, session := range []herald.SessionID{s, open} {
			late.commit(&persistence.Batch{
				Held:  []persistence.Held{{Session: session, PacketID: 1, ID: 0}, {Session: session, PacketID: 4, ID: base + 20}, {Session: session, PacketID: 9, ID: base + 21}},
				Sent:  []persistence.Sent{{Session: session, PacketID: 5, ID: base + 22, Step: persistence.Published}, {Session: session, PacketID: 3, ID: base + 13, Step: persistence.Done}},
				Marks: []persistence.Mark{{Session: session, Low: base + 30}},
			})
		}
		h.equal("after a late write", a.window(s), before)
		if w := a.window(open); len(w.Held) != 2 || len(w.Sent) != 1 || w.Low != base+30 {
			h.Fatalf("the late write does not appear where nothing was sealed: %+v", w)
		}
		page, err := a.Inbox(ctx, s, base+10, ^herald.ID(0), 10, 1<<20, nil)
		h.noError("inbox", err)
		if len(page) != 1 || page[0].Message.ID != base+15 {
			h.Fatalf("inbox: %+v: what was released is due again", page)
		}
		h.noError("seal again", a.Seal(ctx, s))
		a.commit(held(s, 1, 0))
		h.equal("held", a.window(s).Held, []persistence.Held(nil))
	}},
	{"a node's writes are newer than what it has heard of, whatever its clock says", func(h *clusterHarness) {
		a := h.join("a", 0)
		lost := make(map[string]persistence.Member)
		for _, c := range []struct {
			what  string
			learn func(slow *node, s herald.SessionID)
		}{
			// First: who has seen another's end may be ahead of its own IDs.
			{"an ID", func(slow *node, _ herald.SessionID) { slow.Observe(newID()) }},
			{"the window", func(slow *node, s herald.SessionID) { slow.window(s) }},
			{"another's death", func(slow *node, _ herald.SessionID) { h.noError("members", second(slow.Members(ctx))) }},
			{"what it finishes", func(slow *node, _ herald.SessionID) {
				h.noError("finish", slow.Finish(ctx, lost["dead: what it finishes"]))
			}},
		} {
			what, learn := c.what, c.learn
			slow := h.join("slow: "+what, -time.Minute)
			dead := h.join("dead: "+what, 0)
			s := a.session()
			dead.commit(held(s, 1, 5))
			if what != "what it finishes" {
				a.finish(dead)
			} else {
				a.change(dead.self, persistence.Live, persistence.Dead)
			}
			lost[dead.self.Name] = dead.self
			time.Sleep(2 * time.Millisecond) // an ID tells milliseconds
			learn(slow, s)
			slow.commit(held(s, 1, 0))
			if w := a.window(s); len(w.Held) > 0 {
				h.Errorf("who has heard of %s is overtaken: %+v", what, w)
			}
			slow.change(slow.self, persistence.Live, persistence.Left)
		}
	}},
	{"a new life goes on above all that the last one has used, whatever its clock says", func(h *clusterHarness) {
		a := h.join("a", 0)
		s := a.session()
		for round, how := range []string{"dead", "left"} {
			fast := h.join("n", time.Duration(round+1)*time.Minute)
			id := fast.id() + 1<<22*herald.ID((round+1)*60_000)
			fast.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: []*herald.Message{{ID: id, Topic: "t", QoS: 1}}, Targets: []persistence.Target{{Session: s, QoS: 1}}}}})
			fast.commit(held(s, 1, 5))
			if how == "dead" {
				a.finish(fast)
			} else {
				fast.change(fast.self, persistence.Live, persistence.Left)
			}
			slow := h.join("n", 0)
			if slow.MaxID() < id {
				h.Fatalf("%s: the new life begins at %v, and the last one had got to %v", how, slow.MaxID().Time(), id.Time())
			}
			slow.commit(held(s, 1, 0))
			if w := a.window(s); len(w.Held) > 0 {
				h.Fatalf("%s: the new life is overtaken by the last: %+v", how, w)
			}
			slow.change(slow.self, persistence.Live, persistence.Left)
		}
	}},
	{"who asks after another node's acknowledged publish gets that retained message", func(h *clusterHarness) {
		a, b := h.join("a", 0), h.join("b", 0)
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 8 { // others ask all the time
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = b.Retained(ctx, "r")
					}
				}
			})
		}
		defer readers.Wait()
		defer close(stop)
		for i := range 100 {
			m := message("r", fmt.Sprint(i))
			m.Retain = true
			a.commit(&persistence.Batch{Retain: []*herald.Message{m}})
			got, err := b.Retained(ctx, "r")
			h.noError("retained", err)
			h.equal("payload", string(got.Payload), fmt.Sprint(i))
		}
	}},
	{"a claim says whose life it is of, and so does a session", func(h *clusterHarness) {
		a, b := h.join("a", 0), h.join("b", 0)
		c, won, err := a.Claim(ctx, persistence.Client, "c", persistence.Claim{}, a.self.Node, a.self.Life)
		h.noError("claim", err)
		row := persistence.Session{ID: herald.SessionID(a.id()), Name: "c", Version: herald.V5, Node: a.self.Node, Life: 1 << 40}
		will := persistence.Will{Session: row.ID, Client: "c", Message: *message("w", "x"), Node: 3, Life: 1 << 41}
		a.commit(&persistence.Batch{Sessions: []persistence.Session{row}, Wills: []persistence.Will{will}})
		got, err := b.Claimed(ctx, persistence.Client, "c")
		h.noError("claimed", err)
		h.equal("claim", []any{got, won}, []any{persistence.Claim{Owner: a.self.Node, Life: a.self.Life, Epoch: 1}, true})
		h.equal("claim", c, got)
		read, err := b.Session(ctx, persistence.Client, "c")
		h.noError("session", err)
		h.equal("session", read, row)
		wills, err := b.Wills(ctx, time.Now().UnixMilli(), true, 10)
		h.noError("wills", err)
		h.equal("wills", wills, []persistence.Will{will})
	}},
}

func second[T any](_ T, err error) error { return err }

// diesAnywhere lets a node lose its lease when it was asked for the n-th time, for
// every n, and checks what is found after a survivor has finished.
func diesAnywhere(h *clusterHarness) {
	a, b, c := h.join("a", 0), h.join("b", 0), h.join("c", 0)
	s, publisher := b.session(), b.session()
	for n := int64(0); ; n++ {
		var asked atomic.Int64
		a.Fence(func() bool { return asked.Add(1) <= n })
		m := message(fmt.Sprintf("t/%d", n), "x")
		m.QoS, m.Retain = 2, true
		pid := uint16(n + 1)
		done := make(chan error, 1)
		a.Commit(&persistence.Batch{
			Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: []persistence.Target{{Session: s, QoS: 2}}}},
			Retain:  []*herald.Message{m},
			Held:    []persistence.Held{{Session: publisher, PacketID: pid, ID: m.ID}},
		}, func(err error) { done <- err })
		var err error
		waiting := true
		select {
		case err = <-done:
			waiting = false
		case <-time.After(300 * time.Millisecond): // it may wait for a lease
		}
		b.change(a.self, persistence.Live, persistence.Dead)
		var wg sync.WaitGroup
		var errs [2]error
		for i, survivor := range []*node{b, c} {
			wg.Go(func() { errs[i] = survivor.Finish(ctx, a.self) })
		}
		wg.Wait()
		h.noError("finish", errors.Join(errs[:]...))
		b.change(a.self, persistence.Dead, persistence.Finished)

		check := func(when string) int {
			h.Helper()
			got := 0
			for _, x := range b.window(publisher).Held {
				if x.PacketID == pid {
					got++
				}
			}
			page, err := b.Inbox(ctx, s, m.ID-1, m.ID, 10, 1<<20, nil)
			h.noError("inbox", err)
			got += len(page)
			if _, err := b.Retained(ctx, m.Topic); err == nil {
				got++
			} else if !errors.Is(err, herald.ErrNotFound) {
				h.Fatalf("retained: %v", err)
			}
			if got != 0 && got != 3 {
				h.Fatalf("asked %d times, %s: %d of packet id, entry and retained message", n, when, got)
			}
			return got
		}
		found := check("finished")
		// The dead node wakes up, and learns of it.
		if _, ok, err := a.Beat(ctx, a.self, nil); ok || err != nil {
			h.Fatalf("the dead beats: %v, %v", ok, err)
		}
		a.Fence(func() bool { return true })
		if waiting {
			select {
			case err = <-done:
			case <-time.After(patience):
				h.Fatal("a commit outlives the life that it was made in")
			}
		}
		if err == nil && (waiting || found == 0) {
			h.Fatalf("asked %d times: acknowledged, waiting %v, found %d", n, waiting, found)
		}
		if err != nil && !errors.Is(err, herald.ErrUnavailable) {
			h.Fatalf("asked %d times: %v", n, err)
		}
		a.fenced("commit in a life that is over", held(publisher, 999, 1))
		a.join("a")
		if again := check("a new life has begun"); again != found {
			h.Fatalf("asked %d times: %d were found, and now %d", n, found, again)
		}
		if err == nil {
			if n < 2 {
				h.Fatalf("the lease was asked for only %d times", n)
			}
			return
		}
		h.Logf("lost at %d: %d found, %v", n, found, err)
	}
}
