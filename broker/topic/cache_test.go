package topic

import (
	"fmt"
	"strings"
	"testing"
)

// What is remembered costs nothing to ask for again.
func TestMatchAllocatesNothing(t *testing.T) {
	x := New[int]()
	x.Subscribe("user/00000042/inbox", 1, Options{})
	x.Subscribe("user/+/inbox", 1, Options{})
	c := x.NewCache(16)
	topics := [][]byte{[]byte("user/00000042/inbox"), []byte("user/00000043/inbox")}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		c.Match(topics[i%2])
		x.Subscribe("user/+/inbox", 2+i, Options{}) // joins: concerns no cache
		i++
	}); n > 3 { // what Subscribe needs
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { c.Match(topics[i%2]); i++ }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	x.Subscribe("elsewhere/+", 1, Options{})
	if n := testing.AllocsPerRun(1, func() { c.Match(topics[0]) }); n != 0 {
		t.Errorf("%v allocations after a change elsewhere", n)
	}
}

// Only topics that a new filter can match are looked up again.
func TestOnlyWhatIsConcerned(t *testing.T) {
	x := New[int]()
	c := x.NewCache(100)
	deep := "a/b/c/d/e/f/g/h/i/j/k"
	match := func(s string) *Match[int] { return c.Match([]byte(s)) }
	for _, test := range []struct {
		filter      string
		asked       string
		lookedAgain bool
	}{
		{"x", "y", false},
		{"x", "x", true},
		{"a/b/+", "a/c/d", false},
		{"a/b/+", "a/b", true}, // by the prefix; it is no match
		{"a/b/#", "a/b", true},
		{"a/c/+", "a/c/d", true},
		{"+", "a/c/d", true},
		{"/+", "/", true},
		{"//#", "/a", false},
		{deep + "/#", deep, true},
		{deep + "/l", deep, false},
		{"a/b/c/d/e/f/g/x/#", deep, false},
		{"a/b/c/d/e/f/g/h/x/#", deep, true}, // only 8 levels tell
	} {
		before := match(test.asked)
		x.Subscribe(test.filter, 1, Options{})
		if again := match(test.asked) != before; again != test.lookedAgain {
			t.Errorf("%q came, %q: looked up again %v", test.filter, test.asked, again)
		}
		before = match(test.asked)
		x.Subscribe(test.filter, 2, Options{})
		x.Unsubscribe(test.filter, 1)
		if match(test.asked) != before {
			t.Errorf("%q: looked up again for a subscriber", test.filter)
		}
		x.Unsubscribe(test.filter, 2)
		if again := match(test.asked) != before; again != test.lookedAgain {
			t.Errorf("%q went, %q: looked up again %v", test.filter, test.asked, again)
		}
	}
}

// Publishers that use ever new topics, long ones, or ones that match very many
// filters neither make a cache large nor push out what is asked for often.
func TestHostileTopics(t *testing.T) {
	x := New[int]()
	const most = 64
	c := x.NewCache(most)
	hot := make([][]byte, 16)
	for i := range hot {
		hot[i] = fmt.Appendf(nil, "hot/%d", i)
		c.Match(hot[i])
	}
	kept := 0
	for i := range 10_000 {
		c.Match(fmt.Appendf(nil, "cold/%d", i))
		h := hot[i%len(hot)]
		if c.entries[string(h)] != nil {
			kept++
		}
		c.Match(h)
	}
	if kept < 9_900 {
		t.Errorf("%d of 10,000 found again", kept)
	}
	long := []byte(strings.Repeat("x", heaviest+1))
	if c.Match(long).Topic != string(long) || c.entries[string(long)] != nil {
		t.Errorf("a long topic was kept")
	}

	// A topic that grows heavy while it is remembered.
	wide := strings.Repeat("/a", 9)[1:]
	if c.Match([]byte(wide)); c.entries[wide] == nil {
		t.Fatal("not kept")
	}
	for mask := range 1 << 9 {
		x.Subscribe(hostile(mask, 9), 1, Options{})
	}
	if n := len(c.Match([]byte(wide)).Nodes); n != 1<<9 || c.entries[wide] != nil {
		t.Errorf("%d nodes, kept %v", n, c.entries[wide] != nil)
	}
	for i := range 1000 {
		c.Match(fmt.Appendf(nil, "cold/%d", i))
	}
	if len(c.entries) > most || len(c.ring) > most {
		t.Errorf("%d entries in %d places", len(c.entries), len(c.ring))
	}
	x.Unsubscribe(wide, 1)
	if n := len(c.Match([]byte(wide)).Nodes); n != 1<<9-1 {
		t.Errorf("%d nodes", n)
	}
}

// hostile is one of the 2^levels filters that match a/a/a/...
func hostile(mask, levels int) string {
	s := ""
	for l := range levels {
		if mask>>l&1 == 1 {
			s += "/+"
		} else {
			s += "/a"
		}
	}
	return s[1:]
}

// An edge of the trie does not keep the long filter alive that it came with.
func TestLongFilterIsNotPinned(t *testing.T) {
	x := New[int]()
	const n = 64
	before := heap()
	for i := range n {
		x.Subscribe(fmt.Sprintf("%d/%s/#", i, strings.Repeat("y", 60_000)), 1, Options{})
		x.Subscribe(fmt.Sprintf("%d/+", i), 1, Options{})
	}
	for i := range n {
		x.Unsubscribe(fmt.Sprintf("%d/%s/#", i, strings.Repeat("y", 60_000)), 1)
	}
	if grown := int64(heap() - before); grown > n*10_000 {
		t.Errorf("%d bytes for %d short filters", grown, n)
	}
	if x.Filters() != n {
		t.Errorf("%d filters", x.Filters())
	}
}

func population(b *testing.B) *Index[int] {
	x := New[int]()
	for i := range 10_000 {
		x.Subscribe(fmt.Sprintf("user/%06d/inbox", i), i, Options{})
		x.Subscribe(fmt.Sprintf("room/%d/+/text", i%1000), i, Options{})
	}
	x.Subscribe("user/+/inbox", 1, Options{})
	x.Subscribe("$SYS/#", 1, Options{})
	x.Subscribe("#", 1, Options{})
	b.ReportAllocs()
	b.ResetTimer()
	return x
}

func BenchmarkMatch(b *testing.B) {
	b.Run("same", func(b *testing.B) {
		c := population(b).NewCache(1024)
		topic := []byte("user/000042/inbox/ab")
		for b.Loop() {
			c.Match(topic)
		}
	})
	b.Run("hit", func(b *testing.B) {
		c := population(b).NewCache(1024)
		var topics [16][]byte
		for i := range topics {
			topics[i] = fmt.Appendf(nil, "user/%06d/inbox/ab", i)
		}
		i := 0
		for b.Loop() {
			c.Match(topics[i%len(topics)])
			i++
		}
	})
	b.Run("hit-epoch-moved", func(b *testing.B) {
		x := population(b)
		c := x.NewCache(1024)
		topic := []byte("user/000042/inbox/ab")
		for b.Loop() {
			x.epoch.Add(1)
			c.Match(topic)
		}
	})
	b.Run("miss", func(b *testing.B) {
		c := population(b).NewCache(1024)
		topic := []byte("user/000042/inbox/00000000")
		i := 0
		for b.Loop() {
			for n, at := i, len(topic)-1; at > 18; at-- {
				topic[at] = byte('0' + n%10)
				n /= 10
			}
			i++
			c.Match(topic)
		}
	})
	b.Run("miss-hostile-2^12", func(b *testing.B) {
		x := New[int]()
		for mask := range 1 << 12 {
			x.Subscribe(hostile(mask, 12), 1, Options{})
		}
		c := x.NewCache(1024)
		topic := []byte(hostile(0, 12))
		b.ReportAllocs()
		for b.Loop() {
			c.Match(topic)
		}
	})
}

func BenchmarkSubscribe(b *testing.B) {
	b.Run("one-filter", func(b *testing.B) {
		x := New[int]()
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			x.Subscribe("a/b", i, Options{})
			i++
		}
	})
	b.Run("leave-and-join-100000", func(b *testing.B) {
		x := New[int]()
		for i := range 100_000 {
			x.Subscribe("a/b", i, Options{})
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			x.Unsubscribe("a/b", i%100_000)
			x.Subscribe("a/b", i%100_000, Options{})
			i++
		}
	})
}

func BenchmarkWalk(b *testing.B) {
	x := New[int]()
	for i := range 10_000 {
		x.Subscribe("a/b", i, Options{})
	}
	n := x.NewCache(1).Match([]byte("a/b")).Nodes[0]
	b.ReportAllocs()
	sum := 0
	for b.Loop() {
		s := n.Subscribers()
		for c := range s.Chunks() {
			for _, e := range s.Chunk(c) {
				sum += e.Target
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10_000, "ns/entry")
}
