package engine

import (
	"sync"
	"time"

	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
)

// trusts are sessions that have come and may not believe in closed time yet: see
// session.Distrust.
type trusts struct {
	mu   sync.Mutex // guards below
	list []*client
	at   bridge.Position
	wake chan struct{} // of capacity 1
}

func (t *trusts) init() { t.wake = make(chan struct{}, 1) }

func (t *trusts) add(c *client, at bridge.Position) {
	t.mu.Lock()
	t.list, t.at = append(t.list, c), max(t.at, at)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// trust lets sessions that have come believe in closed time when every node sends
// their messages here: all routes are applied, and what was published before is
// committed. It runs until Stop.
func (e *Engine) trust() {
	t := &e.trusts
	w := listen.NewWorker()
	for {
		select {
		case <-e.quit:
			return
		case <-t.wake:
		}
		t.mu.Lock()
		list, at := t.list, t.at
		t.list = nil
		t.mu.Unlock()
		for e.settledRoutes(at) != nil {
			select {
			case <-e.quit:
				return
			case <-time.After(closeEvery):
			}
		}
		if !e.nodes.passed(e.quit, e.Clock()) {
			return
		}
		for _, c := range list {
			e.step(c, c.core, w, c.core.Trust)
		}
		w.Flush()
	}
}
