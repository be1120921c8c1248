package session

import (
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// An entry that is taken back while a page is being read that begins behind it is read
// again: what the page brings is no answer to that.
func TestTakenBackWhileReading(t *testing.T) {
	entry := func(id herald.ID) persistence.Entry {
		return persistence.Entry{Message: &herald.Message{ID: id, Topic: "a", QoS: 1}, QoS: 1}
	}
	env := Env{Closed: 20}
	g := NewGroup(100, true)
	// 5 is held by a member, dealt before the group was loaded; 3 and 4 are settled.
	g.Load(persistence.Window{Low: 4}, []persistence.Sent{{Session: 7, ID: 5, Source: 100, Step: persistence.Published}})
	var fx Effects
	g.Read(env, &fx)
	g.Page([]persistence.Entry{entry(5), entry(6), entry(7)}, 3) // 5 is left out: it is held
	for range 2 {
		run, i, _, ok := g.Next(env)
		if !ok {
			t.Fatal("6 and 7 are not dealt")
		}
		g.Dealt(7)
		g.Settled(run.Messages[i].ID)
	}
	fx = Effects{}
	if g.Read(env, &fx); !fx.Read || fx.After != 7 {
		t.Fatalf("reads after %d, want 7", fx.After)
	}
	limit := fx.ReadLimit
	g.TakeBack([]herald.ID{5})
	g.Read(env, new(Effects)) // as after anything that happens to a group
	g.Page(nil, limit)        // there is nothing behind 7
	fx = Effects{}
	if g.Read(env, &fx); !fx.Read || fx.After >= 5 {
		t.Fatalf("reads: %v, after %d; want to, from before 5", fx.Read, fx.After)
	}
	g.Page([]persistence.Entry{entry(5)}, fx.ReadLimit)
	run, i, _, ok := g.Next(env)
	if !ok || run.Messages[i].ID != 5 {
		t.Error("5 is not dealt again")
	}
}
