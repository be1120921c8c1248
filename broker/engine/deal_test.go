package engine

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// cabinet is a store of one group and one member, which holds entries 5 and 6 of it.
type cabinet struct {
	shelf
	read func() // called when the member's window was read
	fail error  // what reading it ends with, once
}

const (
	groupOfCabinet  herald.SessionID = 100
	memberOfCabinet herald.SessionID = 7
)

func (c *cabinet) Window(_ context.Context, id herald.SessionID) (persistence.Window, error) {
	if id == groupOfCabinet {
		return persistence.Window{Low: 3}, nil
	}
	if err := c.fail; err != nil {
		c.fail = nil
		return persistence.Window{}, err
	}
	w := persistence.Window{Sent: []persistence.Sent{
		{Session: id, PacketID: 1, ID: 5, Source: groupOfCabinet, Step: persistence.Published},
		{Session: id, PacketID: 2, ID: 6, Source: groupOfCabinet, Step: persistence.Published},
	}}
	c.read()
	return w, nil
}

func (c *cabinet) Subscriptions(context.Context, herald.SessionID) ([]persistence.Subscription, error) {
	return nil, nil
}

// What becomes of entries while a group is loaded counts, although what was read of
// who holds them is older: one that was acknowledged is settled, one that was given
// back is dealt again.
func TestEntriesMoveOnWhileAGroupIsLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &cabinet{shelf: shelf{meantime: func() {}}, fail: herald.ErrUnavailable}
		e := onShelf(&store.shelf)
		e.store = store
		e.slots = make(chan struct{}, 1)
		e.workers = newWorkers(e)
		g := &group{key: "g/a", row: persistence.Session{ID: groupOfCabinet}, core: session.NewGroup(groupOfCabinet, true)}
		g.members = []member{{h: &handle{id: memberOfCabinet, durable: true}}}
		e.sharing.rest["g/a"] = map[herald.SessionID]struct{}{memberOfCabinet: {}}
		e.groups.byID[groupOfCabinet] = g
		store.read = func() {
			e.groups.settle(e, []session.Settled{{Source: groupOfCabinet, ID: 5}})
			e.groups.takeBack(e, []session.Settled{{Source: groupOfCabinet, ID: 6}})
			synctest.Wait()
		}
		g.wake(e, listen.NewWorker())
		synctest.Wait()
		if g.loaded {
			t.Fatal("loaded without the store")
		}
		time.Sleep(2 * readAgain)
		synctest.Wait()
		if !g.loaded {
			t.Fatal("not loaded")
		}
		env := session.Env{Closed: 10}
		var fx session.Effects
		if g.core.Read(env, &fx); !fx.Read || fx.After != 3 {
			t.Fatalf("reads on after %d", fx.After)
		}
		g.core.Page([]persistence.Entry{
			{Message: &herald.Message{ID: 5, QoS: 2}, QoS: 2}, {Message: &herald.Message{ID: 6, QoS: 2}, QoS: 2},
		}, 10)
		var dealt []herald.ID
		for {
			run, i, _, ok := g.core.Next(env)
			if !ok {
				break
			}
			dealt = append(dealt, run.Messages[i].ID)
			g.core.Dealt(memberOfCabinet)
		}
		if !slices.Equal(dealt, []herald.ID{6}) {
			t.Errorf("deals %d, want 6", dealt)
		}
		var b persistence.Batch
		if g.core.MarkInto(env, &b); len(b.Marks) != 1 || b.Marks[0].Low != 5 { // 6 is dealt
			t.Errorf("marks %+v: 5 is not settled", b.Marks)
		}
		e.endLife()
		e.jobs.end()
		stopWorkers(e.workers)
	})
}
