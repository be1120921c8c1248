package conformance

import "fmt"

// retain publishes a retained message and removes it at the end of the case.
func (t *T) retain(pub *client, topic, payload string, qos byte) {
	t.Helper()
	pub.publish(publish{topic: topic, payload: payload, qos: qos, retain: true})
	t.Cleanup(func() {
		// Only tidiness for a broker that lives on; the case may have failed.
		c := t.dial()
		c.conn.Write(join(connect{id: t.id()}.bytes(t.v), publish{topic: topic, retain: true}.bytes(t.v), disconnect))
	})
}

var retainedCases = []scenario{
	{
		name: "stored_with_its_qos", v311: "3.3.1-5 3.3.1-6 3.3.1-8 3.1.2-7", v5: "3.3.1-5 3.3.1-9",
		run: func(t *T) {
			pub := t.anyone()
			for qos := range byte(3) {
				t.retain(pub, t.topic(fmt.Sprint(qos)), fmt.Sprint(qos), qos)
			}
			pub.leave() // what is retained is not part of the session
			for granted := range byte(3) {
				sub := t.subscriber(filter{t.topic("+"), granted})
				seen := map[string]bool{}
				for range 3 {
					p := sub.take()
					seen[p.payload] = true
					if !p.retain || p.dup || p.topic != t.topic(p.payload) || fmt.Sprint(p.qos) != min(p.payload, fmt.Sprint(granted)) {
						t.Errorf("granted QoS %d: %+v", granted, p)
					}
				}
				if len(seen) != 3 {
					t.Errorf("retained messages %v", seen)
				}
				sub.silent()
			}
		},
	},
	{
		name: "replaced", v311: "3.3.1-5 3.3.1-7 3.3.1-6", v5: "3.3.1-5",
		run: func(t *T) {
			pub := t.anyone()
			t.retain(pub, t.topic("a"), "old", 2)
			pub.publish(publish{topic: t.topic("a"), payload: "new", qos: 0, retain: true})
			sub := t.subscriber(filter{t.topic("a"), 2})
			if p := sub.take(); p.payload != "new" || p.qos != 0 {
				t.Fatalf("got %+v", p)
			}
			sub.silent()
		},
	},
	{
		// Packets of one connection take effect in their order, also what is
		// retained at QoS 0.
		name: "there_for_the_next_packet_of_the_connection", v311: "3.3.1-5 3.3.1-6", v5: "3.3.1-5 3.3.1-9",
		run: func(t *T) {
			for qos := range byte(2) { // at QoS 2 a server may wait for PUBREL
				c, topic := t.anyone(), t.topic(fmt.Sprint(qos))
				c.send(publish{topic: topic, payload: "kept", qos: qos, id: 1, retain: true}.bytes(t.v),
					subscribe(t.v, 2, nil, filter{topic, 0}))
				// SUBACK may overtake PUBACK and PUBREC, not the message.
				for f := c.next(); ; f = c.next() {
					if f.kind() != tPublish {
						c.decode(f)
						continue
					}
					if _, p := c.decode(f); p.payload != "kept" || !p.retain {
						t.Errorf("QoS %d: got %+v", qos, p)
					}
					break
				}
			}
		},
	},
	{
		name: "live_has_retain_0", v311: "3.3.1-9", v5: "3.3.1-12",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 2}), t.anyone()
			for qos := range byte(3) {
				t.retain(pub, t.topic("a"), "x", qos)
				if p := sub.take(); p.retain || p.qos != qos {
					t.Fatalf("got %+v", p)
				}
			}
		},
	},
	{
		name: "empty_message_removes", v311: "3.3.1-10 3.3.1-11", v5: "3.3.1-6 3.3.1-7",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 2}), t.anyone()
			for qos := range byte(3) {
				t.retain(pub, t.topic("a"), "x", qos)
				sub.takePayloads("x")
				pub.publish(publish{topic: t.topic("a"), qos: qos, retain: true})
				if p := sub.take(); p.payload != "" || p.retain {
					t.Fatalf("got %+v, want the empty message as any other", p)
				}
				t.subscriber(filter{t.topic("#"), 2}).silent()
			}
		},
	},
	{
		name: "retain_0_does_not_touch_it", v311: "3.3.1-12", v5: "3.3.1-8",
		run: func(t *T) {
			pub := t.anyone()
			t.retain(pub, t.topic("a"), "kept", 1)
			pub.publish(publish{topic: t.topic("a"), payload: "passing", qos: 1})
			pub.publish(publish{topic: t.topic("a"), qos: 1})
			pub.publish(publish{topic: t.topic("b"), payload: "passing", qos: 1})
			sub := t.subscriber(filter{t.topic("#"), 1})
			sub.takePayloads("kept")
			sub.silent()
		},
	},
	{
		name: "filters", v311: "3.3.1-6 4.7.1-2 4.7.1-3", v5: "3.3.1-9 4.7.1-1 4.7.1-2",
		run: func(t *T) {
			pub := t.anyone()
			for _, s := range []string{"p", "p/a", "p/a/b", "p/", "q/a"} {
				t.retain(pub, t.topic(s), s, 1)
			}
			for f, want := range map[string][]string{
				"p/#": {"p", "p/", "p/a", "p/a/b"}, // the parent too
				"p/+": {"p/", "p/a"},
				"+/a": {"p/a", "q/a"},
				"p":   {"p"},
				"+":   {"p"},
				"+/+": {"p/", "p/a", "q/a"},
				"p/x": nil,
			} {
				sub := t.subscriber(filter{t.topic(f), 1})
				seen := map[string]int{}
				for range want {
					seen[sub.take().payload]++
				}
				for _, w := range want {
					if seen[w] != 1 {
						t.Errorf("%s: got %v, want %v", f, seen, want)
						break
					}
				}
				sub.silent()
				sub.leave()
			}
		},
	},
	{
		name: "subscribing_again_resends", v311: "3.8.4-3 3.3.1-6", v5: "3.8.4-4 3.3.1-9",
		run: func(t *T) {
			t.retain(t.anyone(), t.topic("a"), "kept", 1)
			sub := t.subscriber(filter{t.topic("a"), 1})
			sub.takePayloads("kept")
			sub.subscribe(filter{t.topic("a"), 0})
			if p := sub.take(); p.payload != "kept" || p.qos != 0 || !p.retain {
				t.Fatalf("got %+v", p)
			}
		},
	},
	{
		name: "resuming_does_not_resend", v311: "3.3.1-6 4.4.0-1", v5: "3.3.1-9 4.4.0-1",
		run: func(t *T) {
			id := t.id()
			t.retain(t.anyone(), t.topic("a"), "kept", 1)
			sub := t.client(connect{id: id, keep: true})
			sub.subscribe(filter{t.topic("a"), 1})
			sub.takePayloads("kept")
			sub.leave()
			t.client(connect{id: id, keep: true}).silent()
		},
	},
	{
		name: "retain_handling", v5: "3.3.1-9 3.3.1-10 3.3.1-11",
		run: func(t *T) {
			t.retain(t.anyone(), t.topic("a"), "kept", 1)
			sub := t.anyone()
			for i, step := range []struct {
				opts byte
				sent bool
			}{
				{1 | retainHandling2, false},
				{1 | retainHandling1, false}, // the subscription is there
				{1, true},
				{1, true},
				{1 | retainHandling1, false},
				{1 | retainHandling2, false},
			} {
				sub.subscribe(filter{t.topic("a"), step.opts})
				if step.sent {
					sub.takePayloads("kept")
				} else {
					sub.silent()
				}
				t.Logf("step %d", i)
			}
			sub.send(unsubscribe(t.v, 99, t.topic("a")))
			sub.acked(tUnsuback, 99)
			sub.subscribe(filter{t.topic("a"), 1 | retainHandling1})
			sub.takePayloads("kept") // new again
		},
	},
	{
		name: "retain_handling_1_on_a_resumed_session", v5: "3.3.1-10",
		run: func(t *T) {
			id := t.id()
			t.retain(t.anyone(), t.topic("a"), "kept", 1)
			sub := t.client(connect{id: id, keep: true})
			sub.subscribe(filter{t.topic("a"), 1 | retainHandling1})
			sub.takePayloads("kept")
			sub.leave()
			sub = t.client(connect{id: id, keep: true})
			sub.subscribe(filter{t.topic("a"), 1 | retainHandling1})
			sub.silent()
		},
	},
	{
		name: "retain_as_published", v5: "3.3.1-13 3.3.1-12",
		run: func(t *T) {
			as, plain, pub := t.subscriber(filter{t.topic("a"), 1 | retainAsPub}), t.subscriber(filter{t.topic("a"), 1}), t.anyone()
			for _, retain := range []bool{false, true} {
				if retain {
					t.retain(pub, t.topic("a"), "x", 1)
				} else {
					pub.publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
				}
				if p := as.take(); p.retain != retain {
					t.Errorf("RETAIN %t to retain as published, published with %t", p.retain, retain)
				}
				if p := plain.take(); p.retain {
					t.Errorf("RETAIN 1 without retain as published, published with %t", retain)
				}
			}
			// What comes because of the subscription has RETAIN 1 either way.
			if p := t.subscriber(filter{t.topic("a"), 1}).take(); !p.retain {
				t.Error("a retained message has RETAIN 0")
			}
		},
	},
	{
		name: "retain_as_published_while_away", v5: "3.3.1-13",
		run: func(t *T) {
			id := t.id()
			sub := t.client(connect{id: id, keep: true})
			sub.subscribe(filter{t.topic("a"), 1 | retainAsPub}, filter{t.topic("b"), 1})
			sub.leave()
			pub := t.anyone()
			t.retain(pub, t.topic("a"), "a", 1)
			t.retain(pub, t.topic("b"), "b", 1)
			sub = t.client(connect{id: id, keep: true})
			for range 2 {
				if p := sub.take(); p.retain != (p.payload == "a") {
					t.Errorf("got %+v", p)
				}
			}
		},
	},
	{
		name: "many", v311: "3.3.1-6", v5: "3.3.1-9",
		run: func(t *T) {
			const n = 1500 // above what some brokers send before they stop
			pub := t.anyone()
			for i := range n {
				pub.send(publish{topic: t.topic(fmt.Sprint("many/", i)), payload: fmt.Sprint(i), retain: true}.bytes(t.v))
			}
			pub.fence()
			sub := t.subscriber(filter{t.topic("many/#"), 1})
			seen := map[string]bool{}
			for range n {
				seen[sub.take().payload] = true
			}
			if len(seen) != n {
				t.Fatalf("%d retained messages, want %d", len(seen), n)
			}
			for i := range n {
				pub.send(publish{topic: t.topic(fmt.Sprint("many/", i)), retain: true}.bytes(t.v))
			}
			pub.fence()
			t.subscriber(filter{t.topic("many/#"), 1}).silent()
		},
	},
}
