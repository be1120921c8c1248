package session

import (
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// What a session was sent of a group whose queue has it no more is done with: the group
// hears so, which would count on the session for good.
func TestAnOrphanOfAGroupIsSettled(t *testing.T) {
	s := New(1, true)
	fx := Effects{Limit: 1 << 20}
	w := persistence.Window{Low: 2, Sent: []persistence.Sent{{Session: 1, PacketID: 7, ID: 5, Source: 9, Step: persistence.Published}}}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 10}, w, Env{Closed: 8}, &fx)
	s.Restore(7, nil, &Grant{QoS: 2}, Env{Closed: 8}, &fx)
	if want := []Settled{{Source: 9, ID: 5}}; !slices.Equal(fx.Settled, want) {
		t.Errorf("settled %v, want %v", fx.Settled, want)
	}
}
