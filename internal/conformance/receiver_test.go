package conformance

import "fmt"

// The server as the receiver: what it answers and what it takes for new.
var qosServerCases = []scenario{
	{
		name: "qos_1_is_answered_with_puback", v311: "4.3.2-2 3.3.4-1 2.3.1-6", v5: "4.3.2-4 3.3.4-1 2.2.1-5 3.4.2-1",
		run: func(t *T) {
			topic := t.topic("a")
			sub, c := t.subscriber(filter{topic, 1}), t.anyone()
			for range 2 { // the same packet id again is a new message
				for _, dup := range []bool{false, true} {
					c.send(publish{topic: topic, payload: fmt.Sprint(dup), qos: 1, id: 10, dup: dup}.bytes(t.v))
					c.acked(tPuback, 10)
					sub.takePayloads(fmt.Sprint(dup))
				}
			}
		},
	},
	{
		name: "same_packet_id_after_puback_is_new", v311: "4.3.2-2", v5: "4.3.2-5",
		run: func(t *T) {
			topic := t.topic("a")
			sub, c := t.subscriber(filter{topic, 1}), t.anyone()
			for i := range 3 {
				c.send(publish{topic: topic, payload: fmt.Sprint(i), qos: 1, id: 1, dup: i > 0}.bytes(t.v))
				c.acked(tPuback, 1)
			}
			sub.takePayloads("0", "1", "2")
		},
	},
	{
		name: "qos_2_handshake", v311: "4.3.3-2 3.3.4-1", v5: "4.3.3-8 4.3.3-11 3.3.4-1 3.5.2-1 3.7.2-1",
		run: func(t *T) {
			topic := t.topic("a")
			sub, c := t.subscriber(filter{topic, 2}), t.anyone()
			c.send(publish{topic: topic, payload: "x", qos: 2, id: 7}.bytes(t.v))
			if a := c.acked(tPubrec, 7); a.reason != 0 {
				t.Fatalf("PUBREC 0x%02x", a.reason)
			}
			c.send(ack(tPubrel, 7))
			if a := c.acked(tPubcomp, 7); a.reason != 0 {
				t.Fatalf("PUBCOMP 0x%02x", a.reason)
			}
			sub.takePayloads("x")
		},
	},
	{
		name: "qos_2_sent_again_is_not_delivered_again", v311: "4.3.3-2", v5: "4.3.3-10",
		run: func(t *T) {
			topic := t.topic("a")
			sub, c := t.subscriber(filter{topic, 2}), t.anyone()
			for i := range 4 {
				c.send(publish{topic: topic, payload: "once", qos: 2, id: 7, dup: i > 0}.bytes(t.v))
				if a := c.acked(tPubrec, 7); a.reason != 0 {
					t.Fatalf("PUBREC 0x%02x to the PUBLISH sent again, want 0x00", a.reason)
				}
			}
			c.send(ack(tPubrel, 7))
			c.acked(tPubcomp, 7)
			sub.takePayloads("once")
			c.publish(publish{topic: topic, payload: "fence", qos: 2})
			sub.takePayloads("fence")
		},
	},
	{
		name: "qos_2_sent_again_on_a_new_connection", v311: "4.3.3-2 4.1.0-1 3.1.2-4", v5: "4.3.3-10 3.1.2-5 3.1.2-23",
		run: func(t *T) {
			topic, id := t.topic("a"), t.id()
			sub, c := t.subscriber(filter{topic, 2}), t.client(connect{id: id, keep: true})
			c.send(publish{topic: topic, payload: "once", qos: 2, id: 7}.bytes(t.v))
			c.acked(tPubrec, 7)
			c.drop()
			c = t.client(connect{id: id, keep: true})
			c.send(publish{topic: topic, payload: "once", qos: 2, id: 7, dup: true}.bytes(t.v))
			if a := c.acked(tPubrec, 7); a.reason != 0 {
				t.Fatalf("PUBREC 0x%02x to the PUBLISH sent again, want 0x00", a.reason)
			}
			c.drop()
			c = t.client(connect{id: id, keep: true})
			c.send(ack(tPubrel, 7))
			if a := c.acked(tPubcomp, 7); a.reason != 0 {
				t.Fatalf("PUBCOMP 0x%02x", a.reason)
			}
			sub.takePayloads("once")
			c.publish(publish{topic: topic, payload: "fence", qos: 2, id: 8})
			sub.takePayloads("fence")
		},
	},
	{
		name: "qos_2_of_an_ended_session_is_forgotten", v311: "3.1.2-6", v5: "3.1.2-4",
		run: func(t *T) {
			topic, id := t.topic("a"), t.id()
			sub, c := t.subscriber(filter{topic, 2}), t.client(connect{id: id, keep: true})
			c.send(publish{topic: topic, payload: "old", qos: 2, id: 7}.bytes(t.v))
			c.acked(tPubrec, 7)
			c.drop()
			t.client(connect{id: id}).leave() // ends it
			c = t.client(connect{id: id, keep: true})
			c.publish(publish{topic: topic, payload: "new", qos: 2, id: 7})
			p := sub.take()
			if p.payload == "old" { // a server may deliver it before PUBREL
				p = sub.take()
			}
			if p.payload != "new" {
				t.Fatalf("got %+v", p)
			}
		},
	},
	{
		name: "same_packet_id_after_pubcomp_is_new", v311: "4.3.3-2", v5: "4.3.3-12",
		run: func(t *T) {
			topic := t.topic("a")
			sub, c := t.subscriber(filter{topic, 2}), t.anyone()
			for i := range 3 {
				c.publish(publish{topic: topic, payload: fmt.Sprint(i), qos: 2, id: 1, dup: i > 0})
			}
			sub.takePayloads("0", "1", "2")
		},
	},
	{
		name: "same_packet_id_after_a_refusal_is_new", v5: "4.3.3-9",
		run: func(t *T) {
			c := t.anyone()
			for range 2 {
				c.send(publish{topic: "$SYS/" + t.prefix, qos: 2, id: 1}.bytes(t.v))
				if a := c.acked(tPubrec, 1); a.reason < 0x80 {
					c.send(ack(tPubrel, 1))
					c.acked(tPubcomp, 1)
					t.Skip("the broker refuses no topic that this suite knows")
				}
			}
			sub := t.subscriber(filter{t.topic("a"), 2})
			c.publish(publish{topic: t.topic("a"), payload: "x", qos: 2, id: 1})
			sub.takePayloads("x")
		},
	},
	{
		name: "answers_in_order", v311: "4.6.0-2 4.6.0-3", v5: "4.6.0-2 4.6.0-3",
		run: func(t *T) {
			for qos := byte(1); qos < 3; qos++ {
				c := t.anyone()
				sub := t.subscriber(filter{t.topic("a"), 1})
				var all []byte
				for id := uint16(1); id <= 15; id++ {
					all = append(all, publish{topic: t.topic("a"), payload: "x", qos: qos, id: id * 7}.bytes(t.v)...)
				}
				c.send(all)
				for id := uint16(1); id <= 15; id++ {
					c.acked([]byte{0, tPuback, tPubrec}[qos], id*7)
				}
				sub.leave()
			}
		},
	},
	{
		name: "order_per_publisher", v311: "4.6.0-5 4.6.0-6", v5: "4.6.0-5 4.6.0-6",
		run: func(t *T) {
			const n = 200
			for qos := range byte(3) {
				topic := t.topic(fmt.Sprint(qos))
				sub := t.subscriber(filter{topic, qos})
				for _, tag := range []string{"a", "b"} { // two publishers, interleaved by chance
					pub := t.anyone()
					go func() {
						for i := range n {
							b := publish{topic: topic, payload: fmt.Sprint(tag, i), qos: qos, id: uint16(i + 1)}.bytes(t.v)
							if _, err := pub.conn.Write(b); err != nil {
								return
							}
							if qos == 0 {
								continue
							}
							if _, err := pub.read(patience); err != nil {
								return
							}
							if qos == 2 {
								pub.conn.Write(ack(tPubrel, uint16(i+1)))
								if _, err := pub.read(patience); err != nil {
									return
								}
							}
						}
					}()
				}
				next := map[string]int{}
				for _, p := range sub.collect(2 * n) {
					tag := p.payload[:1]
					if want := fmt.Sprint(tag, next[tag]); p.payload != want {
						t.Fatalf("QoS %d: got %s, want %s", qos, p.payload, want)
					}
					next[tag]++
				}
				sub.leave()
			}
		},
	},
	{
		name: "unknown_pubrel", v311: "4.3.3-2", v5: "4.3.3-11 3.7.2-1",
		run: func(t *T) {
			c := t.anyone()
			c.send(ack(tPubrel, 9))
			if a := c.acked(tPubcomp, 9); t.v == V5 && a.reason != 0x92 && a.reason != 0 {
				t.Fatalf("PUBCOMP 0x%02x", a.reason)
			}
		},
	},
	{
		name: "publisher_gone_before_pubrel", v311: "4.3.3-2 4.5.0-1", v5: "4.3.3-8 4.5.0-1",
		run: func(t *T) {
			topic, id := t.topic("a"), t.id()
			sub, c := t.subscriber(filter{topic, 2}), t.client(connect{id: id, keep: true})
			c.send(publish{topic: topic, payload: "x", qos: 2, id: 3}.bytes(t.v))
			c.acked(tPubrec, 3)
			c.leave()
			c = t.client(connect{id: id, keep: true})
			c.send(ack(tPubrel, 3))
			c.acked(tPubcomp, 3)
			sub.takePayloads("x")
			sub.silent()
		},
	},
}
