package session

import (
	"fmt"
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// sentPacket is what a client sees of a frame.
type sentPacket struct {
	kind byte
	qos  byte
	pid  uint16
	dup  bool
	id   herald.ID // of the message, which is its payload
}

func packets(t testing.TB, b []byte) (all []sentPacket) {
	t.Helper()
	for len(b) > 0 {
		n := wire.FrameLength(b)
		p := sentPacket{kind: wire.Type(b[0])}
		if p.kind == wire.TypePublish {
			var pub wire.Publish
			if err := wire.ParsePublish(b[:n], herald.V5, &pub); err != nil {
				t.Fatal(err)
			}
			p.qos, p.pid, p.dup = pub.QoS(), pub.PacketID, pub.Dup()
			if _, err := fmt.Sscan(string(pub.Payload), &p.id); err != nil {
				t.Fatal(err)
			}
		} else {
			var a wire.Ack
			if err := wire.ParseAck(b[:n], herald.V5, &a); err != nil {
				t.Fatal(err)
			}
			p.pid = a.PacketID
		}
		all = append(all, p)
		b = b[n:]
	}
	return all
}

func run(qos byte, ids ...herald.ID) *wire.Run {
	var ms []*herald.Message
	for _, id := range ids {
		ms = append(ms, &herald.Message{ID: id, Topic: "t", QoS: qos, Payload: fmt.Append(nil, id)})
	}
	return wire.MakeRun(ms)
}

// attached is a session with an empty inbox, and caught up.
func attached(durable bool, receiveMaximum int) (*Session, *Effects) {
	s, fx := New(1, durable), &Effects{Limit: 1 << 20}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: receiveMaximum}, persistence.Window{}, Env{}, fx)
	if durable {
		s.Page(nil, fx.ReadLimit, Env{}, fx)
		fx.Read = false
	}
	return s, fx
}

var grant2 = &Grant{QoS: 2}

// Packet ids come round: 0 is none, and those that are in use are passed over
// [MQTT-2.2.1-3], also where the table has another one in their place.
func TestPacketIDsComeRound(t *testing.T) {
	s, fx := attached(false, 100)
	stays := map[uint16]bool{} // never acknowledged
	next := herald.ID(1)
	for i := range 200_000 {
		fx.Out = fx.Out[:0]
		s.Deliver(run(1, next), 0, 1, grant2, 0, Env{}, fx)
		next++
		p := packets(t, fx.Out)
		if len(p) != 1 || p[0].pid == 0 || stays[p[0].pid] {
			t.Fatalf("%d: sent %+v", i, p)
		}
		if i%997 == 0 && len(stays) < 99 {
			stays[p[0].pid] = true
			continue
		}
		s.Puback(p[0].pid, fx)
	}
	if s.Inflight() != len(stays) {
		t.Fatalf("%d in flight, want %d", s.Inflight(), len(stays))
	}
}

// All packet ids can be in use.
func TestAllPacketIDs(t *testing.T) {
	const all = 1<<16 - 1
	s, fx := attached(false, all)
	seen := map[uint16]bool{}
	for id := herald.ID(1); id <= all+10; id++ {
		fx.Out = fx.Out[:0]
		s.Deliver(run(1, id), 0, 1, grant2, 0, Env{}, fx)
		for _, p := range packets(t, fx.Out) {
			if seen[p.pid] || p.pid == 0 {
				t.Fatalf("packet id %d twice", p.pid)
			}
			seen[p.pid] = true
		}
	}
	if len(seen) != all || s.Pending() != 10 {
		t.Fatalf("%d packet ids, %d wait", len(seen), s.Pending())
	}
	fx.Out = fx.Out[:0]
	s.Puback(7, fx)
	s.Pump(Env{}, fx)
	if p := packets(t, fx.Out); len(p) != 1 || p[0].pid != 7 {
		t.Fatalf("sent %+v, want packet id 7 used again", p)
	}
}

// A table that has to hold given packet ids which fall on one place grows.
func TestGivenPacketIDsCollide(t *testing.T) {
	var w window
	pids := []uint16{8, 16, 24, 32, 1024, 65528, 1, 9}
	for _, pid := range pids {
		sl := w.take(pid)
		*sl = slot{pid: pid, state: awaited}
	}
	for _, pid := range pids {
		if sl := w.find(pid); sl == nil || sl.pid != pid {
			t.Fatalf("packet id %d is not found", pid)
		}
	}
	if w.find(40) != nil || w.find(0) != nil || w.used != len(pids) {
		t.Fatalf("%d used, want %d", w.used, len(pids))
	}
	for range 200 { // none of them is given out again
		if sl := w.alloc(); slices.Contains(pids, sl.pid) {
			t.Fatalf("packet id %d is in use", sl.pid)
		} else {
			sl.state = published
			w.inflight++
			w.release(sl)
		}
	}
}

// A QoS 1 message does not overtake a QoS 2 one whose packet id is being stored
// [MQTT-4.6.0-6].
func TestStagedInOrder(t *testing.T) {
	s, fx := attached(true, 10)
	s.Deliver(run(1, 1), 0, 1, grant2, 0, Env{}, fx)
	s.Deliver(run(2, 2), 0, 1, grant2, 0, Env{}, fx)
	first := fx.Ticket
	fx.Ticket = 0
	s.Deliver(run(1, 3), 0, 1, grant2, 0, Env{}, fx)
	s.Deliver(run(2, 4), 0, 1, grant2, 0, Env{}, fx)
	s.Pump(Env{}, fx)
	second := fx.Ticket
	if p := packets(t, fx.Out); len(p) != 1 || p[0].id != 1 {
		t.Fatalf("sent %+v before the packet ids were stored", p)
	}
	if len(fx.Sent) != 2 || first == 0 || second == 0 || first == second {
		t.Fatalf("to be stored: %+v, as %d and %d", fx.Sent, first, second)
	}
	fx.Out, fx.Ticket = fx.Out[:0], 0
	s.Stored(first, Env{}, fx)
	s.Stored(second, Env{}, fx)
	var got []herald.ID
	for _, p := range packets(t, fx.Out) {
		got = append(got, p.id)
	}
	if !slices.Equal(got, []herald.ID{2, 3, 4}) {
		t.Fatalf("sent %v, want 2, 3, 4", got)
	}
}

// What is sent again does not overtake what is staged either, and is not taken
// for something that was not begun when the connection ends before it went out.
func TestResendBehindStaged(t *testing.T) {
	const group = herald.SessionID(9)
	s, fx := New(1, true), &Effects{Limit: 1 << 20}
	w := persistence.Window{Sent: []persistence.Sent{{Session: 1, PacketID: 5, ID: 12, Step: persistence.Published}}}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 10}, w, Env{}, fx)
	s.Deliver(run(2, 1), 0, 1, grant2, group, Env{}, fx) // dealt before the page is there
	ticket := fx.Ticket
	fx.Ticket = 0
	s.Page([]persistence.Entry{
		{Message: run(1, 11).Messages[0], QoS: 1}, {Message: run(1, 12).Messages[0], QoS: 1},
	}, fx.ReadLimit, Env{}, fx)
	if p := packets(t, fx.Out); len(p) != 0 {
		t.Fatalf("sent %+v", p)
	}
	if _, settled, _ := s.Unacknowledged(); len(settled) != 0 {
		t.Fatalf("%+v would go to nobody else, but was not begun", settled)
	}
	s.Stored(ticket, Env{}, fx)
	var got []herald.ID
	for _, p := range packets(t, fx.Out) {
		if p.dup != (p.id == 12) || p.id == 12 && p.pid != 5 {
			t.Fatalf("sent %+v", p)
		}
		got = append(got, p.id)
	}
	if !slices.Equal(got, []herald.ID{1, 11, 12}) {
		t.Fatalf("sent %v, want 1, 11, 12", got)
	}
}

// A client that comes back with a smaller receive maximum gets no more than that
// of what was under way, and the rest as it acknowledges [MQTT-3.3.4-9].
func TestResumeWithSmallerReceiveMaximum(t *testing.T) {
	s, fx := New(1, true), &Effects{Limit: 1 << 20}
	var w persistence.Window
	var page []persistence.Entry
	for id := herald.ID(1); id <= 6; id++ {
		w.Sent = append(w.Sent, persistence.Sent{Session: 1, PacketID: uint16(10 + id), ID: id, Step: persistence.Published})
		page = append(page, persistence.Entry{Message: run(1, id).Messages[0], QoS: 1})
	}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 2}, w, Env{}, fx)
	s.Page(page, fx.ReadLimit, Env{}, fx)
	for want := herald.ID(1); want <= 6; want += 2 {
		p := packets(t, fx.Out)
		if len(p) != 2 || p[0].id != want || p[1].id != want+1 || !p[0].dup || p[0].pid != uint16(10+want) {
			t.Fatalf("sent %+v, want %d and %d again", p, want, want+1)
		}
		fx.Out = fx.Out[:0]
		s.Puback(p[0].pid, fx)
		s.Puback(p[1].pid, fx)
		s.Pump(Env{}, fx)
	}
	if len(fx.Out) != 0 || s.Inflight() != 0 {
		t.Fatalf("%d in flight", s.Inflight())
	}
}

// What was sent before and is not in a page of the inbox is not given up as long as it
// may be hidden there: it is read again, and sent again under its packet id. Below
// closed time it is gone, and PUBREL frees the packet id.
func TestHiddenIsNoOrphan(t *testing.T) {
	s, fx := New(1, true), &Effects{Limit: 1 << 20}
	w := persistence.Window{Sent: []persistence.Sent{{Session: 1, PacketID: 7, ID: 50, Step: persistence.Published}}}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 10}, w, Env{Closed: 40}, fx)
	s.Page(nil, fx.ReadLimit, Env{Closed: 40}, fx)
	if len(fx.Out) != 0 || !fx.Read {
		t.Fatalf("sent %+v, reads on: %v", packets(t, fx.Out), fx.Read)
	}
	s.Page([]persistence.Entry{{Message: run(2, 50).Messages[0], QoS: 2}}, fx.ReadLimit, Env{Closed: 60}, fx)
	if p := packets(t, fx.Out); len(p) != 1 || p[0].kind != wire.TypePublish || p[0].pid != 7 || !p[0].dup {
		t.Fatalf("sent %+v, want 50 again", p)
	}

	s, fx = New(1, true), &Effects{Limit: 1 << 20}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 10}, w, Env{Closed: 60}, fx)
	s.Page(nil, fx.ReadLimit, Env{Closed: 60}, fx)
	if p := packets(t, fx.Out); len(p) != 1 || p[0].kind != wire.TypePubrel || p[0].pid != 7 {
		t.Fatalf("sent %+v, want PUBREL", p)
	}
}
