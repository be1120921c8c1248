package engine

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/herald-mqtt/herald/bridge"
)

// announcer is a transport that may refuse announcements, and knows the routes that
// the other nodes know.
type announcer struct {
	carrier
	refuses bool
	at      bridge.Position
	routes  map[string]bridge.Position
}

func (a *announcer) Announce(c bridge.Change) (bridge.Position, error) {
	if a.refuses {
		return 0, errors.New("refused")
	}
	a.at++
	for _, s := range c.Add {
		a.routes[s] = a.at
	}
	for _, s := range c.Remove {
		delete(a.routes, s)
	}
	return a.at, nil
}

// The other nodes know a route as long as a session here wants it, whatever comes
// and goes with it and whichever announcements are refused; and who begins to want
// it waits for its announcement.
func TestRoutesAreThoseThatAreWanted(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	a := &announcer{routes: make(map[string]bridge.Position)}
	e := bare(a)
	var sessions [6][]string
	for step := range 20000 {
		a.refuses = r.IntN(4) == 0
		k := r.IntN(len(sessions))
		had := sessions[k]
		add := make([]string, r.IntN(4))
		for i := range add {
			add[i] = "l" + string(rune('a'+r.IntN(4)))
		}
		keep := slices.DeleteFunc(slices.Clone(had), func(string) bool { return r.IntN(2) == 0 })
		var remove []string
		for i, s := range had {
			if slices.Index(keep, s) < 0 || i >= len(keep) {
				remove = append(remove, s)
			}
		}
		before := maps.Clone(a.routes)
		at, err := e.announce(add, remove, nil)
		if err == nil {
			for _, s := range remove {
				i := slices.Index(sessions[k], s)
				sessions[k] = slices.Delete(slices.Clone(sessions[k]), i, i+1)
			}
			sessions[k] = append(slices.Clone(sessions[k]), add...)
		} else if !maps.Equal(before, a.routes) {
			t.Fatal("something happened of what was refused")
		}
		want := make(map[string]bool)
		for _, routes := range sessions {
			for _, s := range routes {
				want[s] = true
			}
		}
		for s := range want {
			if a.routes[s] == 0 {
				t.Fatalf("step %d: nobody knows %q, which is wanted: %q", step, s, sessions)
			}
		}
		for s := range a.routes {
			if !want[s] {
				t.Fatalf("step %d: %q is known and nobody wants it: %q", step, s, sessions)
			}
		}
		for _, s := range add {
			if err == nil && at < a.routes[s] {
				t.Fatalf("step %d: position %d for %q, which was announced at %d", step, at, s, a.routes[s])
			}
		}
	}
}
