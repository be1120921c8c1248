package storetest

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/herald-mqtt/herald/persistence"
)

// claimTests are for stores that several nodes share.
var claimTests = []test{
	{"a claim replaces the one that it names, and no other", func(h *harness) {
		c := h.store.(persistence.Claimer)
		none, err := c.Claimed(ctx, persistence.Client, "c")
		h.noError("claimed", err)
		h.equal("none", none, persistence.Claim{})
		first, won, err := c.Claim(ctx, persistence.Client, "c", none, 3, 1)
		h.noError("claim", err)
		h.equal("first", []any{first, won}, []any{persistence.Claim{Owner: 3, Life: 1, Epoch: 1}, true})
		got, won, err := c.Claim(ctx, persistence.Client, "c", none, 4, 1)
		h.noError("claim", err)
		h.equal("late", []any{got, won}, []any{first, false})
		second, won, err := c.Claim(ctx, persistence.Client, "c", first, 4, 2)
		h.noError("claim", err)
		h.equal("second", []any{second, won}, []any{persistence.Claim{Owner: 4, Life: 2, Epoch: 2}, true})
		// A group of the same name is another session.
		got, err = c.Claimed(ctx, persistence.Group, "c")
		h.noError("claimed", err)
		h.equal("group", got, persistence.Claim{})
		h.commit(&persistence.Batch{Delete: []persistence.Session{{ID: 1 << 50, Name: "c"}}})
		h.twice(func() {
			got, err := h.store.(persistence.Claimer).Claimed(ctx, persistence.Client, "c")
			h.noError("claimed", err)
			h.equal("claimed", got, second)
		})
	}},
	{"a claim that was won before is what one is told without agreement, too", func(h *harness) {
		c := h.store.(persistence.Claimer)
		look, ok := c.(persistence.ClaimHinter)
		if !ok {
			return
		}
		last, err := look.ClaimHint(ctx, persistence.Client, "hinted")
		h.noError("hint", err)
		h.equal("none", last, persistence.Claim{})
		for owner := range uint16(5) {
			now, won, err := c.Claim(ctx, persistence.Client, "hinted", last, owner, 1)
			h.noError("claim", err)
			h.equal("won", won, true)
			last, err = look.ClaimHint(ctx, persistence.Client, "hinted")
			h.noError("hint", err)
			h.equal("hint", last, now)
		}
	}},
	{"a claim that is removed is none, and only by who has it", func(h *harness) {
		c := h.store.(persistence.Claimer)
		u := h.store.(persistence.Unclaimer)
		mine, _, err := c.Claim(ctx, persistence.Client, "gone", persistence.Claim{}, 3, 1)
		h.noError("claim", err)
		h.noError("unclaim another's", u.Unclaim(ctx, persistence.Client, "gone", persistence.Claim{Owner: 4, Life: 1, Epoch: 1}))
		got, err := c.Claimed(ctx, persistence.Client, "gone")
		h.noError("claimed", err)
		h.equal("still there", got, mine)
		h.noError("unclaim", u.Unclaim(ctx, persistence.Client, "gone", mine))
		got, err = c.Claimed(ctx, persistence.Client, "gone")
		h.noError("claimed", err)
		h.equal("gone", got, persistence.Claim{})
		_, won, err := c.Claim(ctx, persistence.Client, "gone", persistence.Claim{}, 5, 1)
		h.noError("claim again", err)
		h.equal("won", won, true)
	}},
	{"of two that claim a session at the same moment one wins, every time", func(h *harness) {
		c := h.store.(persistence.Claimer)
		const rounds, claimers = 1000, 2
		var left atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					i := left.Add(1)
					if i > rounds {
						return
					}
					name := fmt.Sprintf("raced-%d", i)
					var wins atomic.Int64
					var race sync.WaitGroup
					for node := range uint16(claimers) {
						race.Add(1)
						go func() {
							defer race.Done()
							now, won, err := c.Claim(ctx, persistence.Client, name, persistence.Claim{}, node, 1)
							if err != nil {
								h.Errorf("claim: %v", err)
							}
							if won {
								wins.Add(1)
							}
							if now.Epoch != 1 || won != (now.Owner == node) {
								h.Errorf("round %d, node %d: %+v, won: %v", i, node, now, won)
							}
						}()
					}
					race.Wait()
					if wins.Load() != 1 {
						h.Errorf("round %d: %d have won", i, wins.Load())
					}
				}
			}()
		}
		wg.Wait()
	}},
}
