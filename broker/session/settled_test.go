package session

import (
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// A session is sent nothing more when very much has settled above an entry that
// has not. It goes on as soon as that entry settles, or closed time, for want of
// which the mark could not move, does.
func TestGoesOnWhenBlocked(t *testing.T) {
	const (
		receiveMaximum = 100
		total          = maxSettled + 1000
	)
	for name, stuck := range map[string]bool{"by an entry": false, "by closed time": true} {
		t.Run(name, func(t *testing.T) {
			s := New(1, true)
			fx := &Effects{Limit: 1 << 30}
			env := Env{}
			s.Attach(Params{Version: herald.V5, ReceiveMaximum: receiveMaximum}, persistence.Window{}, env, fx)
			s.Page(nil, fx.ReadLimit, env, fx)
			var first uint16 // is not acknowledged
			acknowledge := func() {
				for fx.Delivered > 0 {
					fx.Delivered, fx.Out = 0, fx.Out[:0]
					for _, sl := range s.window.slots {
						if sl.state != published || sl.pid == first {
							continue
						}
						if first == 0 && !stuck {
							first = sl.pid
							continue
						}
						s.Puback(sl.pid, fx)
					}
					s.Pump(env, fx)
				}
			}
			grant := &Grant{QoS: 1}
			for id := herald.ID(1); id <= total; id++ {
				if !stuck {
					env.Closed = id - 1
				}
				m := &herald.Message{ID: id, Topic: "t", QoS: 1, Payload: []byte("x")}
				s.Deliver(wire.MakeRun([]*herald.Message{m}), 0, 1, grant, 0, env, fx)
				acknowledge()
			}
			if !s.Blocked() || s.Pending() == 0 {
				t.Fatalf("blocked %v, %d wait: want it blocked with some waiting", s.Blocked(), s.Pending())
			}
			env.Closed = total
			if first != 0 {
				s.Puback(first, fx)
			}
			s.Pump(env, fx)
			acknowledge()
			if s.Blocked() || s.Pending() > 0 || s.Inflight() > 0 {
				t.Fatalf("blocked %v, %d wait, %d in flight: want it to have gone on", s.Blocked(), s.Pending(), s.Inflight())
			}
		})
	}
}
