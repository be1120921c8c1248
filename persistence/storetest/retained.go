package storetest

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

func (h *harness) retain(msgs ...*herald.Message) {
	h.Helper()
	h.commit(&persistence.Batch{Retain: msgs})
}

// scan pages through what matches.
func (h *harness) scan(filter string, limit, maxBytes int) []*herald.Message {
	h.Helper()
	var all []*herald.Message
	after, more := "", true
	for more {
		n := len(all)
		var err error
		all, more, err = h.store.ScanRetained(ctx, filter, after, limit, maxBytes, all)
		h.noError("scan", err)
		if len(all)-n > limit || (more && len(all) == n) {
			h.Fatalf("%d messages for a limit of %d, more: %v", len(all)-n, limit, more)
		}
		if len(all) > n {
			after = all[len(all)-1].Topic
		}
	}
	return all
}

func topics(msgs []*herald.Message) []string {
	var all []string
	for _, m := range msgs {
		all = append(all, m.Topic)
	}
	return all
}

var retainedTests = []test{
	{"a retained message is read back as it was written", func(h *harness) {
		m := message("a/b", "x")
		m.Properties, m.Expires, m.Retain = []byte{1, 2, 3}, 1<<50, true
		h.retain(m)
		h.twice(func() {
			got, err := h.store.Retained(ctx, "a/b")
			h.noError("read", err)
			h.equal("message", got, m)
			if _, err := h.store.Retained(ctx, "a"); !errors.Is(err, herald.ErrNotFound) {
				h.Fatalf("got %v", err)
			}
			h.equal("count", h.store.RetainedCount(), int64(1))
		})
	}},
	{"the newest ID wins, whatever the order", func(h *harness) {
		gone := func(topic string) *herald.Message { return message(topic, "") }
		old, mid, top := message("t", "old"), message("t", "mid"), message("t", "top")
		h.retain(mid)
		h.retain(old)
		h.retain(top, mid)
		h.twice(func() {
			got, err := h.store.Retained(ctx, "t")
			h.noError("read", err)
			h.equal("message", got, top)
		})
		// A removal counts the same.
		late, removal := message("u", "late"), gone("u")
		h.retain(removal)
		h.retain(late)
		h.retain(gone("t"), message("v", "x"))
		h.retain(top)
		h.twice(func() {
			h.equal("topics", topics(h.scan("#", 10, 1<<30)), []string{"v"})
			h.equal("count", h.store.RetainedCount(), int64(1))
		})
		again := message("t", "again")
		h.retain(again, again)
		h.twice(func() {
			h.equal("topics", topics(h.scan("#", 10, 1<<30)), []string{"t", "v"})
			h.equal("count", h.store.RetainedCount(), int64(2))
		})
	}},
	{"many are read at once, each as it stands when it is asked for", func(h *harness) {
		r, ok := h.store.(persistence.RetainedReader)
		if !ok {
			h.Skip("the store reads them one by one")
		}
		const n = 500
		var wait sync.WaitGroup
		defer wait.Wait()
		for lap := range 3 {
			var all []*herald.Message
			var names []string
			for i := range n {
				if i%3 > 0 {
					all = append(all, message(fmt.Sprint("many/", i), fmt.Sprint(lap)))
				}
				names = append(names, fmt.Sprint("many/", i))
			}
			names = append(names, "many/1", "many/1") // as often as one likes
			h.retain(all...)
			wait.Go(func() { // others ask all the time
				for range 3 {
					_, _ = r.RetainedOf(ctx, names)
				}
			})
			got, err := r.RetainedOf(ctx, names)
			h.noError("read", err)
			h.equal("answers", len(got), len(names))
			for i, m := range got {
				var k int
				_, _ = fmt.Sscanf(names[i], "many/%d", &k)
				switch {
				case k%3 == 0 && m != nil:
					h.Fatalf("%s: got %v", names[i], m)
				case k%3 > 0 && (m == nil || m.Topic != names[i] || string(m.Payload) != fmt.Sprint(lap)):
					h.Fatalf("lap %d: %s: got %v", lap, names[i], m)
				}
			}
		}
	}},
	{"set, removed and set within one batch", func(h *harness) {
		a, b, c := message("t", "a"), message("t", ""), message("t", "c")
		h.retain(a, b)
		h.equal("count", h.store.RetainedCount(), int64(0))
		h.retain(a, b, c)
		h.twice(func() {
			h.equal("topics", topics(h.scan("t", 10, 1<<30)), []string{"t"})
			h.equal("count", h.store.RetainedCount(), int64(1))
		})
	}},
	{"wildcards match as the specification says [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1]", func(h *harness) {
		var all []*herald.Message
		for _, topic := range []string{"a", "a/b", "a/b/c", "a!", "a!/x", "a/", "/", "/a", "b", "b/b", "b/x/c", "$SYS/a", "$SYS", "a//c", "a/b!/c", "A/b"} {
			all = append(all, message(topic, topic))
		}
		h.retain(all...)
		h.twice(func() {
			for filter, want := range map[string]string{
				"#":        "/ /a A/b a a! a!/x a/ a//c a/b a/b!/c a/b/c b b/b b/x/c",
				"+":        "a a! b",
				"+/+":      "/ /a A/b a!/x a/ a/b b/b",
				"a/#":      "a a/ a//c a/b a/b!/c a/b/c",
				"+/b":      "A/b a/b b/b",
				"+/x":      "a!/x",
				"a/+":      "a/ a/b",
				"a/+/c":    "a//c a/b!/c a/b/c",
				"+/b/#":    "A/b a/b a/b/c b/b",
				"$SYS/#":   "$SYS $SYS/a",
				"$SYS/+":   "$SYS/a",
				"+/a":      "/a",
				"/#":       "/ /a",
				"a/b":      "a/b",
				"none":     "",
				"none/#":   "",
				"a/b/c/d":  "",
				"+/+/+/+":  "",
				"+/x/+":    "b/x/c",
				"b/+/c":    "b/x/c",
				"a/b/+/#":  "a/b/c",
				"+/+/c/#":  "a//c a/b!/c a/b/c b/x/c",
				"a!/#":     "a! a!/x",
				"a/b!/#":   "a/b!/c",
				"b/x/c/#":  "b/x/c",
				"a/b/c/+":  "",
				"zzz/+/#":  "",
				"+/b!/+":   "a/b!/c",
				"+/b!/+/#": "a/b!/c",
			} {
				for _, limit := range []int{1, 2, 100} {
					h.equal(fmt.Sprintf("%s by %d", filter, limit), topics(h.scan(filter, limit, 1<<30)), strings.Fields(want))
				}
			}
		})
	}},
	{"a page ends when its messages weigh enough", func(h *harness) {
		for i := range 20 {
			h.retain(message(fmt.Sprintf("t/%02d", i), "0123456789"))
		}
		got, more, err := h.store.ScanRetained(ctx, "t/+", "t/04", 100, 0, nil)
		h.noError("scan", err)
		h.equal("first page", topics(got), []string{"t/05"})
		h.equal("more", more, true)
		h.equal("all", len(h.scan("t/+", 100, 200)), 20)
		_, more, err = h.store.ScanRetained(ctx, "t/+", "t/18", 100, 0, nil)
		h.noError("scan", err)
		h.equal("more behind the last", more, false)
	}},
	{"many are scanned completely", func(h *harness) {
		n := h.d.large()
		b := &persistence.Batch{}
		for i := range n {
			b.Retain = append(b.Retain, message(fmt.Sprintf("fleet/%d/device/%d/state", i%100, i), "on"))
			if len(b.Retain) == 1000 || i == n-1 {
				h.commit(b)
				b = &persistence.Batch{}
			}
		}
		h.twice(func() {
			h.equal("all", len(h.scan("fleet/#", 333, 1<<20)), n)
			h.equal("one", topics(h.scan("fleet/+/device/7/state", 333, 1<<20)), []string{"fleet/7/device/7/state"})
			h.equal("count", h.store.RetainedCount(), int64(n))
		})
	}},
	{"random trees match as herald.Matches does", func(h *harness) {
		level := rapid.SampledFrom([]string{"", "a", "b", "aa", "a!", "a0", "a.b", "$x", "ü", "~"})
		pattern := rapid.OneOf(level, rapid.Just("+"), rapid.Just("+"))
		have := map[string]*herald.Message{}
		round := 0
		rapid.Check(h.TB.(rapid.TB), func(t *rapid.T) {
			if round++; round > h.d.rounds() {
				return
			}
			var set []*herald.Message
			for _, topic := range rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
				return strings.Join(rapid.SliceOfN(level, 1, 4).Draw(t, "levels"), "/")
			}), 1, 20).Draw(t, "topics") {
				if !herald.ValidTopic(topic) {
					continue
				}
				m := message(topic, rapid.SampledFrom([]string{"x", "x", ""}).Draw(t, "payload"))
				set = append(set, m)
				have[topic] = m
				if len(m.Payload) == 0 {
					delete(have, topic)
				}
			}
			if err := commit(h.store, &persistence.Batch{Retain: set}); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				levels := rapid.SliceOfN(pattern, 1, 4).Draw(t, "filter")
				if rapid.IntRange(0, 2).Draw(t, "hash") == 0 {
					levels[len(levels)-1] = "#"
				}
				filter := strings.Join(levels, "/")
				if !herald.ValidFilter(filter) {
					continue
				}
				var want []string
				for topic := range have {
					if herald.Matches(filter, topic) {
						want = append(want, topic)
					}
				}
				sort.Strings(want)
				h.equal("filter "+filter, topics(h.scan(filter, rapid.IntRange(1, 50).Draw(t, "limit"), 1<<20)), want)
			}
			if got := h.store.RetainedCount(); got != int64(len(have)) {
				t.Fatalf("count %d, want %d", got, len(have))
			}
		})
	}},
}
