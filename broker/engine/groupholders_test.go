package engine

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// morgue is a store in which what a dead node wrote of a member's window lands late: it
// can be seen when the window is sealed. Nodes 1, which this is, and 3 are live.
type morgue struct {
	shelf
	claim  persistence.Claim
	row    persistence.Session
	sealed int
	scans  int
}

func (m *morgue) ScanSessions(_ context.Context, f func(persistence.Session) error) error {
	m.scans++
	return f(m.row)
}

func (m *morgue) Session(context.Context, persistence.Kind, string) (persistence.Session, error) {
	return m.row, nil
}

func (m *morgue) Claimed(context.Context, persistence.Kind, string) (persistence.Claim, error) {
	return m.claim, nil
}

func (m *morgue) Claim(_ context.Context, _ persistence.Kind, _ string, old persistence.Claim, owner uint16, life uint64) (persistence.Claim, bool, error) {
	m.claim = persistence.Claim{Owner: owner, Life: life, Epoch: old.Epoch + 1}
	return m.claim, true, nil
}

func (m *morgue) Seal(context.Context, herald.SessionID) error {
	m.sealed++
	return nil
}

func (m *morgue) Window(_ context.Context, id herald.SessionID) (w persistence.Window, err error) {
	if m.sealed > 0 || m.row.Node == 3 {
		w.Sent = []persistence.Sent{{Session: id, PacketID: 1, ID: 5, Source: groupOfCabinet, Step: persistence.Published}}
	}
	return w, nil
}

func (m *morgue) Inbox(_ context.Context, _ herald.SessionID, after, upTo herald.ID, _, _ int, dst []persistence.Entry) ([]persistence.Entry, error) {
	if after < 5 && upTo >= 5 {
		dst = append(dst, persistence.Entry{Message: &herald.Message{ID: 5, Topic: "a", QoS: 2}, QoS: 2})
	}
	return dst, nil
}

// gone is a cluster in which node 2 is dead.
type gone struct{ carrier }

func (*gone) Live(p bridge.Peer) bool { return p.Node != 2 }

// What a member has begun at a node that died counts, although the row that says so
// lands late, whoever goes on with the session.
func TestAMembersWindowIsSealedBeforeItIsBelieved(t *testing.T) {
	for name, tt := range map[string]struct {
		claim persistence.Claim
		row   persistence.Session
		seals int
		owner uint16
	}{
		"nobody goes on": {
			persistence.Claim{Owner: 2, Life: 1, Epoch: 4}, persistence.Session{ID: memberOfCabinet, Name: "c", Node: 2, Life: 1}, 1, 1,
		},
		"another node does": {
			persistence.Claim{Owner: 3, Life: 1, Epoch: 5}, persistence.Session{ID: memberOfCabinet, Name: "c", Node: 3, Life: 1}, 0, 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &morgue{claim: tt.claim, row: tt.row}
				e := onShelf(&store.shelf)
				e.nodes.Cluster = &gone{carrier{up: true}}
				e.store, e.nodes.store = store, store
				e.owners.init()
				e.claims.m = make(map[string]*claim)
				e.workers = newWorkers(e)
				p := e.meet(bridge.Peer{Node: 2, Incarnation: 1})
				g := &group{key: "g/a", row: persistence.Session{ID: groupOfCabinet}, core: session.NewGroup(groupOfCabinet, true), loaded: true}
				g.out = map[herald.ID]outside{5: {memberOfCabinet, p, 1}}
				g.core.Load(persistence.Window{Low: 2}, []persistence.Sent{{Session: memberOfCabinet, ID: 5, Source: groupOfCabinet, Step: persistence.Published}})
				e.groups.byID[groupOfCabinet], e.groups.byName["g/a"] = g, g
				e.bereave(p)
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(g.out) != 1 {
					t.Error("the entry is dealt again")
				}
				if store.sealed != tt.seals || store.claim.Owner != tt.owner {
					t.Errorf("sealed %d times, claimed by node %d", store.sealed, store.claim.Owner)
				}
				e.bereave(p) // its name is known
				time.Sleep(time.Minute)
				if store.scans != 1 {
					t.Errorf("all rows were read %d times", store.scans)
				}
				e.endLife()
				e.jobs.end()
				stopWorkers(e.workers)
			})
		})
	}
}

// What is found out of entries that a dead node had, and what that tells late, is of no
// account when they have been dealt again.
func TestWhatIsHeardLateOfADeadNodeIsNothing(t *testing.T) {
	e := onShelf(new(shelf))
	defer e.endLife()
	e.workers = []*worker{{e: e}}
	p, q := e.meet(bridge.Peer{Node: 2, Incarnation: 1}), e.meet(bridge.Peer{Node: 2, Incarnation: 2})
	g := &group{key: "g/a", row: persistence.Session{ID: groupOfCabinet}, core: session.NewGroup(groupOfCabinet, true), loaded: true}
	before := outside{memberOfCabinet, p, 1}
	g.out = map[herald.ID]outside{5: before}
	e.groups.byID[groupOfCabinet] = g
	had := map[herald.ID]outside{5: before, 6: {memberOfCabinet, p, 2}}
	e.inherited(g, had, []herald.ID{6}, []herald.ID{5})
	if len(g.out) > 0 {
		t.Fatalf("%v is still out", g.out)
	}
	now := outside{memberOfCabinet + 1, q, 3}
	g.out[5] = now
	e.inherited(g, had, nil, []herald.ID{5})
	if g.out[5] != now {
		t.Error("it is taken from who has it now")
	}
	e.sharing.mourn(p.Peer)
	e.doneAt(p, &frame{group: groupOfCabinet, back: []herald.ID{5}})
	if g.out[5] != now {
		t.Error("the dead node gives back what somebody else has")
	}
	e.doneAt(q, &frame{group: groupOfCabinet, back: []herald.ID{5}})
	if len(g.out) > 0 {
		t.Error("its next life is not listened to")
	}
}

// A client that subscribes is no member before everybody knows of its subscription: who
// owns the group next would not know that it has something of it.
func TestWhoSubscribesIsAMemberWhenEverybodyKnows(t *testing.T) {
	e := onShelf(new(shelf))
	defer e.endLife()
	e.workers = []*worker{{e: e}}
	g := &group{key: "g/a", filter: "a"}
	e.groups.byName["g/a"] = g
	sub := persistence.Subscription{Filter: "$share/g/a", QoS: 2}
	c := &client{e: e, name: "c", h: &handle{id: memberOfCabinet, durable: true}, core: session.New(memberOfCabinet, true), conn: sink{}}
	c.subs = map[string]*subscription{sub.Filter: {Subscription: sub}}
	c.h.live.Store(c)
	e.clients = map[string]*client{"c": c}
	if err := e.routeTo(c.h, sub); err != nil {
		t.Fatal(err)
	}
	e.rejoin(g) // the group has come to this node meanwhile
	if len(g.members) > 0 {
		t.Error("a member already")
	}
	e.joined(c, []persistence.Subscription{sub, {Filter: "a"}})
	if len(g.members) != 1 {
		t.Errorf("%d members, want 1", len(g.members))
	}
	if err := e.routeTo(c.h, sub); err != nil {
		t.Fatal(err)
	}
	e.absent(c, "g/a")
	if len(e.sharing.joining) > 0 || len(g.members) > 0 {
		t.Error("something is left of who has gone before that")
	}
}

// An entry behind its group's mark is not sent again, although it stands in the inbox.
func TestAnEntryBehindTheMarkIsNotSentAgain(t *testing.T) {
	store := &estate{}
	e := onShelf(&store.shelf)
	defer e.endLife()
	e.store = store
	for _, tt := range []struct {
		id, low herald.ID
		want    int
	}{{5, 4, 1}, {5, 5, 0}, {8, 7, 1}, {8, 9, 0}, {6, 4, 0}} {
		store.low = tt.low
		entries, err := e.entryOf(persistence.Sent{ID: tt.id, Source: groupOfCabinet}, map[herald.SessionID]herald.ID{})
		if err != nil || len(entries) != tt.want {
			t.Errorf("%d with the mark at %d: %d entries, %v, want %d", tt.id, tt.low, len(entries), err, tt.want)
		}
	}
}
