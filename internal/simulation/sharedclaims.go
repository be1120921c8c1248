package simulation

import (
	"context"
	"fmt"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Claimed implements [persistence.Claimer].
func (s *Shared) Claimed(ctx context.Context, kind persistence.Kind, name string) (c persistence.Claim, err error) {
	err = s.act(ctx, func() { c = s.db.claims[claimKey(kind, name)] })
	return c, err
}

func claimKey(kind persistence.Kind, name string) string { return string(rune(kind)) + name }

// Claim implements [persistence.Claimer]: an attempt without an answer is cleared up.
func (s *Shared) Claim(ctx context.Context, kind persistence.Kind, name string, old persistence.Claim, owner uint16, life uint64) (now persistence.Claim, won bool, err error) {
	next := persistence.Claim{Owner: owner, Life: life, Epoch: old.Epoch + 1}
	for {
		err = s.act(ctx, func() {
			key := claimKey(kind, name)
			if s.db.claims[key] == old {
				s.db.claims[key] = next
				won = true
				s.db.claimed(s, key, old)
			}
			now = s.db.claims[key]
		})
		if err == nil || ctx.Err() != nil || s.isDead() {
			return now, won && err == nil, err
		}
		if perr := pauseFor(ctx, 10*time.Millisecond); perr != nil {
			return now, false, fmt.Errorf("%w: %w", herald.ErrUnavailable, perr)
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unclaim implements [persistence.Unclaimer].
func (s *Shared) Unclaim(ctx context.Context, kind persistence.Kind, name string, old persistence.Claim) error {
	return s.act(ctx, func() {
		if key := claimKey(kind, name); s.db.claims[key] == old {
			delete(s.db.claims, key)
		}
	})
}
