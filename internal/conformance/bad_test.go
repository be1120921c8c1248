package conformance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

var disconnectCases = []scenario{
	{
		name: "disconnect_closes", v311: "3.14.4-3", v5: "3.14.4-3 3.14.2-1",
		run: func(t *T) {
			t.anyone().leave()
			if t.v != V5 {
				return
			}
			for _, b := range [][]byte{packet(tDisconnect<<4, []byte{0}), disconnectWith(0), disconnectWith(0x04),
				disconnectWith(0x80, propStr(pReasonString, "x"), propPair("k", "v"))} {
				c := t.anyone()
				c.send(b)
				c.closed()
			}
		},
	},
	{
		// DISCONNECT ends it, whether or not the client closes its side: what is
		// published afterwards is for a client that is away.
		name: "disconnect_counts_at_once", v311: "3.14.4-3 3.1.2-5 3.3.1-1", v5: "3.14.4-3 3.1.2-23 3.3.1-1",
		run: func(t *T) {
			id, pub := t.id(), t.anyone()
			c := t.client(connect{id: id, keep: true})
			c.subscribe(filter{t.topic("a"), 2})
			c.send(disconnect)
			c.closed()
			for qos := byte(1); qos < 3; qos++ {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(qos), qos: qos})
			}
			for i, p := range t.client(connect{id: id, keep: true}).collect(2) {
				if p.payload != fmt.Sprint(i+1) || p.dup {
					t.Fatalf("got %+v, want DUP 0: it was never sent before", p)
				}
			}
		},
	},
	{
		name: "nothing_after_disconnect_is_processed", v311: "3.14.4-3", v5: "3.14.4-3",
		run: func(t *T) {
			sub, c := t.subscriber(filter{t.topic("a"), 0}), t.anyone()
			c.send(disconnect, publish{topic: t.topic("a"), payload: "late"}.bytes(t.v))
			c.closed()
			t.anyone().publish(publish{topic: t.topic("a"), payload: "fence"})
			sub.takePayloads("fence")
		},
	},
	{
		name: "disconnect_with_reserved_bits", v311: "3.14.1-1 2.2.2-2", v5: "3.14.1-1 2.1.3-1 4.13.2-1", bad: true,
		run: func(t *T) {
			// A bad DISCONNECT is none: the wills are published.
			watcher := t.subscriber(filter{t.topic("w"), 0})
			for flags := byte(1); flags < 16; flags++ {
				dying := t.client(connect{will: &will{topic: t.topic("w"), payload: "will"}})
				dying.send([]byte{tDisconnect<<4 | flags, 0})
				dying.refused(0x81)
			}
			for range 15 {
				watcher.takePayloads("will")
			}
		},
	},
	{
		name: "disconnect_with_a_body", v311: "4.8.0-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(packet(tDisconnect<<4, []byte{0}))
			c.closed()
		},
	},
	{
		name: "disconnect_that_is_malformed", v5: "3.14.2-1 4.13.1-1", bad: true,
		run: func(t *T) {
			for name, b := range map[string][]byte{
				"a reason that is not listed": packet(tDisconnect<<4, []byte{0x03}),
				"a reason of servers only":    packet(tDisconnect<<4, []byte{0x8E}),
				"unknown property":            disconnectWith(0, prop8(0x7e, 1)),
				"a property of PUBLISH":       disconnectWith(0, prop16(pAlias, 1)),
				"expiry twice":                disconnectWith(0, prop32(pSessionExpiry, 0), prop32(pSessionExpiry, 0)),
				"property list cut short":     packet(tDisconnect<<4, []byte{0, 5, 0x11}),
				"trailing bytes":              packet(tDisconnect<<4, []byte{0, 0, 0}),
			} {
				t.Log(name)
				c := t.anyone()
				c.send(b)
				c.refused()
			}
		},
	},
	{
		name: "server_disconnect_has_no_expiry_and_nothing_follows", v5: "3.14.2-1 3.14.2-2 3.14.4-1 3.14.4-2 4.13.2-1", bad: true,
		run: func(t *T) {
			c := t.client(connect{id: t.id(), keep: true})
			c.send(packet(0), pingreq, pingreq)
			a := c.answer(tDisconnect)
			if a.reason < 0x80 || len(find(a.props, pSessionExpiry)) > 0 {
				t.Fatalf("DISCONNECT 0x%02x with %v", a.reason, a.props)
			}
			c.closed()
		},
	},
	{
		name: "auth_without_a_method", v5: "4.12.0-7 3.15.1-1 3.15.2-1 4.13.1-1", bad: true,
		run: func(t *T) {
			for _, b := range [][]byte{
				packet(tAuth << 4),
				packet(tAuth<<4, []byte{0x18}, plist(propStr(pAuthMethod, "SCRAM"))),
				packet(tAuth<<4, []byte{0x19}, plist(propStr(pAuthMethod, "SCRAM"))),
				packet(tAuth<<4, []byte{0x55}, plist()),
				{tAuth<<4 | 1, 0},
				{tAuth<<4 | 2, 0},
			} {
				c := t.anyone()
				c.send(b)
				c.refused(0x81, 0x82, 0x8C)
			}
		},
	},
	{
		name: "unknown_authentication_method", v5: "4.12.0-1 3.1.4-2 3.2.2-7", bad: true,
		run: func(t *T) {
			for _, props := range [][][]byte{
				{propStr(pAuthMethod, "none such")},
				{propStr(pAuthMethod, "none such"), propStr(pAuthData, "\x00\x01")},
			} {
				c := t.dial()
				c.send(connect{id: t.id(), props: props}.bytes(t.v))
				c.unwelcome(0x8C, 0x87)
			}
		},
	},
}

// badFlagsOf sends a packet with every value of the flags but the right one.
func badFlagsOf(t *T, kind, right byte, body []byte) {
	t.Helper()
	for flags := range byte(16) {
		if flags == right {
			continue
		}
		c := t.anyone()
		c.send(packet(kind<<4|flags, body))
		c.refused(0x81)
	}
}

var badCases = []scenario{
	{
		name: "pubrel_flags", v311: "3.6.1-1 2.2.2-2", v5: "3.6.1-1 2.1.3-1", bad: true,
		run: func(t *T) { badFlagsOf(t, tPubrel, 2, u16(1)) },
	},
	{
		name: "subscribe_flags", v311: "3.8.1-1 2.2.2-2", v5: "3.8.1-1 2.1.3-1", bad: true,
		run: func(t *T) {
			badFlagsOf(t, tSubscribe, 2, join(u16(1), versionProps(t.v), str(t.topic("a")), []byte{0}))
		},
	},
	{
		name: "unsubscribe_flags", v311: "3.10.1-1 2.2.2-2", v5: "3.10.1-1 2.1.3-1", bad: true,
		run: func(t *T) { badFlagsOf(t, tUnsubscribe, 2, join(u16(1), versionProps(t.v), str(t.topic("a")))) },
	},
	{
		name: "acknowledgement_flags", v311: "2.2.2-1 2.2.2-2", v5: "2.1.3-1 4.13.1-1", bad: true,
		run: func(t *T) {
			for _, kind := range []byte{tPuback, tPubrec, tPubcomp} {
				badFlagsOf(t, kind, 0, u16(1))
			}
		},
	},
	{
		name: "pingreq_flags_and_body", v311: "2.2.2-2 4.8.0-1", v5: "2.1.3-1 4.13.1-1", bad: true,
		run: func(t *T) {
			badFlagsOf(t, tPingreq, 0, nil)
			c := t.anyone()
			c.send(packet(tPingreq<<4, []byte{0}))
			c.refused()
		},
	},
	{
		name: "packets_that_only_a_server_sends", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for _, b := range [][]byte{
				packet(tConnack<<4, []byte{0, 0}, versionProps(t.v)),
				packet(tSuback<<4, u16(1), versionProps(t.v), []byte{0}),
				packet(tUnsuback<<4, u16(1), versionProps(t.v)),
				packet(tUnsuback<<4, u16(1), versionProps(t.v), []byte{0}),
				{tPingresp << 4, 0},
			} {
				c := t.anyone()
				c.send(b)
				c.refused()
			}
		},
	},
	{
		name: "reserved_packet_types", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			kinds := []byte{0}
			if t.v == V311 {
				kinds = []byte{0, tAuth}
			}
			for _, kind := range kinds {
				for _, body := range [][]byte{nil, u16(1)} {
					c := t.anyone()
					c.send(packet(kind<<4, body))
					c.refused()
				}
			}
		},
	},
	{
		name: "acknowledgements_cut_short", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for _, first := range []byte{tPuback << 4, tPubrec << 4, tPubrel<<4 | 2, tPubcomp << 4} {
				for _, body := range [][]byte{nil, {0}} {
					c := t.anyone()
					c.send(packet(first, body))
					c.refused()
				}
			}
		},
	},
	{
		name: "acknowledgements_too_long", v311: "4.8.0-1", bad: true,
		run: func(t *T) {
			for _, first := range []byte{tPuback << 4, tPubrec << 4, tPubrel<<4 | 2, tPubcomp << 4} {
				c := t.anyone()
				c.send(packet(first, u16(1), []byte{0}))
				c.refused()
			}
		},
	},
	{
		name: "acknowledgements_with_reasons_and_properties_out_of_range", v5: "3.4.2-1 3.5.2-1 3.6.2-1 3.7.2-1 4.13.1-1", bad: true,
		run: func(t *T) {
			for _, first := range []byte{tPuback << 4, tPubrec << 4, tPubrel<<4 | 2, tPubcomp << 4} {
				for name, tail := range map[string][]byte{
					"a reason that is not listed": {0x42},
					"a reason of another packet":  {0x8F},
					"unknown property":            join([]byte{0}, plist(prop8(0x7e, 1))),
					"a property of PUBLISH":       join([]byte{0}, plist(prop16(pAlias, 1))),
					"reason string twice":         join([]byte{0}, plist(propStr(pReasonString, "a"), propStr(pReasonString, "b"))),
					"list cut short":              {0, 9, 0x1f},
					"trailing bytes":              {0, 0, 0},
				} {
					t.Logf("type %d: %s", first>>4, name)
					c := t.anyone()
					c.send(packet(first, u16(1), tail))
					c.refused()
				}
			}
		},
	},
	{
		name: "acknowledgements_with_packet_id_0", v311: "2.3.1-1 4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for _, kind := range []byte{tPuback, tPubrec, tPubrel, tPubcomp} {
				c := t.anyone()
				c.send(ack(kind, 0))
				c.refused()
			}
		},
	},
	{
		name: "publish_cut_short", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for _, b := range [][]byte{
				packet(tPublish << 4),
				packet(tPublish<<4, []byte{0}),
				packet(tPublish<<4, u16(100), []byte("short")),
				packet(tPublish<<4|2, str("topic")),
				packet(tPublish<<4|2, str("topic"), []byte{0}),
			} {
				c := t.anyone()
				c.send(b)
				c.refused()
			}
			if t.v == V5 {
				for _, tail := range [][]byte{nil, {5}, {3, pUserProperty, 0}, {0x80}} {
					c := t.anyone()
					c.send(packet(tPublish<<4, str("topic"), tail))
					c.refused()
				}
			}
		},
	},
	{
		name: "subscribe_and_unsubscribe_cut_short", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			for _, first := range []byte{tSubscribe<<4 | 2, tUnsubscribe<<4 | 2} {
				bodies := [][]byte{nil, {0}, u16(1), join(u16(1), versionProps(t.v), []byte{0})}
				if t.v == V5 {
					bodies = append(bodies, join(u16(1), []byte{9, 0x0b}), join(u16(1), []byte{0x80}))
				}
				for _, body := range bodies {
					c := t.anyone()
					c.send(packet(first, body))
					c.refused()
				}
			}
		},
	},
	{
		// A packet that never ends costs its own connection only; what came
		// before it counts.
		name: "connection_breaks_inside_a_packet", v311: "3.1.2-8", v5: "3.1.2-8", bad: true,
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1}, connect{})
			dying.send(publish{topic: t.topic("fence"), payload: "whole"}.bytes(t.v),
				[]byte{tPublish << 4, 100}, str(t.topic("fence")))
			dying.drop()
			watcher.takePayloads("whole", "will")
			noWill(t, watcher)
		},
	},
	{
		// However deep, a topic costs its own connection at most.
		name: "tens_of_thousands_of_levels", v311: "4.7.3-3", v5: "4.7.3-3", bad: true,
		run: func(t *T) {
			deep := strings.Repeat("/", 65535)
			for _, b := range [][]byte{
				publish{topic: deep, payload: "x", qos: 1, id: 1}.bytes(t.v),
				subscribe(t.v, 1, nil, filter{deep, 0}),
				subscribe(t.v, 1, nil, filter{strings.Repeat("+/", 32000) + "#", 0}),
				unsubscribe(t.v, 1, deep),
			} {
				c := t.anyone()
				c.send(b)
				f, err := c.read(patience)
				if err == nil {
					c.decode(f) // served or refused
				} else if !gone(err) {
					t.Error(err)
				}
			}
		},
	},
	{
		name: "random_bytes", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			for range 60 {
				c := t.anyone()
				b := make([]byte, 1+rnd.IntN(200))
				for i := range b {
					b[i] = byte(rnd.Uint32())
				}
				c.send(b)
				c.drop()
			}
		},
	},
	{
		name: "valid_packets_with_a_byte_changed", v311: "4.8.0-1", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			// A byte changed in them makes no other case's topic or client identifier.
			t = &T{T: t.T, v: t.v, prefix: "changed" + t.prefix}
			w := &will{topic: t.topic("w"), payload: "w", qos: 1, props: [][]byte{prop32(pWillDelay, 0), propPair("k", "v")}}
			props := [][]byte{prop8(pPayloadFormat, 1), propStr(pResponseTopic, "r"), propPair("k", "v"), prop16(pAlias, 1)}
			valid := [][]byte{
				publish{topic: t.topic("a"), payload: "x", qos: 2, id: 3, props: props}.bytes(t.v),
				subscribe(t.v, 4, [][]byte{propVar(pSubscriptionID, 300)}, filter{t.topic("a"), 1}, filter{t.share("g", "b"), 2}),
				unsubscribe(t.v, 5, t.topic("a")),
				ackReason(tPubrel, 3, 0x92), ackReason(tPuback, 1, 0), disconnectWith(0, prop32(pSessionExpiry, 0)),
			}
			for range 120 {
				c := t.dial()
				hello := connect{id: t.id(), will: w, user: "u", pass: "p"}.bytes(t.v)
				b := slices.Clone(valid[rnd.IntN(len(valid))])
				if rnd.IntN(3) == 0 {
					hello[rnd.IntN(len(hello))] ^= 1 << rnd.IntN(8)
				} else {
					b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
				}
				c.conn.Write(join(hello, b, pingreq)) // refused at any point
				if f, err := c.read(50 * time.Millisecond); err == nil && f.kind() != tConnack {
					t.Errorf("the first packet from the server is %v", f)
				}
				c.drop()
			}
		},
	},
}

var badConnectCases = []scenario{
	{
		name: "connect_flags_in_the_fixed_header", v311: "2.2.2-2 3.1.4-1", v5: "2.1.3-1 3.1.4-1", bad: true,
		run: func(t *T) {
			for flags := byte(1); flags < 16; flags++ {
				c := t.dial()
				b := connect{id: t.id()}.bytes(t.v)
				b[0] |= flags
				c.send(b)
				c.unwelcome(badConnectCodes(t.v)...)
			}
		},
	},
	{
		name: "connect_cut_short", v311: "3.1.4-1 3.1.3-3", v5: "3.1.4-1 3.1.3-3", bad: true,
		run: func(t *T) {
			whole := connect{id: t.id(), will: &will{topic: t.topic("w"), payload: "x"}, user: "u", pass: "p"}.bytes(t.v)
			body := whole[2:]
			if len(body) > 127 {
				t.Fatal("the fixed header has more than two bytes")
			}
			for n := range body {
				c := t.dial()
				c.send(packet(tConnect<<4, body[:n]))
				c.unwelcome(append(badConnectCodes(t.v), badCodes(t.v, 0x01, 0x84)...)...)
			}
		},
	},
	{
		name: "connect_with_trailing_bytes", v311: "3.1.4-1", v5: "3.1.4-1", bad: true,
		run: func(t *T) {
			c := t.dial()
			c.send(connect{id: t.id(), tailRaw: []byte("x")}.bytes(t.v))
			c.unwelcome(badConnectCodes(t.v)...)
		},
	},
	{
		name: "connect_that_says_it_is_huge", v311: "3.1.4-1", v5: "3.1.4-1 3.2.2-15", bad: true,
		run: func(t *T) {
			c := t.dial()
			c.send([]byte{tConnect << 4, 0xff, 0xff, 0xff, 0x7f}, str("MQTT"), []byte{byte(t.v)})
			// Refused at once or when the time for a CONNECT is over.
			f, err := c.read(broker.connectTime)
			if err == nil && f.kind() != tConnack {
				t.Fatalf("got %v", f)
			}
			if err != nil && !gone(err) {
				t.Fatalf("not closed: %v", err)
			}
		},
	},
	{
		name: "half_a_connect_that_never_ends", v311: "3.1.0-1", v5: "3.1.0-1", bad: true,
		run: func(t *T) {
			whole := connect{id: t.id()}.bytes(t.v)
			var all []*client
			for _, n := range []int{0, 1, 2, len(whole) / 2, len(whole) - 1} {
				c := t.dial()
				c.send(whole[:n])
				all = append(all, c)
			}
			deadline := time.Now().Add(broker.connectTime)
			for _, c := range all { // they wait at the same time
				c.closedWithin(time.Until(deadline))
			}
		},
	},
	{
		// A byte now and then does not buy more time.
		name: "connect_that_comes_a_byte_at_a_time", v311: "3.1.0-1", v5: "3.1.0-1", bad: true,
		run: func(t *T) {
			c := t.dial()
			c.send([]byte{tConnect << 4, 120}, str("MQTT"))
			start := time.Now()
			for time.Since(start) < broker.connectTime {
				c.conn.SetWriteDeadline(time.Now().Add(patience))
				if _, err := c.conn.Write([]byte{byte(t.v)}); gone(err) {
					return // closed
				}
				c.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
				if _, err := c.in.ReadByte(); gone(err) {
					return
				}
			}
			t.Fatalf("not closed after %v", broker.connectTime)
		},
	},
	{
		name: "many_connections_that_say_nothing", v311: "3.1.0-1", v5: "3.1.0-1", bad: true,
		run: func(t *T) {
			for range 200 {
				t.dial()
			}
			t.stillServes()
			for i := range 200 {
				c := t.dial()
				c.conn.Write(fmt.Append(nil, "garbage ", i))
				c.drop()
			}
		},
	},
}
