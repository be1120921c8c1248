package session

import (
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// A client whose PUBREC could not be stored gets PUBREL over its next connection:
// the mark that is stored when the session is put away settles the message, so
// without it nobody would know that the client waits [MQTT-4.3.3-8].
func TestPubrelAfterAPubrecThatWasNotStored(t *testing.T) {
	for name, marked := range map[string]bool{"marked when put away": false, "marked before": true} {
		t.Run(name, func(t *testing.T) {
			const id = 7
			env := Env{Closed: id}
			p := Params{Version: herald.V5, ReceiveMaximum: 10}
			s, fx := New(1, true), &Effects{Limit: 1 << 20}
			s.Attach(p, persistence.Window{}, Env{}, fx)
			s.Page(nil, fx.ReadLimit, Env{}, fx)
			m := &herald.Message{ID: id, Topic: "t", QoS: 2, Payload: []byte("x")}
			s.Deliver(wire.MakeRun([]*herald.Message{m}), 0, 1, &Grant{QoS: 2}, 0, Env{}, fx)
			sent := fx.Sent[0]
			s.Stored(fx.Ticket, env, fx)
			fx.Ticket, fx.Sent = 0, nil
			if !s.Pubrec(sent.PacketID, 0, fx) || fx.Ticket == 0 {
				t.Fatal("PUBREC asks for nothing to be stored")
			}
			var b persistence.Batch
			if marked {
				s.MarkInto(env, &b)
			}
			s.Detach(env, &b) // the store has refused what PUBREC asked for

			w := persistence.Window{Sent: []persistence.Sent{sent}}
			for _, m := range b.Marks {
				w.Low, w.Above = m.Low, m.Above
			}
			for _, r := range b.Sent {
				w.Sent = []persistence.Sent{r}
			}
			if w.Low < id {
				t.Fatalf("marked up to %d, want %d: the test tests nothing", w.Low, id)
			}
			s, fx = New(1, true), &Effects{Limit: 1 << 20}
			s.Attach(p, w, env, fx)
			var a wire.Ack
			if len(fx.Out) == 0 || wire.ParseAck(fx.Out, herald.V5, &a) != nil || a.Type != wire.TypePubrel || a.PacketID != sent.PacketID {
				t.Fatalf("% x is sent over the next connection, want PUBREL for %d", fx.Out, sent.PacketID)
			}
		})
	}
}
