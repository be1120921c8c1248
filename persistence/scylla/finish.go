package scylla

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gocql/gocql"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// What a dead life had begun is finished by survivors, several perhaps, each of which
// may stop anywhere and go on later. They must agree on what there is to finish: an
// intent that had not been confirmed stands on some copies and not on others, and one
// survivor may see it where another has not. Did the second carry it out after the
// first had declared the life finished, the message would come again: its publisher
// may have sent it anew by then.
//
// So the first writes down which intents it has found, the plan, in the member's row
// and on the condition that there is none and that the life is Dead; the others go by
// it. All that were confirmed are in it, since whoever reads sees those.

var errNoPlan = fmt.Errorf("%w: Finish was not called", herald.ErrUnavailable)

// unfinished is the plan of a life: bucket → the IDs of the intents in it.
type unfinished map[int64][]int64

// Finish implements [persistence.Cluster].
func (s *Store) Finish(ctx context.Context, m persistence.Member) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	todo, err := s.agree(ctx, m)
	if errors.Is(err, herald.ErrInUse) {
		return fmt.Errorf("finish: %w", err)
	}
	n := 0
	for bucket, ids := range todo {
		only := make(map[int64]bool, len(ids))
		for _, id := range ids {
			only[id] = true
		}
		k := 0
		if err == nil {
			k, err = s.finish(ctx, m.Node, bucket, only)
			n += k
		}
	}
	if err != nil {
		return s.failed(ctx, "finish", err)
	}
	// Nobody needs them any more: others who go by the plan find nothing to repeat.
	ws := make([]write, 0, len(todo))
	for bucket := range todo {
		ws = append(ws, write{stmt: delIntents, size: 64, args: []any{s.clock.next(), int32(m.Node), bucket}})
	}
	if len(ws) > 0 {
		s.background(ws, nil)
	}
	if n > 0 {
		s.log.Info("finished what a dead node had begun", zap.Uint16("node", m.Node), zap.Uint64("life", m.Life), zap.Int("intents", n))
	}
	return nil
}

// agree returns the plan of a life that is dead, which it makes if there is none;
// nil if nothing is left to be done.
func (s *Store) agree(ctx context.Context, m persistence.Member) (unfinished, error) {
	begun := mono()
	for tries := 0; ; tries++ {
		life, state, plan, err := s.planOf(ctx, m.Node)
		switch {
		case err != nil:
		case life == m.Life && state == persistence.Live:
			return nil, fmt.Errorf("%w: node %d lives", herald.ErrInUse, m.Node)
		case life != m.Life || state != persistence.Dead:
			return nil, nil
		case plan != nil:
			var clock int64
			if clock, _, _, err = s.nodeRow(ctx, m.Node); err == nil {
				s.clock.saw(clock)
				return decodePlan(plan)
			}
		default:
			var todo unfinished
			if todo, err = s.begun(ctx, m.Node); err == nil {
				var ok bool
				ok, err = s.cas(ctx, planMember, encodePlan(todo), members, int32(m.Node), int64(m.Life), int8(persistence.Dead))
				if ok && err == nil {
					return todo, nil
				}
			}
		}
		if err == nil {
			continue // another was first, or the life is over
		}
		if ctx.Err() != nil || lasting(err) || mono()-begun > int64(s.opts.GiveUp) || !s.exec.pauseFor(tries, s.opts.GiveUp, ctx.Done()) {
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

// planOf reads what a member's row says of its end. life 0: there is none.
func (s *Store) planOf(ctx context.Context, node uint16) (life uint64, state persistence.MemberState, plan []byte, err error) {
	var n int64
	var st int8
	err = s.query(ctx, getPlan, members, int32(node)).Consistency(gocql.Consistency(gocql.LocalSerial)).Scan(&n, &st, &plan)
	if errors.Is(err, gocql.ErrNotFound) {
		err = nil
	}
	return uint64(n), persistence.MemberState(st), plan, err
}

// begun lists the intents of a node. What this node writes from now on is newer than
// anything of that one's: who finishes a life also puts its sessions' rows right.
func (s *Store) begun(ctx context.Context, node uint16) (unfinished, error) {
	clock, low, high, err := s.nodeRow(ctx, node)
	if err != nil {
		return nil, err
	}
	s.clock.saw(clock)
	todo := make(unfinished)
	for b := low; b <= high; b++ {
		rows := s.rows(ctx, getIntentIDs, 2000, int32(node), b)
		var id int64
		for rows.next(&id) {
			todo[b] = append(todo[b], id)
		}
		if rows.err != nil {
			return nil, rows.err
		}
	}
	return todo, nil
}

// encodePlan: version, then for each bucket its number, a count, and the distances
// between IDs (all uvarint).
func encodePlan(todo unfinished) []byte {
	b := []byte{record.V1}
	for bucket, ids := range todo {
		b = binary.AppendUvarint(b, uint64(bucket))
		b = binary.AppendUvarint(b, uint64(len(ids)))
		last := int64(0)
		for _, id := range ids {
			b = binary.AppendUvarint(b, uint64(id-last))
			last = id
		}
	}
	return b
}

func decodePlan(b []byte) (unfinished, error) {
	bad := fmt.Errorf("%w: plan of a member", herald.ErrCorrupt)
	if len(b) == 0 || b[0] != record.V1 {
		return nil, bad
	}
	b = b[1:]
	ok := true
	next := func() int64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok = false
			return 0
		}
		b = b[n:]
		return int64(v)
	}
	todo := make(unfinished)
	for len(b) > 0 && ok {
		bucket, n := next(), next()
		if n < 0 || n > int64(len(b)) {
			return nil, bad
		}
		ids, last := make([]int64, 0, n), int64(0)
		for range n {
			last += next()
			ids = append(ids, last)
		}
		todo[bucket] = ids
	}
	if !ok {
		return nil, bad
	}
	return todo, nil
}
