package engine

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/persistence"
)

// Who wants to know of delayed wills while one that is due waits for the store is at
// rest: else virtual time would stand still, and schedules of a cluster with it.
func TestWillsWaitAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		now := e.now()
		n.store.row = persistence.Session{ID: 5, Name: "c", Connected: now} // it has come back
		n.store.read = func() { time.Sleep(time.Second) }
		e.wills.add(&persistence.Will{Session: 5, Client: "c", Due: now})
		go e.wills.publishDue(e, now)
		synctest.Wait()
		if e.wills.take(herald.SessionID(6)) != nil || e.wills.some() {
			t.Error("the will of one who has come back is kept")
		}
	})
}

// A will that was read from the store may have been published since: it is not taken into
// care then, nor while it is being published.
func TestAWillThatWasSentIsNotAdopted(t *testing.T) {
	var d delayedWills
	d.init()
	d.passing(willKey{session: 1}, 1) // they are being published when the store is read
	d.passing(willKey{session: 2}, 1)
	d.add(&persistence.Will{Session: 3})
	d.add(&persistence.Will{Session: 4, Due: 7})
	watch := d.watch()
	d.passing(willKey{session: 1}, -1)
	if d.take(3) == nil {
		t.Error("it is not there")
	}
	for id := range herald.SessionID(5) {
		w := &persistence.Will{Session: id + 1}
		watch.adopt(w, keyOf(w))
	}
	next := &persistence.Will{Session: 4, Due: 9, Node: 3, Life: 1} // of a later connection elsewhere
	if watch.adopt(next, keyOf(next)); d.m[4].Due != 9 {
		t.Error("the will of a later connection is not taken into care")
	}
	d.add(&persistence.Will{Session: 4, Due: 7})
	watch.end()
	if len(d.m) != 2 || d.m[4].Due != 7 || d.m[5] == nil {
		t.Errorf("it has %v", d.m)
	}
	d.passing(willKey{session: 2}, -1)
	if len(d.sending)+len(d.watches) > 0 {
		t.Errorf("%v are said to be published", d.sending)
	}
}

// Whoever ends sessions that have expired is not given one whose client has come back, or
// whose time has not run out.
func TestOnlyExpiredSessionsAreGivenToWhoEndsThem(t *testing.T) {
	for _, test := range []struct {
		name    string
		why     purpose
		expires time.Duration
		comes   bool
		given   bool
	}{
		{"expired", toExpire, -time.Second, false, true},
		{"it has come back", toExpire, -time.Second, true, false},
		{"it came back and has gone again", toExpire, time.Second, false, false},
		{"it never expires", toExpire, 0, false, false},
		{"its client ends it", toEnd, time.Second, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(herald.Epoch.Add(time.Hour))) // no ID is of before
				e, n := claiming(t)
				k := ownerKey{persistence.Client, "c"}
				n.store.claim = persistence.Claim{Owner: 1, Life: 1, Epoch: 7}
				e.owners.set(k, n.store.claim)
				n.store.row = persistence.Session{ID: 5, Name: "c"}
				if test.expires != 0 {
					n.store.row.Expires = e.now() + test.expires.Milliseconds()
				}
				if test.comes {
					c := &client{name: "c", row: n.store.row, gone: make(chan struct{})}
					close(c.gone)
					e.clients["c"] = c
				}
				from := bridge.Peer{Node: 3, Incarnation: 1}
				e.Receive(from, [][]byte{appendRelease(nil, 1, persistence.Client, test.why, 7, "c")})
				f := <-n.frames
				if given := f.epoch != 0; f.kind != frameGranted || given != test.given || e.owners.owns(k) == given {
					t.Errorf("answered %+v", f)
				}
			})
		})
	}
}

// Who wants to end a session that has not expired for its owner is told so, and asks no
// more.
func TestASessionThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		done := make(chan error, 1)
		go func() {
			_, err := e.claim(e.life, ownerKey{persistence.Client, "c"}, toExpire, nil)
			done <- err
		}()
		f := <-n.frames
		if f.why != toExpire {
			t.Errorf("asked for with %+v", f)
		}
		began := time.Now()
		e.owners.answered(f.request, 0)
		if err := <-done; !errors.Is(err, errStays) || time.Since(began) > 0 {
			t.Errorf("%v, after %v", err, time.Since(began))
		}
	})
}

// committing is a registry that takes commits, unless it fails.
type committing struct {
	*registry
	fail    error
	batches []*persistence.Batch
}

func (c *committing) Commit(b *persistence.Batch, done func(error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail == nil {
		c.batches = append(c.batches, b)
	}
	go done(c.fail)
}

// A CONNECT that fails when its row may be stored leaves no session behind that never
// expires; nor does it take away the session of one that succeeds.
func TestAConnectThatFailsIsUndone(t *testing.T) {
	for _, then := range []string{"nothing", "its client comes", "another node asks", "it is not there"} {
		t.Run(then, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, n := claiming(t)
				store := &committing{registry: n.store, fail: herald.ErrUnavailable}
				e.store = store
				row := persistence.Session{ID: 5, Name: "c", Epoch: 3, ExpiryInterval: 6, Connected: e.now()}
				if then != "it is not there" {
					n.store.row = row
				}
				e.undoing("c", row, false)
				time.Sleep(10 * time.Second) // the store is away
				store.mu.Lock()
				store.fail = nil
				store.mu.Unlock()
				switch then {
				case "its client comes":
					e.undoing("c", row, true)
				case "another node asks":
					if _, err := e.putDown("c", false, bridge.Peer{Node: 3}); err != nil {
						t.Error(err)
					}
					if len(store.batches) == 0 { // else it would be that node's, which knows nothing of it
						t.Error("it is given away before")
					}
				}
				time.Sleep(2 * time.Second)
				store.mu.Lock()
				defer store.mu.Unlock()
				want := 1
				if then == "its client comes" {
					want = 0
				}
				e.owners.mu.Lock()
				left := len(e.owners.undone)
				e.owners.mu.Unlock()
				if len(store.batches) != want || left > 0 {
					t.Fatalf("%d commits, %d are left", len(store.batches), left)
				}
				if want == 0 {
					return
				}
				b := store.batches[0]
				switch {
				case len(b.WillsGone) != 1 || b.WillsGone[0] != 5:
					t.Errorf("wills %v go", b.WillsGone)
				case then == "it is not there":
					if len(b.Delete) != 1 || b.Delete[0].ID != 5 {
						t.Errorf("%+v", b)
					}
				case len(b.Sessions) != 1 || b.Sessions[0].Disconnected == 0 || b.Sessions[0].Expires != b.Sessions[0].Disconnected+6000:
					t.Errorf("%+v", b.Sessions)
				}
			})
		})
	}
}
