package engine

import (
	"slices"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// sink is a connection that takes everything.
type sink struct{ Conn }

func (sink) Begin() []byte              { return nil }
func (sink) End(*listen.Worker, []byte) {}
func (sink) Room() int                  { return 1 << 20 }

// silent is a store that never answers a commit.
type silent struct{ shelf }

func (*silent) Commit(*persistence.Batch, func(error)) {}

// What is dealt to a client that has just left the group goes back to it: that it holds
// nothing was noted when it left.
func TestNothingIsDealtToALeaver(t *testing.T) {
	const id, group, other herald.SessionID = 7, 100, 101
	for name, tt := range map[string]struct {
		here, subs []string // groups that the node, and the client, think it is in
		takes      bool
	}{
		"a member":                  {[]string{"g/a"}, []string{"g/a"}, true},
		"one that is just leaving":  {[]string{"g/a", "g/b"}, []string{"g/b"}, false},
		"one that has left":         {[]string{"g/b"}, []string{"g/b"}, false},
		"one that has left for all": {nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			store := &silent{}
			e := onShelf(&store.shelf)
			e.store = store
			way := e.nodes.Cluster.(*carrier)
			e.learn("g/a", group)
			e.learn("g/b", other)
			h := &handle{id: id, durable: true}
			c := &client{e: e, h: h, conn: sink{}, core: session.New(id, true), subs: make(map[string]*subscription)}
			var fx session.Effects
			c.core.Attach(session.Params{Version: herald.V5, ReceiveMaximum: 10}, persistence.Window{}, e.env(), &fx)
			h.live.Store(c)
			for _, key := range tt.here {
				e.sharing.here[key] = map[herald.SessionID]*handle{id: h}
			}
			for _, key := range tt.subs {
				c.subs[herald.SharePrefix+key] = &subscription{}
			}
			p := e.meet(bridge.Peer{Node: 2, Incarnation: 1})
			f, err := decodeFrame(appendDeal(nil, group, 1, id, 2, false, nil, &herald.Message{ID: 5, Topic: "a", QoS: 2}))
			if err != nil {
				t.Fatal(err)
			}
			e.dealt(p, &f, listen.NewWorker())
			if took := slices.Equal(c.core.HeldOf(group), []herald.ID{5}); took != tt.takes {
				t.Errorf("it took the message: %v, want %v", took, tt.takes)
			}
			back := slices.Contains(way.taken, string(appendDone(nil, group, nil, []herald.ID{5})))
			if back == tt.takes {
				t.Errorf("it was given back: %v, want %v", back, !tt.takes)
			}
		})
	}
}

// What the last owner of a group has dealt, and comes when the next one was told who holds
// what, is not taken: the next one deals it, and the member would get it twice.
func TestALateDealOfADeadOwner(t *testing.T) {
	const id, group herald.SessionID = 7, 100
	store := &silent{}
	e := onShelf(&store.shelf)
	e.store = store
	way := e.nodes.Cluster.(*carrier)
	e.learn("g/a", group)
	h := &handle{id: id, durable: true}
	c := &client{e: e, h: h, conn: sink{}, core: session.New(id, true), subs: map[string]*subscription{"$share/g/a": {}}}
	var fx session.Effects
	c.core.Attach(session.Params{Version: herald.V5, ReceiveMaximum: 10}, persistence.Window{}, e.env(), &fx)
	h.live.Store(c)
	e.sharing.here["g/a"] = map[herald.SessionID]*handle{id: h}
	dead, next := bridge.Peer{Node: 2, Incarnation: 1}, bridge.Peer{Node: 3, Incarnation: 1}
	deal := func(from bridge.Peer, epoch uint64, m herald.ID) {
		e.Receive(from, [][]byte{appendDeal(nil, group, epoch, id, 2, false, nil, &herald.Message{ID: m, Topic: "a", QoS: 2})})
	}
	deal(dead, 1, 5)
	e.Receive(next, [][]byte{appendAskHeld(nil, 1, group, 2)})
	deal(dead, 1, 6)                                           // late
	e.Receive(dead, [][]byte{appendAskHeld(nil, 1, group, 1)}) // so is this
	deal(next, 2, 7)
	if held := c.core.HeldOf(group); !slices.Equal(held, []herald.ID{5, 7}) {
		t.Errorf("holds %d, want 5 and 7", held)
	}
	if slices.Contains(way.taken, string(appendDone(nil, group, nil, []herald.ID{6}))) {
		t.Error("6 is given back to who has it no more")
	}
	if d := e.sharing.dealers[group]; d != (dealer{next, 2}) {
		t.Errorf("the owner is %v", d)
	}
}
