package conformance

import "strings"

// Strings that no packet may carry, by name.
var badStrings = map[string]string{
	"lone continuation":  "a\x80b",
	"overlong slash":     "a\xc0\xafb",
	"surrogate":          "a\xed\xa0\x80b",
	"cut short":          "a\xe2\x82",
	"beyond U+10FFFF":    "a\xf4\x90\x80\x80",
	"byte that is never": "a\xffb",
	"U+0000":             "a\x00b",
}

// eachBadString runs f with a fresh connection for every bad string.
func eachBadString(t *T, f func(c *client, s string)) {
	for name, s := range badStrings {
		t.Logf("string with %s", name)
		f(t.anyone(), s)
	}
}

var dataCases = []scenario{
	{
		name: "bad_utf8_in_topic_name", v311: "1.5.3-1 1.5.3-2 3.3.2-1 4.7.3-2", v5: "1.5.4-1 1.5.4-2 3.3.2-1 4.7.3-2",
		bad: true,
		run: func(t *T) {
			eachBadString(t, func(c *client, s string) {
				c.send(publish{topic: t.topic(s), payload: "x", qos: 1, id: 1}.bytes(t.v))
				c.refused(0x81, 0x82, 0x90)
			})
		},
	},
	{
		name: "bad_utf8_in_subscribe", v311: "3.8.3-1 1.5.3-1 1.5.3-2 4.7.3-2", v5: "3.8.3-1 1.5.4-1 1.5.4-2 4.7.3-2",
		bad: true,
		run: func(t *T) {
			eachBadString(t, func(c *client, s string) {
				c.send(subscribe(t.v, 1, nil, filter{t.topic(s), 0}))
				c.refused(0x81, 0x82, 0x8F)
			})
		},
	},
	{
		name: "bad_utf8_in_unsubscribe", v311: "3.10.3-1 1.5.3-1 1.5.3-2 4.7.3-2", v5: "3.10.3-1 1.5.4-1 1.5.4-2 4.7.3-2",
		bad: true,
		run: func(t *T) {
			eachBadString(t, func(c *client, s string) {
				c.send(unsubscribe(t.v, 1, t.topic(s)))
				c.refused(0x81, 0x82, 0x8F)
			})
		},
	},
	{
		name: "bad_utf8_in_client_id", v311: "3.1.3-4 1.5.3-1 1.5.3-2", v5: "3.1.3-4 1.5.4-1 1.5.4-2", bad: true,
		run: func(t *T) {
			for _, s := range badStrings {
				c := t.dial()
				c.send(connect{id: t.id() + s}.bytes(t.v))
				c.unwelcome(badConnectCodes(t.v, 2)...)
			}
		},
	},
	{
		name: "bad_utf8_in_will_topic", v311: "3.1.3-10 1.5.3-1 1.5.3-2", v5: "3.1.3-11 1.5.4-1 1.5.4-2", bad: true,
		run: func(t *T) {
			for _, s := range badStrings {
				c := t.dial()
				c.send(connect{id: t.id(), will: &will{topic: s}}.bytes(t.v))
				c.unwelcome(badConnectCodes(t.v)...)
			}
		},
	},
	{
		name: "bad_utf8_in_user_name", v311: "3.1.3-11 1.5.3-1 1.5.3-2", v5: "3.1.3-12 1.5.4-1 1.5.4-2", bad: true,
		run: func(t *T) {
			for _, s := range badStrings {
				c := t.dial()
				c.send(connect{id: t.id(), user: s, pass: "x"}.bytes(t.v))
				c.unwelcome(badConnectCodes(t.v, 4)...)
			}
		},
	},
	{
		name: "bad_utf8_in_publish_properties", v5: "1.5.7-1 1.5.4-1 1.5.4-2 3.3.2-13 3.3.2-19", bad: true,
		run: func(t *T) {
			for _, s := range badStrings {
				for _, p := range [][]byte{
					propStr(pContentType, s), propStr(pResponseTopic, s), propPair(s, "v"), propPair("k", s),
				} {
					c := t.anyone()
					c.send(publish{topic: t.topic("a"), qos: 1, id: 1, props: [][]byte{p}}.bytes(t.v))
					c.refused(0x81, 0x82, 0x90)
				}
			}
		},
	},
	{
		name: "byte_order_mark_is_kept", v311: "1.5.3-3 4.7.3-4", v5: "1.5.4-3 4.7.3-4",
		run: func(t *T) {
			marked, plain := t.topic("\ufeffx"), t.topic("x")
			sub := t.subscriber(filter{t.topic("+"), 1})
			pub := t.anyone()
			pub.publish(publish{topic: marked, payload: "marked", qos: 1})
			pub.publish(publish{topic: plain, payload: "plain", qos: 1})
			for _, want := range []string{marked, plain} {
				if p := sub.take(); p.topic != want {
					t.Fatalf("topic %q, want %q", p.topic, want)
				}
			}
			only := t.subscriber(filter{plain, 1})
			pub.publish(publish{topic: marked, payload: "marked", qos: 1})
			pub.publish(publish{topic: plain, payload: "plain", qos: 1})
			only.takePayloads("plain")
		},
	},
	{
		// The decoder checks each integer that the broker sends; here they cross
		// from one byte to two and to three.
		name: "variable_byte_integers_are_short", v5: "1.5.5-1 2.2.2-1",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 0}), t.anyone()
			for _, n := range []int{0, 1, 90, 127, 128, 129, 300, 16383, 16384, 20000} {
				pub.publish(publish{topic: t.topic("a"), payload: strings.Repeat("p", n),
					props: [][]byte{propPair("k", strings.Repeat("v", n))}})
				if p := sub.take(); len(p.payload) != n || len(p.received) != 1 {
					t.Fatalf("payload of %d bytes and %d properties, want %d and 1", len(p.payload), len(p.received), n)
				}
			}
			pub.publish(publish{topic: t.topic("a"), payload: "plain"})
			if f := sub.next(); f.body[2+len(t.topic("a"))] != 0 {
				t.Fatalf("%v has no property length 0", f)
			}
		},
	},
	{
		name: "remaining_length_of_five_bytes", v311: "4.8.0-1", v5: "1.5.5-1 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send([]byte{tPublish << 4, 0xff, 0xff, 0xff, 0xff, 0x7f})
			c.refused(0x81, 0x82, 0x95)
		},
	},
	{
		name: "property_length_of_five_bytes", v5: "1.5.5-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(packet(tPublish<<4, str(t.topic("a")), []byte{0x80, 0x80, 0x80, 0x80, 0x00}))
			c.refused()
		},
	},
	{
		// Flags of what the broker sends are checked on every packet of the
		// suite; here each type comes at least once.
		name: "flags_of_the_server_packets", v311: "2.2.2-1", v5: "2.1.3-1",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			pub.publish(publish{topic: topic, payload: "0"})
			pub.publish(publish{topic: topic, payload: "1", qos: 1})
			pub.publish(publish{topic: topic, payload: "2", qos: 2})
			sub.takePayloads("0", "1", "2")
			sub.send(unsubscribe(t.v, 99, topic))
			sub.acked(tUnsuback, 99)
			sub.ping()
		},
	},
	{
		name: "qos_0_has_no_packet_id", v311: "2.3.1-5 3.3.1-2 4.3.1-1", v5: "2.2.1-2 3.3.1-2 4.3.1-1",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			pub.publish(publish{topic: topic, payload: "body"})
			want := publish{topic: topic, payload: "body"}.bytes(t.v)
			f := sub.next()
			if got := packet(f.first, f.body); string(got) != string(want) {
				t.Fatalf("got % x, want % x", got, want)
			}
		},
	},
	{
		name: "packet_id_0", v311: "2.3.1-1 4.8.0-1", v5: "2.2.1-3 4.13.1-1", bad: true,
		run: func(t *T) {
			for _, b := range [][]byte{
				publish{topic: t.topic("a"), qos: 1}.bytes(t.v),
				publish{topic: t.topic("a"), qos: 2}.bytes(t.v),
				subscribe(t.v, 0, nil, filter{t.topic("a"), 0}),
				unsubscribe(t.v, 0, t.topic("a")),
			} {
				c := t.anyone()
				c.send(b)
				c.refused()
			}
		},
	},
	{
		name: "answers_have_the_packet_id", v311: "2.3.1-6 2.3.1-7 3.8.4-2 3.10.4-4",
		v5: "2.2.1-5 2.2.1-6 3.8.4-2 3.10.4-5",
		run: func(t *T) {
			c, topic := t.anyone(), t.topic("nobody")
			for _, id := range []uint16{1, 2, 255, 256, 65535} {
				c.send(publish{topic: topic, qos: 1, id: id}.bytes(t.v))
				c.acked(tPuback, id)
				c.send(publish{topic: topic, qos: 2, id: id}.bytes(t.v))
				c.acked(tPubrec, id)
				c.send(ack(tPubrel, id))
				c.acked(tPubcomp, id)
				c.send(subscribe(t.v, id, nil, filter{t.topic("f"), 0}))
				c.acked(tSuback, id)
				c.send(unsubscribe(t.v, id, t.topic("f")))
				c.acked(tUnsuback, id)
			}
		},
	},
}

// badConnectCodes are the CONNACK codes that may follow a bad CONNECT. A
// 3.1.1 server sends none [MQTT-3.1.4-1], except those given for what also has
// a return code.
func badConnectCodes(v Version, v311 ...byte) []byte {
	if v == V5 {
		return []byte{0x80, 0x81, 0x82, 0x85, 0x86, 0x90}
	}
	return v311
}
