package topic

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
)

// found lists the subscriptions that a match leads to, "filter target options",
// sorted. It fails if a node stands there twice or a snapshot contradicts
// itself.
func found(t failer, m *Match[int]) []string {
	var out []string
	for i, n := range m.Nodes {
		if slices.Contains(m.Nodes[:i], n) {
			t.Fatalf("%q: node %q twice", m.Topic, n.Filter())
		}
		s := n.Subscribers()
		count := 0
		for c := range s.Chunks() {
			if l := len(s.Chunk(c)); l == 0 || l > 256 {
				t.Fatalf("chunk of %d", l)
			}
			for _, e := range s.Chunk(c) {
				out = append(out, fmt.Sprint(n.Filter(), " ", e.Target, " ", e.Options))
				count++
			}
		}
		if count != s.Len() {
			t.Fatalf("%q: %d entries, Len %d", n.Filter(), count, s.Len())
		}
	}
	slices.Sort(out)
	return out
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// levels are few, so that filters and topics meet; the empty one is a level
// like any other [MQTT-4.7.1-1], [MQTT-4.7.3-1].
var (
	literal = rapid.SampledFrom([]string{"", "a", "b", "$", "$SYS"})
	topics  = rapid.Custom(func(t *rapid.T) string {
		return join(rapid.SliceOfN(literal, 1, 11).Draw(t, "levels"))
	}).Filter(herald.ValidTopic)
	filters = rapid.Custom(func(t *rapid.T) string {
		l := rapid.SliceOfN(rapid.OneOf(literal, literal, rapid.Just("+")), 1, 11).Draw(t, "levels")
		if rapid.Bool().Draw(t, "hash") {
			l[len(l)-1] = "#"
		}
		return join(l)
	}).Filter(herald.ValidFilter)
)

func join(levels []string) string {
	s := levels[0]
	for _, l := range levels[1:] {
		s += "/" + l
	}
	return s
}

// What the index finds, through caches of several sizes and whatever happened
// before, is what the plain rule finds ([MQTT-4.7.1-2], [MQTT-4.7.2-1]).
func TestMatchIsThePlainRule(t *testing.T) {
	for range 10 { // it is quick
		rapid.Check(t, plainRule)
	}
}

func plainRule(t *rapid.T) {
	x := New[int]()
	caches := []*Cache[int]{x.NewCache(0), x.NewCache(3), x.NewCache(100)}
	model := map[string]map[int]Options{}
	subscriptions := 0
	someFilters := rapid.SliceOfN(filters, 1, 12).Draw(t, "filters")
	someTopics := rapid.SliceOfN(topics, 1, 8).Draw(t, "topics")
	for _, f := range someFilters { // topics that are filters too
		if !herald.Wildcard(f) {
			someTopics = append(someTopics, f)
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"subscribe": func(t *rapid.T) {
			f := rapid.SampledFrom(someFilters).Draw(t, "filter")
			target := rapid.IntRange(1, 3).Draw(t, "target")
			o := Options{QoS: byte(rapid.IntRange(0, 2).Draw(t, "qos")), NoLocal: rapid.Bool().Draw(t, "nl")}
			n, existed := x.Subscribe(f, target, o)
			_, want := model[f][target]
			if existed != want || n.Filter() != f {
				t.Fatalf("subscribe %q: existed %v, node %q", f, existed, n.Filter())
			}
			if model[f] == nil {
				model[f] = map[int]Options{}
			}
			if !want {
				subscriptions++
			}
			model[f][target] = o
		},
		"unsubscribe": func(t *rapid.T) {
			f := rapid.SampledFrom(someFilters).Draw(t, "filter")
			target := rapid.IntRange(1, 3).Draw(t, "target")
			_, want := model[f][target]
			if existed := x.Unsubscribe(f, target); existed != want {
				t.Fatalf("unsubscribe %q: existed %v", f, existed)
			}
			delete(model[f], target)
			if want {
				subscriptions--
			}
			if len(model[f]) == 0 {
				delete(model, f)
			}
		},
		"match": func(t *rapid.T) {
			topic := rapid.SampledFrom(someTopics).Draw(t, "topic")
			var want []string
			for f, subs := range model {
				if herald.Matches(f, topic) {
					for target, o := range subs {
						want = append(want, fmt.Sprint(f, " ", target, " ", o))
					}
				}
			}
			slices.Sort(want)
			for i, c := range caches {
				m := c.Match([]byte(topic))
				if got := found(t, m); !slices.Equal(got, want) || m.Topic != topic {
					t.Fatalf("cache %d, topic %q (%q):\n got %q\nwant %q", i, topic, m.Topic, got, want)
				}
				if len(c.entries) > c.max || len(c.ring) > c.max {
					t.Fatalf("cache %d holds %d of %d", i, len(c.entries), c.max)
				}
			}
		},
		"": func(t *rapid.T) {
			if x.Filters() != len(model) || x.Subscriptions() != subscriptions {
				t.Fatalf("%d filters, %d subscriptions; want %d, %d",
					x.Filters(), x.Subscriptions(), len(model), subscriptions)
			}
		},
	})
	// Nothing stays behind.
	for f, subs := range model {
		for target := range subs {
			x.Unsubscribe(f, target)
		}
	}
	if len(x.wild.edges) != 0 || *x.wild.root != (branch[int]{}) || x.Subscriptions() != 0 {
		t.Fatalf("left behind: %d edges, root %+v", len(x.wild.edges), *x.wild.root)
	}
}

// A list that grows and shrinks through all its forms holds what it should,
// and old snapshots stay as they were.
func TestListThroughAllForms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := New[int]()
		c := x.NewCache(1)
		var model []*Options // by target; nil: not subscribed
		var order []int      // those who are
		var old Snapshot[int]
		var oldWas []Entry[int]
		flat := func(s Snapshot[int]) (all []Entry[int]) {
			for i := range s.Chunks() {
				all = append(all, s.Chunk(i)...)
			}
			return all
		}
		next := 0
		step := rapid.SampledFrom([]int{1, 3, 127, 128, 129, 1000, 9000})
		t.Repeat(map[string]func(*rapid.T){
			"grow": func(t *rapid.T) {
				for range step.Draw(t, "by") {
					x.Subscribe("f", next, Options{})
					model = append(model, new(Options))
					order = append(order, next)
					next++
				}
			},
			"shrink": func(t *rapid.T) {
				from := rapid.SampledFrom([]string{"front", "middle", "back"}).Draw(t, "from")
				for range min(step.Draw(t, "by"), len(order)) {
					i := map[string]int{"front": 0, "middle": len(order) / 2, "back": len(order) - 1}[from]
					if !x.Unsubscribe("f", order[i]) {
						t.Fatalf("%d is not there", order[i])
					}
					model[order[i]] = nil
					order[i] = order[len(order)-1]
					order = order[:len(order)-1]
				}
			},
			"change": func(t *rapid.T) {
				for range min(step.Draw(t, "times"), len(order), 200) {
					target := order[rapid.IntRange(0, len(order)-1).Draw(t, "which")]
					o := Options{Identifier: uint32(rapid.IntRange(0, 9).Draw(t, "id"))}
					x.Subscribe("f", target, o)
					model[target] = &o
				}
			},
			"keep": func(t *rapid.T) {
				if m := c.Match([]byte("f")); len(m.Nodes) > 0 {
					old = m.Nodes[0].Subscribers()
					oldWas = flat(old)
				}
			},
			"": func(t *rapid.T) {
				var all []Entry[int]
				for _, n := range c.Match([]byte("f")).Nodes {
					s := n.Subscribers()
					if all = flat(s); len(all) != s.Len() {
						t.Fatalf("Len %d, entries %d", s.Len(), len(all))
					}
				}
				// Targets are small numbers, so a slice can tell who was seen.
				seen := make([]bool, next)
				for _, e := range all {
					if o := model[e.Target]; o == nil || *o != e.Options || seen[e.Target] {
						t.Fatalf("%v: want %v, seen before: %v", e, o, seen[e.Target])
					}
					seen[e.Target] = true
				}
				if len(all) != len(order) {
					t.Fatalf("%d entries, want %d", len(all), len(order))
				}
				if !slices.Equal(flat(old), oldWas) {
					t.Fatalf("an old snapshot changed")
				}
			},
		})
	})
}

// A Subscribe that has returned is seen by every Match that starts after, and
// an Unsubscribe too; nobody is seen twice; each of several writers and readers
// at once can tell for its own target. Run with -race.
func TestSeenAsSoonAsReturned(t *testing.T) {
	for _, test := range []struct {
		name    string
		workers int
		pairs   [][2]string // filter, topic
	}{
		{"all kinds", 6, [][2]string{
			{"a/b", "a/b"}, {"a/+", "a/b"}, {"#", "x/y/z"}, {"x/y/#", "x/y"}, {"+/y/+/w", "x/y/z/w"}, {"q", "q"},
		}},
		// The filter itself comes and goes most of the time.
		{"one exact", 3, [][2]string{{"a/b", "a/b"}}},
		{"one wildcard", 3, [][2]string{{"a/+", "a/b"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := New[int]()
			rounds := 120_000 / len(test.pairs)
			if testing.Short() {
				rounds /= 10
			}
			var wg sync.WaitGroup
			for w := range test.workers {
				wg.Go(func() {
					c := x.NewCache(4)
					for i := range rounds {
						p := test.pairs[(i*7+w*i)%len(test.pairs)]
						filter, topic := p[0], p[1]
						o := Options{Identifier: uint32(i)}
						x.Subscribe(filter, w, o)
						if n, got := count(c, topic, filter, w); n != 1 || got != o {
							t.Errorf("%q: seen %d times after Subscribe, %v, want %v", filter, n, got, o)
							return
						}
						if i%5 == 0 {
							continue
						}
						if !x.Unsubscribe(filter, w) {
							t.Errorf("%q: not there", filter)
						}
						if n, _ := count(c, topic, filter, w); n != 0 {
							t.Errorf("%q: seen %d times after Unsubscribe", filter, n)
							return
						}
					}
					for _, p := range test.pairs {
						x.Unsubscribe(p[0], w)
					}
				})
			}
			if len(test.pairs) > 1 {
				// A crowd that comes and goes, with the list in every form.
				wg.Go(func() {
					for range 4 {
						for i := 100; i < 800; i++ {
							x.Subscribe("a/b", i, Options{})
						}
						for i := 100; i < 800; i++ {
							x.Unsubscribe("a/b", i)
						}
					}
				})
			}
			wg.Wait()
			if x.Filters() != 0 || x.Subscriptions() != 0 || len(x.wild.edges) != 0 {
				t.Errorf("left behind: %d filters, %d subscriptions", x.Filters(), x.Subscriptions())
			}
		})
	}
}

func count(c *Cache[int], topic, filter string, target int) (times int, o Options) {
	for _, n := range c.Match([]byte(topic)).Nodes {
		s := n.Subscribers()
		for i := range s.Chunks() {
			for _, e := range s.Chunk(i) {
				if e.Target == target && n.Filter() == filter {
					times++
					o = e.Options
				}
			}
		}
	}
	return times, o
}

type handle struct{ _ [8]byte }

// A million sessions with a filter each cost at most 150 bytes apiece beside
// the bytes of the filter and the session.
func TestMemoryOfAMillionFilters(t *testing.T) {
	if testing.Short() {
		t.Skip("a million filters take a second or two")
	}
	for _, kind := range []struct {
		format string
		most   float64
	}{{"user/%08d/inbox", 150}, {"user/%08d/#", 200}} {
		const sessions = 1_000_000
		names := make([]string, sessions)
		targets := make([]handle, sessions)
		for i := range names {
			names[i] = fmt.Sprintf(kind.format, i)
		}
		before := heap()
		x := New[*handle]()
		start := time.Now()
		for i := range names {
			x.Subscribe(names[i], &targets[i], Options{QoS: 1})
		}
		took := time.Since(start)
		each := float64(heap()-before) / sessions
		t.Logf("%s: %.0f bytes for each of %d, %.2f s", kind.format, each, x.Subscriptions(), took.Seconds())
		if each > kind.most {
			t.Errorf("%s: %.0f bytes for each, want at most %.0f", kind.format, each, kind.most)
		}
		runtime.KeepAlive(names)
	}
}

// A million subscribers of one filter come, and many of them go, in time that
// does not grow with their number.
func TestMillionSubscribersOfOneFilter(t *testing.T) {
	if testing.Short() {
		t.Skip("a million subscribers take a second or two")
	}
	const sessions = 1_000_000
	targets := make([]handle, sessions)
	before := heap()
	x := New[*handle]()
	start := time.Now()
	for i := range targets {
		x.Subscribe("all/of/+", &targets[i], Options{QoS: 1})
	}
	came := time.Since(start)
	each := float64(heap()-before) / sessions
	start = time.Now()
	for i := range sessions / 5 {
		if !x.Unsubscribe("all/of/+", &targets[i]) {
			t.Fatal("not there")
		}
	}
	went := time.Since(start)
	t.Logf("came in %.2f s, %.0f bytes each; a fifth went in %.2f s", came.Seconds(), each, went.Seconds())
	// Copies of the whole list would take hours.
	if came > 30*time.Second || went > 30*time.Second || each > 100 {
		t.Errorf("too much")
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// All shows every filter that has a subscriber, once, whatever came and went before.
func TestAllShowsEveryFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := New[int]()
		want := make(map[string]bool)
		for _, f := range rapid.SliceOfN(filters, 0, 30).Draw(t, "came") {
			x.Subscribe(f, 1, Options{})
			want[f] = true
		}
		for f := range want {
			if rapid.Bool().Draw(t, "goes") {
				x.Unsubscribe(f, 1)
				delete(want, f)
			}
		}
		x.All(func(n *Node[int]) bool {
			if !want[n.Filter()] {
				t.Fatalf("%q is not there, or twice", n.Filter())
			}
			delete(want, n.Filter())
			return true
		})
		if len(want) > 0 {
			t.Fatalf("not shown: %v", want)
		}
	})
}
