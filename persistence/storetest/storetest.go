// Package storetest is the suite that every [persistence.Store] passes. It
// assumes nothing but the contract: a test that needs more asks the Driver.
package storetest

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Driver opens stores of one implementation.
type Driver struct {
	// Open returns a store without data. The suite closes it.
	Open func(t testing.TB) persistence.Store
	// Reopen closes s and opens its data again.
	Reopen func(t testing.TB, s persistence.Store) persistence.Store
	// Node opens a store as a node of a cluster has it, which has not joined: on the
	// data of another node's, or, if on is nil, without data. Its wall clock is ahead
	// by so much. The suite closes it. nil: the store is no [persistence.Cluster].
	Node func(t testing.TB, on persistence.Cluster, ahead time.Duration) persistence.Cluster
	// Large scales the tests that need many records down for a store that is
	// slow to fill; 0 is 100,000.
	Large int
	// Rounds is the number of random trees of topics to compare; 0 is 60.
	Rounds int
}

func (d Driver) large() int {
	if d.Large == 0 {
		return 100_000
	}
	return d.Large
}

func (d Driver) rounds() int {
	if d.Rounds == 0 {
		return 60
	}
	return d.Rounds
}

// Run runs the suite.
func Run(t *testing.T, d Driver) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"commit", commitTests},
		{"session", sessionTests},
		{"subscription", subscriptionTests},
		{"window", windowTests},
		{"inbox", inboxTests},
		{"retained", retainedTests},
		{"will", willTests},
		{"claim", claimTests},
		{"ban", banTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, test := range group.tests {
				t.Run(test.name, func(t *testing.T) {
					h := &harness{TB: t, d: d, store: d.Open(t)}
					if _, shared := h.store.(persistence.Claimer); !shared && group.name == "claim" {
						_ = h.store.Close()
						t.Skip("one process has this store for itself: there is nobody to claim from")
					}
					if _, bans := h.store.(persistence.Banner); !bans && group.name == "ban" {
						_ = h.store.Close()
						t.Skip("this store keeps no bans")
					}
					t.Cleanup(func() {
						if err := h.store.Close(); err != nil {
							t.Errorf("close: %v", err)
						}
					})
					test.run(h)
				})
			}
		})
	}
	t.Run("cluster", func(t *testing.T) {
		if d.Node == nil {
			t.Skip("one process has this store for itself: there is no other node")
		}
		for _, test := range clusterTests {
			t.Run(test.name, func(t *testing.T) { test.run(&clusterHarness{TB: t, d: d}) })
		}
	})
}

type test struct {
	name string
	run  func(h *harness)
}

// harness is what a test works with.
type harness struct {
	testing.TB
	d     Driver
	store persistence.Store
	names int
}

// patience is how long the suite waits for what must happen.
const patience = 30 * time.Second

// ids makes IDs and session IDs that no other test has used.
var ids atomic.Uint64

func newID() herald.ID {
	return herald.IDAt(time.Now().UnixMilli()) + herald.ID(ids.Add(1))
}

// commit commits b and waits for it.
func (h *harness) commit(b *persistence.Batch) {
	h.Helper()
	if err := commit(h.store, b); err != nil {
		h.Fatalf("commit: %v", err)
	}
}

func commit(s persistence.Store, b *persistence.Batch) error {
	done := make(chan error, 1)
	s.Commit(b, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("done was not called within %v", patience)
	}
}

func (h *harness) reopen() {
	h.Helper()
	h.store = h.d.Reopen(h, h.store)
}

// twice runs check on the store as it is, and once more after a restart.
func (h *harness) twice(check func()) {
	h.Helper()
	check()
	h.reopen()
	check()
}

// session makes a session with a row.
func (h *harness) session() herald.SessionID {
	h.Helper()
	id := herald.SessionID(newID())
	h.names++
	h.commit(&persistence.Batch{Sessions: []persistence.Session{{ID: id, Name: fmt.Sprintf("client-%d", h.names), Version: herald.V5}}})
	return id
}

func message(topic, payload string) *herald.Message {
	return &herald.Message{ID: newID(), Publisher: 7, Topic: topic, Payload: []byte(payload), QoS: 1}
}

func messages(n int, topic string) []*herald.Message {
	all := make([]*herald.Message, n)
	for i := range all {
		all[i] = message(topic, fmt.Sprintf("payload %d", i))
	}
	return all
}

// equal compares; an empty slice equals nil.
func (h *harness) equal(what string, got, want any) {
	h.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), quickly); diff != "" {
		h.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// quickly compares payloads as such, not as a million values.
var quickly = cmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) > 0 }, cmp.Comparer(bytes.Equal))

func (h *harness) noError(what string, err error) {
	h.Helper()
	if err != nil {
		h.Fatalf("%s: %v", what, err)
	}
}

var ctx = context.Background()
