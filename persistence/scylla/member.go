package scylla

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/gocql/gocql"
	"github.com/scylladb/gocqlx/v2/qb"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// The members stand in one partition, which only lightweight transactions write and
// which is read at the serial level. So one read shows all of them as of one moment,
// and a Join can be conditional on no other having come between: joins, a value of
// the whole partition, counts them. Transactions of one partition take turns, which
// tens of nodes can afford (BenchmarkBeat).
const members int8 = 0

var (
	getMembers = prepare(qb.Select("member").Columns("node", "joins", "life", "name", "state", "beat", "status", "clock", "proof").Where(qb.Eq("part")))
	getPlan    = prepare(qb.Select("member").Columns("life", "state", "plan").Where(qb.Eq("part"), qb.Eq("node")))
	countJoin  = prepare(qb.Update("member").Set("joins").Where(qb.Eq("part")).If(qb.EqNamed("joins", "old")))
	putMember  = prepare(qb.Update("member").Set("life", "name", "state", "beat", "status", "clock", "plan", "proof").Where(qb.Eq("part"), qb.Eq("node")))
	// A condition on a column that the update sets needs a name of its own.
	replaceMember = prepare(qb.Update("member").Set("life", "name", "state", "beat", "status", "clock", "plan", "proof").Where(qb.Eq("part"), qb.Eq("node")).
			If(qb.EqNamed("life", "old"), qb.EqNamed("state", "from")))
	beatMember  = prepare(qb.Update("member").Set("beat", "status", "proof").Where(qb.Eq("part"), qb.Eq("node")).If(qb.Eq("life"), qb.Eq("state"), qb.EqNamed("beat", "old")))
	buryMember  = prepare(qb.Update("member").Set("state").Where(qb.Eq("part"), qb.Eq("node")).If(qb.Eq("life"), qb.EqNamed("state", "from"), qb.Eq("beat")))
	leaveMember = prepare(qb.Update("member").Set("state", "clock").Where(qb.Eq("part"), qb.Eq("node")).If(qb.Eq("life"), qb.EqNamed("state", "from"), qb.Eq("beat")))
	endMember   = prepare(qb.Update("member").Set("state", "clock").Where(qb.Eq("part"), qb.Eq("node")).If(qb.Eq("life"), qb.EqNamed("state", "from")))
	planMember  = prepare(qb.Update("member").Set("plan").Where(qb.Eq("part"), qb.Eq("node")).If(qb.Eq("life"), qb.Eq("state"), qb.EqLit("plan", "null")))
)

var _ persistence.Cluster = (*Store)(nil)

// member is a row.
type member struct {
	persistence.Member
	clock int64 // no timestamp of a life that is over is above it, nor of those before
	proof int64
}

// unsure is a beat of this node that may have been written or not.
type unsure struct {
	mu    sync.Mutex // held while one is under way
	of    persistence.Member
	proof int64
}

// enterAlways begins what is not refused while the database does not answer: who asks
// does so to learn whether it does.
func (s *Store) enterAlways(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return herald.ErrClosed
	}
	s.readers.Add(1)
	return nil
}

// about is a query about members.
func (s *Store) about(ctx context.Context, st *statement, args ...any) *gocql.Query {
	return s.leases.Session.Query(st.cql, args...).WithContext(ctx)
}

// cas writes a member's row on a condition. An error tells nothing about what became of
// it.
func (s *Store) cas(ctx context.Context, st *statement, args ...any) (bool, error) {
	return s.about(ctx, st, args...).Idempotent(false).RetryPolicy(nil).MapScanCAS(map[string]any{})
}

// Members implements [persistence.Cluster].
func (s *Store) Members(ctx context.Context) ([]persistence.Member, error) {
	if err := s.enterAlways(ctx); err != nil {
		return nil, fmt.Errorf("read members: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows, _, err := s.members(ctx)
	if err != nil {
		return nil, s.failed(ctx, "read members", err)
	}
	all := make([]persistence.Member, len(rows))
	for i := range rows {
		all[i] = rows[i].Member
	}
	return all, nil
}

// members reads all rows, by node, and how many joins there were (nil: none). It
// takes the clocks of lives that are over into this node's, and notes when this
// node's own is.
func (s *Store) members(ctx context.Context) (all []member, joins *int64, err error) {
	own := s.life.Load()
	iter := s.about(ctx, getMembers, members).Consistency(gocql.Consistency(gocql.LocalSerial)).PageSize(0).Iter()
	var life, beat, clock, proof *int64
	var name *string
	var state *int8
	var status []byte
	var number *int32
	for iter.Scan(&number, &joins, &life, &name, &state, &beat, &status, &clock, &proof) {
		if number == nil || life == nil || name == nil || state == nil || beat == nil || clock == nil || proof == nil {
			continue // no node has joined yet
		}
		all = append(all, member{Member: persistence.Member{Node: uint16(*number), Life: uint64(*life), Name: *name,
			State: persistence.MemberState(*state), Beat: uint64(*beat), Status: status}, clock: *clock, proof: *proof})
		status = nil
	}
	if err := iter.Close(); err != nil {
		return nil, nil, err
	}
	lives := false
	for i := range all {
		m := &all[i]
		s.clock.saw(m.clock) // of one that is not over: that of the lives before it
		lives = lives || own != nil && m.Node == own.node && m.Life == own.number && m.State == persistence.Live
	}
	if own != nil && !lives {
		own.end()
	}
	return all, joins, nil
}

// Join implements [persistence.Cluster].
func (s *Store) Join(ctx context.Context, name string, status []byte) (persistence.Member, error) {
	return s.begins(ctx, persistence.Member{}, func(all []member) (member, error) { return successor(all, name) }, status)
}

// Succeed implements [persistence.Cluster].
func (s *Store) Succeed(ctx context.Context, m persistence.Member, status []byte) (persistence.Member, error) {
	return s.begins(ctx, m, func(all []member) (member, error) {
		next, err := heir(all, m)
		if err == nil { // of one that is Finished it stands in its own row
			var clock int64
			clock, _, _, err = s.nodeRow(ctx, m.Node)
			next.clock = max(next.clock, clock)
		}
		return next, err
	}, status)
}

// begins begins a life of the number that choose chooses, in the place of a dead one
// unless that is zero.
func (s *Store) begins(ctx context.Context, dead persistence.Member, choose func([]member) (member, error), status []byte) (persistence.Member, error) {
	if !s.opts.Cluster {
		return persistence.Member{}, fmt.Errorf("join: the store was opened for one node: %w", herald.ErrInUse)
	}
	if err := s.enterAlways(ctx); err != nil {
		return persistence.Member{}, fmt.Errorf("join: %w", err)
	}
	defer s.leave()
	s.joining.Lock()
	defer s.joining.Unlock()
	if l := s.life.Load(); l != nil {
		if !l.ended() {
			return persistence.Member{}, fmt.Errorf("join: this node has joined already: %w", herald.ErrInUse)
		}
		if err := s.exec.idle(ctx); err != nil { // what it had under way is through
			return persistence.Member{}, fmt.Errorf("join: %w", err)
		}
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	m, err := s.join(ctx, dead, choose, status)
	if err != nil {
		return persistence.Member{}, s.joinFailed(ctx, err)
	}
	if err := s.live(ctx, m); err != nil {
		// The number is taken, and nobody will use it: whoever looks after the cluster
		// buries it, unless this gets through.
		_, _ = s.change(ctx, m.Member, persistence.Live, persistence.Left)
		return persistence.Member{}, s.joinFailed(ctx, err)
	}
	s.log.Info("joined the cluster", zap.Uint16("node", m.Node), zap.Uint64("life", m.Life))
	return m.Member, nil
}

func (s *Store) joinFailed(ctx context.Context, err error) error {
	if errors.Is(err, herald.ErrInUse) {
		return fmt.Errorf("join: %w", err)
	}
	return s.failed(ctx, "join", err)
}

// join takes a number.
func (s *Store) join(ctx context.Context, dead persistence.Member, choose func([]member) (member, error), status []byte) (member, error) {
	proof := rand.Int64()
	begun := mono()
	var failed error
	for tries := 0; ; tries++ {
		all, joins, err := s.members(ctx)
		if err == nil {
			for _, m := range all {
				if m.proof == proof {
					return m, nil
				}
			}
			var next member
			if next, err = choose(all); err != nil {
				return next, err
			}
			next.State, next.Beat, next.Status, next.proof = persistence.Live, 1, status, proof
			var ok bool
			if ok, err = s.take(ctx, next, dead, joins); ok {
				return next, nil
			}
		}
		if err != nil {
			failed = err
		}
		switch {
		case ctx.Err() != nil || err != nil && lasting(err):
			return member{}, errors.Join(herald.ErrUnavailable, err)
		case failed != nil && mono()-begun > int64(s.opts.GiveUp):
			return member{}, errors.Join(herald.ErrUnavailable, failed)
		case err == nil && failed == nil:
			continue // another was first
		case !s.exec.pauseFor(tries, s.opts.GiveUp, ctx.Done()):
			return member{}, herald.ErrClosed
		}
	}
}

// successor chooses the number for a name: that which it had, or one that nobody
// ever had, or that of the life which has been over for longest.
func successor(all []member, name string) (member, error) {
	free, oldest := 0, -1
	for i := range all {
		m := &all[i]
		over := m.State == persistence.Finished || m.State == persistence.Left
		if m.Name == name {
			if !over {
				return member{}, fmt.Errorf("%w: node %d is called %q", herald.ErrInUse, m.Node, name)
			}
			return m.next(name), nil
		}
		if int(m.Node) == free {
			free++
		}
		if over && (oldest < 0 || m.Life < all[oldest].Life) {
			oldest = i
		}
	}
	if free <= herald.MaxNode {
		return member{Member: persistence.Member{Node: uint16(free), Life: 1, Name: name}}, nil
	}
	if oldest < 0 {
		return member{}, fmt.Errorf("%w: all node numbers", herald.ErrInUse)
	}
	return all[oldest].next(name), nil
}

// heir is the next life of one that is dead.
func heir(all []member, of persistence.Member) (member, error) {
	for i := range all {
		if m := &all[i]; m.Node == of.Node && m.Life == of.Life && m.State == persistence.Dead {
			return m.next(m.Name), nil
		}
	}
	return member{}, fmt.Errorf("%w: node %d/%d is not to be succeeded", herald.ErrInUse, of.Node, of.Life)
}

func (m *member) next(name string) member {
	return member{Member: persistence.Member{Node: m.Node, Life: m.Life + 1, Name: name}, clock: m.clock}
}

// take writes the row of a new life, unless another has joined meanwhile, or the dead
// one in whose place it comes is not Dead any more.
func (s *Store) take(ctx context.Context, m member, dead persistence.Member, joins *int64) (bool, error) {
	count := int64(1)
	if joins != nil {
		count = *joins + 1
	}
	b := s.cql.Session.NewBatch(gocql.UnloggedBatch).WithContext(ctx).RetryPolicy(nil)
	b.Query(countJoin.cql, count, members, joins)
	args := []any{int64(m.Life), m.Name, int8(m.State), int64(m.Beat), m.Status, m.clock, nil, m.proof, members, int32(m.Node)}
	if dead.Life == 0 {
		b.Query(putMember.cql, args...)
	} else {
		b.Query(replaceMember.cql, append(args, int64(dead.Life), int8(persistence.Dead))...)
	}
	ok, iter, err := s.cql.Session.MapExecuteBatchCAS(b, map[string]any{})
	if iter != nil {
		err = errors.Join(err, iter.Close())
	}
	return ok && err == nil, err
}

// live begins to work under a number.
func (s *Store) live(ctx context.Context, m member) error {
	s.clock.saw(m.clock)
	if m.clock != 0 {
		raise(&s.maxID, uint64(herald.IDAt(m.clock/1000+1)))
	}
	s.number.Store(uint32(m.Node))
	s.ownID.Store(0)
	// In the first life of a number there can be intents of a node that had the
	// database for itself.
	if err := s.takeOver(ctx, m.Life == 1, 0); err != nil {
		return err
	}
	l := &life{node: m.Node, number: m.Life, over: make(chan struct{})}
	if err := s.retry(ctx, func() error { return s.raiseCeiling(ctx, l) }); err != nil {
		return err
	}
	s.beating.mu.Lock()
	s.beating.of = persistence.Member{}
	s.beating.mu.Unlock()
	s.life.Store(l)
	return nil
}

// Beat implements [persistence.Cluster].
func (s *Store) Beat(ctx context.Context, m persistence.Member, status []byte) (persistence.Member, bool, error) {
	if err := s.enterAlways(ctx); err != nil {
		return m, false, fmt.Errorf("beat: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	u := &s.beating
	u.mu.Lock()
	defer u.mu.Unlock()
	// What is tried again must be known for what it is: it has the proof of before.
	proof := u.proof
	if u.of.Node != m.Node || u.of.Life != m.Life || u.of.Beat != m.Beat || proof == 0 {
		proof = rand.Int64N(1<<62) + 1
	}
	u.of, u.proof = m, proof
	now, ok, err := s.beat(ctx, m, status, proof)
	if err != nil {
		return m, false, s.failed(ctx, "beat", errors.Join(herald.ErrUnavailable, err))
	}
	u.of = persistence.Member{}
	return now, ok, nil
}

func (s *Store) beat(ctx context.Context, m persistence.Member, status []byte, proof int64) (persistence.Member, bool, error) {
	begun := mono()
	for tries := 0; ; tries++ {
		next := m
		next.Beat, next.Status = m.Beat+1, status
		ok, err := s.cas(ctx, beatMember, int64(next.Beat), status, proof, members, int32(m.Node), int64(m.Life), int8(persistence.Live), int64(m.Beat))
		if err == nil && ok {
			return next, true, nil
		}
		all, _, rerr := s.members(ctx)
		if rerr == nil {
			now, found := find(all, m.Node)
			switch {
			case !found || now.Life != m.Life || now.State != persistence.Live:
				return now.Member, false, nil
			case now.Beat > m.Beat && now.proof == proof:
				if bytes.Equal(now.Status, status) {
					return now.Member, true, nil
				}
				m.Beat = now.Beat // an earlier attempt, with what was true then
				continue
			case now.Beat != m.Beat:
				return now.Member, false, nil
			}
		}
		if ctx.Err() != nil || err != nil && lasting(err) || mono()-begun > int64(s.opts.GiveUp) || !s.exec.pauseFor(tries, s.opts.GiveUp, ctx.Done()) {
			return m, false, errors.Join(err, rerr, ctx.Err())
		}
	}
}

func find(all []member, node uint16) (member, bool) {
	for _, m := range all {
		if m.Node == node {
			return m, true
		}
	}
	return member{}, false
}

// Change implements [persistence.Cluster].
func (s *Store) Change(ctx context.Context, m persistence.Member, from, to persistence.MemberState) (bool, error) {
	if err := s.enterAlways(ctx); err != nil {
		return false, fmt.Errorf("change a member: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	ok, err := s.change(ctx, m, from, to)
	if err != nil {
		return false, s.failed(ctx, "change a member", errors.Join(herald.ErrUnavailable, err))
	}
	return ok, nil
}

func (s *Store) change(ctx context.Context, m persistence.Member, from, to persistence.MemberState) (bool, error) {
	own := s.life.Load()
	if own != nil && (own.node != m.Node || own.number != m.Life) {
		own = nil
	}
	if own != nil {
		own.leaving.Store(true) // nothing is committed any more
		defer own.leaving.Store(false)
	}
	begun := mono()
	for tries := 0; ; tries++ {
		ok, err := s.tryChange(ctx, m, from, to, own)
		if ok && err == nil {
			if own != nil {
				own.end()
			}
			return true, nil
		}
		all, _, rerr := s.members(ctx)
		if rerr == nil {
			now, found := find(all, m.Node)
			if found && now.Life == m.Life && now.State == to {
				return true, nil
			}
			if !found || now.Life != m.Life || now.State != from || from == persistence.Live && now.Beat != m.Beat {
				return false, nil
			}
		}
		if ctx.Err() != nil || err != nil && (lasting(err) || errors.Is(err, errNoPlan)) || mono()-begun > int64(s.opts.GiveUp) || !s.exec.pauseFor(tries, s.opts.GiveUp, ctx.Done()) {
			return false, errors.Join(err, rerr, ctx.Err())
		}
	}
}

// tryChange makes one attempt.
func (s *Store) tryChange(ctx context.Context, m persistence.Member, from, to persistence.MemberState, own *life) (bool, error) {
	at := []any{members, int32(m.Node), int64(m.Life), int8(from)}
	switch {
	case from == persistence.Live && to == persistence.Left:
		// It leaves no more than it has used.
		clock := max(s.clock.last.Load(), idStamp(herald.ID(s.ownID.Load()))+1000)
		if own == nil {
			return s.cas(ctx, buryMember, append(append([]any{int8(to)}, at...), int64(m.Beat))...)
		}
		return s.cas(ctx, leaveMember, append(append([]any{int8(to), clock}, at...), int64(m.Beat))...)
	case from == persistence.Live:
		return s.cas(ctx, buryMember, append(append([]any{int8(to)}, at...), int64(m.Beat))...)
	}
	life, state, plan, err := s.planOf(ctx, m.Node)
	switch {
	case err != nil:
		return false, err
	case life != m.Life || state != from:
		return false, nil
	case plan == nil:
		return false, errNoPlan
	}
	// How far its clock was allowed to go; nobody may go on with it any more.
	clock, _, _, err := s.nodeRow(ctx, m.Node)
	if err != nil {
		return false, err
	}
	return s.cas(ctx, endMember, append([]any{int8(to), clock}, at...)...)
}
