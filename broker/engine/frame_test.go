package engine

import (
	"bytes"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
	"go.uber.org/zap"
)

// random makes frames of every kind, and what they have to decode to.
type random struct{ *rand.Rand }

func (r random) id() herald.ID             { return herald.ID(r.Uint64() >> r.IntN(64)) }
func (r random) session() herald.SessionID { return herald.SessionID(r.Uint64() >> r.IntN(64)) }

func (r random) bytes(most int) []byte {
	b := make([]byte, r.IntN(most+1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (r random) ids() []herald.ID {
	ids := make([]herald.ID, r.IntN(5))
	for i := range ids {
		ids[i] = r.id()
	}
	return ids
}

func (r random) messages(n int) []*herald.Message {
	qos, retain, numbered, expires := byte(r.IntN(3)), r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	publisher, topic := r.session(), []string{"a", "a/b/c", "ä/ö", "/", "$SYS/x"}[r.IntN(5)]
	msgs := make([]*herald.Message, n)
	for i := range msgs {
		m := &herald.Message{Publisher: publisher, Topic: topic, QoS: qos, Retain: retain, Payload: r.bytes(20)}
		if b := r.bytes(4); len(b) > 0 {
			m.Properties = b
		}
		if numbered {
			m.ID = max(r.id(), 1)
		}
		if expires && r.IntN(2) == 0 {
			m.Expires = r.Int64() - math.MaxInt64/2
		}
		msgs[i] = m
	}
	return msgs
}

func (r random) frame() (encoded []byte, want frame) {
	switch kind := framePublish + byte(r.IntN(int(frameReady))); kind {
	case framePublish:
		msgs, whom := r.messages(1+r.IntN(5)), byte(1+r.IntN(3))
		return appendPublish(nil, msgs, msgs[0].Publisher, whom), frame{kind: kind, whom: whom, from: msgs[0].Publisher, messages: msgs}
	case frameRelease:
		f := frame{kind: kind, request: r.Uint64(), subject: persistence.Kind(r.IntN(3)), why: purpose(r.IntN(3)), epoch: r.Uint64(), name: string(r.bytes(9))}
		return appendRelease(nil, f.request, f.subject, f.why, f.epoch, f.name), f
	case frameKick:
		f := frame{kind: kind, name: string(r.bytes(9))}
		return appendKick(nil, f.name), f
	case frameGranted:
		f := frame{kind: kind, request: r.Uint64(), epoch: r.Uint64()}
		return appendGranted(nil, f.request, f.epoch), f
	case frameDeal:
		msgs := r.messages(1)
		g := &session.Grant{QoS: byte(r.IntN(3)), Retain: r.IntN(2) == 0}
		for range r.IntN(3) {
			g.Identifiers = append(g.Identifiers, uint32(1+r.IntN(268435455)))
		}
		f := frame{kind: kind, group: r.session(), epoch: r.Uint64(), session: r.session(), grant: g, whom: toLive, from: msgs[0].Publisher, messages: msgs}
		return appendDeal(nil, f.group, f.epoch, f.session, g.QoS, g.Retain, g.Identifiers, msgs[0]), f
	case frameDone:
		f := frame{kind: kind, group: r.session(), settled: r.ids(), back: r.ids()}
		return appendDone(nil, f.group, f.settled, f.back), f
	case frameWithdraw:
		f := frame{kind: kind, request: r.Uint64()}
		return appendWithdraw(nil, f.request), f
	case frameReady:
		f := frame{kind: kind, request: r.Uint64()}
		return appendReady(nil, f.request), f
	case frameAskHeld:
		f := frame{kind: kind, request: r.Uint64(), group: r.session(), epoch: r.Uint64()}
		return appendAskHeld(nil, f.request, f.group, f.epoch), f
	case frameHeld:
		f := frame{kind: kind, request: r.Uint64(), group: r.session()}
		for range r.IntN(4) {
			f.held = append(f.held, persistence.Sent{Session: r.session(), ID: r.id(), Source: f.group, Step: persistence.Published})
		}
		return appendHeld(nil, f.request, f.group, f.held), f
	default:
		f := frame{kind: kind, id: r.id()}
		return appendClosed(nil, kind, f.id), f
	}
}

// A frame says on the other node what was put into it, and one of which a part is
// missing or something is left says nothing.
func TestFramesSayWhatWasPutIn(t *testing.T) {
	r := random{rand.New(rand.NewPCG(1, 2))}
	kinds := make(map[byte]int)
	for range 20000 {
		b, want := r.frame()
		kinds[want.kind]++
		got, err := decodeFrame(b)
		if err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded\n%+v, want\n%+v", got, want)
		}
		if _, err := decodeFrame(append(bytes.Clone(b), 0)); err == nil {
			t.Fatalf("%+v: a byte more is taken", want)
		}
		if _, err := decodeFrame(b[:r.IntN(len(b))]); err == nil {
			t.Fatalf("%+v: a part of it is taken", want)
		}
	}
	if len(kinds) != int(frameReady) {
		t.Errorf("%d kinds were tried, there are %d", len(kinds), frameReady)
	}
}

// The memory that a frame takes is bounded by its length.
func TestAFrameOfVeryManyMessagesIsRefused(t *testing.T) {
	b := appendPublish(nil, []*herald.Message{{Topic: "t"}}, 1, toAll)
	b = b[:len(b)-3] // the number, and a message of two bytes
	b = append(b, 0x80, 0x80, 0x40)
	b = append(b, make([]byte, 2<<20)...)
	if f, err := decodeFrame(b); err == nil {
		t.Errorf("%d messages are taken", len(f.messages))
	}
}

func FuzzDecodeFrame(f *testing.F) {
	r := random{rand.New(rand.NewPCG(3, 4))}
	for range 200 {
		b, _ := r.frame()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeFrame(bytes.Clone(b))
		if err != nil || got.kind != framePublish {
			return
		}
		// What was decoded is what would be sent on.
		again, err := decodeFrame(appendPublish(nil, got.messages, got.from, got.whom))
		if err != nil || !slices.EqualFunc(got.messages, again.messages, func(a, b *herald.Message) bool { return reflect.DeepEqual(a, b) }) {
			t.Errorf("decoded again: %v, %+v", err, again)
		}
	})
}

// bare is an engine that has nothing but another node.
func bare(c Cluster) *Engine {
	e := &Engine{log: zap.NewNop(), ids: herald.NewIDs(1, 0), receiver: listen.NewWorker()}
	e.cfg.Now = time.Now
	e.nodes.init(c, nil)
	e.routing.init()
	e.groups.init()
	return e
}

// A frame that cannot be decoded is not the end of those behind it, and has the
// sessions look for what it may have been.
func TestAFrameThatIsLostIsLookedFor(t *testing.T) {
	peer := bridge.Peer{Node: 2, Incarnation: 1}
	for name, lose := range map[string]func(e *Engine){
		"undecodable": func(e *Engine) { e.Receive(peer, [][]byte{{0xff}}) },
		"a gap":       func(e *Engine) { e.Gap(peer) },
	} {
		t.Run(name, func(t *testing.T) {
			e := bare(&carrier{up: true})
			lose(e)
			p := e.meet(peer)
			if !p.missed {
				t.Fatal("nobody knows that a frame is missing")
			}
			closed := p.closed + 1<<30
			e.Receive(peer, [][]byte{{}, appendClosed(nil, frameClosed, closed)})
			if p.missed || p.closed != closed {
				t.Errorf("missing %v, closed %v, want false, %v", p.missed, p.closed, closed)
			}
		})
	}
}

// While a node's closed time stands still, what is kept of what came from it is
// bounded; what was not kept is left in the inboxes, with all that came behind it,
// and is looked for when closed time moves on.
func TestWhatCameIsBounded(t *testing.T) {
	e := bare(&carrier{up: true})
	p := e.meet(bridge.Peer{Node: 2, Incarnation: 1})
	first := p.closed.Floor() + 1<<30 | 2<<12
	at := func(i int) herald.ID { return first + herald.ID(i)<<22 } // a millisecond later each
	came := func(i int) herald.ID {
		id := at(i)
		p.came([]*herald.Message{{ID: id}})
		return id
	}
	shown := func(i int) bool { return e.nodes.arrivals().shows(at(i)) }
	const more = 10
	for i := range maxArrived {
		came(i)
	}
	if p.missed || !shown(0) || !shown(maxArrived-1) {
		t.Fatalf("missed %v, the first is shown %v, the last %v", p.missed, shown(0), shown(maxArrived-1))
	}
	var last herald.ID
	for i := range more {
		last = came(maxArrived + i)
	}
	if len(p.arrived) > maxArrived || !p.missed || shown(maxArrived) {
		t.Fatalf("%d ranges, missed %v, one that is not noted is shown %v", len(p.arrived), p.missed, shown(maxArrived))
	}
	p.reach(last - 1)
	if came(maxArrived + more); shown(maxArrived + more) {
		t.Error("what came behind one that is not noted is shown before it")
	}
	p.reach(at(maxArrived + more))
	if came(maxArrived + more + 1); !shown(maxArrived+more+1) || len(p.arrived) != 1 {
		t.Errorf("%d ranges, want one that is shown", len(p.arrived))
	}
}
