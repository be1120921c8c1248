package engine

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/broker/listen"
)

// counter is a connection that counts the bytes that are sent.
type counter struct {
	sink
	n atomic.Int64
}

func (c *counter) End(_ *listen.Worker, b []byte) { c.n.Add(int64(len(b))) }

// lineOf is a client without a session, on an engine without a store.
func lineOf(t *testing.T) (*Engine, *client, *counter) {
	t.Helper()
	e := &Engine{}
	e.workers = newWorkers(e)
	t.Cleanup(func() { stopWorkers(e.workers) })
	out := &counter{}
	return e, &client{e: e, in: out}, out
}

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain until %s", what)
	}
}

// What has nothing to commit waits behind what has; if that was delivered already, and
// is only being acknowledged, nobody comes back for it.
func TestWhatComesWhileTheLineEnds(t *testing.T) {
	e, c, out := lineOf(t)
	first, second := spreadOf(c, 1, 1), spreadOf(c, 2, 1)
	first.acks, second.acks = []byte("1"), []byte("2")
	entered, release := make(chan struct{}), make(chan struct{})
	first.then = func() { close(entered); <-release }
	c.enqueue(first)
	c.enqueue(second)
	e.worker(c).put(second)
	e.worker(c).put(first)
	within(t, "the first is acknowledged", func() { <-entered })
	e.ship(&shipment{from: c, acks: []byte("3")}, listen.NewWorker())
	close(release)
	within(t, "the line is empty", c.settleDown)
	if n := out.n.Load(); n != 3 {
		t.Errorf("%d acknowledgements, want 3", n)
	}
}
