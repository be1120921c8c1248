package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
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
