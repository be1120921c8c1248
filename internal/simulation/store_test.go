package simulation

import (
	"sync"
	"testing"

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
				return prompt{p.Crash(0), new(sync.Mutex)}
			},
			Large: 500, Rounds: 5,
		})
	}
}
