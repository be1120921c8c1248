package conformance

import "fmt"

var subscribeCases = []scenario{
	{
		name: "suback", v311: "3.8.4-1 3.8.4-2 3.8.4-5 3.9.3-1 3.9.3-2 2.3.1-7", v5: "3.8.4-1 3.8.4-2 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2 2.2.1-6",
		run: func(t *T) {
			c := t.anyone()
			c.send(subscribe(t.v, 513, nil, filter{t.topic("a"), 2}, filter{t.topic("b"), 0}, filter{t.topic("c"), 1},
				filter{t.topic("d"), 0}))
			if a := c.acked(tSuback, 513); string(a.codes) != "\x02\x00\x01\x00" {
				t.Fatalf("codes % x, want 02 00 01 00", a.codes)
			}
		},
	},
	{
		name: "several_filters_act_like_several_subscribes", v311: "3.8.4-4", v5: "3.8.4-5",
		run: func(t *T) {
			one, many, pub := t.anyone(), t.anyone(), t.anyone()
			fs := []filter{{t.topic("a"), 0}, {t.topic("b/+"), 1}, {t.topic("c/#"), 2}, {t.topic("a"), 2}}
			one.subscribe(fs...)
			for _, f := range fs {
				many.subscribe(f)
			}
			for _, s := range []string{"a", "b/x", "c", "c/y/z", "d"} {
				pub.publish(publish{topic: t.topic(s), payload: s, qos: 2})
			}
			for i, s := range []string{"a", "b/x", "c", "c/y/z"} {
				for _, c := range []*client{one, many} {
					if p := c.take(); p.payload != s || p.qos != []byte{2, 1, 2, 2}[i] {
						t.Fatalf("got %+v, want %s", p, s)
					}
				}
			}
			one.silent()
			many.silent()
		},
	},
	{
		name: "bad_filters_are_refused", v311: "4.7.1-2 4.7.1-3 4.7.3-1", v5: "4.7.1-1 4.7.1-2 4.7.3-1", bad: true,
		run: func(t *T) {
			// Refused by closing the connection or in SUBACK, never granted.
			for _, f := range []string{"", "a#", "a/#/b", "#/a", "a/b#", "a+", "+a/b", "a/+b", "a/b+/c", "++", "##"} {
				c := t.anyone()
				c.send(subscribe(t.v, 1, nil, filter{f, 0}))
				got, err := c.read(patience)
				switch {
				case err != nil && !gone(err):
					t.Errorf("%q: %v", f, err)
				case err != nil && t.v == V5:
					t.Errorf("%q: closed without DISCONNECT", f)
				case err != nil:
				case got.kind() == tSuback:
					if a, _ := c.decode(got); len(a.codes) != 1 || a.codes[0] < 0x80 {
						t.Errorf("%q: SUBACK % x", f, a.codes)
					}
				case got.kind() == tDisconnect && t.v == V5:
					if a, _ := c.decode(got); a.reason < 0x80 {
						t.Errorf("%q: DISCONNECT 0x%02x", f, a.reason)
					}
				default:
					t.Errorf("%q: got %v", f, got)
				}
			}
		},
	},
	{
		name: "no_filter", v311: "3.8.3-3 4.8.0-1", v5: "3.8.3-2 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(subscribe(t.v, 1, nil))
			c.refused()
		},
	},
	{
		// One broker that many embed dies of this in MQTT 5.
		name: "no_options_byte", v311: "3.8.3-3", v5: "3.8.3-2 4.13.1-1", bad: true,
		run: func(t *T) {
			for _, body := range [][]byte{
				str(t.topic("a")),
				join(str(t.topic("a")), []byte{1}, str(t.topic("b"))),
				join(str(t.topic("a")), []byte{1, 0}),
				join(str(t.topic("a")), []byte{1}, u16(100), []byte("short")),
				u16(5),
			} {
				c := t.anyone()
				c.send(packet(tSubscribe<<4|2, u16(1), versionProps(t.v), body))
				c.refused(0x81, 0x82, 0x8F)
			}
		},
	},
	{
		name: "reserved_bits_in_options", v311: "3.8.3-4", v5: "3.8.3-5", bad: true,
		run: func(t *T) {
			bits := []byte{0x40, 0x80, 0xC0, 0x03, 0x30} // reserved, QoS 3, retain handling 3
			if t.v == V311 {
				bits = []byte{0x03, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80}
			}
			for _, b := range bits {
				c := t.anyone()
				c.send(subscribe(t.v, 1, nil, filter{t.topic("a"), b}))
				c.refused()
			}
		},
	},
	{
		name: "subscribing_again_replaces", v311: "3.8.4-3", v5: "3.8.4-3",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			for qos := range byte(3) {
				sub.subscribe(filter{topic, qos})
				pub.publish(publish{topic: topic, payload: "x", qos: 2})
				if p := sub.take(); p.qos != qos {
					t.Fatalf("QoS %d, want %d", p.qos, qos)
				}
			}
			sub.silent()
		},
	},
	{
		name: "replacing_loses_nothing", v311: "3.8.4-3", v5: "3.8.4-4 3.8.4-3",
		run: func(t *T) {
			const n = 300
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 1}), t.anyone()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range n {
					pub.conn.Write(publish{topic: topic, payload: fmt.Sprint(i), qos: 1, id: uint16(i + 1)}.bytes(t.v))
					if _, err := pub.read(patience); err != nil {
						return
					}
				}
			}()
			next := 0
			for next < n {
				if next%10 == 0 {
					sub.send(subscribe(t.v, uint16(next+1), nil, filter{topic, 1}))
				}
				f := sub.next()
				for ; f.kind() == tSuback; f = sub.next() {
				}
				_, p := sub.decode(f)
				if p.payload != fmt.Sprint(next) {
					t.Fatalf("got %v, want message %d", f, next)
				}
				sub.send(ack(tPuback, p.id))
				next++
			}
			<-done
		},
	},
	{
		name: "no_local", v5: "3.8.3-3",
		run: func(t *T) {
			topic, id := t.topic("a"), t.id()
			c := t.client(connect{id: id, keep: true})
			other := t.anyone()
			c.subscribe(filter{topic, 2 | noLocal})
			other.subscribe(filter{topic, 2 | noLocal})
			for qos := range byte(3) {
				c.publish(publish{topic: topic, payload: "own", qos: qos})
				other.takePayloads("own")
			}
			other.publish(publish{topic: topic, payload: "other's", qos: 1})
			c.takePayloads("other's")
			// The client id counts, not the connection.
			c.leave()
			c = t.client(connect{id: id, keep: true})
			c.publish(publish{topic: topic, payload: "own", qos: 1})
			other.takePayloads("own")
			c.silent()
		},
	},
	{
		name: "no_local_beside_another_subscription", v5: "3.8.3-3 3.3.4-2",
		run: func(t *T) {
			topic := t.topic("a")
			c := t.anyone()
			c.subscribe(filter{topic, 1 | noLocal}, filter{t.topic("+"), 0})
			c.send(publish{topic: topic, payload: "x"}.bytes(t.v))
			if p := c.message(); p.payload != "x" || p.qos != 0 {
				t.Fatalf("got %+v", p)
			}
			c.silent()
		},
	},
	{
		name: "own_messages_without_no_local", v311: "3.3.2-3", v5: "3.8.3-3",
		run: func(t *T) {
			topic := t.topic("a")
			c := t.subscriber(filter{topic, 0})
			c.send(publish{topic: topic, payload: "own"}.bytes(t.v))
			c.takePayloads("own")
		},
	},
	{
		name: "subscribe_properties_out_of_range", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for name, props := range map[string][][]byte{
				"subscription identifier 0":           {propVar(pSubscriptionID, 0)},
				"subscription identifier twice":       {propVar(pSubscriptionID, 1), propVar(pSubscriptionID, 2)},
				"subscription identifier without end": {{pSubscriptionID, 0xff, 0xff, 0xff, 0xff, 0x01}},
				"topic alias":                         {prop16(pAlias, 1)},
				"reason string":                       {propStr(pReasonString, "x")},
				"an unknown property":                 {prop8(0x7e, 1)},
			} {
				t.Log(name)
				c := t.anyone()
				c.send(subscribe(t.v, 1, props, filter{t.topic("a"), 0}))
				c.refused()
			}
		},
	},
	{
		name: "suback_before_messages", v311: "3.8.4-1", v5: "3.8.4-1 3.3.1-9",
		run: func(t *T) {
			t.retain(t.anyone(), t.topic("a"), "kept", 1)
			c := t.anyone()
			c.send(subscribe(t.v, 1, [][]byte{propPair("k", "v")}, filter{t.topic("a"), 1}))
			c.acked(tSuback, 1)
			c.takePayloads("kept")
		},
	},
	{
		name: "subscription_counts_from_suback_on", v311: "4.5.0-1", v5: "4.5.0-1",
		run: func(t *T) {
			pub := t.anyone()
			for i := range 20 {
				topic := t.topic(fmt.Sprint(i))
				sub := t.subscriber(filter{topic, 1})
				pub.publish(publish{topic: topic, payload: "x", qos: 1})
				sub.takePayloads("x")
				sub.leave()
			}
		},
	},
}

var unsubscribeCases = []scenario{
	{
		name: "unsuback", v311: "3.10.4-4 3.10.4-5", v5: "3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2",
		run: func(t *T) {
			c := t.subscriber(filter{t.topic("a"), 0}, filter{t.topic("b"), 0})
			c.send(unsubscribe(t.v, 777, t.topic("a"), t.topic("none"), t.topic("b")))
			a := c.acked(tUnsuback, 777)
			if t.v == V5 && string(a.codes) != "\x00\x11\x00" {
				t.Fatalf("codes % x, want 00 11 00", a.codes)
			}
			c.send(unsubscribe(t.v, 778, t.topic("a")))
			if a := c.acked(tUnsuback, 778); t.v == V5 && string(a.codes) != "\x11" {
				t.Fatalf("codes % x, want 11", a.codes)
			}
		},
	},
	{
		name: "only_the_equal_filter_goes", v311: "3.10.4-1 3.10.4-2 3.10.4-6", v5: "3.10.4-1 3.10.4-2 3.10.4-6",
		run: func(t *T) {
			sub, pub := t.anyone(), t.anyone()
			sub.subscribe(filter{t.topic("a"), 1}, filter{t.topic("+"), 0}, filter{t.topic("b"), 1}, filter{t.topic("c/#"), 1})
			sub.send(unsubscribe(t.v, 99, t.topic("A"), t.topic("#"), t.topic("b"), t.topic("c/d")))
			sub.acked(tUnsuback, 99)
			for _, s := range []string{"a", "b", "c/d"} {
				pub.publish(publish{topic: t.topic(s), payload: s, qos: 1})
			}
			for i, s := range []string{"a", "b", "c/d"} {
				if p := sub.take(); p.payload != s || p.qos != []byte{1, 0, 1}[i] {
					t.Fatalf("got %+v, want %s", p, s)
				}
			}
			sub.send(unsubscribe(t.v, 100, t.topic("+"), t.topic("c/#")))
			sub.acked(tUnsuback, 100)
			for _, s := range []string{"b", "c/d", "a"} {
				pub.publish(publish{topic: t.topic(s), payload: s, qos: 1})
			}
			sub.takePayloads("a")
			sub.silent()
		},
	},
	{
		name: "deliveries_that_have_begun_are_completed", v311: "3.10.4-3", v5: "3.10.4-3",
		run: func(t *T) {
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 2})
			pub.publish(publish{topic: t.topic("a"), payload: "1", qos: 1})
			pub.publish(publish{topic: t.topic("a"), payload: "2", qos: 2})
			one, two := sub.message(), sub.message()
			sub.send(unsubscribe(t.v, 99, t.topic("a")))
			sub.acked(tUnsuback, 99)
			sub.send(ack(tPubrec, two.id))
			sub.acked(tPubrel, two.id)
			sub.drop()
			sub = t.client(connect{id: id, keep: true})
			// PUBLISH and PUBREL have no order between them.
			seen := map[byte]uint16{}
			for range 2 {
				f := sub.next()
				a, p := sub.decode(f)
				if f.kind() == tPublish && !p.dup {
					t.Errorf("got %+v, want DUP 1", p)
				}
				seen[f.kind()] = a.id | p.id
			}
			if seen[tPublish] != one.id || seen[tPubrel] != two.id {
				t.Fatalf("resent %v, want PUBLISH %d and PUBREL %d", seen, one.id, two.id)
			}
			sub.send(ack(tPuback, one.id), ack(tPubcomp, two.id))
			sub.silent()
		},
	},
	{
		name: "no_filter", v311: "3.10.3-2 4.8.0-1", v5: "3.10.3-2 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(unsubscribe(t.v, 1))
			c.refused()
		},
	},
	{
		name: "filter_cut_short", v311: "3.10.3-1", v5: "3.10.3-1 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(packet(tUnsubscribe<<4|2, u16(1), versionProps(t.v), u16(50), []byte("short")))
			c.refused()
		},
	},
	{
		name: "unsubscribed_while_away", v311: "3.10.4-2 3.1.2-4", v5: "3.10.4-2 3.1.2-5",
		run: func(t *T) {
			id := t.id()
			sub := t.client(connect{id: id, keep: true})
			sub.subscribe(filter{t.topic("a"), 1}, filter{t.topic("b"), 1})
			sub.send(unsubscribe(t.v, 99, t.topic("a")))
			sub.acked(tUnsuback, 99)
			sub.leave()
			pub := t.anyone()
			pub.publish(publish{topic: t.topic("a"), payload: "a", qos: 1})
			pub.publish(publish{topic: t.topic("b"), payload: "b", qos: 1})
			sub = t.client(connect{id: id, keep: true})
			sub.takePayloads("b")
			sub.silent()
		},
	},
}
