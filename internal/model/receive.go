package model

import (
	"fmt"
	"slices"

	"github.com/herald-mqtt/herald"
)

// Receive is a PUBLISH that a connected client received, before time goes on.
// It returns an error if the broker must not have sent it, or not yet. A QoS 2
// message is reported once, when its packet identifier is new to the client.
func (m *Model) Receive(client string, d Delivery, dup bool) error {
	s := m.sessions[client]
	if s == nil || s.conn == 0 {
		return fmt.Errorf("%s is not connected and received %v", client, d)
	}
	d.Identifiers = slices.Sorted(slices.Values(d.Identifiers))
	if dup && d.QoS == 0 { // [MQTT-3.3.1-2]
		return fmt.Errorf("%s received DUP with %v", client, d)
	}
	// What was not acknowledged comes again when the client comes back, with
	// DUP [MQTT-3.3.1-1], [MQTT-4.4.0-1].
	for _, r := range s.unacked {
		if dup && r.conn != s.conn && r.Topic == d.Topic && r.Payload == d.Payload && d.QoS == 1 {
			r.conn = s.conn
			return nil
		}
	}
	// What looks the same is what must arrive rather than what may, and its own
	// rather than what it may get as a member.
	for _, must := range []bool{true, false} {
		fits := func(it *item) bool { return it.must == must && m.is(s, it, d) && (it.begun || !dup) }
		if i := slices.IndexFunc(s.due, fits); i >= 0 {
			it := s.due[i]
			rest := m.inOrder(s.due, i)
			if rest == nil {
				return fmt.Errorf("%s received %v before what was published earlier: %v", client, d, m.Missing())
			}
			s.due = rest
			s.received(it, nil, d)
			return nil
		}
		for _, g := range m.groups {
			mem := g.members[s]
			if mem == nil {
				continue
			}
			if i := slices.IndexFunc(g.due, func(it *item) bool {
				mine := *it
				mine.grant, mine.ids = mem.Subscription, identifiers(mem.Subscription)
				return fits(&mine)
			}); i >= 0 {
				it := g.due[i]
				g.due = slices.Delete(g.due, i, i+1)
				s.received(it, g, d)
				return nil
			}
		}
	}
	return fmt.Errorf("%s received %v (DUP %v), which is not due, or not so: due is %v", client, d, dup, m.similar(s, d))
}

// received: a QoS 1 message may be sent again until it is acknowledged.
func (s *session) received(it *item, from *group, d Delivery) {
	if d.QoS == 1 {
		s.unacked = append(s.unacked, &receipt{item: it, conn: s.conn, from: from})
	}
}

// Ack is the client's PUBACK for a QoS 1 message that it received, once the
// broker has it. After that the message must not come again.
func (m *Model) Ack(client string, d Delivery) {
	s := m.sessions[client]
	i := slices.IndexFunc(s.unacked, func(r *receipt) bool { return r.Topic == d.Topic && r.Payload == d.Payload })
	if i >= 0 {
		s.unacked = slices.Delete(s.unacked, i, i+1)
	}
}

// is tells whether d is what the client should see of it.
func (m *Model) is(s *session, it *item, d Delivery) bool {
	want := m.delivery(s, it)
	if it.expires != never && s.version == herald.V5 { // the time it waited is taken off [MQTT-3.3.2-6]
		if left := max(it.expires-m.now, 0) - int64(d.Left)*1000; left <= -1000 || left >= 1000 {
			return false
		}
	} else if d.Left != 0 {
		return false
	}
	return d.Topic == want.Topic && d.Payload == want.Payload && d.QoS == want.QoS &&
		d.Retain == want.Retain && slices.Equal(d.Identifiers, want.Identifiers)
}

// delivery is what the client should see of it. The RETAIN flag is set on what
// is sent because it was retained [MQTT-3.3.1-8], and kept on other messages
// for Retain As Published only [MQTT-3.3.1-12], [MQTT-3.3.1-13].
func (m *Model) delivery(s *session, it *item) Delivery {
	d := Delivery{
		Topic: it.Topic, Payload: it.Payload, QoS: min(it.QoS, it.grant.QoS),
		Retain: it.stored || it.Retain && it.grant.RetainAsPublished,
	}
	if s.version == herald.V5 {
		d.Identifiers = it.ids
		if it.expires != never {
			d.Left = uint32(max(it.expires-m.now, 0) / 1000)
		}
	}
	return d
}

// inOrder takes the i-th message out of due. It returns nil if one must come
// before: of the same publisher and topic, and published with the same QoS
// [MQTT-4.6.0-6]. Those that might have come before are lost now. A message
// that is sent because it was retained has no order.
func (m *Model) inOrder(due []*item, i int) []*item {
	rest := make([]*item, 0, len(due))
	for j, it := range due {
		this := due[i]
		before := j < i && !it.stored && !this.stored && it.publisher == this.publisher &&
			it.Topic == this.Topic && (m.Strict || it.QoS == this.QoS)
		if before && it.must {
			return nil
		}
		if !before && j != i {
			rest = append(rest, it)
		}
	}
	return rest
}

// Missing lists what must have arrived by now and has not, for a moment when
// the broker and the clients have nothing left to do. What waits for a client
// that is not connected is not missing; nor is what a group might have given to
// a member that is away.
func (m *Model) Missing() (missing []string) {
	for _, s := range m.ordered() {
		for _, it := range s.due {
			if s.conn != 0 && it.must {
				missing = append(missing, fmt.Sprintf("%s: %v", s.client, m.delivery(s, it)))
			}
		}
	}
	for name, g := range m.groups {
		away, here := 0, 0
		for s, mem := range g.members {
			switch {
			case s.conn == 0:
				away++
			case !mem.left:
				here++
			}
		}
		for _, it := range g.due {
			if away == 0 && here > 0 && it.must {
				missing = append(missing, fmt.Sprintf("%s: %q on %q, QoS %d", name, it.Payload, it.Topic, it.QoS))
			}
		}
	}
	slices.Sort(missing)
	return missing
}

// similar is what is due with the payload of d, for an error.
func (m *Model) similar(s *session, d Delivery) (due []string) {
	for _, it := range s.due {
		if it.Payload == d.Payload {
			due = append(due, fmt.Sprintf("%v (begun %v)", m.delivery(s, it), it.begun))
		}
	}
	for name, g := range m.groups {
		for _, it := range g.due {
			if it.Payload == d.Payload {
				due = append(due, fmt.Sprintf("%s: on %q, QoS %d", name, it.Topic, it.QoS))
			}
		}
	}
	return due
}
