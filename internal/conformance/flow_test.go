package conformance

import (
	"fmt"
	"strings"
	"time"
)

// receiveMaximum is the CONNECT property; 3.1.1 has none.
func receiveMaximum(v Version, n uint16) [][]byte {
	if v != V5 {
		return nil
	}
	return [][]byte{prop16(pReceiveMax, n)}
}

var flowCases = []scenario{
	{
		name: "client_receive_maximum", v5: "3.3.4-9 4.9.0-1 4.9.0-2",
		run: func(t *T) {
			const limit, n = 3, 10
			for qos := byte(1); qos < 3; qos++ {
				sub, pub := t.client(connect{props: receiveMaximum(t.v, limit)}), t.anyone()
				sub.subscribe(filter{t.topic("a"), 2})
				for i := range n {
					pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: qos})
				}
				var open []publish
				for i := range n {
					if len(open) == limit {
						sub.silent()
						sub.settle(open[0])
						open = open[1:]
					}
					p := sub.message()
					if p.payload != fmt.Sprint(i) {
						t.Fatalf("got %+v, want %d", p, i)
					}
					open = append(open, p)
				}
				sub.leave()
			}
		},
	},
	{
		name: "qos_2_counts_until_pubcomp", v5: "4.9.0-2 3.3.4-9",
		run: func(t *T) {
			sub, pub := t.client(connect{props: receiveMaximum(t.v, 1)}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 2})
			pub.publish(publish{topic: t.topic("a"), payload: "1", qos: 2})
			pub.publish(publish{topic: t.topic("a"), payload: "2", qos: 2})
			p := sub.message()
			sub.send(ack(tPubrec, p.id))
			sub.acked(tPubrel, p.id)
			sub.silent()
			sub.send(ack(tPubcomp, p.id))
			sub.takePayloads("2")
		},
	},
	{
		name: "everything_else_goes_on_without_quota", v5: "4.9.0-3 3.3.4-10",
		run: func(t *T) {
			sub, pub := t.client(connect{props: receiveMaximum(t.v, 1)}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 1}, filter{t.topic("b"), 0})
			pub.publish(publish{topic: t.topic("a"), payload: "1", qos: 1})
			p := sub.message()
			pub.publish(publish{topic: t.topic("a"), payload: "2", qos: 1})
			pub.publish(publish{topic: t.topic("b"), payload: "0"})
			sub.takePayloads("0") // QoS 0 has no quota
			sub.subscribe(filter{t.topic("c"), 1})
			sub.publish(publish{topic: t.topic("d"), qos: 1})
			sub.publish(publish{topic: t.topic("d"), qos: 2})
			sub.ping()
			sub.settle(p)
			sub.takePayloads("2")
		},
	},
	{
		name: "receive_maximum_of_queued_and_resent_messages", v5: "3.3.4-9 4.9.0-1",
		run: func(t *T) {
			const n = 8
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true, props: receiveMaximum(t.v, 5)}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 1})
			for i := range n {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: 1})
			}
			for range 5 {
				sub.message()
			}
			sub.silent()
			sub.drop()
			// Back with less than is unacknowledged.
			sub = t.client(connect{id: id, keep: true, props: receiveMaximum(t.v, 2)})
			var open []publish
			for i := range n {
				if len(open) == 2 {
					sub.silent()
					sub.settle(open[0])
					open = open[1:]
				}
				p := sub.message()
				if p.payload != fmt.Sprint(i) || p.dup != (i < 5) {
					t.Fatalf("got %+v, want %d", p, i)
				}
				open = append(open, p)
			}
		},
	},
	{
		name: "server_receive_maximum", v5: "3.3.4-7 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			limit, ok := number(c.hello.props, pReceiveMax)
			if !ok {
				limit = 65535
			}
			// All in one write: the one too many follows before any PUBREL could.
			var all []byte
			for i := range limit + 1 {
				all = append(all, publish{topic: t.topic("a"), qos: 2, id: uint16(i + 1)}.bytes(t.v)...)
			}
			go c.conn.Write(all)
			for range limit + 1 {
				f := c.next()
				if a, _ := c.decode(f); a.kind == tDisconnect {
					if a.reason != 0x93 {
						t.Fatalf("DISCONNECT 0x%02x, want 0x93", a.reason)
					}
					c.closed()
					return
				} else if a.kind != tPubrec {
					t.Fatalf("got %v, want PUBREC or DISCONNECT", f)
				}
			}
			if a := c.answer(tDisconnect); a.reason != 0x93 {
				t.Fatalf("DISCONNECT 0x%02x, want 0x93", a.reason)
			}
			c.closed()
		},
	},
	{
		name: "as_many_as_the_server_takes", v5: "3.3.4-7 4.3.3-8",
		run: func(t *T) {
			c := t.anyone()
			limit, ok := number(c.hello.props, pReceiveMax)
			if !ok || limit > 2000 {
				limit = 2000
			}
			var all, rel []byte
			for i := range limit {
				all = append(all, publish{topic: t.topic("a"), qos: 2, id: uint16(i + 1)}.bytes(t.v)...)
				rel = append(rel, ack(tPubrel, uint16(i+1))...)
			}
			for range 2 {
				go c.conn.Write(all)
				for i := range limit {
					c.acked(tPubrec, uint16(i+1))
				}
				go c.conn.Write(rel)
				for i := range limit {
					c.acked(tPubcomp, uint16(i+1))
				}
			}
		},
	},
	{
		name: "qos_1_beyond_the_receive_maximum_one_by_one", v311: "4.3.2-2", v5: "3.3.4-7 4.3.2-4",
		run: func(t *T) {
			c := t.anyone()
			for i := range 3000 {
				c.publish(publish{topic: t.topic("a"), qos: 1, id: uint16(i + 1)})
			}
		},
	},
	{
		// 3.1.1 has no receive maximum: however many are open, all are served.
		name: "thousands_unacknowledged", v311: "4.3.3-2",
		run: func(t *T) {
			const n = 3000
			c := t.anyone()
			var all []byte
			for i := range n {
				all = append(all, publish{topic: t.topic("a"), qos: 2, id: uint16(i + 1)}.bytes(t.v)...)
			}
			go c.conn.Write(all)
			for i := range n {
				c.acked(tPubrec, uint16(i+1))
			}
			c.send(ack(tPubrel, n))
			c.acked(tPubcomp, n)
		},
	},
	{
		name: "client_maximum_packet_size", v5: "3.1.2-24 3.1.2-25",
		run: func(t *T) {
			const limit = 100
			id := t.id()
			topic := t.topic("a")
			sub, pub := t.client(connect{id: id, keep: true, props: [][]byte{prop32(pMaxPacket, limit), prop16(pReceiveMax, 1)}}), t.anyone()
			sub.subscribe(filter{topic, 2})
			for qos := range byte(3) {
				head := len(publish{topic: topic, qos: qos, id: 1}.bytes(t.v))
				fits := strings.Repeat("x", limit-head)
				pub.publish(publish{topic: topic, payload: fits + "y", qos: qos}) // a byte too many
				pub.publish(publish{topic: topic, payload: fits, qos: qos})
				if p := sub.take(); p.payload != fits {
					t.Fatalf("QoS %d: %d bytes of payload, want %d", qos, len(p.payload), len(fits))
				}
				pub.publish(publish{topic: topic, payload: "big", qos: qos,
					props: [][]byte{propPair("k", strings.Repeat("v", limit))}})
				pub.publish(publish{topic: topic, payload: "small", qos: qos})
				sub.takePayloads("small") // receive maximum 1: the dropped ones hold no place
			}
			sub.leave()
			// The same out of the queue.
			pub.publish(publish{topic: topic, payload: strings.Repeat("x", limit), qos: 1})
			pub.publish(publish{topic: topic, payload: "queued", qos: 1})
			sub = t.client(connect{id: id, keep: true, props: [][]byte{prop32(pMaxPacket, limit), prop16(pReceiveMax, 1)}})
			sub.takePayloads("queued")
			sub.silent()
		},
	},
	{
		name: "server_maximum_packet_size", v311: "4.8.0-1", v5: "3.2.2-15 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			limit, ok := number(c.hello.props, pMaxPacket)
			if t.v == V311 && broker.own {
				limit, ok = 1<<20, true // the default
			}
			if !ok || limit > 1<<24 {
				t.Skip("the broker takes packets of any size")
			}
			// The header says it all.
			c.send(join([]byte{tPublish << 4}, varint(int(limit)), str(t.topic("a"))))
			c.refused(0x95)
			c = t.client(connect{})
			topic := t.topic("a")
			// A remaining length of this many bytes takes three or four to encode.
			head := 1 + len(varint(int(limit))) + 2 + len(topic) + len(versionProps(t.v))
			sub := t.subscriber(filter{topic, 0})
			c.publish(publish{topic: topic, payload: strings.Repeat("x", int(limit)-head)}) // just fits
			if p := sub.take(); len(p.payload) != int(limit)-head {
				t.Fatalf("%d bytes of payload", len(p.payload))
			}
		},
	},
}

var aliasCases = []scenario{
	{
		name: "aliases_from_a_client", v5: "3.3.2-12 3.2.2-17",
		run: func(t *T) {
			c := t.anyone()
			limit, _ := number(c.hello.props, pAliasMax)
			if limit == 0 {
				t.Skip("the broker takes no topic aliases")
			}
			sub := t.subscriber(filter{t.topic("#"), 1})
			for _, alias := range []uint16{1, uint16(limit)} {
				with := [][]byte{prop16(pAlias, alias)}
				c.publish(publish{topic: t.topic("a"), payload: "1", qos: 1, props: with})
				c.publish(publish{payload: "2", qos: 1, props: with})
				c.publish(publish{topic: t.topic("b"), payload: "3", qos: 1, props: with}) // redefines it
				c.publish(publish{payload: "4", qos: 1, props: with})
				c.publish(publish{topic: t.topic("c"), payload: "5", qos: 1})
				c.publish(publish{payload: "6", qos: 1, props: with})
				for i, s := range []string{"a", "a", "b", "b", "c", "b"} {
					if p := sub.take(); p.topic != t.topic(s) || p.payload != fmt.Sprint(i+1) || len(p.received) > 0 {
						t.Fatalf("got %+v, want message %d on %s", p, i+1, s)
					}
				}
			}
		},
	},
	{
		name: "aliases_out_of_range", v5: "3.3.2-8 3.3.2-9 3.2.2-17 4.13.1-1", bad: true,
		run: func(t *T) {
			for _, alias := range []uint16{0, 65535} {
				c := t.anyone()
				if limit, _ := number(c.hello.props, pAliasMax); limit == 65535 && alias > 0 {
					continue
				}
				c.send(publish{topic: t.topic("a"), qos: 1, id: 1, props: [][]byte{prop16(pAlias, alias)}}.bytes(t.v))
				c.refused(0x94)
			}
			c := t.anyone()
			if limit, _ := number(c.hello.props, pAliasMax); limit < 65535 {
				c.send(publish{topic: t.topic("a"), props: [][]byte{prop16(pAlias, uint16(limit+1))}}.bytes(t.v))
				c.refused(0x94)
			}
		},
	},
	{
		name: "alias_that_was_never_set", v5: "3.3.2-12 4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(publish{qos: 1, id: 1, props: [][]byte{prop16(pAlias, 1)}}.bytes(t.v))
			c.refused(0x82, 0x94)
		},
	},
	{
		name: "aliases_end_with_their_connection", v5: "3.3.2-7", bad: true,
		run: func(t *T) {
			id := t.id()
			c := t.client(connect{id: id, keep: true})
			c.publish(publish{topic: t.topic("a"), qos: 1, props: [][]byte{prop16(pAlias, 1)}})
			c.leave()
			c = t.client(connect{id: id, keep: true})
			c.send(publish{qos: 1, id: 9, props: [][]byte{prop16(pAlias, 1)}}.bytes(t.v))
			c.refused(0x82, 0x94)
		},
	},
	{
		name: "no_aliases_to_a_client_without_maximum", v5: "3.1.2-27 3.3.2-11",
		run: func(t *T) {
			for _, props := range [][][]byte{nil, {prop16(pAliasMax, 0)}} {
				sub, pub := t.client(connect{props: props}), t.anyone()
				sub.subscribe(filter{t.topic("a"), 2})
				for qos := range byte(3) {
					for range 2 {
						pub.publish(publish{topic: t.topic("a"), payload: "x", qos: qos})
						if p := sub.take(); p.topic != t.topic("a") || len(p.received) > 0 {
							t.Fatalf("got %+v", p)
						}
					}
				}
			}
		},
	},
	{
		name: "aliases_to_a_client", v5: "3.1.2-26 3.3.2-11 3.3.2-8",
		run: func(t *T) {
			const limit = 2
			sub, pub := t.client(connect{props: [][]byte{prop16(pAliasMax, limit)}}), t.anyone()
			sub.subscribe(filter{t.topic("#"), 2})
			known, used := map[uint32]string{}, 0
			for i := range 24 {
				topic := t.topic(fmt.Sprint([]int{0, 0, 1, 0, 2, 3}[i%6]))
				pub.publish(publish{topic: topic, payload: "x", qos: byte(i % 3)})
				p := sub.take()
				alias, has := number(p.received, pAlias)
				switch {
				case has && (alias == 0 || alias > limit):
					t.Fatalf("topic alias %d, the maximum is %d", alias, limit)
				case has && p.topic == "":
					p.topic = known[alias]
					used++
				case has:
					known[alias] = p.topic
				}
				if p.topic != topic {
					t.Fatalf("message %d: topic %q, want %q", i, p.topic, topic)
				}
			}
			if used == 0 && broker.own {
				t.Fatal("no topic alias was used though the client allows them")
			}
		},
	},
	{
		// What Eclipse Paho's suite asks for: the first message sets it.
		name: "alias_with_the_first_message", v5: "3.1.2-26",
		run: func(t *T) {
			if !broker.own {
				t.Skip("a server may but need not use topic aliases")
			}
			sub, pub := t.client(connect{props: [][]byte{prop16(pAliasMax, 1)}}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 2})
			for qos := range byte(3) {
				pub.publish(publish{topic: t.topic("a"), payload: "x", qos: qos})
				want := t.topic("a")
				if qos > 0 {
					want = ""
				}
				p := sub.take()
				if alias, has := number(p.received, pAlias); !has || alias != 1 || p.topic != want {
					t.Fatalf("got %+v, want topic %q and topic alias 1", p, want)
				}
			}
		},
	},
	{
		name: "resent_messages_need_no_alias", v5: "3.3.2-7",
		run: func(t *T) {
			id := t.id()
			o := connect{id: id, keep: true, props: [][]byte{prop16(pAliasMax, 1)}}
			sub, pub := t.client(o), t.anyone()
			sub.subscribe(filter{t.topic("a"), 1})
			for range 2 {
				pub.publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
				sub.message()
			}
			sub.drop()
			sub = t.client(o)
			if p := sub.take(); p.topic != t.topic("a") {
				t.Fatalf("the first message of a connection has topic %q", p.topic)
			}
			if p := sub.take(); p.topic != t.topic("a") && len(find(p.received, pAlias)) == 0 {
				t.Fatalf("got %+v", p)
			}
		},
	},
}

var keepaliveCases = []scenario{
	{
		name: "pingresp", v311: "3.12.4-1", v5: "3.12.4-1",
		run: func(t *T) {
			c := t.anyone()
			for range 3 {
				c.send(pingreq)
				wantBytes(c, 0xd0, 0)
			}
		},
	},
	{
		name: "silent_client_is_closed", v311: "3.1.2-24", v5: "3.1.2-22",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1}, connect{keepalive: 1})
			before := time.Now() // the last packet is sent between these two
			dying.ping()
			after := time.Now()
			dying.refused(0x8D)
			if most, least := time.Since(before), time.Since(after); most < 1400*time.Millisecond || least > 3500*time.Millisecond {
				t.Errorf("closed after %v to %v, want 1.5 s", least, most)
			}
			watcher.takePayloads("will") // as if the network had failed
		},
	},
	{
		name: "any_packet_keeps_alive", v311: "3.1.2-24", v5: "3.1.2-22 3.2.2-22",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 1}), t.client(connect{keepalive: 1})
			for i := range 4 { // four seconds with a packet every second
				time.Sleep(time.Second) // the silence that the keepalive allows
				switch i {
				case 0:
					pub.publish(publish{topic: t.topic("a"), payload: "x", qos: 1})
					sub.takePayloads("x")
				case 1:
					pub.ping()
				case 2:
					pub.subscribe(filter{t.topic("b"), 0})
				default:
					pub.send(publish{topic: t.topic("a"), payload: "x"}.bytes(t.v))
					sub.takePayloads("x")
				}
			}
		},
	},
	{
		// What the server sends does not count.
		name: "messages_to_the_client_do_not_count", v311: "3.1.2-24", v5: "3.1.2-22",
		run: func(t *T) {
			sub, pub := t.client(connect{keepalive: 1}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 0})
			for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); {
				pub.publish(publish{topic: t.topic("a"), payload: "x"})
				if f, err := sub.read(200 * time.Millisecond); gone(err) || err == nil && f.kind() == tDisconnect {
					return
				}
				time.Sleep(100 * time.Millisecond) // a message every so often is the point
			}
			t.Fatal("not closed")
		},
	},
}
