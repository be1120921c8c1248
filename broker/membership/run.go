package membership

import (
	"context"
	"fmt"
	"time"

	"github.com/herald-mqtt/herald/persistence"
	"go.uber.org/zap"
)

// run owns the machine. What blocks runs beside it, one of a kind at a time.
func (n *Node) run() {
	defer n.running.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		n.publish()
		now := n.now()
		n.machine.waited(now, n.waiters.Load() > 0)
		for _, e := range n.machine.tick(now) {
			n.carryOut(e)
		}
		timer.Reset(max(n.machine.next(now)-now, time.Millisecond))
		select {
		case <-n.ctx.Done():
			return
		case r := <-n.results:
			n.note(r)
		case <-n.wake:
			now := n.now()
			if n.beat.Swap(false) {
				n.machine.beatNow(now)
			}
			if n.paid.Load() {
				n.machine.paid(now)
			}
		case <-timer.C:
		}
	}
}

// note hands a result to the machine.
func (n *Node) note(r result) {
	n.machine.done(n.now(), r)
	if n.ctx.Err() == nil {
		n.until.Store(int64(n.machine.until()))
		if n.ctx.Err() != nil { // Close came between
			n.until.Store(-1)
		}
	}
	log := n.o.Log.With(zap.Uint16("node", r.member.Node), zap.Uint64("life", r.member.Life))
	switch {
	case r.err != nil && n.ctx.Err() == nil:
		log.Warn(fmt.Sprintf("membership: cannot %s", r.op), zap.Error(r.err))
	case r.op == opBury && r.ok:
		log.Warn("node is dead: its lease has run out", zap.String("name", r.member.Name))
	case r.op == opFinish && r.ok:
		log.Info("what the dead node had begun is finished", zap.String("name", r.member.Name))
	}
}

// String is what the effect does, for the log.
func (o op) String() string {
	return [ops]string{
		"renew this node's row", "read the other nodes' rows", "declare a node dead", "finish what a dead node had begun",
		"note that a dead node is finished", "look at the inboxes after a node's death", "tell of peers", "stop",
	}[o]
}

func (n *Node) carryOut(e effect) {
	if e.op == opLost {
		n.o.Log.Error("this node was declared dead", zap.Uint16("node", n.self.Node), zap.Uint64("life", n.self.Life))
		n.until.Store(-1)
		n.notify()
		go n.o.Handler.Lost() // it may call Close, which therefore does not wait for it
		return
	}
	v := n.view.Load()
	n.running.Add(1)
	go func() {
		defer n.running.Done()
		r := n.perform(e, v)
		n.results <- r // has room for one of each kind
	}()
}

func (n *Node) perform(e effect, v *view) result {
	r := result{effect: e}
	limit := n.o.Lease
	if e.op == opBeat || e.op == opRead {
		limit /= 2
	}
	ctx, cancel := context.WithTimeout(n.ctx, limit)
	defer cancel()
	switch e.op {
	case opBeat:
		s := n.o.Handler.Status()
		n.complete(&s, v)
		now, ok, err := n.o.Store.Beat(ctx, e.member, s.encode())
		r.ok, r.err = ok, err
		if ok && err == nil {
			r.member = now
		}
	case opRead:
		r.rows, r.err = n.o.Store.Members(ctx)
	case opBury:
		r.ok, r.err = n.o.Store.Change(ctx, e.member, persistence.Live, persistence.Dead)
	case opDied:
		r.err = n.o.Handler.Died(e.member)
	case opFinish:
		r.ok, r.err = n.o.Store.Change(ctx, e.member, persistence.Dead, persistence.Finished)
	case opLook:
		r.err = n.o.Handler.Finished(e.member)
	case opPeers:
		n.o.Handler.Peers(v.peers)
	}
	return r
}

// complete fills in what membership says.
func (n *Node) complete(s *Status, v *view) {
	s.Looked, s.Met, s.Owes, s.Address = v.looked, v.met, v.owes, n.o.Address
}
