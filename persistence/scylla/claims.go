package scylla

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/gocql/gocql"
	"github.com/scylladb/gocqlx/v2/qb"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// A claim is a row that only lightweight transactions write. proof is drawn for
// each attempt: when an attempt ends without an answer, it tells whether it was
// this one that won.
var (
	getClaim    = prepare(qb.Select("claim").Columns("owner", "life", "epoch", "proof").Where(qb.Eq("key")))
	firstClaim  = prepare(qb.Insert("claim").Columns("key", "owner", "life", "epoch", "proof").Unique())
	dropClaim   = prepare(qb.Delete("claim").Where(qb.Eq("key")).If(qb.EqNamed("epoch", "old"), qb.EqNamed("owner", "from")))
	changeClaim = prepare(qb.Update("claim").Set("owner", "life", "epoch", "proof").Where(qb.Eq("key")).If(qb.EqNamed("epoch", "old"), qb.EqNamed("owner", "from")))
)

var (
	_ persistence.Claimer     = (*Store)(nil)
	_ persistence.ClaimHinter = (*Store)(nil)
	_ persistence.Unclaimer   = (*Store)(nil)
)

// Claimed implements [persistence.Claimer].
func (s *Store) Claimed(ctx context.Context, kind persistence.Kind, name string) (persistence.Claim, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.Claim{}, fmt.Errorf("read claim: %w", err)
	}
	defer s.leave()
	var c persistence.Claim
	done, err := s.turn(ctx, s.turns.claims)
	if err == nil {
		defer done()
		c, _, err = s.claimed(ctx, sessionKey(kind, name))
	}
	if err != nil {
		return c, s.failed(ctx, "read claim", err)
	}
	return c, nil
}

// ClaimHint implements [persistence.ClaimHinter]: an ordinary read, which sees each claim
// that was won before and answered, takes one round trip, and may be asked of a second
// server if the first is slow.
func (s *Store) ClaimHint(ctx context.Context, kind persistence.Kind, name string) (persistence.Claim, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.Claim{}, fmt.Errorf("look for a claim: %w", err)
	}
	defer s.leave()
	var owner int32
	var life, epoch, proof int64
	err := s.one(ctx, getClaim, []any{sessionKey(kind, name)}, &owner, &life, &epoch, &proof)
	if errors.Is(err, gocql.ErrNotFound) {
		return persistence.Claim{}, nil
	}
	if err != nil {
		return persistence.Claim{}, s.failed(ctx, "look for a claim", err)
	}
	return persistence.Claim{Owner: uint16(owner), Life: uint64(life), Epoch: uint64(epoch)}, nil
}

// claimed reads a claim, and finishes what others have begun on it.
func (s *Store) claimed(ctx context.Context, key []byte) (persistence.Claim, int64, error) {
	var owner int32
	var life, epoch, proof int64
	err := s.query(ctx, getClaim, key).Consistency(gocql.Consistency(gocql.LocalSerial)).Scan(&owner, &life, &epoch, &proof)
	if errors.Is(err, gocql.ErrNotFound) {
		return persistence.Claim{}, 0, nil
	}
	return persistence.Claim{Owner: uint16(owner), Life: uint64(life), Epoch: uint64(epoch)}, proof, err
}

// Claim implements [persistence.Claimer].
func (s *Store) Claim(ctx context.Context, kind persistence.Kind, name string, old persistence.Claim, owner uint16, life uint64) (persistence.Claim, bool, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.Claim{}, false, fmt.Errorf("claim: %w", err)
	}
	defer s.leave()
	done, err := s.turn(ctx, s.turns.claims)
	if err != nil {
		return persistence.Claim{}, false, s.failed(ctx, "claim", err)
	}
	defer done()
	key, proof := sessionKey(kind, name), rand.Int64()
	next := persistence.Claim{Owner: owner, Life: life, Epoch: old.Epoch + 1}
	ctx, cancel := context.WithTimeout(ctx, s.opts.GiveUp)
	defer cancel()
	for tries := 0; ; tries++ {
		var q *gocql.Query
		if old == (persistence.Claim{}) {
			q = s.query(ctx, firstClaim, key, int32(owner), int64(life), int64(next.Epoch), proof)
		} else {
			q = s.query(ctx, changeClaim, int32(owner), int64(life), int64(next.Epoch), proof, key, int64(old.Epoch), int32(old.Owner))
		}
		won, err := q.Idempotent(false).RetryPolicy(nil).MapScanCAS(map[string]any{})
		if err == nil && won {
			return next, true, nil
		}
		// Not applied; or, after an attempt without an answer, applied by that one.
		now, by, rerr := s.claimed(ctx, key)
		switch {
		case rerr == nil && by == proof && now == next:
			return next, true, nil
		case rerr == nil && now != old:
			return now, false, nil
		case ctx.Err() != nil || lasting(err):
			return persistence.Claim{}, false, s.failed(ctx, "claim", errors.Join(herald.ErrUnavailable, err, rerr))
		}
		if !s.exec.pause(tries) {
			return persistence.Claim{}, false, fmt.Errorf("claim: %w", herald.ErrClosed)
		}
	}
}

// Unclaim implements [persistence.Unclaimer].
func (s *Store) Unclaim(ctx context.Context, kind persistence.Kind, name string, old persistence.Claim) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("remove claim: %w", err)
	}
	defer s.leave()
	done, err := s.turn(ctx, s.turns.claims)
	if err != nil {
		return s.failed(ctx, "remove claim", err)
	}
	defer done()
	q := s.query(ctx, dropClaim, sessionKey(kind, name), int64(old.Epoch), int32(old.Owner))
	if _, err := q.Idempotent(false).RetryPolicy(nil).MapScanCAS(map[string]any{}); err != nil {
		return s.failed(ctx, "remove claim", err)
	}
	return nil
}
