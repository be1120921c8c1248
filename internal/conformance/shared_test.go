package conformance

import "fmt"

// share is a shared filter of this case's own.
func (t *T) share(group, s string) string { return "$share/" + group + "/" + t.topic(s) }

// counts collects n messages from several clients, whoever gets them, and
// demands each payload once. It returns how many each got.
func counts(t *T, n int, clients ...*client) []int {
	t.Helper()
	out := make([]int, len(clients))
	seen := map[string]int{}
	for i, c := range clients {
		c.send(pingreq)
		// Messages were published with an acknowledgement before; a second ping
		// after a quiet moment makes sure that none is left behind.
		for {
			f, err := c.read(quietTime)
			if err != nil {
				break
			}
			if f.kind() == tPingresp {
				continue
			}
			_, p := c.decode(f)
			c.settle(p)
			seen[p.payload]++
			out[i]++
		}
	}
	for p, k := range seen {
		if k != 1 {
			t.Fatalf("%q came %d times", p, k)
		}
	}
	if len(seen) != n {
		t.Fatalf("%d messages came, want %d", len(seen), n)
	}
	return out
}

var sharedCases = []scenario{
	{
		name: "one_member_gets_each_message", v5: "4.8.2-1 4.8.2-3",
		run: func(t *T) {
			const n = 30
			a, b, pub := t.anyone(), t.anyone(), t.anyone()
			other, plain := t.anyone(), t.anyone()
			a.subscribe(filter{t.share("g", "x/+"), 1})
			b.subscribe(filter{t.share("g", "x/+"), 1})
			other.subscribe(filter{t.share("other", "x/+"), 1})
			plain.subscribe(filter{t.topic("x/+"), 1})
			for i := range n {
				pub.publish(publish{topic: t.topic("x/y"), payload: fmt.Sprint(i), qos: 1})
			}
			got := counts(t, n, a, b)
			if got[0] == 0 || got[1] == 0 {
				t.Errorf("members got %v, want both to get some", got)
			}
			counts(t, n, other)
			counts(t, n, plain)
		},
	},
	{
		name: "shared_in_3_1_1", v311: "3.3.2-3",
		run: func(t *T) {
			const n = 10
			a, b, pub := t.anyone(), t.anyone(), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 1})
			b.subscribe(filter{t.share("g", "x"), 1})
			for i := range n {
				pub.publish(publish{topic: t.topic("x"), payload: fmt.Sprint(i), qos: 1})
			}
			counts(t, n, a, b)
		},
	},
	{
		name: "each_member_its_granted_qos", v5: "4.8.2-3",
		run: func(t *T) {
			for qos := range byte(3) {
				c, pub := t.anyone(), t.anyone()
				c.subscribe(filter{t.share("g", "x"), qos})
				for sent := range byte(3) {
					pub.publish(publish{topic: t.topic("x"), payload: "x", qos: sent})
					if p := c.take(); p.qos != min(sent, qos) {
						t.Errorf("granted %d, published %d: QoS %d", qos, sent, p.qos)
					}
				}
				c.leave()
			}
		},
	},
	{
		name: "bad_shared_filters", v5: "4.8.2-1 4.8.2-2", bad: true,
		run: func(t *T) {
			for _, f := range []string{"$share//t", "$share/", "$share/g", "$share/g/", "$share/+/t", "$share/g+/t", "$share/#/t",
				"$share/g/a#", "$share/g/a+"} {
				c := t.anyone()
				c.send(subscribe(t.v, 1, nil, filter{f, 0}))
				got, err := c.read(patience)
				if err != nil {
					t.Errorf("%q: %v", f, err)
					continue
				}
				a, _ := c.decode(got)
				if !(a.kind == tSuback && len(a.codes) == 1 && a.codes[0] >= 0x80) && !(a.kind == tDisconnect && a.reason >= 0x80) {
					t.Errorf("%q: got %v, want it refused", f, got)
				}
			}
		},
	},
	{
		name: "no_local_on_a_shared_subscription", v5: "3.8.3-4 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(subscribe(t.v, 1, nil, filter{t.share("g", "x"), 1 | noLocal}))
			c.refused(0x82)
		},
	},
	{
		name: "no_retained_messages", v5: "3.3.1-9 4.8.2-1",
		run: func(t *T) {
			t.retain(t.anyone(), t.topic("x"), "kept", 1)
			c := t.subscriber(filter{t.share("g", "x"), 1})
			c.silent()
			c.subscribe(filter{t.topic("x"), 1})
			c.takePayloads("kept")
		},
	},
	{
		name: "leaving_the_group", v5: "3.10.4-2 4.8.2-1",
		run: func(t *T) {
			const n = 10
			a, b, pub := t.anyone(), t.anyone(), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 1})
			b.subscribe(filter{t.share("g", "x"), 1})
			a.send(unsubscribe(t.v, 99, t.share("g", "x"), t.topic("x")))
			if u := a.acked(tUnsuback, 99); string(u.codes) != "\x00\x11" {
				t.Fatalf("codes % x, want 00 11", u.codes)
			}
			for i := range n {
				pub.publish(publish{topic: t.topic("x"), payload: fmt.Sprint(i), qos: 1})
			}
			counts(t, n, b)
			a.silent()
		},
	},
	{
		name: "shared_and_plain_side_by_side", v5: "3.3.4-3 4.8.2-1",
		run: func(t *T) {
			c, pub := t.anyone(), t.anyone()
			c.subscribeID(1, filter{t.topic("x"), 0})
			c.subscribeID(2, filter{t.share("g", "x"), 0})
			pub.publish(publish{topic: t.topic("x"), payload: "x"})
			// One copy for each of them, or one with both identifiers.
			ids := map[uint32]int{}
			for len(ids) < 2 {
				for _, i := range find(c.take().received, pSubscriptionID) {
					ids[i.num]++
				}
			}
			if ids[1] != 1 || ids[2] != 1 {
				t.Fatalf("identifiers %v", ids)
			}
			c.silent()
		},
	},
	{
		name: "qos_2_is_completed_by_its_member", v5: "4.8.2-4",
		run: func(t *T) {
			id := t.id()
			a, pub := t.client(connect{id: id, keep: true}), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 2})
			pub.publish(publish{topic: t.topic("x"), payload: "x", qos: 2})
			p := a.message()
			b := t.subscriber(filter{t.share("g", "x"), 2})
			a.drop()
			b.silent()
			a = t.client(connect{id: id, keep: true})
			again := a.message()
			if again.id != p.id || !again.dup || again.payload != "x" {
				t.Fatalf("got %+v, want the message again", again)
			}
			a.settle(again)
			b.silent()
		},
	},
	{
		name: "qos_2_of_an_ended_session_goes_to_no_one", v5: "4.8.2-5",
		run: func(t *T) {
			a, pub := t.anyone(), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 2})
			pub.publish(publish{topic: t.topic("x"), payload: "x", qos: 2})
			a.message()
			b := t.subscriber(filter{t.share("g", "x"), 2})
			a.drop() // ends the session
			b.silent()
		},
	},
	{
		name: "refused_message_goes_to_no_one", v5: "4.8.2-6",
		run: func(t *T) {
			a, pub := t.anyone(), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 2})
			for qos := byte(1); qos < 3; qos++ {
				pub.publish(publish{topic: t.topic("x"), payload: "x", qos: qos})
				p := a.message()
				a.send(ackReason([]byte{0, tPuback, tPubrec}[qos], p.id, 0x80))
				a.silent()
			}
			b := t.subscriber(filter{t.share("g", "x"), 2})
			b.silent()
			a.leave()
			b.silent()
		},
	},
	{
		// Herald's own promise (the specification allows the loss).
		name: "qos_1_of_an_ended_session_goes_to_another_member", v5: "4.8.2-3",
		run: func(t *T) {
			if !broker.own {
				t.Skip("a promise of Herald, not of the specification")
			}
			const n = 6
			a, pub := t.anyone(), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 1})
			for i := range n {
				pub.publish(publish{topic: t.topic("x"), payload: fmt.Sprint(i), qos: 1})
			}
			for range n {
				a.message() // none is acknowledged
			}
			b := t.subscriber(filter{t.share("g", "x"), 1})
			a.drop() // ends the session
			seen := map[string]bool{}
			for range n {
				seen[b.take().payload] = true
			}
			if len(seen) != n {
				t.Fatalf("%v came, want %d", seen, n)
			}
		},
	},
	{
		name: "member_that_is_away", v5: "4.5.0-1 4.8.2-1",
		run: func(t *T) {
			const n = 6
			id := t.id()
			a, pub := t.client(connect{id: id, keep: true}), t.anyone()
			a.subscribe(filter{t.share("g", "x"), 1})
			a.leave()
			for i := range n {
				pub.publish(publish{topic: t.topic("x"), payload: fmt.Sprint(i), qos: 1})
			}
			a = t.client(connect{id: id, keep: true})
			counts(t, n, a)
		},
	},
}

var topicCases = []scenario{
	{
		name: "matching", v311: "4.7.1-2 4.7.1-3 3.3.2-3 4.7.3-4", v5: "4.7.1-1 4.7.1-2 3.3.2-3 4.7.3-4",
		run: func(t *T) {
			topics := []string{"a", "a/", "/a", "a/b", "a/b/c", "a//c", "A", "a ", "a/$x", "ä", "a\u0308"}
			pub := t.anyone()
			for f, want := range map[string]string{
				"#":     "a|a/|/a|a/b|a/b/c|a//c|A|a |a/$x|ä|a\u0308",
				"a/#":   "a|a/|a/b|a/b/c|a//c|a/$x", // the parent too
				"a":     "a",
				"a/":    "a/",
				"/a":    "/a",
				"+":     "a|A|a |ä|a\u0308",
				"a/+":   "a/|a/b|a/$x",
				"+/+":   "a/|/a|a/b|a/$x",
				"+/a":   "/a",
				"a/+/c": "a/b/c|a//c",
				"a//c":  "a//c",
				"+/b/#": "a/b|a/b/c",
				"A":     "A",
				"ä":     "ä",
			} {
				sub := t.subscriber(filter{t.topic(f), 1}, filter{t.topic("fence") + "!", 1})
				for _, topic := range topics {
					pub.publish(publish{topic: t.topic(topic), payload: topic, qos: 1})
				}
				got := ""
				pub.publish(publish{topic: t.topic("fence") + "!", payload: "fence", qos: 1})
				for p := sub.take(); p.payload != "fence"; p = sub.take() {
					if p.topic != t.topic(p.payload) {
						t.Errorf("%q came under topic %q", p.payload, p.topic)
					}
					if got != "" {
						got += "|"
					}
					got += p.payload
				}
				if f == "#" || f == "+" { // the fence matches too, and comes once
					sub.quiet()
				}
				if got != want {
					t.Errorf("%s: got %s, want %s", f, got, want)
				}
				sub.leave()
			}
		},
	},
	{
		name: "wildcards_and_dollar_topics", v311: "4.7.2-1", v5: "4.7.2-1",
		run: func(t *T) {
			everything.Lock()
			defer everything.Unlock()
			id := t.prefix
			all, plus, some := t.subscriber(filter{"#", 1}), t.subscriber(filter{"+/" + id, 0}), t.subscriber(filter{"$" + id + "/#", 0})
			pub := t.anyone()
			pub.publish(publish{topic: "$" + id + "/" + id, payload: "hidden"})
			pub.publish(publish{topic: "x/" + id, payload: "seen", qos: 1}) // all gets much else, and may drop at QoS 0
			plus.takePayloads("seen")
			for p := all.take(); p.payload != "seen" || p.topic != "x/"+id; p = all.take() {
				if p.topic[0] == '$' {
					t.Fatalf("# got %q", p.topic)
				}
			}
			// The broker may refuse $ topics; if not, naming one gets it.
			if f, err := some.read(quietTime); err == nil {
				if _, p := some.decode(f); p.payload != "hidden" {
					t.Fatalf("got %+v", p)
				}
			}
			all.leave()
		},
	},
	{
		name: "sys_is_not_under_a_wildcard", v311: "4.7.2-1", v5: "4.7.2-1",
		run: func(t *T) {
			sys := t.subscriber(filter{"$SYS/broker/version", 0})
			if p := sys.take(); p.payload == "" || !p.retain {
				t.Fatalf("$SYS/broker/version: %+v", p)
			}
			wild := t.subscriber(filter{"+/broker/version", 0})
			wild.silent()
		},
	},
	{
		name: "longest_topic", v311: "4.7.3-3", v5: "4.7.3-3",
		run: func(t *T) {
			long := t.topic("")
			for len(long) < 65535 {
				long += "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
			}
			long = long[:65535]
			sub, pub := t.subscriber(filter{long, 1}, filter{t.topic("+"), 0}), t.anyone()
			pub.publish(publish{topic: long, payload: "x", qos: 1})
			if p := sub.take(); p.topic != long {
				t.Fatalf("topic of %d bytes", len(p.topic))
			}
		},
	},
	{
		name: "topics_are_case_sensitive_and_may_hold_spaces", v311: "4.7.3-4", v5: "4.7.3-4",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("Größe in m"), 1}), t.anyone()
			for _, s := range []string{"größe in m", "Größe  in m", "Größe in m"} {
				pub.publish(publish{topic: t.topic(s), payload: s, qos: 1})
			}
			sub.takePayloads("Größe in m")
			sub.silent()
		},
	},
}
