package membership

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"go.uber.org/zap"
)

// view is a reading of the rows with what this node has looked at. It is never
// changed.
type view struct {
	rows   []persistence.Member
	peers  []Peer // the live others, by node
	looked map[uint16]uint64
	met    map[uint16]uint64
	owes   uint64 // Status.Owes
}

// publish makes a new view if there is something new.
func (n *Node) publish() {
	m, old := n.machine, n.view.Load()
	fresh := len(m.rows) > 0 && (len(old.rows) == 0 || &m.rows[0] != &old.rows[0])
	if !fresh && m.copied {
		return
	}
	v := *old
	if !m.copied {
		v.looked, v.met, v.owes, m.copied = maps.Clone(m.looked), maps.Clone(m.met), m.owes, true
	}
	if fresh {
		v.rows, v.peers = m.rows, n.peersIn(m.rows, int(n.self.Node))
	}
	n.view.Store(&v)
	n.notify()
}

// peersIn returns those that are Live; self is the own number, or -1.
func (n *Node) peersIn(rows []persistence.Member, self int) []Peer {
	var peers []Peer
	for _, row := range rows {
		if row.State != persistence.Live || int(row.Node) == self {
			continue
		}
		p := Peer{Node: row.Node, Life: row.Life, Name: row.Name}
		s, err := decodeStatus(row.Status)
		if err != nil {
			n.warn(row, "node's row cannot be read", zap.Error(err))
		}
		if ahead := s.Clock.Time().Sub(n.wall()); s.Clock != 0 && ahead > n.o.MaxSkew {
			n.warn(row, "node's clock is ahead of the others and not followed", zap.Duration("ahead", ahead))
			s.Clock = 0
		}
		p.Status = s
		peers = append(peers, p)
	}
	return peers
}

// wall is what the time is to this node: by its own clock or, if that was behind the
// others' at Join, by theirs.
func (n *Node) wall() time.Time {
	now := n.o.Now()
	if n.follow != 0 {
		if theirs := n.follow.Time().Add(n.now() - n.followed); theirs.After(now) {
			return theirs
		}
	}
	return now
}

// warn logs once for a life.
func (n *Node) warn(row persistence.Member, what string, f zap.Field) {
	if n.warned[row.Node] != row.Life {
		n.warned[row.Node] = row.Life
		n.o.Log.Warn(what, zap.Uint16("node", row.Node), zap.Uint64("life", row.Life), zap.String("name", row.Name), f)
	}
}

// notify wakes those who wait for a view.
func (n *Node) notify() {
	n.mu.Lock()
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
}

func (n *Node) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Peers returns the live others by node, as last read: before the first reading after
// Start, as they were at Join. It must not be changed.
func (n *Node) Peers() []Peer { return n.view.Load().peers }

// Live returns that life of another node, if it was Live when last read.
func (n *Node) Live(node uint16, life uint64) (Peer, bool) {
	for _, p := range n.view.Load().peers {
		if p.Node == node && p.Life == life {
			return p, true
		}
	}
	return Peer{}, false
}

// Settled waits until nothing of that life can turn up any more that nobody has
// looked for: it has left, or is finished and every live node, this one included,
// has looked at its sessions' inboxes since. While the life is live it waits too.
// The error is ctx's, or wraps [herald.ErrClosed] when this node has stopped or is
// lost. Life 0 is nobody's, and settled.
func (n *Node) Settled(ctx context.Context, node uint16, life uint64) error {
	err := n.await(ctx, func(v *view) bool { return v.settled(n.self.Node, node, life) })
	if err != nil {
		return fmt.Errorf("membership: life %d of node %d: %w", life, node, err)
	}
	return nil
}

// Clear waits until everything is settled that lives had begun which were dead when
// it was called: those of this number before this one, and all that were declared dead.
// What they owe comes before what is published from then on, if nobody else serves.
func (n *Node) Clear(ctx context.Context) error {
	v := n.view.Load()
	need := map[uint16]uint64{n.self.Node: n.self.Life - 1}
	for _, row := range v.rows {
		switch {
		case row.Node == n.self.Node:
		case row.State == persistence.Dead:
			need[row.Node] = row.Life
		case owedBy(row) != 0:
			need[row.Node] = row.Life - 1
		}
	}
	for node, life := range need {
		if err := n.Settled(ctx, node, life); err != nil {
			return err
		}
	}
	return nil
}

// Known waits until the handler of every live node was told that this one is live:
// from then on each counts it in before it decides anything for all. What their
// clocks had reached when they wrote so stands in [Node.Peers] afterwards.
func (n *Node) Known(ctx context.Context) error {
	err := n.await(ctx, func(v *view) bool { return v.known(n.self) })
	if err != nil {
		return fmt.Errorf("membership: waiting for the other nodes: %w", err)
	}
	return nil
}

func (n *Node) await(ctx context.Context, is func(*view) bool) error {
	if is(n.view.Load()) {
		return nil
	}
	n.waiters.Add(1)
	defer n.waiters.Add(-1)
	n.poke()
	for {
		changed := n.next()
		if n.until.Load() < 0 {
			return herald.ErrClosed
		}
		if is(n.view.Load()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// settled judges by one reading: a node that is not in it has joined after it, hence
// after that life was over, and had no sessions then. One that died before it had
// looked may have been finishing that life: what it still has in flight is harmless
// when it is Finished itself, since its clock is known from then on.
func (v *view) settled(self, node uint16, life uint64) bool {
	if life == 0 {
		return true
	}
	i := slices.IndexFunc(v.rows, func(m persistence.Member) bool { return m.Node == node })
	if i < 0 || v.rows[i].Life < life {
		return false // not read yet
	}
	if row := v.rows[i]; row.Life == life {
		if row.State == persistence.Left {
			return true
		}
		if row.State != persistence.Finished {
			return false
		}
	}
	if v.looked[node] < life || slices.ContainsFunc(v.peers, func(p Peer) bool { return p.Status.Looked[node] < life }) {
		return false
	}
	return !slices.ContainsFunc(v.rows, func(m persistence.Member) bool {
		if m.State != persistence.Dead {
			return false
		}
		s, err := decodeStatus(m.Status)
		return err != nil || s.Looked[node] < life
	})
}

// known judges by a reading that shows the row itself: whoever is not in it joins
// later, and its first reading shows the row.
func (v *view) known(self persistence.Member) bool {
	read := slices.ContainsFunc(v.rows, func(m persistence.Member) bool {
		return m.Node == self.Node && m.Life == self.Life
	})
	return read && !slices.ContainsFunc(v.peers, func(p Peer) bool {
		return p.Status.Met[self.Node] < self.Life
	})
}
