package conformance

import (
	"slices"
	"strings"
)

var connectCases = []scenario{
	{
		name: "first_packet_is_not_connect", v311: "3.1.0-1 3.2.0-1", v5: "3.1.0-1 3.14.0-1 3.2.0-1", bad: true,
		run: func(t *T) {
			for _, b := range [][]byte{
				publish{topic: t.topic("a"), qos: 1, id: 1}.bytes(t.v),
				publish{topic: t.topic("a")}.bytes(t.v),
				ack(tPuback, 1), ack(tPubrec, 1), ack(tPubrel, 1), ack(tPubcomp, 1),
				subscribe(t.v, 1, nil, filter{t.topic("a"), 0}),
				unsubscribe(t.v, 1, t.topic("a")),
				pingreq, disconnect,
				packet(tConnack<<4, []byte{0, 0}),
				packet(tAuth << 4),
				[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
			} {
				c := t.dial()
				c.send(b)
				c.closed()
			}
		},
	},
	{
		name: "second_connect", v311: "3.1.0-2 4.8.0-1", v5: "3.1.0-2 3.2.0-2 4.13.1-1", bad: true,
		run: func(t *T) {
			o := connect{id: t.id()}
			c := t.client(o)
			c.send(o.bytes(t.v))
			c.refused(0x82)
		},
	},
	{
		name: "other_protocol_name", v311: "3.1.2-1", v5: "3.1.2-1", bad: true,
		run: func(t *T) {
			for _, name := range []string{"mqtt", "MQTTX", "hj", "MQT", strings.Repeat("M", 300)} {
				c := t.dial()
				c.send(connect{id: t.id(), nameRaw: name}.bytes(t.v))
				c.unwelcome(badCodes(t.v, 0x01, 0x84)...)
			}
		},
	},
	{
		name: "protocol_name_of_zero_length", v311: "3.1.2-1 3.1.4-1", v5: "3.1.2-1 3.1.4-1", bad: true,
		run: func(t *T) {
			c := t.dial()
			c.send(packet(tConnect<<4, str(""), []byte{byte(t.v), 2}, u16(0), versionProps(t.v), str(t.id())))
			c.unwelcome(badCodes(t.v, 0x01, 0x84)...)
		},
	},
	{
		// Level 6 may be answered as either specification asks; below 5 only
		// the form of 3.1.1 can be understood.
		name: "unsupported_protocol_level", v311: "3.1.2-2 3.2.2-5", v5: "3.1.2-2", bad: true,
		run: func(t *T) {
			for _, level := range []byte{1, 2, 6, 7, 100} {
				c := t.dial()
				c.send(connect{id: t.id(), levelRaw: level}.bytes(t.v))
				if f, err := c.read(patience); err == nil {
					old := f.first == 0x20 && string(f.body) == "\x00\x01"
					fresh := level > 5 && f.first == 0x20 && len(f.body) >= 3 && string(f.body[:2]) == "\x00\x84"
					if !old && !fresh {
						t.Errorf("level %d: got %v, want CONNACK 0x01 (3.1.1) or 0x84 (5)", level, f)
					}
					c.closed()
				} else if t.v == V311 || !gone(err) {
					t.Errorf("level %d: no CONNACK: %v", level, err)
				}
			}
		},
	},
	{
		name: "mqtt_3_1_is_served", v311: "3.1.2-1",
		run: func(t *T) {
			c := t.dial()
			c.send(connect{id: t.id(), nameRaw: "MQIsdp", levelRaw: 3}.bytes(t.v))
			if a := c.answer(tConnack); a.reason != 0 {
				t.Fatalf("CONNACK 0x%02x", a.reason)
			}
			c.subscribe(filter{t.topic("a"), 1})
			t.anyone().publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
			c.takePayloads("x")
		},
	},
	{
		// It sets DUP where later versions have a fixed flag.
		name: "mqtt_3_1_sent_again", v311: "3.1.2-1",
		run: func(t *T) {
			c := t.dial()
			c.send(connect{id: t.id(), nameRaw: "MQIsdp", levelRaw: 3}.bytes(t.v))
			c.answer(tConnack)
			again := func(b []byte) []byte { b[0] |= 8; return b }
			c.send(again(subscribe(t.v, 1, nil, filter{t.topic("a"), 2})))
			c.acked(tSuback, 1)
			t.anyone().publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
			c.takePayloads("x")
			c.send(publish{topic: t.topic("b"), qos: 2, id: 2}.bytes(t.v))
			c.acked(tPubrec, 2)
			for range 2 {
				c.send(again(ack(tPubrel, 2)))
				c.acked(tPubcomp, 2)
			}
			c.send(again(unsubscribe(t.v, 3, t.topic("a"))))
			c.acked(tUnsuback, 3)
		},
	},
	{
		// Its CONNACK has no session present flag: that byte is reserved.
		name: "mqtt_3_1_session", v311: "3.1.2-1",
		run: func(t *T) {
			id := t.id()
			for range 2 {
				c := t.dial()
				c.send(connect{id: id, keep: true, nameRaw: "MQIsdp", levelRaw: 3}.bytes(t.v))
				wantBytes(c, 0x20, 2, 0, 0)
				c.drop()
			}
		},
	},
	{
		name: "reserved_connect_flag", v311: "3.1.2-3 3.1.4-1 3.2.2-6", v5: "3.1.2-3 3.1.4-1", bad: true,
		run: func(t *T) { badFlags(t, connect{id: t.id()}, 0x01) },
	},
	{
		name: "will_flags_without_will", v311: "3.1.2-11 3.1.2-13 3.1.2-15", v5: "3.1.2-11 3.1.2-13", bad: true,
		run: func(t *T) {
			for _, flags := range []int{0x08, 0x10, 0x18, 0x20, 0x28} {
				badFlags(t, connect{id: t.id()}, flags)
			}
			// Will topic and message without the flag are trailing bytes.
			c := t.dial()
			c.send(connect{id: t.id(), tailRaw: join(str(t.topic("w")), str("w"))}.bytes(t.v))
			c.unwelcome(badConnectCodes(t.v)...)
		},
	},
	{
		name: "will_qos_3", v311: "3.1.2-14", v5: "3.1.2-12", bad: true,
		run: func(t *T) { badFlags(t, connect{id: t.id(), will: &will{topic: t.topic("w")}}, 0x18) },
	},
	{
		name: "will_flag_without_will", v311: "3.1.2-9 3.1.3-1", v5: "3.1.2-9 3.1.3-1", bad: true,
		run: func(t *T) {
			badFlags(t, connect{id: t.id()}, 0x04)
			for _, tail := range [][]byte{
				versionProps(t.v),                          // nothing behind
				join(versionProps(t.v), str(t.topic("w"))), // no payload
				join(versionProps(t.v), str(t.topic("w")), u16(9), []byte("short")),
			} {
				c := t.dial()
				c.send(connect{id: t.id(), flagsRaw: 0x04, tailRaw: tail}.bytes(t.v))
				c.unwelcome(badConnectCodes(t.v)...)
			}
		},
	},
	{
		name: "will_topic_with_wildcard_or_empty", v311: "3.1.4-1 4.7.1-1 4.7.3-1", v5: "3.1.4-1 4.7.0-1 4.7.3-1", bad: true,
		run: func(t *T) {
			for _, topic := range []string{"a/+/b", "a/#", ""} {
				c := t.dial()
				c.send(connect{id: t.id(), will: &will{topic: topic, payload: "x"}}.bytes(t.v))
				c.unwelcome(badConnectCodes(t.v)...)
			}
		},
	},
	{
		name: "user_name_against_its_flag", v311: "3.1.2-18 3.1.2-19", v5: "3.1.2-16 3.1.2-17", bad: true,
		run: func(t *T) {
			badFlags(t, connect{id: t.id()}, 0x80)
			c := t.dial()
			c.send(connect{id: t.id(), tailRaw: str("user")}.bytes(t.v))
			c.unwelcome(badConnectCodes(t.v)...)
		},
	},
	{
		name: "password_against_its_flag", v311: "3.1.2-20 3.1.2-21", v5: "3.1.2-18 3.1.2-19", bad: true,
		run: func(t *T) {
			badFlags(t, connect{id: t.id(), user: "u"}, 0x40)
			c := t.dial()
			c.send(connect{id: t.id(), user: "u", tailRaw: str("pass")}.bytes(t.v))
			c.unwelcome(badConnectCodes(t.v)...)
		},
	},
	{
		name: "empty_user_name_and_password", v311: "3.1.2-19 3.1.2-21", v5: "3.1.2-17 3.1.2-19",
		run: func(t *T) {
			_, a := t.open(connect{id: t.id(), flagsRaw: 0xC0, tailRaw: join(str(""), str(""))})
			if !slices.Contains([]byte{0, 4, 5, 0x86, 0x87}, a.reason) { // well-formed, whether it is let in or not
				t.Fatalf("CONNACK 0x%02x", a.reason)
			}
		},
	},
	{
		name: "password_without_user_name", v311: "3.1.2-22", bad: true,
		run: func(t *T) {
			c := t.dial()
			c.send(connect{id: t.id(), pass: "p"}.bytes(t.v))
			c.unwelcome(0x04, 0x05)
		},
	},
	{
		// MQTT 5 allows what 3.1.1 forbids.
		name: "password_without_user_name_is_allowed", v5: "3.1.2-16",
		run: func(t *T) {
			if _, a := t.open(connect{id: t.id(), pass: "p"}); a.reason != 0 && a.reason != 0x86 && a.reason != 0x87 {
				t.Fatalf("CONNACK 0x%02x", a.reason)
			}
		},
	},
	{
		name: "payload_order", v311: "3.1.3-1 3.1.3-3", v5: "3.1.3-1 3.1.3-3",
		run: func(t *T) {
			watch := t.subscriber(filter{t.topic("w"), 0})
			id := t.id()
			c := t.client(connect{id: id, will: &will{topic: t.topic("w"), payload: "will"}, user: "user", pass: "pass"})
			c.drop()
			watch.takePayloads("will")
		},
	},
	{
		name: "no_client_id_field", v311: "3.1.3-3 3.1.4-1", v5: "3.1.3-3 3.1.4-1", bad: true,
		run: func(t *T) {
			c := t.dial()
			c.send(packet(tConnect<<4, str("MQTT"), []byte{byte(t.v), 2}, u16(0), versionProps(t.v)))
			c.unwelcome(badConnectCodes(t.v)...)
		},
	},
	{
		name: "client_ids_that_must_be_accepted", v311: "3.1.3-5 3.1.4-4", v5: "3.1.3-5 3.1.4-5",
		run: func(t *T) {
			alphabet := "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			for i := 0; i < len(alphabet); i += 15 {
				id := t.prefix + alphabet[i:min(i+15, len(alphabet))]
				t.client(connect{id: id[:min(23, len(id))]}).leave()
			}
			// Longer ones and other characters are the server's choice; phones use them.
			t.client(connect{id: t.prefix + strings.Repeat("x", 100)}).leave()
			t.client(connect{id: t.prefix + " ü/€:-_."}).leave()
		},
	},
	{
		name: "client_id_names_the_session", v311: "3.1.3-2", v5: "3.1.3-2",
		run: func(t *T) {
			a, b := t.id(), t.id()
			ca := t.client(connect{id: a, keep: true})
			ca.subscribe(filter{t.topic("a"), 1})
			ca.leave()
			if c := t.client(connect{id: b, keep: true}); c.hello.present {
				t.Fatal("another client id finds a session")
			}
			t.anyone().publish(publish{topic: t.topic("a"), payload: "for a", qos: 1})
			ca = t.client(connect{id: a, keep: true})
			if !ca.hello.present {
				t.Fatal("the client id does not find its session")
			}
			ca.takePayloads("for a")
		},
	},
	{
		// One session, whichever version its client speaks.
		name: "session_across_versions", v311: "3.1.3-2 3.2.2-2", v5: "3.1.3-2 3.2.2-3",
		run: func(t *T) {
			id := t.id()
			other := &T{T: t.T, v: V311 + V5 - t.v, prefix: t.prefix}
			c := other.client(connect{id: id, keep: true})
			c.subscribe(filter{t.topic("a"), 1})
			c.leave()
			t.anyone().publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
			c = t.client(connect{id: id, keep: true})
			if !c.hello.present {
				t.Fatal("session present 0")
			}
			c.takePayloads("x")
		},
	},
	{
		name: "empty_client_id_clean", v311: "3.1.3-6", v5: "3.1.3-6 3.1.3-7 3.2.2-16",
		run: func(t *T) {
			a, first := t.open(connect{})
			b, second := t.open(connect{})
			if first.reason != 0 || second.reason != 0 {
				t.Fatalf("CONNACK 0x%02x and 0x%02x", first.reason, second.reason)
			}
			a.ping() // the second has not taken its place
			b.ping()
			if t.v != V5 {
				return
			}
			ids := append(find(first.props, pAssignedID), find(second.props, pAssignedID)...)
			if len(ids) != 2 || ids[0].text == "" || ids[1].text == "" || ids[0].text == ids[1].text {
				t.Fatalf("assigned client ids %v", ids)
			}
			// The id is the client's as if it had sent it: it can be taken over.
			t.client(connect{id: ids[0].text})
			if d := a.answer(tDisconnect); d.reason != 0x8E {
				t.Fatalf("DISCONNECT 0x%02x, want 0x8E", d.reason)
			}
		},
	},
	{
		name: "no_assigned_id_for_a_client_that_has_one", v5: "3.1.3-7",
		run: func(t *T) {
			if ids := find(t.anyone().hello.props, pAssignedID); len(ids) > 0 {
				t.Fatalf("assigned client id %v", ids)
			}
		},
	},
	{
		name: "empty_client_id_not_clean", v311: "3.1.3-8 3.1.3-9 3.2.2-4 3.2.2-5",
		run: func(t *T) {
			c := t.dial()
			c.send(connect{keep: true}.bytes(t.v))
			if f := c.next(); f.first != 0x20 || string(f.body) != "\x00\x02" {
				t.Fatalf("got %v, want CONNACK 0x02", f)
			}
			c.closed()
		},
	},
	{
		// A server may refuse it or make one up.
		name: "empty_client_id_not_clean", v5: "3.1.3-8 3.1.3-6",
		run: func(t *T) {
			c, a := t.open(connect{keep: true})
			switch {
			case a.reason == 0x85:
				c.closed()
			case a.reason != 0 || len(find(a.props, pAssignedID)) != 1 || a.present:
				t.Fatalf("CONNACK 0x%02x, session present %t, properties %v", a.reason, a.present, a.props)
			}
		},
	},
	{
		name: "take_over", v311: "3.1.4-2", v5: "3.1.4-3 4.13.2-1 3.14.4-1 3.14.4-2",
		run: func(t *T) {
			for _, keep := range []bool{false, true} {
				id := t.id()
				old := t.client(connect{id: id, keep: keep})
				fresh := t.client(connect{id: id, keep: keep})
				old.refused(0x8E)
				fresh.subscribe(filter{t.topic("a"), 1})
				t.anyone().publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
				fresh.takePayloads("x")
			}
		},
	},
	{
		name: "take_over_is_resumed", v311: "3.1.4-2 3.1.2-4", v5: "3.1.4-3 3.1.2-5",
		run: func(t *T) {
			id := t.id()
			old := t.client(connect{id: id, keep: true})
			old.subscribe(filter{t.topic("a"), 1})
			pub := t.anyone()
			pub.publish(publish{topic: t.topic("a"), payload: "1", qos: 1})
			old.message() // not acknowledged
			fresh := t.client(connect{id: id, keep: true})
			if !fresh.hello.present {
				t.Fatal("session present 0")
			}
			pub.publish(publish{topic: t.topic("a"), payload: "2", qos: 1})
			fresh.takePayloads("1", "2")
		},
	},
	{
		name: "nothing_behind_a_refused_connect_is_processed", v311: "3.1.4-5", v5: "3.1.4-6", bad: true,
		run: func(t *T) {
			watch := t.subscriber(filter{t.topic("a"), 0})
			// A refused client id in 3.1.1, an unknown authentication method in 5.
			o := connect{keep: true}
			if t.v == V5 {
				o = connect{id: t.id(), props: [][]byte{propStr(pAuthMethod, "none such")}}
			}
			c := t.dial()
			c.send(o.bytes(t.v), publish{topic: t.topic("a"), payload: "must not"}.bytes(t.v))
			c.unwelcome(0x02, 0x8C, 0x87)
			t.anyone().publish(publish{topic: t.topic("a"), payload: "fence"})
			watch.takePayloads("fence")
		},
	},
	{
		name: "connect_and_more_in_one_write", v311: "3.2.0-1 3.1.4-4", v5: "3.2.0-1 3.1.4-5 3.2.0-2",
		run: func(t *T) {
			c := t.dial()
			c.send(connect{id: t.id()}.bytes(t.v), subscribe(t.v, 1, nil, filter{t.topic("a"), 1}),
				publish{topic: t.topic("a"), payload: "x"}.bytes(t.v), pingreq)
			c.answer(tConnack)
			c.acked(tSuback, 1)
			seen := map[byte]int{}
			for range 2 {
				seen[c.next().kind()]++
			}
			if seen[tPublish] != 1 || seen[tPingresp] != 1 {
				t.Fatalf("packet types %v, want PUBLISH and PINGRESP", seen)
			}
		},
	},
	{
		name: "connect_in_single_bytes", v311: "7.1.1-1 7.0.0-2", v5: "4.2.0-1",
		run: func(t *T) {
			c := t.dial()
			for _, b := range (connect{id: t.id()}).bytes(t.v) {
				c.send([]byte{b})
			}
			if a := c.answer(tConnack); a.reason != 0 {
				t.Fatalf("CONNACK 0x%02x", a.reason)
			}
		},
	},
}

// badCodes are those of two codes that belong to v.
func badCodes(v Version, v311, v5 byte) []byte {
	if v == V5 {
		return []byte{v311, v5, 0x81, 0x82}
	}
	return []byte{v311}
}

// badFlags sends a CONNECT whose flags byte was changed.
func badFlags(t *T, o connect, flip int) {
	t.Helper()
	o.flagsRaw = flip
	c := t.dial()
	c.send(o.bytes(t.v))
	c.unwelcome(badConnectCodes(t.v)...)
}
