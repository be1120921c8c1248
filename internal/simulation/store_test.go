package simulation

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/storetest"
)

// prompt is a store that needs no schedule.
type prompt struct {
	*Store
	order *sync.Mutex
}

func (p prompt) Commit(b *persistence.Batch, done func(error)) {
	p.Store.Commit(b, done)
	go func() {
		p.order.Lock()
		defer p.order.Unlock()
		p.Sync(1)
		p.Tell(1)
	}()
}

// TestStore: what the simulation stands on keeps the contract of a store.
func TestStore(t *testing.T) {
	for _, eager := range []bool{false, true} {
		storetest.Run(t, storetest.Driver{
			Open: func(testing.TB) persistence.Store { return prompt{NewStore(false, eager), new(sync.Mutex)} },
			Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
				p := s.(prompt)
				n, _ := p.Queued()
				p.Sync(n)
				_, n = p.Queued()
				p.Tell(n)
				return prompt{p.Crash(0).(*Store), new(sync.Mutex)}
			},
			Large: 500, Rounds: 5,
		})
	}
}

// promptShared is a Shared that needs no schedule.
type promptShared struct {
	*Shared
	order *sync.Mutex
}

func (p promptShared) Commit(b *persistence.Batch, done func(error)) {
	p.Shared.Commit(b, done)
	go p.settle()
}

func (p promptShared) settle() {
	p.order.Lock()
	defer p.order.Unlock()
	for n, m := p.Queued(); n+m > 0; n, m = p.Queued() {
		p.Sync(n)
		p.Tell(n + m)
	}
}

// TestSharedStore: so does the one whose batches are not atomic.
func TestSharedStore(t *testing.T) {
	open := func(s *Shared) promptShared {
		p := promptShared{s, new(sync.Mutex)}
		p.Open()
		p.settle()
		return p
	}
	storetest.Run(t, storetest.Driver{
		Open: func(testing.TB) persistence.Store {
			db := NewDatabase(rand.New(rand.NewPCG(1, 1)), 0)
			return open(NewShared(db, 1, SharedOptions{InlineUpTo: 3, Sweep: true}))
		},
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			p := s.(promptShared)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			return open(p.Crash(0).(*Shared))
		},
		Node: func(_ testing.TB, on persistence.Cluster, ahead time.Duration) persistence.Cluster {
			db := NewDatabase(rand.New(rand.NewPCG(1, 1)), 0)
			if on != nil {
				db = on.(*Shared).db
			}
			n := NewMember(db, func() time.Time { return time.Now().Add(ahead) }, SharedOptions{InlineUpTo: 3})
			go func() {
				for {
					select {
					case <-n.moved:
					case <-n.end:
						return
					}
					for w, m := n.Queued(); w+m > 0 || n.waiting(); w, m = n.Queued() {
						n.unpark()
						n.Sync(w)
						n.Tell(w + m)
						runtime.Gosched()
					}
				}
			}()
			return n
		},
		Large: 500, Rounds: 5,
	})
}
