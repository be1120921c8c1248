package engine

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// estate is a store of what a member had of a group at a node that died: it has begun
// 5, was sent PUBREL for 6, is done with 3 and 7, which stand in the group's queue no
// more; it had not begun 8.
type estate struct {
	shelf
	fails int       // how many reads fail
	low   herald.ID // the mark of whoever is asked for
}

func (s *estate) failing() error {
	if s.fails > 0 {
		s.fails--
		return herald.ErrUnavailable
	}
	return nil
}

func (s *estate) Window(_ context.Context, id herald.SessionID) (persistence.Window, error) {
	return persistence.Window{Low: s.low, Sent: []persistence.Sent{
		{Session: id, PacketID: 1, ID: 5, Source: groupOfCabinet, Step: persistence.Published},
		{Session: id, PacketID: 2, ID: 6, Source: groupOfCabinet, Step: persistence.Released},
		{Session: id, PacketID: 3, ID: 8, Source: groupOfCabinet + 1, Step: persistence.Published},
	}}, s.failing()
}

// Inbox gives one entry a page.
func (s *estate) Inbox(_ context.Context, id herald.SessionID, after, upTo herald.ID, _, _ int, dst []persistence.Entry) ([]persistence.Entry, error) {
	if err := s.failing(); err != nil || id != groupOfCabinet {
		return dst, err
	}
	for _, n := range []herald.ID{4, 5, 8, 9} {
		if n > after && n <= upTo {
			return append(dst, persistence.Entry{Message: &herald.Message{ID: n, Payload: make([]byte, pageBytes)}}), nil
		}
	}
	return dst, nil
}

// The owner of a group cannot have heard of all that members at a node were done with
// when it died: it asks the store, until it answers.
func TestWhatMembersOfADeadNodeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &estate{shelf: shelf{meantime: func() {}}, fails: 3}
		e := onShelf(&store.shelf)
		e.store = store
		e.slots = make(chan struct{}, 1)
		e.workers = newWorkers(e)
		p := &peer{Peer: bridge.Peer{Node: 2, Incarnation: 1}}
		g := &group{key: "g/a", row: persistence.Session{ID: groupOfCabinet}, core: session.NewGroup(groupOfCabinet, true), loaded: true}
		g.members = []member{{h: &handle{id: memberOfCabinet, durable: true}, at: p}}
		g.out = make(map[herald.ID]outside)
		e.groups.byID[groupOfCabinet], e.groups.byName["g/a"] = g, g
		env := session.Env{Closed: 2}
		g.core.Load(persistence.Window{Low: 2}, nil)
		var msgs []*herald.Message
		for _, id := range []herald.ID{3, 5, 6, 7, 8} {
			msgs = append(msgs, &herald.Message{ID: id, Topic: "a", QoS: 2})
			g.out[id] = outside{who: memberOfCabinet, at: p}
		}
		var fx session.Effects
		g.core.Read(env, &fx)
		g.core.Page(nil, fx.ReadLimit)
		g.core.Deliver(wire.MakeRun(msgs), 0, len(msgs), &session.Grant{QoS: 2}, true, env)
		for {
			if _, _, _, ok := g.core.Next(env); !ok {
				break
			}
			g.core.Dealt(memberOfCabinet)
		}
		e.bereave(p)
		time.Sleep(4 * readAgain)
		synctest.Wait()
		if len(g.members) > 0 {
			t.Error("a member at the dead node is left")
		}
		var again []herald.ID
		for {
			run, i, _, ok := g.core.Next(env)
			if !ok {
				break
			}
			again = append(again, run.Messages[i].ID)
			g.core.Dealt(memberOfCabinet + 1)
		}
		if !slices.Equal(again, []herald.ID{8}) {
			t.Errorf("dealt again: %d, want 8", again)
		}
		if len(g.out) != 1 || g.out[5].who != memberOfCabinet {
			t.Errorf("still held: %v, want 5", g.out)
		}
		e.endLife()
		e.jobs.end()
		stopWorkers(e.workers)
	})
}
