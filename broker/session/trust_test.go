package session

import (
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// A session that has come believes in no closed time above what it was then, until
// every node sends its messages here: its mark does not pass what may stand in its
// inbox and be delivered by nobody, and what is delivered is not ahead of that.
func TestDistrust(t *testing.T) {
	message := func(id herald.ID) *herald.Message {
		return &herald.Message{ID: id, Topic: "t", QoS: 1, Payload: []byte("x")}
	}
	entry := func(id herald.ID) persistence.Entry {
		return persistence.Entry{Message: message(id), QoS: 1}
	}
	s := New(1, true)
	fx := &Effects{Limit: 1 << 30}
	env := Env{Closed: 10}
	s.Distrust(env)
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 100}, persistence.Window{}, env, fx)
	if !fx.Read || fx.After != 0 {
		t.Fatalf("reads %v, after %d; want to, from the beginning", fx.Read, fx.After)
	}
	settle := func() (ids []herald.ID) {
		for _, sl := range s.window.slots {
			if sl.state == published {
				ids = append(ids, sl.id)
				s.Puback(sl.pid, fx)
			}
		}
		return ids
	}
	mark := func() herald.ID {
		var b persistence.Batch
		s.MarkInto(env, &b)
		if len(b.Marks) == 0 {
			return 0
		}
		return b.Marks[0].Low
	}
	// read answers what the session has asked for from what stands in the inbox.
	read := func(inbox ...herald.ID) {
		for fx.Read {
			var page []persistence.Entry
			for _, id := range inbox {
				if id > fx.After && len(page) < fx.ReadLimit {
					page = append(page, entry(id))
				}
			}
			limit := fx.ReadLimit
			*fx = Effects{Limit: 1 << 30}
			s.Page(page, limit, env, fx)
		}
	}
	read(5, 30) // 20 is being committed elsewhere
	s.Deliver(wire.MakeRun([]*herald.Message{message(30)}), 0, 1, &Grant{QoS: 1}, 0, env, fx)
	if got := settle(); !slices.Equal(got, []herald.ID{5}) {
		t.Fatalf("sent %v, want 5 alone: 30 is ahead of 20", got)
	}
	env.Closed = 40 // it is committed, and sent to where the session was
	s.Pump(env, fx)
	read(20, 30)
	if got := settle(); !slices.Equal(got, []herald.ID{20, 30}) {
		t.Fatalf("sent %v, want 20 and 30", got)
	}
	s.Pump(env, fx)
	if low := mark(); low > 10 {
		t.Fatalf("the mark is at %d: what is sent to where the session was may lie below", low)
	}
	*fx = Effects{Limit: 1 << 30}
	s.Trust(env, fx)
	if !fx.Read || fx.After > 10 {
		t.Fatalf("with trust it reads %v, after %d; want to, from where it believed", fx.Read, fx.After)
	}
	read(20, 30, 35)
	if got := settle(); !slices.Equal(got, []herald.ID{35}) {
		t.Fatalf("sent %v, want 35: it stood in the inbox alone", got)
	}
	s.Pump(env, fx)
	if low := mark(); low != 40 {
		t.Errorf("the mark is at %d, want 40", low)
	}
}
