package session

import (
	"fmt"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// However many topic aliases a client takes, few topics are kept for it.
func TestAliasesBounded(t *testing.T) {
	s := New(1, false)
	fx := &Effects{Limit: 1 << 30}
	s.Attach(Params{Version: herald.V5, ReceiveMaximum: 1, AliasMaximum: 65535}, persistence.Window{}, Env{}, fx)
	for i := range 10 * maxAliases {
		m := &herald.Message{Topic: fmt.Sprint("t/", i)}
		s.Deliver(wire.MakeRun([]*herald.Message{m}), 0, 1, &Grant{}, 0, Env{}, fx)
	}
	if fx.Delivered != 10*maxAliases || len(s.aliases) != maxAliases {
		t.Fatalf("%d messages sent, %d aliases: want %d and %d", fx.Delivered, len(s.aliases), 10*maxAliases, maxAliases)
	}
}
