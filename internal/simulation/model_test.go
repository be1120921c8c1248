package simulation

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/internal/model"
)

// op is one operation of a client, one that is not connected connects instead.
type op struct {
	Kind   string
	Client int
	// Connect.
	V5, Clean bool
	Expiry    uint32
	Will      bool
	// Subscribe, Unsubscribe, Publish; the will has QoS and Retain, too.
	Filter, Topic              string
	QoS                        byte
	Retain                     bool
	NoLocal, RetainAsPublished bool
	RetainHandling             byte
	Identifier                 uint32
	Empty                      bool
	N                          uint32 // seconds of message expiry, will delay, or time that passes
}

// What a shared subscription matches matches no other, so that nobody wonders
// whose a message is.
//
// All that has a duration lasts an odd number of seconds, and time passes by two
// seconds: so a deadline never falls on the moment of another operation, and is
// at least four ticks of the broker old when the model is told.
var (
	odd     = rapid.SampledFrom([]uint32{0, 1, 3, 9})
	opKinds = []string{
		"connect", "subscribe", "subscribe", "subscribe", "unsubscribe", "publish", "publish",
		"publish", "publish", "publish", "drop", "disconnect", "disconnect with will", "hold", "let go", "time",
	}
	opGen = rapid.Custom(func(t *rapid.T) op {
		return op{
			Kind: rapid.SampledFrom(opKinds).Draw(t, "kind"), Client: rapid.IntRange(0, 2).Draw(t, "client"),
			V5: rapid.Bool().Draw(t, "v5"), Clean: rapid.Bool().Draw(t, "clean"), Expiry: odd.Draw(t, "expiry"),
			Will:   rapid.Bool().Draw(t, "will"),
			Filter: rapid.SampledFrom([]string{"a", "a/#", "a/+", "+/b", "b", "$share/g/s/#"}).Draw(t, "filter"),
			Topic:  rapid.SampledFrom([]string{"a", "a/b", "a/b", "b", "s/x"}).Draw(t, "topic"),
			QoS:    byte(rapid.IntRange(0, 2).Draw(t, "qos")), Retain: rapid.IntRange(0, 3).Draw(t, "retain") == 0,
			NoLocal: rapid.Bool().Draw(t, "no local"), RetainAsPublished: rapid.Bool().Draw(t, "rap"),
			RetainHandling: byte(rapid.IntRange(0, 2).Draw(t, "retain handling")),
			Identifier:     uint32(rapid.IntRange(0, 2).Draw(t, "identifier")), Empty: rapid.IntRange(0, 4).Draw(t, "empty") == 0,
			N: odd.Draw(t, "n"),
		}
	})
)

// TestModel: what the broker sends, after any operations, is what a model of the
// specification expects.
func TestModel(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		set := func(n string) {
			if err := checks.Value.Set(n); err != nil {
				t.Error(err)
			}
		}
		set("1000")
		t.Cleanup(func() { set(checks.DefValue) })
	}
	rapid.Check(t, func(rt *rapid.T) {
		ops := rapid.SliceOfN(opGen, 20, 80).Draw(rt, "ops")
		mem := rapid.SampledFrom([]session.Memory{{}, {Pending: 2, Page: 1, Settled: 4}}).Draw(rt, "memory")
		var log []string
		var err error
		synctest.Test(t, func(*testing.T) { log, err = compare(ops, mem) })
		if err != nil {
			rt.Fatalf("%v\n  %s", err, strings.Join(log, "\n  "))
		}
	})
}

// pair is a broker beside the model of one.
type pair struct {
	m      *model.Model
	store  *Store
	e      *engine.Engine
	actors []*actor
	n      int // messages published
	log    []string
	err    error
}

// actor is a client that does its part at once, but may hold its
// acknowledgements back.
type actor struct {
	name    string
	version herald.Version
	conn    *conn // nil: not connected
	expiry  uint32
	holds   bool
	owed    []sentBack
	held    map[uint16]bool
	pid     uint16
	codes   []byte // of the last SUBACK or UNSUBACK
	present bool   // of the last CONNACK
}

// sentBack is an acknowledgement, with what the model is told of it.
type sentBack struct {
	data []byte
	d    *model.Delivery
}

func (p *pair) logf(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }

func (p *pair) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func compare(ops []op, mem session.Memory) ([]string, error) {
	time.Sleep(time.Until(herald.Epoch.Add(24 * time.Hour)))
	p := &pair{m: model.New(), store: NewStore(true, false)}
	p.e = engine.New(engine.Config{MaxQoS: 2, Memory: mem, Shared: engine.SharedConfig{Expiry: 24 * time.Hour}}, p.store, zap.NewNop())
	started := make(chan error, 1)
	go func() { started <- p.e.Start(context.Background()) }()
	p.flush()
	if err := <-started; err != nil {
		return nil, err
	}
	p.m.Advance(time.Now().UnixMilli())
	for i := range 3 {
		p.actors = append(p.actors, &actor{name: fmt.Sprint("c", i)})
	}
	for _, o := range ops {
		p.do(o)
		p.rest()
		if missing := p.m.Missing(); len(missing) > 0 {
			p.fail("missing: %v", missing)
		}
		if p.err != nil {
			break
		}
	}
	for _, a := range p.actors {
		if a.conn != nil {
			a.conn.hangUp()
		}
	}
	stopped := make(chan struct{})
	go func() {
		p.e.Stop(context.Background())
		close(stopped)
	}()
	for done := false; !done; {
		p.flush()
		select {
		case <-stopped:
			done = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	p.flush()
	return p.log, p.err
}

// flush lets the store do all that it is asked.
func (p *pair) flush() {
	for {
		synctest.Wait()
		n, m := p.store.Queued()
		if n+m == 0 {
			return
		}
		p.store.Sync(n)
		p.store.Tell(n + m)
	}
}

// rest lets the broker and the clients do all that they have to do.
func (p *pair) rest() {
	for moved := true; moved && p.err == nil; {
		p.flush()
		moved = false
		for _, a := range p.actors {
			if a.conn == nil {
				continue
			}
			all, err := parse(a.conn.read(1<<20), a.version)
			if err != nil {
				p.fail("%s: %w", a.name, err)
			}
			for _, k := range all {
				moved = true
				p.logf("%s reads %v", a.name, k)
				p.take(a, k)
			}
			if len(a.owed) > 0 && !a.holds {
				moved = true
				p.acknowledge(a)
			}
			if len(all) == 0 && a.conn.closed() {
				p.fail("%s: the broker closed the connection", a.name)
			}
		}
	}
}

// acknowledge sends what was held back.
func (p *pair) acknowledge(a *actor) {
	var data []byte
	for _, o := range a.owed {
		data = append(data, o.data...)
	}
	a.conn.bring(input{data: data})
	p.flush()
	for _, o := range a.owed {
		if o.d != nil {
			p.m.Ack(a.name, *o.d)
		}
	}
	a.owed = nil
}

// take is a packet that a client receives.
func (p *pair) take(a *actor, k packet) {
	ack := func(kind byte) []byte { return wire.AppendAck(nil, a.version, kind, k.pid, 0) }
	switch k.kind {
	case wire.TypeConnack:
		if k.reason != 0 {
			p.fail("%s: refused with %#x", a.name, k.reason)
		}
		a.present = k.present
	case wire.TypeSuback, wire.TypeUnsuback:
		a.codes = k.codes
	case wire.TypePublish:
		d := model.Delivery{Topic: k.topic, Payload: k.payload, QoS: k.qos, Retain: k.retain, Identifiers: k.identifiers, Left: k.left}
		switch k.qos {
		case 1:
			a.owed = append(a.owed, sentBack{ack(wire.TypePuback), &d})
		case 2:
			a.owed = append(a.owed, sentBack{ack(wire.TypePubrec), nil})
			if a.held[k.pid] {
				return
			}
			a.held[k.pid] = true
		}
		if err := p.m.Receive(a.name, d, k.dup); err != nil {
			p.fail("%w", err)
		}
	case wire.TypePubrel:
		delete(a.held, k.pid)
		a.owed = append(a.owed, sentBack{ack(wire.TypePubcomp), nil})
	case wire.TypePubrec:
		a.conn.bring(input{data: ack(wire.TypePubrel)})
	case wire.TypePuback, wire.TypePubcomp:
	default:
		p.fail("%s: unexpected %v", a.name, k)
	}
}

// do does one operation, with the broker and with the model.
func (p *pair) do(o op) {
	a := p.actors[o.Client]
	if a.conn == nil && o.Kind != "time" && o.Kind != "drop" {
		o.Kind = "connect"
	} else if a.conn == nil && o.Kind == "drop" {
		return
	}
	p.logf("%s: %+v", o.Kind, o)
	switch o.Kind {
	case "connect":
		p.connect(a, o)
	case "drop":
		a.conn.hangUp()
		p.left(a)
		p.m.Drop(a.name)
	case "disconnect", "disconnect with will":
		l := &leave{}
		var expiry *uint32
		if a.version == herald.V5 {
			if o.Kind == "disconnect with will" {
				l.reason = wire.ReasonDisconnectWill
			}
			if a.expiry > 0 && o.N > 0 {
				l.expiry, l.hasExpiry, expiry = o.N, true, &o.N
			}
		}
		a.conn.bring(input{disconnect: l})
		p.left(a)
		p.m.Disconnect(a.name, l.reason != 0, expiry)
	case "subscribe":
		p.subscribe(a, o)
	case "unsubscribe":
		if strings.HasPrefix(o.Filter, "$share/") && len(a.owed) > 0 {
			return // with which QoS it was sent those, the broker knows from the subscription only
		}
		a.pid++
		a.conn.bring(input{unsubscribe: &wire.Unsubscribe{PacketID: a.pid, Filters: [][]byte{[]byte(o.Filter)}}})
		existed := p.m.Unsubscribe(a.name, o.Filter)
		p.rest()
		if a.version == herald.V5 && existed != (a.codes[0] == 0) {
			p.fail("UNSUBACK says %#x", a.codes[0])
		}
	case "publish":
		p.publish(a, o)
	case "hold":
		a.holds = true
	case "let go":
		a.holds = false
	case "time":
		for range 1 + o.N {
			p.pass(6) // half a second after the deadlines
			p.pass(2)
		}
	}
}

// pass lets quarters of a second pass, and then everybody do what is to be done.
func (p *pair) pass(quarters int) {
	for range quarters {
		time.Sleep(time.Second / 4)
		p.flush()
	}
	p.m.Advance(time.Now().UnixMilli())
	p.rest()
}

// left is the end of a connection.
func (p *pair) left(a *actor) {
	p.flush()
	a.conn, a.owed, a.holds = nil, nil, false
	if a.version != herald.V5 && a.expiry == 0 || a.expiry == 0 {
		a.held = nil
	}
}

func (p *pair) connect(a *actor, o op) {
	c := model.Connect{Client: a.name, Version: herald.V311, Clean: o.Clean}
	a.expiry = 1
	if o.V5 {
		c.Version, c.Expiry = herald.V5, o.Expiry
		a.expiry = o.Expiry
	} else if o.Clean {
		a.expiry = 0
	}
	con := &wire.Connect{Version: c.Version, ClientID: []byte(a.name), Clean: o.Clean}
	if o.V5 {
		con.Properties = connectProperties(o.Expiry, 0, 0)
	}
	if o.Will {
		p.n++
		c.Will = &model.Will{Message: model.Message{Topic: o.Topic, Payload: fmt.Sprint("will ", p.n), QoS: o.QoS, Retain: o.Retain}}
		if o.V5 {
			c.Will.Delay = o.N
		}
		con.HasWill, con.WillTopic, con.WillPayload = true, []byte(o.Topic), []byte(c.Will.Payload)
		con.WillQoS, con.WillRetain, con.WillDelay = o.QoS, o.Retain, c.Will.Delay
	}
	a.version, a.owed, a.holds = c.Version, nil, false
	a.conn = newConn(p.e, a.name, wire.AppendConnect(nil, con), 1<<20, nil)
	present := p.m.Connect(c)
	if !present {
		a.held = nil
	}
	if a.held == nil {
		a.held = map[uint16]bool{}
	}
	p.rest()
	if a.present != present {
		p.fail("%s: session present %v, want %v", a.name, a.present, present)
	}
}

func (p *pair) subscribe(a *actor, o op) {
	shared := strings.HasPrefix(o.Filter, "$share/")
	s := model.Subscription{Filter: o.Filter, QoS: o.QoS}
	if shared {
		// Always the same: with which QoS a member was sent what it has not
		// acknowledged, the broker knows from the subscription only.
		s.QoS = map[string]byte{"c0": 1, "c1": 2, "c2": 0}[a.name]
	}
	if a.version == herald.V5 {
		s.NoLocal, s.RetainAsPublished, s.RetainHandling = o.NoLocal && !shared, o.RetainAsPublished, o.RetainHandling
		s.Identifier = o.Identifier
	}
	a.pid++
	a.conn.bring(input{subscribe: &wire.Subscribe{PacketID: a.pid, Identifier: s.Identifier, Filters: []wire.SubscribeFilter{{
		Filter: []byte(s.Filter), Shared: shared, QoS: s.QoS, NoLocal: s.NoLocal,
		RetainAsPublished: s.RetainAsPublished, RetainHandling: s.RetainHandling,
	}}}})
	p.m.Subscribe(a.name, s)
	p.rest()
	if !slices.Equal(a.codes, []byte{s.QoS}) {
		p.fail("SUBACK says %v", a.codes)
	}
}

func (p *pair) publish(a *actor, o op) {
	p.n++
	msg := model.Message{Topic: o.Topic, Payload: fmt.Sprint("message ", p.n), QoS: o.QoS, Retain: o.Retain}
	var props []byte
	if a.version == herald.V5 && o.N > 0 {
		msg.Expiry = o.N
		props = []byte{0x02, 0, 0, 0, byte(o.N)}
	}
	if o.Empty && o.Retain && o.Topic != "s/x" {
		msg.Payload = ""
	}
	a.pid++
	a.conn.bring(input{data: wire.AppendMessage(nil, &herald.Message{
		Topic: msg.Topic, Payload: []byte(msg.Payload), QoS: msg.QoS, Properties: props,
	}, wire.Outgoing{Version: a.version, QoS: msg.QoS, Retain: msg.Retain, PacketID: a.pid})})
	p.m.Publish(a.name, msg)
}
