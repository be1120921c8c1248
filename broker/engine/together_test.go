package engine

import (
	"errors"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

func spreadOf(c *client, id herald.ID, weight int) *shipment {
	s := &shipment{from: c, weight: weight}
	s.batch.Spreads = []persistence.Spread{{Messages: []*herald.Message{{ID: id}}}}
	s.batch.Held = []persistence.Held{{PacketID: uint16(id), ID: id}}
	return s
}

// One commit of a client is under way at a time; what came meanwhile is the next, in its
// order, up to a bound, and fails with the one before it.
func TestWhatWaitsIsCommittedTogether(t *testing.T) {
	e := &Engine{}
	e.workers = []*worker{{e: e}}
	c := &client{e: e}
	if !c.mayCommit(spreadOf(c, 1, 100)) {
		t.Fatal("the first has to wait")
	}
	for id := herald.ID(2); id < 6; id++ {
		if c.mayCommit(spreadOf(c, id, maxTogether/2)) {
			t.Fatalf("%d goes beside the first", id)
		}
	}
	want := herald.ID(2)
	for range 2 {
		next, failed := c.nextCommit(nil)
		if len(next) != 2 || len(failed) > 0 {
			t.Fatalf("%d go next, %d fail; want 2 and none", len(next), len(failed))
		}
		b := together(next)
		if len(b.Spreads) != 2 || len(b.Held) != 2 {
			t.Fatalf("batch %+v", b)
		}
		for i := range b.Spreads {
			if b.Spreads[i].Messages[0].ID != want || b.Held[i].ID != want {
				t.Errorf("message %d, packet id of %d, want %d", b.Spreads[i].Messages[0].ID, b.Held[i].ID, want)
			}
			want++
		}
	}
	if next, _ := c.nextCommit(nil); len(next) > 0 || !c.mayCommit(spreadOf(c, 6, 100)) {
		t.Fatal("something is still under way")
	}
	c.mayCommit(spreadOf(c, 7, 2*maxTogether))
	if next, failed := c.nextCommit(errors.New("away")); len(next) > 0 || len(failed) != 1 {
		t.Errorf("%d go next, %d fail; want none and 1", len(next), len(failed))
	}
	if s := spreadOf(c, 8, 1); c.mayCommit(s) || s.err == nil {
		t.Error("another is committed after one has failed")
	}
}

// After a commit has failed nothing of its client is delivered, or acknowledged, of which
// nothing is stored: it would overtake what the client sends again.
func TestNothingFollowsAFailedCommit(t *testing.T) {
	e := &Engine{}
	c := &client{e: e}
	stored, bare := spreadOf(c, 1, 1), &shipment{from: c}
	c.enqueue(stored)
	if busy, next := c.enqueueIfBusy(bare); !busy || next {
		t.Fatal("what follows does not wait")
	}
	stored.err = errors.New("away")
	if s := c.ready(stored); s != stored {
		t.Fatal("not the next")
	}
	if s := c.sentNext(stored); s != bare || s.err == nil {
		t.Error("what waited behind it is delivered")
	}
	c = &client{e: e, broken: stored.err}
	late := &shipment{from: c}
	if busy, next := c.enqueueIfBusy(late); !busy || !next || late.err == nil {
		t.Error("what comes later is delivered")
	}
}
