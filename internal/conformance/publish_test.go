package conformance

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// wantProps demands exactly these properties; order counts among those with
// the same identifier only.
func wantProps(t *T, p publish, want ...prop) {
	t.Helper()
	byID := func(a, b prop) int { return int(a.id) - int(b.id) }
	got := slices.Clone(p.received)
	slices.SortStableFunc(got, byID)
	slices.SortStableFunc(want, byID)
	if !slices.Equal(got, want) {
		t.Fatalf("properties %+v, want %+v", got, want)
	}
}

var publishCases = []scenario{
	{
		name: "every_qos_to_every_qos", v311: "3.8.4-6 3.3.2-3 4.5.0-1 3.3.4-1 3.3.1-9",
		v5: "3.8.4-8 3.3.2-3 4.5.0-1 3.3.4-1 3.3.1-12",
		run: func(t *T) {
			pub := t.anyone()
			for granted := range byte(3) {
				topic := t.topic(fmt.Sprint(granted))
				sub := t.subscriber(filter{topic, granted})
				for sent := range byte(3) {
					pub.publish(publish{topic: topic, payload: fmt.Sprint(sent), qos: sent})
					p := sub.take()
					if p.qos != min(sent, granted) || p.dup || p.retain || p.topic != topic || p.payload != fmt.Sprint(sent) {
						t.Errorf("QoS %d to a subscription of QoS %d: %+v", sent, granted, p)
					}
				}
			}
		},
	},
	{
		name: "dup_is_not_passed_on", v311: "3.3.1-3", v5: "3.3.1-3",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			for qos := byte(1); qos < 3; qos++ {
				pub.publish(publish{topic: topic, payload: "x", qos: qos, dup: true})
				if p := sub.take(); p.dup || p.qos != qos {
					t.Fatalf("got %+v, want DUP 0 and QoS %d", p, qos)
				}
			}
		},
	},
	{
		name: "dup_at_qos_0", v311: "3.3.1-2 4.8.0-1", v5: "3.3.1-2 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(publish{topic: t.topic("a"), dup: true}.bytes(t.v))
			c.refused()
		},
	},
	{
		name: "qos_3", v311: "3.3.1-4 4.8.0-1", v5: "3.3.1-4 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(publish{topic: t.topic("a"), qos: 3, id: 1}.bytes(t.v))
			c.refused(0x81)
		},
	},
	{
		name: "wildcard_in_topic_name", v311: "3.3.2-2 4.7.1-1", v5: "3.3.2-2 4.7.0-1", bad: true,
		run: func(t *T) {
			for _, topic := range []string{"#", "+", "a/#", "a/+/b", "a+", "a#b"} {
				for qos := range byte(3) {
					c := t.anyone()
					c.send(publish{topic: topic, qos: qos, id: 1}.bytes(t.v))
					c.refused(0x81, 0x82, 0x90)
				}
			}
		},
	},
	{
		name: "empty_topic_name", v311: "4.7.3-1 3.3.2-1", v5: "4.7.3-1 3.3.2-1", bad: true,
		run: func(t *T) {
			for qos := range byte(3) {
				c := t.anyone()
				c.send(publish{qos: qos, id: 1}.bytes(t.v))
				c.refused(0x81, 0x82, 0x90)
			}
		},
	},
	{
		name: "empty_payload", v311: "3.3.4-1", v5: "3.3.4-1",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 2}), t.anyone()
			for qos := range byte(3) {
				pub.publish(publish{topic: t.topic("a"), qos: qos})
				if p := sub.take(); p.payload != "" || p.qos != qos {
					t.Fatalf("got %+v", p)
				}
			}
		},
	},
	{
		name: "large_payload", v311: "3.3.4-1", v5: "3.3.4-1",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 2}), t.anyone()
			body := strings.Repeat("0123456789abcdef", 1<<12)
			for qos := range byte(3) {
				pub.publish(publish{topic: t.topic("a"), payload: body, qos: qos})
				if p := sub.take(); p.payload != body {
					t.Fatalf("%d bytes of payload, want %d", len(p.payload), len(body))
				}
			}
		},
	},
	{
		// Allowed or not, a PUBLISH to $SYS is answered.
		name: "publish_to_sys_is_answered", v311: "3.3.5-2", v5: "3.3.4-1 3.4.2-1 3.5.2-1",
		run: func(t *T) {
			c := t.anyone()
			topic := "$SYS/broker/" + t.prefix
			c.send(publish{topic: topic, payload: "x", qos: 1, id: 1}.bytes(t.v))
			c.acked(tPuback, 1)
			c.send(publish{topic: topic, payload: "x", qos: 2, id: 2}.bytes(t.v))
			if a := c.acked(tPubrec, 2); a.reason < 0x80 {
				c.send(ack(tPubrel, 2))
				c.acked(tPubcomp, 2)
			}
			c.send(publish{topic: topic, payload: "x"}.bytes(t.v))
			c.ping()
		},
	},
	{
		// What the specification leaves open, mosquitto and EMQX do alike.
		name: "no_matching_subscribers", v5: "3.4.2-1 3.5.2-1",
		run: func(t *T) {
			everything.RLock()
			defer everything.RUnlock()
			c := t.anyone()
			for qos := byte(1); qos < 3; qos++ {
				// At QoS 2 mosquitto and Herald say 0x00, EMQX 0x10.
				if r := c.publish(publish{topic: t.topic("nobody"), qos: qos}); r != 0x10 && (qos == 1 || r != 0) {
					t.Errorf("QoS %d: reason 0x%02x, want 0x10", qos, r)
				}
			}
			c.subscribe(filter{t.topic("myself"), 1 | noLocal})
			if r := c.publish(publish{topic: t.topic("myself"), qos: 1}); r != 0 {
				t.Errorf("with only the publisher subscribed, no local: reason 0x%02x, want 0x00", r)
			}
			t.subscriber(filter{t.topic("somebody"), 0})
			for qos := byte(1); qos < 3; qos++ {
				if r := c.publish(publish{topic: t.topic("somebody"), qos: qos}); r != 0 {
					t.Errorf("QoS %d: reason 0x%02x, want 0x00", qos, r)
				}
			}
		},
	},
	{
		name: "acknowledgements_with_nothing_to_say", v311: "2.3.1-6", v5: "2.2.2-1 2.2.1-5",
		run: func(t *T) {
			topic := t.topic("a")
			sub, c := t.subscriber(filter{topic, 2}), t.anyone()
			c.send(publish{topic: topic, qos: 1, id: 1}.bytes(t.v))
			wantBytes(c, 0x40, 2, 0, 1)
			c.send(publish{topic: topic, qos: 2, id: 2}.bytes(t.v))
			wantBytes(c, 0x50, 2, 0, 2)
			c.send(ack(tPubrel, 2))
			wantBytes(c, 0x70, 2, 0, 2)
			sub.take()
			p := sub.message()
			sub.send(ack(tPubrec, p.id))
			wantBytes(sub, 0x62, 2, byte(p.id>>8), byte(p.id))
			sub.send(ack(tPubcomp, p.id))
		},
	},
	{
		name: "overlapping_subscriptions", v311: "3.3.5-1", v5: "3.3.4-2",
		run: func(t *T) {
			topic := t.topic("a/b")
			sub := t.subscriber(filter{topic, 0}, filter{t.topic("a/+"), 2}, filter{t.topic("#"), 1})
			pub := t.anyone()
			for qos := range byte(3) {
				pub.publish(publish{topic: topic, payload: fmt.Sprint(qos), qos: qos})
				if p := sub.take(); p.qos != qos || p.payload != fmt.Sprint(qos) {
					t.Fatalf("got %+v, want one copy at QoS %d", p, qos)
				}
			}
			sub.silent()
		},
	},
	{
		name: "overlapping_subscriptions_carry_all_identifiers", v5: "3.3.4-3 3.3.4-4 3.3.4-2",
		run: func(t *T) {
			sub, pub := t.anyone(), t.anyone()
			sub.subscribeID(1, filter{t.topic("a"), 0})
			sub.subscribeID(268435455, filter{t.topic("+"), 2})
			sub.subscribeID(300, filter{t.topic("a/#"), 1})
			sub.subscribe(filter{t.topic("#"), 1}) // none
			sub.subscribeID(7, filter{t.topic("other"), 2})
			pub.publish(publish{topic: t.topic("a"), payload: "x", qos: 2})
			p := sub.take()
			wantIDs(t, p, 1, 300, 268435455)
			if p.qos != 2 {
				t.Fatalf("QoS %d", p.qos)
			}
			sub.silent()
		},
	},
	{
		name: "subscription_identifier", v5: "3.3.4-3",
		run: func(t *T) {
			sub, other, pub := t.anyone(), t.anyone(), t.anyone()
			sub.subscribeID(128, filter{t.topic("a"), 0}, filter{t.topic("b"), 1})
			other.subscribe(filter{t.topic("a"), 0})
			pub.publish(publish{topic: t.topic("a")})
			wantIDs(t, sub.take(), 128)
			wantIDs(t, other.take())
			pub.publish(publish{topic: t.topic("b"), qos: 1})
			wantIDs(t, sub.take(), 128)
			sub.subscribeID(5, filter{t.topic("a"), 0}) // replaces
			pub.publish(publish{topic: t.topic("a")})
			wantIDs(t, sub.take(), 5)
			sub.subscribe(filter{t.topic("a"), 0})
			pub.publish(publish{topic: t.topic("a")})
			wantIDs(t, sub.take())
		},
	},
	{
		name: "subscription_identifier_with_a_retained_message_and_while_away", v5: "3.3.4-3",
		run: func(t *T) {
			id, pub := t.id(), t.anyone()
			pub.publish(publish{topic: t.topic("a"), payload: "kept", qos: 1, retain: true})
			sub := t.client(connect{id: id, keep: true})
			sub.subscribeID(9, filter{t.topic("a"), 1})
			wantIDs(t, sub.take(), 9)
			sub.leave()
			pub.publish(publish{topic: t.topic("a"), payload: "", qos: 1, retain: true})
			sub = t.client(connect{id: id, keep: true})
			wantIDs(t, sub.take(), 9)
		},
	},
	{
		name: "subscription_identifier_in_a_clients_publish", v5: "3.3.4-6", bad: true,
		run: func(t *T) {
			for qos := range byte(3) {
				c := t.anyone()
				c.send(publish{topic: t.topic("a"), qos: qos, id: 1,
					props: [][]byte{propVar(pSubscriptionID, 5)}}.bytes(t.v))
				c.refused()
			}
		},
	},
}

func wantIDs(t *T, p publish, want ...uint32) {
	t.Helper()
	var got []uint32
	for _, i := range find(p.received, pSubscriptionID) {
		got = append(got, i.num)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("subscription identifiers %v, want %v", got, want)
	}
}

// wantBytes demands exactly these bytes as the next packet.
func wantBytes(c *client, want ...byte) {
	c.t.Helper()
	f := c.next()
	if got := packet(f.first, f.body); string(got) != string(want) {
		c.t.Fatalf("got % x, want % x", got, want)
	}
}

var propertyCases = []scenario{
	{
		name: "properties_are_passed_on",
		v5:   "3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20 1.5.7-1",
		run: func(t *T) {
			long := strings.Repeat("x", 1000)
			send := [][]byte{
				propPair("z", "1"), prop8(pPayloadFormat, 1), propPair("a", "2"), propStr(pContentType, "text/ü"),
				propStr(pResponseTopic, "reply/to"), propPair("z", "1"), propStr(pCorrelation, "\x00\x01\xff"),
				propPair("", ""), propPair("long", long),
			}
			want := []prop{
				{id: pUserProperty, text: "z", value: "1"}, {id: pPayloadFormat, num: 1},
				{id: pUserProperty, text: "a", value: "2"}, {id: pContentType, text: "text/ü"},
				{id: pResponseTopic, text: "reply/to"}, {id: pUserProperty, text: "z", value: "1"},
				{id: pCorrelation, text: "\x00\x01\xff"}, {id: pUserProperty},
				{id: pUserProperty, text: "long", value: long},
			}
			topic, id := t.topic("a"), t.id()
			live, pub := t.subscriber(filter{topic, 2}), t.anyone()
			away := t.client(connect{id: id, keep: true})
			away.subscribe(filter{topic, 2})
			away.leave()
			for qos := range byte(3) {
				pub.publish(publish{topic: topic, payload: "x", qos: qos, props: send, retain: true})
				wantProps(t, live.take(), slices.Clone(want)...)
				late := t.subscriber(filter{topic, 2})
				wantProps(t, late.take(), slices.Clone(want)...)
				late.leave()
			}
			away = t.client(connect{id: id, keep: true})
			for range 2 { // QoS 1 and 2
				p := away.take()
				if p.qos == 0 {
					p = away.take()
				}
				wantProps(t, p, slices.Clone(want)...)
			}
			pub.publish(publish{topic: topic, retain: true})
		},
	},
	{
		name: "no_properties_are_added", v5: "2.2.2-1 3.3.2-4 3.3.2-17",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			for qos := range byte(3) {
				pub.publish(publish{topic: topic, payload: "x", qos: qos})
				wantProps(t, sub.take())
				pub.publish(publish{topic: topic, payload: "x", qos: qos, props: [][]byte{prop8(pPayloadFormat, 0)}})
				// The indicator 0 means the same as none; it may be there as it was sent.
				if p := sub.take(); len(p.received) > 0 {
					wantProps(t, p, prop{id: pPayloadFormat})
				}
			}
		},
	},
	{
		name: "across_versions", v311: "3.3.2-3", v5: "3.3.2-17",
		run: func(t *T) {
			// A subscriber of the one version and a publisher of the other.
			other := &T{T: t.T, prefix: t.prefix + "x", v: V311}
			var props [][]byte
			if t.v == V311 {
				other.v = V5
				props = [][]byte{propPair("k", "v"), prop32(pExpiry, 100)}
			}
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), other.anyone()
			for qos := range byte(3) {
				pub.publish(publish{topic: topic, payload: fmt.Sprint(qos), qos: qos, props: props})
				if p := sub.take(); p.payload != fmt.Sprint(qos) || len(p.received) > 0 {
					t.Fatalf("got %+v", p)
				}
			}
		},
	},
	{
		name: "wildcard_in_response_topic", v5: "3.3.2-14", bad: true,
		run: func(t *T) {
			for _, topic := range []string{"a/+", "#", "a/#"} {
				for qos := range byte(3) {
					c := t.anyone()
					c.send(publish{topic: t.topic("a"), qos: qos, id: 1,
						props: [][]byte{propStr(pResponseTopic, topic)}}.bytes(t.v))
					c.refused(0x81, 0x82, 0x90)
				}
			}
		},
	},
	{
		name: "request_and_response", v5: "3.3.2-15 3.3.2-16",
		run: func(t *T) {
			request, reply := t.topic("request"), t.topic("reply")
			asking, answering := t.subscriber(filter{reply, 1}), t.subscriber(filter{request, 1})
			asking.publish(publish{topic: request, payload: "?", qos: 1,
				props: [][]byte{propStr(pResponseTopic, reply), propStr(pCorrelation, "334")}})
			p := answering.take()
			wantProps(t, p, prop{id: pResponseTopic, text: reply}, prop{id: pCorrelation, text: "334"})
			answering.publish(publish{topic: find(p.received, pResponseTopic)[0].text, payload: "!", qos: 1,
				props: [][]byte{propStr(pCorrelation, find(p.received, pCorrelation)[0].text)}})
			wantProps(t, asking.take(), prop{id: pCorrelation, text: "334"})
		},
	},
	{
		name: "publish_properties_out_of_range", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for name, props := range map[string][][]byte{
				"payload format 2":       {prop8(pPayloadFormat, 2)},
				"payload format twice":   {prop8(pPayloadFormat, 1), prop8(pPayloadFormat, 1)},
				"expiry twice":           {prop32(pExpiry, 1), prop32(pExpiry, 1)},
				"content type twice":     {propStr(pContentType, "a"), propStr(pContentType, "a")},
				"response topic twice":   {propStr(pResponseTopic, "a"), propStr(pResponseTopic, "a")},
				"correlation data twice": {propStr(pCorrelation, "a"), propStr(pCorrelation, "a")},
				"topic alias twice":      {prop16(pAlias, 1), prop16(pAlias, 1)},
				"a property of CONNECT":  {prop32(pSessionExpiry, 1)},
				"reason string":          {propStr(pReasonString, "x")},
				"an unknown property":    {prop8(0x7e, 1)},
				"property 0":             {prop8(0, 1)},
				"a property cut short":   {{pExpiry, 0, 0}},
				"a string cut short":     {{pContentType, 0, 9, 'x'}},
			} {
				t.Log(name)
				c := t.anyone()
				c.send(publish{topic: t.topic("a"), qos: 1, id: 1, props: props}.bytes(t.v))
				c.refused(0x81, 0x82, 0x94)
			}
		},
	},
	{
		name: "message_expires_in_the_queue", v5: "3.3.2-5 3.3.2-6",
		run: func(t *T) {
			id, topic := t.id(), t.topic("a")
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{topic, 2})
			sub.leave()
			pub.publish(publish{topic: topic, payload: "short", qos: 1, props: [][]byte{prop32(pExpiry, 1)}})
			pub.publish(publish{topic: topic, payload: "short 2", qos: 2, props: [][]byte{prop32(pExpiry, 1)}})
			pub.publish(publish{topic: topic, payload: "long", qos: 1, props: [][]byte{prop32(pExpiry, 60)}})
			pub.publish(publish{topic: topic, payload: "long 2", qos: 2, props: [][]byte{prop32(pExpiry, 60)}})
			pub.publish(publish{topic: topic, payload: "ever", qos: 1})
			time.Sleep(2200 * time.Millisecond) // the time that must be taken off
			sub = t.client(connect{id: id, keep: true})
			for _, want := range []string{"long", "long 2"} {
				p := sub.take()
				if n, ok := number(p.received, pExpiry); p.payload != want || !ok || n < 50 || n > 58 {
					t.Fatalf("%q with expiry %d, want %q with 58 at most", p.payload, n, want)
				}
			}
			sub.takePayloads("ever")
			sub.silent()
		},
	},
	{
		name: "message_expiry_of_a_live_and_of_a_retained_message", v5: "3.3.2-6 3.3.2-5",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 1}), t.anyone()
			pub.publish(publish{topic: topic, payload: "x", qos: 1, retain: true, props: [][]byte{prop32(pExpiry, 3)}})
			if n, ok := number(sub.take().received, pExpiry); !ok || n > 3 || n < 1 {
				t.Fatalf("expiry %d, want 3", n)
			}
			t.subscriber(filter{topic, 1}).takePayloads("x")
			time.Sleep(4100 * time.Millisecond) // past the expiry
			t.subscriber(filter{topic, 1}).silent()
		},
	},
	{
		// Expiry counts waiting, not the handshake.
		name: "sent_messages_do_not_expire", v5: "4.3.3-7 4.3.3-13",
		run: func(t *T) {
			id, topic := t.id(), t.topic("a")
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{topic, 2})
			pub.publish(publish{topic: topic, payload: "x", qos: 2, props: [][]byte{prop32(pExpiry, 1)}})
			p := sub.message()
			pub.send(publish{topic: t.topic("b"), qos: 2, id: 99, props: [][]byte{prop32(pExpiry, 1)}}.bytes(t.v))
			pub.acked(tPubrec, 99)
			time.Sleep(1500 * time.Millisecond) // past the expiry, with both handshakes open
			pub.send(ack(tPubrel, 99))
			pub.acked(tPubcomp, 99)
			sub.settle(p)
		},
	},
}
