package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/herald-mqtt/herald/persistence"
)

func banOf(kind persistence.BanKind, who string) persistence.Ban {
	return persistence.Ban{BanKey: persistence.BanKey{Kind: kind, Who: who}, Reason: "because", By: "somebody", Since: 1700000000000}
}

func (h *harness) banner() persistence.Banner { return h.store.(persistence.Banner) }

func (h *harness) changeBan(b persistence.Ban, gone bool) uint64 {
	h.Helper()
	v, err := h.banner().ChangeBan(ctx, persistence.BanChange{Ban: b, Gone: gone})
	h.noError("change a ban", err)
	return v
}

func (h *harness) banNews(since uint64) persistence.BanNews {
	h.Helper()
	n, err := h.banner().BanNews(ctx, since)
	h.noError("news of bans", err)
	return n
}

// bans are all that there are, by kind and who.
func (h *harness) bans() []persistence.Ban {
	h.Helper()
	n := h.banNews(0)
	if !n.Whole || n.Unreadable > 0 {
		h.Fatalf("all bans: whole: %v, %d unreadable", n.Whole, n.Unreadable)
	}
	return applyBans(nil, n)
}

// applyBans is the list old with the news.
func applyBans(old []persistence.Ban, n persistence.BanNews) []persistence.Ban {
	all := make(map[persistence.BanKey]persistence.Ban)
	if !n.Whole {
		for _, b := range old {
			all[b.BanKey] = b
		}
	}
	for _, c := range n.Changes {
		if all[c.BanKey] = c.Ban; c.Gone {
			delete(all, c.BanKey)
		}
	}
	var list []persistence.Ban
	for _, b := range all {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b persistence.Ban) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Who, b.Who))
	})
	return list
}

// banTests are for a [persistence.Banner].
var banTests = []test{
	{"without bans there is nothing, and it is cheap to know", func(h *harness) {
		n := h.banNews(0)
		h.equal("changes", []any{len(n.Changes), n.Unreadable, n.Whole}, []any{0, 0, true})
		again := h.banNews(n.Version)
		h.equal("once more", []any{len(again.Changes), again.Version}, []any{0, n.Version})
	}},
	{"bans are read back as they were made", func(h *harness) {
		all := []persistence.Ban{
			banOf(persistence.BanClient, "c"), banOf(persistence.BanClient, "c\u0001ü/"), banOf(persistence.BanUsername, ""),
			banOf(persistence.BanUsername, "c"), banOf(persistence.BanAddress, "192.0.2.0/24"), banOf(persistence.BanAddress, "2001:db8::1/128"),
		}
		all[0].Until = time.Now().Add(time.Hour).UnixMilli()
		all[1].Until = time.Now().Add(200 * 365 * 24 * time.Hour).UnixMilli()
		all[2].Reason, all[2].By = "", ""
		for _, b := range all {
			h.changeBan(b, false)
		}
		h.twice(func() { h.equal("bans", h.bans(), all) })
	}},
	{"a ban replaces that of its key, and may be removed", func(h *harness) {
		one, two := banOf(persistence.BanClient, "one"), banOf(persistence.BanClient, "two")
		h.changeBan(one, false)
		h.changeBan(two, false)
		one.Reason, one.Until = "worse", time.Now().Add(time.Hour).UnixMilli()
		h.changeBan(one, false)
		h.twice(func() { h.equal("replaced", h.bans(), []persistence.Ban{one, two}) })
		one.Until = 0 // from then on for ever: what the row was to end with is gone
		h.changeBan(one, false)
		h.changeBan(two, true)
		h.changeBan(two, true) // which is not there
		h.twice(func() { h.equal("removed", h.bans(), []persistence.Ban{one}) })
		h.changeBan(two, false)
		h.twice(func() { h.equal("again", h.bans(), []persistence.Ban{one, two}) })
	}},
	{"news lead from any version to the list as it is", func(h *harness) {
		h.changeBan(banOf(persistence.BanClient, "first"), false)
		start := h.banNews(0)
		list := applyBans(nil, start)
		last := start.Version
		type point struct {
			version uint64
			list    []persistence.Ban
		}
		points := []point{{last, list}}
		for i := range 20 {
			b := banOf(persistence.BanClient, fmt.Sprint("c", i%7))
			b.Reason = fmt.Sprint(i)
			v := h.changeBan(b, i%3 == 2)
			h.equal("version", v, last+1)
			last = v
			n := h.banNews(points[len(points)-1].version)
			h.equal("version of the news", n.Version, v)
			list = applyBans(list, n)
			points = append(points, point{v, list})
		}
		h.equal("step by step", list, h.bans())
		for _, p := range points {
			h.equal(fmt.Sprint("since ", p.version), applyBans(p.list, h.banNews(p.version)), list)
		}
		h.equal("nothing new", h.banNews(last), persistence.BanNews{Version: last})
		if n := h.banNews(last + 1000); !n.Whole || n.Version != last {
			h.Fatalf("since a version that never was: %+v", n)
		}
	}},
	{"bans may be changed from everywhere at once", func(h *harness) {
		const each, writers = 8, 4
		var wg sync.WaitGroup
		var mu sync.Mutex
		seen := make(map[uint64]bool)
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					v, err := h.banner().ChangeBan(ctx, persistence.BanChange{Ban: banOf(persistence.BanUsername, fmt.Sprint(w, "-", i))})
					mu.Lock()
					if err != nil || seen[v] {
						h.Errorf("version %d: %v", v, err)
					}
					seen[v] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		h.twice(func() { h.equal("bans", len(h.bans()), each*writers) })
	}},
	{"more bans than one page", func(h *harness) {
		n := min(h.d.large()/30, 2000)
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := w; i < n; i += 4 {
					if _, err := h.banner().ChangeBan(ctx, persistence.BanChange{Ban: banOf(persistence.BanClient, fmt.Sprint(i))}); err != nil {
						h.Errorf("ban %d: %v", i, err)
					}
				}
			})
		}
		wg.Wait()
		h.twice(func() { h.equal("bans", len(h.bans()), n) })
	}},
	{"who waits no longer is told so", func(h *harness) {
		over, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := h.banner().ChangeBan(over, persistence.BanChange{Ban: banOf(persistence.BanClient, "c")}); err == nil {
			h.Error("changed")
		}
		if _, err := h.banner().BanNews(over, 0); err == nil {
			h.Error("read")
		}
	}},
}
