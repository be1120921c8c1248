package conformance

import "fmt"

// The server as the sender: packet ids, DUP, the handshakes, resuming.
var qosCases = []scenario{
	{
		// What nobody waits for is ignored; what contradicts the handshake is not.
		name: "acknowledgement_of_the_wrong_kind", v311: "4.3.2-1 4.3.3-1 4.8.0-1", v5: "4.3.2-3 4.3.3-3 4.3.3-5 4.13.1-1", bad: true,
		run: func(t *T) {
			topic := t.topic("a")
			for _, w := range []struct {
				qos      byte
				received bool // PUBREC has been sent
				kind     byte
			}{
				{1, false, tPubrec}, {1, false, tPubcomp}, {2, false, tPuback}, {2, false, tPubcomp}, {2, true, tPuback},
			} {
				sub := t.subscriber(filter{topic, w.qos})
				t.anyone().publish(publish{topic: topic, payload: "x", qos: 2})
				p := sub.message()
				if w.received {
					sub.send(ack(tPubrec, p.id))
					sub.acked(tPubrel, p.id)
				}
				sub.send(ack(w.kind, p.id))
				sub.refused(0x82)
			}
		},
	},
	{
		name: "packet_ids_are_unused", v311: "2.3.1-4 4.3.2-1 4.3.3-1", v5: "2.2.1-4 4.3.2-1 4.3.2-2 4.3.3-1 4.3.3-2",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("#"), 2}), t.anyone()
			ids := map[uint16]bool{}
			for i := range 20 {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: byte(1 + i%2)})
			}
			for range 20 {
				p := sub.message() // none is acknowledged
				if p.id == 0 || ids[p.id] || p.dup {
					t.Fatalf("got %+v, packet ids until now %v", p, ids)
				}
				ids[p.id] = true
			}
		},
	},
	{
		name: "qos_1_is_resent_until_puback", v311: "4.3.2-1 4.4.0-1 3.3.1-1 2.3.1-4 4.1.0-1",
		v5: "4.3.2-3 4.4.0-1 3.3.1-1 2.2.1-4",
		run: func(t *T) {
			id, topic := t.id(), t.topic("a")
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{topic, 1})
			pub.publish(publish{topic: topic, payload: "x", qos: 1})
			first := sub.message()
			for range 2 {
				sub.silent() // not resent while the connection lasts
				sub.drop()
				sub = t.client(connect{id: id, keep: true})
				p := sub.message()
				if !p.dup || p.id != first.id || p.payload != "x" || p.qos != 1 {
					t.Fatalf("got %+v, want DUP and packet id %d", p, first.id)
				}
			}
			sub.send(ack(tPuback, first.id))
			sub.silent()
			sub.drop()
			t.client(connect{id: id, keep: true}).silent()
		},
	},
	{
		name: "qos_2_is_resent_until_pubrec", v311: "4.3.3-1 4.4.0-1 3.3.1-1 2.3.1-4",
		v5: "4.3.3-3 4.4.0-1 3.3.1-1 2.2.1-4",
		run: func(t *T) {
			id, topic := t.id(), t.topic("a")
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{topic, 2})
			pub.publish(publish{topic: topic, payload: "x", qos: 2})
			first := sub.message()
			sub.drop()
			sub = t.client(connect{id: id, keep: true})
			p := sub.message()
			if !p.dup || p.id != first.id || p.payload != "x" || p.qos != 2 {
				t.Fatalf("got %+v, want DUP and packet id %d", p, first.id)
			}
			sub.settle(p)
			sub.silent()
			sub.drop()
			t.client(connect{id: id, keep: true}).silent()
		},
	},
	{
		name: "pubrel_is_resent_until_pubcomp", v311: "4.3.3-1 4.4.0-1 2.3.1-6", v5: "4.3.3-4 4.3.3-5 4.3.3-6 4.4.0-1 2.2.1-5 3.6.2-1",
		run: func(t *T) {
			id, topic := t.id(), t.topic("a")
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{topic, 2})
			pub.publish(publish{topic: topic, payload: "x", qos: 2})
			p := sub.message()
			sub.send(ack(tPubrec, p.id))
			sub.acked(tPubrel, p.id)
			for range 2 {
				sub.drop()
				sub = t.client(connect{id: id, keep: true})
				sub.acked(tPubrel, p.id) // PUBREL, not PUBLISH
				sub.silent()
			}
			sub.send(ack(tPubcomp, p.id))
			sub.silent()
			sub.drop()
			t.client(connect{id: id, keep: true}).silent()
		},
	},
	{
		name: "pubrec_again_gets_pubrel_again", v311: "4.3.3-1", v5: "4.3.3-4",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			pub.publish(publish{topic: topic, payload: "x", qos: 2})
			p := sub.message()
			for range 2 {
				sub.send(ack(tPubrec, p.id))
				if a := sub.acked(tPubrel, p.id); a.reason != 0 {
					t.Fatalf("PUBREL 0x%02x", a.reason)
				}
			}
			sub.send(ack(tPubcomp, p.id))
			sub.silent()
		},
	},
	{
		name: "packet_id_is_free_after_the_handshake", v311: "2.3.1-4", v5: "2.2.1-4",
		run: func(t *T) {
			topic := t.topic("a")
			sub, pub := t.subscriber(filter{topic, 2}), t.anyone()
			held := map[uint16]bool{}
			for i := range 30 {
				pub.publish(publish{topic: topic, payload: fmt.Sprint(i), qos: 2})
				p := sub.message()
				if held[p.id] {
					t.Fatalf("packet id %d is given twice", p.id)
				}
				if i%3 == 0 {
					held[p.id] = true // left open
					continue
				}
				sub.settle(p)
			}
		},
	},
	{
		name: "first_delivery_has_dup_0_however_late", v311: "3.3.1-1 4.3.2-1 3.1.2-5 4.5.0-1",
		v5: "3.3.1-1 4.3.2-2 4.3.3-2 4.5.0-1",
		run: func(t *T) {
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{t.topic("#"), 2})
			sub.leave()
			for i := range 6 {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: byte(1 + i%2)})
			}
			t.client(connect{id: id, keep: true, props: receiveMaximum(t.v, 1)}).drop() // perhaps sent one
			sub = t.client(connect{id: id, keep: true, props: receiveMaximum(t.v, 1)})
			first := sub.message() // DUP or not: the connection before may have carried it
			sub.settle(first)
			for i := range 6 {
				if fmt.Sprint(i) == first.payload {
					continue
				}
				if p := sub.message(); p.dup && t.v == V5 || p.payload != fmt.Sprint(i) {
					t.Fatalf("got %+v, want DUP 0 and payload %d", p, i)
				} else {
					sub.settle(p)
				}
			}
		},
	},
	{
		name: "offline_messages_in_order", v311: "3.1.2-5 4.6.0-5 4.6.0-6", v5: "4.5.0-1 4.6.0-5 4.6.0-6 3.1.2-23",
		run: func(t *T) {
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{t.topic("#"), 2})
			sub.leave()
			var want []string
			for i := range 60 {
				want = append(want, fmt.Sprint(i))
				pub.publish(publish{topic: t.topic("a"), payload: want[i], qos: byte(1 + i%2)})
			}
			sub = t.client(connect{id: id, keep: true})
			for i, p := range sub.collect(len(want)) {
				if p.payload != want[i] || p.dup || p.qos != byte(1+i%2) {
					t.Fatalf("got %+v, want %s", p, want[i])
				}
			}
		},
	},
	{
		name: "resent_in_the_original_order", v311: "4.6.0-1 4.4.0-1", v5: "4.6.0-1 4.4.0-1",
		run: func(t *T) {
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{t.topic("#"), 2})
			for i := range 10 {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: byte(1 + i%2)})
			}
			var first []publish
			for range 10 {
				first = append(first, sub.message())
			}
			// Every third is settled, out of order; QoS 1 only.
			sub.send(ack(tPuback, first[6].id))
			sub.send(ack(tPuback, first[2].id))
			sub.ping()
			sub.drop()
			sub = t.client(connect{id: id, keep: true})
			for i, f := range first {
				if i == 2 || i == 6 {
					continue
				}
				if p := sub.message(); p.payload != f.payload || p.id != f.id || !p.dup {
					t.Fatalf("got %+v, want %s resent under packet id %d", p, f.payload, f.id)
				}
			}
			sub.silent()
		},
	},
	{
		name: "resent_before_what_is_new", v311: "4.6.0-1 4.6.0-6", v5: "4.6.0-1 4.6.0-5",
		run: func(t *T) {
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 1})
			pub.publish(publish{topic: t.topic("a"), payload: "1", qos: 1})
			sub.message()
			sub.drop()
			pub.publish(publish{topic: t.topic("a"), payload: "2", qos: 1})
			sub = t.client(connect{id: id, keep: true})
			pub.publish(publish{topic: t.topic("a"), payload: "3", qos: 1})
			for i, dup := range []bool{true, false, false} {
				if p := sub.take(); p.payload != fmt.Sprint(i+1) || i != 1 && p.dup != dup {
					t.Fatalf("got %+v, want %d", p, i+1)
				}
			}
		},
	},
	{
		name: "pubrel_in_the_order_of_pubrec", v311: "4.6.0-4", v5: "4.6.0-4",
		run: func(t *T) {
			sub, pub := t.subscriber(filter{t.topic("a"), 2}), t.anyone()
			var ids []uint16
			for i := range 8 {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: 2})
				ids = append(ids, sub.message().id)
			}
			for _, i := range []int{3, 0, 7, 1, 2, 6, 5, 4} {
				sub.send(ack(tPubrec, ids[i]))
			}
			for _, i := range []int{3, 0, 7, 1, 2, 6, 5, 4} {
				sub.acked(tPubrel, ids[i])
			}
		},
	},
	{
		name: "both_directions_have_their_own_packet_ids", v311: "2.3.1-4 4.3.3-2", v5: "2.2.1-4 4.3.3-10 4.3.3-4",
		run: func(t *T) {
			topic, own := t.topic("in"), t.topic("out")
			c, pub := t.subscriber(filter{topic, 2}), t.anyone()
			watch := t.subscriber(filter{own, 2})
			for i, qos := range []byte{2, 1} {
				pub.publish(publish{topic: topic, payload: "to c", qos: qos})
				p := c.message() // left open while c uses the same packet id
				c.send(publish{topic: own, payload: fmt.Sprint(i), qos: 2, id: p.id}.bytes(t.v))
				c.acked(tPubrec, p.id)
				c.send(subscribe(t.v, p.id+100, nil, filter{t.topic("other"), 0}))
				c.acked(tSuback, p.id+100)
				c.settle(p)
				c.send(publish{topic: own, payload: fmt.Sprint(i), qos: 2, id: p.id, dup: true}.bytes(t.v))
				if a := c.acked(tPubrec, p.id); a.reason != 0 {
					t.Fatalf("PUBREC 0x%02x to a PUBLISH sent again", a.reason)
				}
				c.send(ack(tPubrel, p.id))
				if a := c.acked(tPubcomp, p.id); a.reason != 0 {
					t.Fatalf("PUBCOMP 0x%02x", a.reason)
				}
				watch.takePayloads(fmt.Sprint(i))
			}
			watch.silent()
		},
	},
	{
		name: "refused_message_is_settled", v5: "4.4.0-2",
		run: func(t *T) {
			id := t.id()
			sub, pub := t.client(connect{id: id, keep: true, props: receiveMaximum(t.v, 1)}), t.anyone()
			sub.subscribe(filter{t.topic("a"), 2})
			for i := range 3 {
				pub.publish(publish{topic: t.topic("a"), payload: fmt.Sprint(i), qos: byte(1 + i%2)})
			}
			sub.send(ackReason(tPuback, sub.message().id, 0x97))
			p := sub.message()
			if p.payload != "1" {
				t.Fatalf("got %+v", p)
			}
			sub.send(ackReason(tPubrec, p.id, 0x97))
			if p := sub.take(); p.payload != "2" { // no PUBREL before it
				t.Fatalf("got %+v", p)
			}
			sub.silent()
			sub.drop()
			t.client(connect{id: id, keep: true}).silent()
		},
	},
	{
		name: "acknowledgements_that_nothing_waits_for", v311: "4.3.3-1", v5: "3.6.2-1 3.7.2-1",
		run: func(t *T) {
			c := t.anyone()
			c.send(ack(tPuback, 500), ack(tPubcomp, 501))
			c.ping() // ignored
			c.send(ack(tPubrec, 502))
			if a := c.acked(tPubrel, 502); t.v == V5 && a.reason != 0x92 && a.reason != 0 {
				t.Errorf("PUBREL 0x%02x", a.reason)
			}
			c.send(ack(tPubrel, 503))
			if a := c.acked(tPubcomp, 503); t.v == V5 && a.reason != 0x92 && a.reason != 0 {
				t.Errorf("PUBCOMP 0x%02x", a.reason)
			}
			c.ping()
		},
	},
}
