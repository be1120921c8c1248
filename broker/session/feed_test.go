package session

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// life is a durable session with all that surrounds it: publishes that are
// numbered, committed and delivered each in its own time, the inbox, the client
// and what is stored. It checks what must always hold.
type life struct {
	r   *rand.Rand
	mem Memory
	max int // receive maximum
	s   *Session
	fx  Effects

	last     herald.ID
	reserved []herald.ID       // not committed
	arrive   []herald.ID       // committed, not delivered
	began    map[herald.ID]Env // of those
	inbox    []persistence.Entry
	all      map[herald.ID]byte // QoS of what was published

	// What is stored of the session, and requests that are not.
	stored  persistence.Window
	sent    map[uint16]persistence.Sent
	tickets []request
	reading *persistence.Mark // Low: a page was asked for from there
	limit   int

	// The client.
	unacked map[uint16]herald.ID // of this connection, PUBLISH or PUBREL not answered
	holds   map[uint16]herald.ID // QoS 2, until PUBREL
	rel     map[uint16]bool      // PUBREL came
	got     map[herald.ID]int    // how often it was new
	done    map[herald.ID]bool   // acknowledged
}

type request struct {
	ticket uint64
	batch  persistence.Batch
}

func (l *life) env() Env {
	closed := l.last
	for _, id := range append(slices.Clone(l.reserved), l.arrive...) {
		closed = min(closed, id-1)
	}
	return Env{Now: 1, Closed: closed}
}

func (l *life) message(id herald.ID) *herald.Message {
	return &herald.Message{ID: id, Topic: "t", QoS: l.all[id], Payload: fmt.Append(nil, id)}
}

// begin opens effects, end carries them out.
func (l *life) begin() *Effects {
	l.fx.Out, l.fx.Limit = l.fx.Out[:0], 1<<20
	return &l.fx
}

func (l *life) end(t *testing.T) {
	fx := &l.fx
	if fx.Ticket != 0 {
		l.s.MarkFor(l.env(), fx)
		q := request{ticket: fx.Ticket, batch: persistence.Batch{Sent: slices.Clone(fx.Sent)}}
		if fx.Mark != nil {
			q.batch.Marks = []persistence.Mark{*fx.Mark}
		}
		l.tickets = append(l.tickets, q)
		fx.Sent, fx.Mark, fx.Ticket = fx.Sent[:0], nil, 0
	}
	if fx.Read {
		fx.Read = false
		l.reading, l.limit = &persistence.Mark{Low: fx.After}, fx.ReadLimit
	}
	for b := fx.Out; len(b) > 0; {
		n := wire.FrameLength(b)
		l.receive(t, b[:n])
		b = b[n:]
	}
	fx.Out = fx.Out[:0]
	if fx.Tidy {
		fx.Tidy = false
		l.mark(t)
	}
}

// receive is a packet for the client.
func (l *life) receive(t *testing.T, frame []byte) {
	t.Helper()
	if wire.Type(frame[0]) == wire.TypePubrel {
		var a wire.Ack
		if err := wire.ParseAck(frame, herald.V5, &a); err != nil {
			t.Fatal(err)
		}
		delete(l.holds, a.PacketID)
		l.unacked[a.PacketID], l.rel[a.PacketID] = 0, true
		return
	}
	var p wire.Publish
	if err := wire.ParsePublish(frame, herald.V5, &p); err != nil {
		t.Fatal(err)
	}
	var id herald.ID
	if _, err := fmt.Sscan(string(p.Payload), &id); err != nil {
		t.Fatal(err)
	}
	if _, taken := l.unacked[p.PacketID]; taken {
		t.Fatalf("packet id %d of %d is taken: %v, PUBREL %v, DUP %v, sent %v", p.PacketID, id, l.unacked, l.rel, p.Dup(), l.sent)
	}
	l.unacked[p.PacketID] = id
	if len(l.unacked) > l.max { // [MQTT-3.3.4-9]
		t.Fatalf("%d under way, the receive maximum is %d", len(l.unacked), l.max)
	}
	if held, ok := l.holds[p.PacketID]; p.QoS() == 2 && ok {
		if held != id || !p.Dup() {
			t.Fatalf("%d under the packet id of %d (DUP %v)", id, held, p.Dup())
		}
		return
	}
	if l.done[id] {
		t.Fatalf("%d was acknowledged", id)
	}
	if l.got[id]++; l.got[id] > 1 && (p.QoS() == 2 || !p.Dup()) {
		t.Fatalf("%d at QoS %d for the %d. time, DUP %v", id, p.QoS(), l.got[id], p.Dup())
	}
	if p.QoS() == 2 {
		l.holds[p.PacketID] = id
	}
}

// store makes a batch durable.
func (l *life) store(t *testing.T, b *persistence.Batch) {
	t.Helper()
	for _, x := range b.Sent {
		if x.Step == persistence.Done {
			delete(l.sent, x.PacketID)
			continue
		}
		l.sent[x.PacketID] = x
		if x.Step == persistence.Released {
			l.inbox = slices.DeleteFunc(l.inbox, func(e persistence.Entry) bool { return e.Message.ID == x.ID })
		}
	}
	for _, m := range b.Marks {
		for id := range l.all { // a mark passes nothing that is not settled
			if settled := id <= m.Low || slices.Contains(m.Above, id); settled && !l.done[id] {
				t.Fatalf("the mark %d, %v passes %d (QoS %d, sent %d times, stored %v, client holds %v, unacked %v; reserved %v, arrive %v)", m.Low, m.Above, id, l.all[id], l.got[id], l.sent, l.holds, l.unacked, l.reserved, l.arrive)
			}
		}
		l.stored.Low, l.stored.Above = m.Low, slices.Clone(m.Above)
		if l.r.IntN(2) == 0 { // settled entries may go at once, or stay for long
			l.inbox = slices.DeleteFunc(l.inbox, func(e persistence.Entry) bool {
				return e.Message.ID <= m.Low || slices.Contains(m.Above, e.Message.ID)
			})
		}
	}
}

// mark has the session say what is settled; it is stored behind the requests.
func (l *life) mark(t *testing.T) {
	var b persistence.Batch
	l.s.MarkInto(l.env(), &b)
	l.drainTickets(t)
	l.store(t, &b)
}

func (l *life) drainTickets(t *testing.T) {
	for len(l.tickets) > 0 {
		l.ticket(t)
	}
}

// ticket stores the oldest request and tells the session.
func (l *life) ticket(t *testing.T) {
	q := l.tickets[0]
	l.tickets = l.tickets[1:]
	l.store(t, &q.batch)
	l.s.Stored(q.ticket, l.env(), l.begin())
	l.end(t)
}

func (l *life) attach(t *testing.T) {
	l.s = New(1, true)
	l.s.Keep(l.mem)
	l.max = 1 + l.r.IntN(6)
	l.unacked, l.rel, l.reading = map[uint16]herald.ID{}, map[uint16]bool{}, nil
	w := l.stored
	for _, x := range l.sent {
		w.Sent = append(w.Sent, x)
	}
	slices.SortFunc(w.Sent, func(a, b persistence.Sent) int { return cmp.Compare(a.ID, b.ID) })
	// PUBRELs that go out at once may be more than the receive maximum, which
	// counts PUBLISHes.
	max := l.max
	l.max = 1 << 16
	l.s.Attach(Params{Version: herald.V5, ReceiveMaximum: max}, w, l.env(), l.begin())
	l.end(t)
	l.max = max
}

func (l *life) detach(t *testing.T) {
	for _, q := range l.tickets { // they were committed before
		l.store(t, &q.batch)
	}
	l.tickets = nil
	var b persistence.Batch
	l.s.Detach(l.env(), &b)
	l.store(t, &b)
}

// acknowledge answers what the client has under pid.
func (l *life) acknowledge(t *testing.T, pid uint16) {
	fx := l.begin()
	id := l.unacked[pid]
	switch {
	case l.rel[pid]:
		delete(l.rel, pid)
		delete(l.unacked, pid)
		l.s.Pubcomp(pid, fx)
	case l.all[id] == 1:
		delete(l.unacked, pid)
		l.done[id] = true
		l.s.Puback(pid, fx)
	default:
		l.done[id] = true
		l.s.Pubrec(pid, 0, fx)
	}
	l.s.Pump(l.env(), fx)
	l.end(t)
}

func (l *life) page(t *testing.T) {
	after := l.reading.Low
	l.reading = nil
	var page []persistence.Entry
	for _, e := range l.inbox {
		if e.Message.ID > after && len(page) < l.limit {
			page = append(page, e)
		}
	}
	l.s.Page(page, l.limit, l.env(), l.begin())
	l.end(t)
}

// commit makes some publish that is numbered stand in the inbox.
func (l *life) commit() {
	id := take(l.r, &l.reserved)
	l.inbox = append(l.inbox, persistence.Entry{Message: l.message(id), QoS: 2})
	slices.SortFunc(l.inbox, func(a, b persistence.Entry) int { return cmp.Compare(a.Message.ID, b.Message.ID) })
	l.arrive = append(l.arrive, id)
	l.began[id] = l.env()
}

// deliver hands some publish that is committed to the session. It is under way
// until that is done.
func (l *life) deliver(t *testing.T) {
	i := l.r.IntN(len(l.arrive))
	m := l.message(l.arrive[i])
	env := l.env()
	if l.r.IntN(2) == 0 { // of the moment when the publish began to be delivered to many
		env = l.began[m.ID]
	}
	l.s.Deliver(wire.MakeRun([]*herald.Message{m}), 0, 1, &Grant{QoS: 2}, 0, env, l.begin())
	l.end(t)
	l.arrive = slices.Delete(l.arrive, i, i+1)
}

func take[T any](r *rand.Rand, from *[]T) T {
	i := r.IntN(len(*from))
	x := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	return x
}

func (l *life) step(t *testing.T) {
	switch k := l.r.IntN(100); {
	case k < 15: // publishes are numbered ...
		for range 1 + l.r.IntN(6) {
			l.last += herald.ID(1 + l.r.IntN(3))
			l.all[l.last] = byte(1 + l.r.IntN(2))
			l.reserved = append(l.reserved, l.last)
		}
	case k < 35 && len(l.reserved) > 0: // ... committed in any order ...
		l.commit()
	case k < 55 && len(l.arrive) > 0: // ... and delivered in any order
		l.deliver(t)
	case k < 65 && l.reading != nil:
		l.page(t)
	case k < 80 && len(l.unacked) > 0:
		var pids []uint16
		for pid, id := range l.unacked {
			if l.rel[pid] || !l.done[id] {
				pids = append(pids, pid)
			}
		}
		if slices.Sort(pids); len(pids) > 0 {
			l.acknowledge(t, pids[l.r.IntN(len(pids))])
		}
	case k < 90 && len(l.tickets) > 0:
		l.ticket(t)
	case k < 94:
		l.mark(t)
	case k < 96:
		l.detach(t)
		l.attach(t)
	}
}

// rest lets everything through.
func (l *life) rest(t *testing.T) {
	for range 10_000 {
		switch {
		case len(l.reserved) > 0:
			l.commit()
		case len(l.arrive) > 0:
			l.deliver(t)
		case len(l.tickets) > 0:
			l.ticket(t)
		case l.reading != nil:
			l.page(t)
		default:
			moved := false
			for pid, id := range l.unacked {
				if l.rel[pid] || !l.done[id] {
					l.acknowledge(t, pid)
					moved = true
					break
				}
			}
			if !moved {
				l.s.Pump(l.env(), l.begin()) // as housekeeping does for who is blocked
				l.end(t)
				if l.reading == nil && len(l.tickets) == 0 && len(l.unacked) == 0 {
					return
				}
			}
		}
	}
	t.Fatal("it does not come to rest")
}

// Whatever the order of commits, deliveries, pages, acknowledgements, marks and
// connections, everything is sent, once, and no mark passes what is not settled.
func TestFeed(t *testing.T) {
	for seed := range uint64(800) {
		r := rand.New(rand.NewPCG(seed, 1))
		mems := []Memory{{}, {Pending: 4, Page: 3, Settled: 8}, {Pending: 1, Page: 1, Settled: 4}, {Pending: 30, Page: 2, Settled: 1000}}
		l := &life{
			r: r, mem: mems[r.IntN(len(mems))], last: 100, all: map[herald.ID]byte{}, began: map[herald.ID]Env{}, sent: map[uint16]persistence.Sent{},
			holds: map[uint16]herald.ID{}, got: map[herald.ID]int{}, done: map[herald.ID]bool{},
		}
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l.attach(t)
			for range 200 {
				l.step(t)
			}
			l.rest(t)
			for id, qos := range l.all {
				if l.got[id] == 0 || !l.done[id] {
					t.Errorf("%d (QoS %d) was sent %d times", id, qos, l.got[id])
				}
			}
			l.mark(t)
			if l.stored.Low != l.last && len(l.all) > 0 {
				t.Errorf("the mark stands at %d, not at %d", l.stored.Low, l.last)
			}
		})
		if !ok {
			return
		}
	}
}
