package engine

import (
	"slices"
	"testing"

	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// A member moves from node to node, and the routes that tell of it come when they come:
// in the end it is a member where it is connected.
func TestMembersMove(t *testing.T) {
	const who = memberOfCabinet
	sub := persistence.Subscription{Filter: "$share/g/a", QoS: 2}
	route := memberRoute(who, &sub)
	for _, test := range []struct {
		name  string
		steps func(comes, goes func(p *peer), here, away func(), p, q *peer)
		at    int // 0: nowhere, 1: here, 2: p, 3: q
	}{
		{"from elsewhere to here, its going told late", func(comes, goes func(*peer), here, _ func(), p, _ *peer) {
			comes(p)
			here()
			goes(p)
		}, 1},
		{"here, and all that was before is told late", func(comes, goes func(*peer), here, _ func(), p, _ *peer) {
			here()
			comes(p)
			goes(p)
		}, 1},
		{"from here to elsewhere, told before it is gone here", func(comes, _ func(*peer), here, away func(), p, _ *peer) {
			here()
			comes(p)
			away()
		}, 2},
		{"between two others, the first told last", func(comes, goes func(*peer), _, _ func(), p, q *peer) {
			comes(p)
			comes(q)
			goes(p)
		}, 3},
		{"between two others, in the wrong order", func(comes, goes func(*peer), _, _ func(), p, q *peer) {
			comes(q)
			comes(p)
			goes(p)
		}, 3},
		{"gone everywhere", func(comes, goes func(*peer), here, away func(), p, q *peer) {
			comes(p)
			comes(q)
			here()
			goes(q)
			away()
			goes(p)
		}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := onShelf(new(shelf))
			defer e.endLife()
			e.workers = []*worker{{e: e}}
			g := &group{key: "g/a", filter: "a"}
			e.groups.byName["g/a"] = g
			p, q := &peer{Peer: bridge.Peer{Node: 2}}, &peer{Peer: bridge.Peer{Node: 3}}
			h := &handle{id: who, durable: true}
			test.steps(func(p *peer) {
				if err := e.memberCame(p, route); err != nil {
					t.Fatal(err)
				}
			}, func(p *peer) { e.memberWent(p, route) },
				func() { g.enter(member{h: h}) },
				func() { g.exit(who, nil); e.reenter(g, who) }, p, q)
			want := [][]*peer{nil, {nil}, {p}, {q}}[test.at]
			var at []*peer
			for _, m := range g.members {
				at = append(at, m.at)
			}
			if !slices.Equal(at, want) {
				t.Errorf("a member at %v, want %v", at, want)
			}
		})
	}
}

// Who goes while it waits for its group to be there is no member of it here: it would
// stand in the way of where it is connected next.
func TestWhoHasGoneIsNoMember(t *testing.T) {
	e := onShelf(new(shelf))
	defer e.endLife()
	e.workers = []*worker{{e: e}}
	g := &group{key: "g/a", filter: "a"}
	e.groups.byName["g/a"] = g
	sub := persistence.Subscription{Filter: "$share/g/a", QoS: 2}
	c := &client{e: e, h: &handle{id: memberOfCabinet}, core: session.New(memberOfCabinet, true), conn: sink{}}
	if err := e.attend(c, "g/a", &sub); err != nil || len(g.members) != 1 {
		t.Fatalf("%d members, %v", len(g.members), err)
	}
	c.conn = nil
	e.absent(c, "g/a")
	if err := e.attend(c, "g/a", &sub); err != nil || len(g.members) != 0 || len(e.sharing.here) != 0 {
		t.Errorf("it attends without a connection: %d members, %v", len(g.members), err)
	}
	p := &peer{Peer: bridge.Peer{Node: 2}}
	if err := e.memberCame(p, memberRoute(memberOfCabinet, &sub)); err != nil {
		t.Fatal(err)
	}
	e.enterHere(g, c, &sub) // it was on its way
	if len(g.members) != 1 || g.members[0].at != p {
		t.Errorf("members %+v, want one at node 2", g.members)
	}
}
