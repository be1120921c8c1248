package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// clusterHarness is what a test of several nodes works with.
type clusterHarness struct {
	testing.TB
	d     Driver
	first persistence.Cluster
}

type clusterTest struct {
	name string
	run  func(h *clusterHarness)
}

// node is a store with the life that it has joined for.
type node struct {
	persistence.Cluster
	h    *clusterHarness
	self persistence.Member
}

// open opens one more node's store.
func (h *clusterHarness) open(ahead time.Duration) *node {
	h.Helper()
	n := &node{Cluster: h.d.Node(h, h.first, ahead), h: h}
	if h.first == nil {
		h.first = n.Cluster
	}
	h.Cleanup(func() {
		if err := n.Close(); err != nil {
			h.Errorf("close: %v", err)
		}
	})
	return n
}

// join opens one, and joins.
func (h *clusterHarness) join(name string, ahead time.Duration) *node {
	h.Helper()
	n := h.open(ahead)
	n.join(name)
	return n
}

func (n *node) join(name string) {
	n.h.Helper()
	m, err := n.Join(ctx, name, nil)
	n.h.noError("join", err)
	n.self = m
}

// change changes a member, which has to succeed.
func (n *node) change(m persistence.Member, from, to persistence.MemberState) {
	n.h.Helper()
	ok, err := n.Change(ctx, m, from, to)
	n.h.noError("change", err)
	if !ok {
		n.h.Fatalf("%+v did not go from %d to %d", m, from, to)
	}
}

// finish has n bury another node, and finish what it had begun.
func (n *node) finish(of *node) {
	n.h.Helper()
	n.change(of.self, persistence.Live, persistence.Dead)
	n.h.noError("finish", n.Finish(ctx, of.self))
	n.change(of.self, persistence.Dead, persistence.Finished)
}

func (n *node) commit(b *persistence.Batch) {
	n.h.Helper()
	n.h.noError("commit", commit(n, b))
}

// fenced checks that a commit fails, as one that has no lease.
func (n *node) fenced(what string, b *persistence.Batch) {
	n.h.Helper()
	if err := commit(n, b); !errors.Is(err, herald.ErrUnavailable) {
		n.h.Fatalf("%s: %v, want %v", what, err, herald.ErrUnavailable)
	}
}

func (n *node) window(s herald.SessionID) persistence.Window {
	n.h.Helper()
	w, err := n.Window(ctx, s)
	n.h.noError("window", err)
	return w
}

// session makes a session with a row.
func (n *node) session() herald.SessionID {
	n.h.Helper()
	id := herald.SessionID(n.id())
	n.commit(&persistence.Batch{Sessions: []persistence.Session{{ID: id, Name: fmt.Sprintf("client-%d", id), Version: herald.V5}}})
	return id
}

// id makes an ID of the node.
func (n *node) id() herald.ID {
	return newID()&^(herald.MaxNode<<12) | herald.ID(n.self.Node)<<12
}

// held puts or frees a packet id.
func held(s herald.SessionID, pid uint16, id herald.ID) *persistence.Batch {
	return &persistence.Batch{Held: []persistence.Held{{Session: s, PacketID: pid, ID: id}}}
}

func (h *clusterHarness) noError(what string, err error) {
	h.Helper()
	if err != nil {
		h.Fatalf("%s: %v", what, err)
	}
}

func (h *clusterHarness) equal(what string, got, want any) {
	h.Helper()
	(&harness{TB: h.TB}).equal(what, got, want)
}
