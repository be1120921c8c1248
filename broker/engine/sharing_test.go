package engine

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
)

// reluctant is a store in which another node owns all groups, and which does not answer
// for one of them until it is told to.
type reluctant struct {
	shelf
	slow    string
	release chan struct{}

	mu    sync.Mutex
	asked map[string]bool
}

func (r *reluctant) Claimed(_ context.Context, _ persistence.Kind, name string) (persistence.Claim, error) {
	r.mu.Lock()
	r.asked[name] = true
	r.mu.Unlock()
	if name == r.slow {
		<-r.release
		return persistence.Claim{}, errors.New("slow")
	}
	return persistence.Claim{Owner: 2, Life: 1, Epoch: 1}, nil
}

var quick = []string{"quick/a", "quick/b", "quick/c", "quick/d", "quick/e"}

func onReluctant() (*Engine, *reluctant) {
	r := &reluctant{slow: "slow/a", release: make(chan struct{}), asked: make(map[string]bool)}
	e := onShelf(&r.shelf)
	e.store, e.nodes.store = r, r
	for i, key := range quick {
		e.learn(key, herald.SessionID(50+i))
	}
	return e, r
}

// While the store is slow about one shared group, clients join others.
func TestSlowGroupHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, r := onReluctant()
		join := func(key string) chan error {
			c := &client{e: e, h: &handle{}, core: session.New(1, false)}
			done := make(chan error, 1)
			go func() {
				done <- e.attend(c, key, &persistence.Subscription{Filter: "$share/" + key, QoS: 1})
			}()
			synctest.Wait()
			return done
		}
		slow, again, quick := join("slow/a"), join("slow/a"), join("quick/a")
		select {
		case err := <-quick:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("it waits for another group")
		}
		select {
		case <-slow:
			t.Error("joined without the store")
		case <-again:
			t.Error("joined without the store")
		default:
		}
		close(r.release)
		<-slow
		<-again
		if n := len(e.groups.joins.m); n != 0 {
			t.Errorf("%d keys are still locked", n)
		}
	})
}

// A node that looks for groups without an owner does not wait for one after the other.
func TestSlowGroupHoldsUpNoElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, r := onReluctant()
		for _, key := range append([]string{"slow/a"}, quick...) {
			e.sharing.here[key] = map[herald.SessionID]*handle{1: {id: 1}}
		}
		all := make(chan bool)
		go func() { all <- e.electOnce() }()
		synctest.Wait()
		for _, key := range quick {
			if !r.asked[key] {
				t.Errorf("%s waits for another group", key)
			}
		}
		close(r.release)
		if <-all {
			t.Error("it does not try again")
		}
	})
}
