package engine

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// bureau is a store with the row and the claim of a group, of which nothing else is
// stored.
type bureau struct {
	shelf

	mu    sync.Mutex // guards below
	claim persistence.Claim
	lost  int       // how many answers of Claim do not arrive
	fails int       // how many reads of the row fail
	late  herald.ID // the mark that lands when the inbox has been read first
	low   herald.ID
}

func (b *bureau) Claimed(context.Context, persistence.Kind, string) (persistence.Claim, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.claim, nil
}

func (b *bureau) Claim(_ context.Context, _ persistence.Kind, _ string, old persistence.Claim, owner uint16, life uint64) (persistence.Claim, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	won := old == b.claim
	if won {
		b.claim = persistence.Claim{Owner: owner, Life: life, Epoch: old.Epoch + 1}
	}
	if b.lost > 0 {
		b.lost--
		return persistence.Claim{}, false, herald.ErrUnavailable
	}
	return b.claim, won, nil
}

func (b *bureau) Session(_ context.Context, _ persistence.Kind, key string) (persistence.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fails > 0 {
		b.fails--
		return persistence.Session{}, herald.ErrUnavailable
	}
	return persistence.Session{ID: groupOfCabinet, Kind: persistence.Group, Name: key}, nil
}

func (b *bureau) Window(context.Context, herald.SessionID) (w persistence.Window, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return persistence.Window{Low: b.low}, nil
}

func (b *bureau) Subscriptions(context.Context, herald.SessionID) ([]persistence.Subscription, error) {
	return nil, nil
}

// Inbox has nothing but what the mark that lands late is to tell of.
func (b *bureau) Inbox(_ context.Context, _ herald.SessionID, after, _ herald.ID, _, _ int, dst []persistence.Entry) ([]persistence.Entry, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.low = b.late; after < b.late {
		for _, id := range []herald.ID{b.late, b.late + 1} {
			dst = append(dst, persistence.Entry{Message: &herald.Message{ID: id, Topic: "a", QoS: 2}, QoS: 2})
		}
	}
	return dst, nil
}

// inBureau runs a test with an engine on such a store.
func inBureau(t *testing.T, store *bureau, run func(t *testing.T, e *Engine)) {
	synctest.Test(t, func(t *testing.T) {
		e := onShelf(&store.shelf)
		e.store, e.nodes.store = store, store
		e.quit = make(chan struct{})
		e.slots = make(chan struct{}, 1)
		e.workers = newWorkers(e)
		run(t, e)
		close(e.quit)
		e.endLife()
		e.jobs.end()
		stopWorkers(e.workers)
	})
}

// Whoever may have the claim of a group is its owner to all others: it finds out, and
// opens the group, although the member for which it claimed it has gone meanwhile.
func TestWhoMayHaveClaimedAGroupOwnsIt(t *testing.T) {
	for name, store := range map[string]*bureau{
		"the answer is lost":   {lost: 2},
		"it cannot be opened":  {fails: 2},
		"both, one by another": {lost: 1, fails: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBureau(t, store, func(t *testing.T, e *Engine) {
				sub := persistence.Subscription{Filter: "$share/g/a", QoS: 2}
				c := &client{e: e, h: &handle{id: memberOfCabinet}, core: session.New(memberOfCabinet, true), conn: sink{}}
				if err := e.attend(c, "g/a", &sub); err == nil {
					t.Fatal("it attends")
				}
				c.conn = nil
				e.absent(c, "g/a")
				time.Sleep(5 * pursueEvery)
				synctest.Wait()
				g := e.groups.byKey("g/a")
				if g == nil || g.epoch != store.claim.Epoch || !g.loaded {
					t.Errorf("the group is %+v, want one that deals under epoch %d", g, store.claim.Epoch)
				}
			})
		})
	}
}

// What was routed when another node owned a group, and is delivered when it has been
// loaded here, comes to the group: it does not read its queue again.
func TestWhatIsDeliveredToAGroupThatHasANewOwner(t *testing.T) {
	inBureau(t, new(bureau), func(t *testing.T, e *Engine) {
		e.learn("g/a", groupOfCabinet)
		run := wire.MakeRun([]*herald.Message{{ID: e.newID(), Topic: "a", QoS: 1}})
		r := routed{run: run}
		var b persistence.Batch
		if !e.match(e.index.NewCache(1).Match([]byte("a")), &r, &b) || len(b.Spreads) != 1 {
			t.Fatal("it is not for the group")
		}
		if err := e.electKey("g/a", true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		g := e.groups.byKey("g/a")
		g.enter(member{h: &handle{id: memberOfCabinet}, g: &session.Grant{QoS: 1}, at: e.meet(bridge.Peer{Node: 2, Incarnation: 1})}) // so that it reads
		e.groups.wakeSoon(e, g)
		synctest.Wait()
		g.members = nil
		e.deliver(&shipment{runs: []routed{r}}, listen.NewWorker())
		if g.core.Pending() != 1 {
			t.Errorf("%d wait in the group, want 1", g.core.Pending())
		}
	})
}

// A mark of the last owner that lands when the group has been loaded counts: what it tells
// to be done with is not dealt again, and is not unsaid.
func TestAMarkThatLandsLate(t *testing.T) {
	inBureau(t, &bureau{late: 5}, func(t *testing.T, e *Engine) {
		if err := e.electKey("g/a", true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		g := e.groups.byKey("g/a")
		g.enter(member{h: &handle{id: memberOfCabinet}, g: &session.Grant{QoS: 2}, at: e.meet(bridge.Peer{Node: 2, Incarnation: 1})})
		e.groups.wakeSoon(e, g)
		synctest.Wait()
		if _, out := g.out[6]; !out || len(g.out) != 1 {
			t.Errorf("dealt %v, want 6", g.out)
		}
		g.settledLocked([]herald.ID{6})
		var b persistence.Batch
		if g.core.MarkInto(session.Env{}, &b); len(b.Marks) != 1 || b.Marks[0].Low != 5 {
			t.Errorf("marks %+v, want 5 as the lowest", b.Marks)
		}
	})
}
