package ban

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald/persistence"
)

func put(kind persistence.BanKind, who string, until int64) persistence.BanChange {
	return persistence.BanChange{Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: kind, Who: who}, Until: until}}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		kind      persistence.BanKind
		who, want string // "": refused
	}{
		{persistence.BanClient, "c", "c"},
		{persistence.BanClient, "", ""},
		{persistence.BanClient, strings.Repeat("x", MaxWho), strings.Repeat("x", MaxWho)},
		{persistence.BanClient, strings.Repeat("x", MaxWho+1), ""},
		{persistence.BanClient, "a\x00b", ""},
		{persistence.BanUsername, "a\xff", ""},
		{persistence.BanAddress, "192.0.2.1", "192.0.2.1/32"},
		{persistence.BanAddress, "192.0.2.77/24", "192.0.2.0/24"},
		{persistence.BanAddress, "0.0.0.0/0", "0.0.0.0/0"},
		{persistence.BanAddress, "::ffff:192.0.2.1", "192.0.2.1/32"},
		{persistence.BanAddress, "::ffff:192.0.2.1/120", "192.0.2.0/24"},
		{persistence.BanAddress, "::ffff:192.0.2.1/90", ""},
		{persistence.BanAddress, "2001:DB8::1", "2001:db8::1/128"},
		{persistence.BanAddress, "2001:db8:1:2::3/48", "2001:db8:1::/48"},
		{persistence.BanAddress, "fe80::1%eth0", ""},
		{persistence.BanAddress, "192.0.2.1/33", ""},
		{persistence.BanAddress, "192.0.2", ""},
		{persistence.BanAddress, "", ""},
		{persistence.BanAddress, strings.Repeat("9/", 1000), ""},
		{0, "c", ""},
		{9, "c", ""},
	} {
		b := persistence.Ban{BanKey: persistence.BanKey{Kind: c.kind, Who: c.who}}
		err := Check(&b)
		if (err == nil) != (c.want != "") || err == nil && b.Who != c.want {
			t.Errorf("%d %.40q: %q, %v; want %q", c.kind, c.who, b.Who, err, c.want)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
	for _, b := range []persistence.Ban{
		{Reason: strings.Repeat("x", MaxReason+1)}, {Reason: "two\nlines"}, {By: "\x1b[31m"}, {By: "\xff"}, {By: strings.Repeat("x", MaxBy+1)},
	} {
		b.BanKey = persistence.BanKey{Kind: persistence.BanClient, Who: "c"}
		if Check(&b) == nil {
			t.Errorf("%+v is taken", b)
		}
	}
}

func TestFind(t *testing.T) {
	var l List
	l.Apply(0, &persistence.BanNews{Whole: true, Changes: []persistence.BanChange{
		put(persistence.BanClient, "bad", 0), put(persistence.BanClient, "late", 100), put(persistence.BanUsername, "eve", 0),
		put(persistence.BanUsername, "", 0), put(persistence.BanAddress, "192.0.2.0/24", 0), put(persistence.BanAddress, "198.51.100.7/32", 100),
		put(persistence.BanAddress, "2001:db8::/32", 0), put(persistence.BanAddress, "no network", 0), put(persistence.BanAddress, "203.0.113.9/24", 0),
	}})
	addr := netip.MustParseAddr
	for _, c := range []struct {
		now  int64
		peer Peer
		want string
	}{
		{0, Peer{Client: "good"}, ""},
		{0, Peer{Client: "bad"}, "bad"},
		{99, Peer{Client: "late"}, "late"},
		{100, Peer{Client: "late"}, ""},
		{0, Peer{Client: "eve"}, ""},
		{0, Peer{Client: "good", Username: "eve", HasUsername: true}, "eve"},
		{0, Peer{Client: "good", Username: "bad", HasUsername: true}, ""},
		{0, Peer{Client: "good", Username: "", HasUsername: true}, ""},
		{0, Peer{Addr: addr("192.0.2.255")}, "192.0.2.0/24"},
		{0, Peer{Addr: addr("192.0.3.0")}, ""},
		{0, Peer{Addr: addr("::ffff:192.0.2.1")}, "192.0.2.0/24"},
		{0, Peer{Addr: addr("198.51.100.7")}, "198.51.100.7/32"},
		{100, Peer{Addr: addr("198.51.100.7")}, ""},
		{0, Peer{Addr: addr("198.51.100.8")}, ""},
		{0, Peer{Addr: addr("2001:db8:ffff::1%eth0")}, "2001:db8::/32"},
		{0, Peer{Addr: addr("2001:db9::1")}, ""},
		{0, Peer{Addr: addr("203.0.113.9")}, ""},
	} {
		got := ""
		b := l.Find(c.now, c.peer)
		if b != nil {
			got = b.Who
		}
		if c.peer.HasUsername && c.peer.Username == "" { // the empty user name is one, too
			if b == nil || b.Kind != persistence.BanUsername {
				t.Errorf("the empty user name: %v", b)
			}
			continue
		}
		if got != c.want {
			t.Errorf("%+v at %d: %q, want %q", c.peer, c.now, got, c.want)
		}
	}
}

// The list finds what looking at every ban would, whatever was changed before, and
// tells which are new.
func TestListAgainstTheRule(t *testing.T) {
	keys := []persistence.BanKey{{Kind: persistence.BanClient, Who: "a"}, {Kind: persistence.BanClient, Who: "b"}, {Kind: persistence.BanUsername, Who: "a"}}
	for _, who := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "::/0", "2001:db8::/32", "2001:db8::1/128"} {
		keys = append(keys, persistence.BanKey{Kind: persistence.BanAddress, Who: who})
	}
	rapid.Check(t, func(t *rapid.T) {
		var l List
		rule := make(map[persistence.BanKey]persistence.Ban)
		now := int64(0)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			now += rapid.Int64Range(0, 3).Draw(t, "later")
			news := persistence.BanNews{Whole: rapid.Bool().Draw(t, "whole")}
			before := rule
			rule = make(map[persistence.BanKey]persistence.Ban)
			if !news.Whole {
				maps.Copy(rule, before)
			}
			maps.DeleteFunc(rule, func(_ persistence.BanKey, b persistence.Ban) bool { return b.Until != 0 && b.Until <= now })
			want := make(map[persistence.BanKey]bool)
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				c := persistence.BanChange{Ban: persistence.Ban{BanKey: rapid.SampledFrom(keys).Draw(t, "key")}, Gone: !news.Whole && rapid.Bool().Draw(t, "gone")}
				if rapid.Bool().Draw(t, "ends") {
					c.Until = now + rapid.Int64Range(0, 5).Draw(t, "until")
				}
				news.Changes = append(news.Changes, c)
				delete(rule, c.BanKey)
				if !c.Gone && (c.Until == 0 || c.Until > now) {
					rule[c.BanKey] = c.Ban
				}
			}
			for k := range rule {
				if b, ok := before[k]; !ok || b.Until != 0 && b.Until <= now {
					want[k] = true
				}
			}
			if rapid.Bool().Draw(t, "expire first") {
				l.Expire(now)
			}
			for _, b := range l.Apply(now, &news) {
				if !want[b.BanKey] || b != rule[b.BanKey] {
					t.Fatalf("%v is told as new, and is not", b)
				}
				delete(want, b.BanKey)
			}
			if len(want) > 0 {
				t.Fatalf("%v are new and were not told", want)
			}
			now += rapid.Int64Range(0, 2).Draw(t, "later still")
			live := make(map[persistence.BanKey]bool)
			for k, b := range rule {
				if b.Until == 0 || b.Until > now {
					live[k] = true
				} else {
					delete(rule, k)
				}
			}
			for _, client := range []string{"a", "b", "c"} {
				if got := l.Find(now, Peer{Client: client}) != nil; got != live[persistence.BanKey{Kind: persistence.BanClient, Who: client}] {
					t.Fatalf("client %q: %v", client, got)
				}
			}
			for _, a := range []string{"10.1.1.1", "10.1.1.2", "10.2.0.0", "11.0.0.0", "2001:db8::1", "2001:db8::2", "::1"} {
				want := false
				for k := range live {
					want = want || k.Kind == persistence.BanAddress && netip.MustParsePrefix(k.Who).Contains(netip.MustParseAddr(a))
				}
				if got := l.Find(now, Peer{Client: "c", Addr: netip.MustParseAddr(a)}) != nil; got != want {
					t.Fatalf("address %s: %v, want %v (%v)", a, got, want, live)
				}
			}
			page, total, more := l.Page(now, persistence.BanKey{}, 100)
			if len(page) != len(live) || total != len(live) || more {
				t.Fatalf("page of %d of %d, %v; want %d", len(page), total, more, len(live))
			}
		}
	})
}

func TestPage(t *testing.T) {
	var l List
	news := persistence.BanNews{Whole: true, Changes: []persistence.BanChange{put(persistence.BanUsername, "u", 0)}}
	for i := range 25 {
		news.Changes = append(news.Changes, put(persistence.BanClient, fmt.Sprintf("c%02d", i), 0))
	}
	l.Apply(0, &news)
	var all []string
	at, pages := persistence.BanKey{}, 0
	for more := true; more; pages++ {
		var page []persistence.Ban
		var total int
		page, total, more = l.Page(0, at, 10)
		if total != 26 || len(page) == 0 {
			t.Fatalf("%d of %d", len(page), total)
		}
		for _, b := range page {
			all = append(all, b.Who)
		}
		at = page[len(page)-1].BanKey
		// One that goes meanwhile shifts nothing.
		l.Apply(0, &persistence.BanNews{Changes: []persistence.BanChange{put(persistence.BanClient, "new", 0), {Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: persistence.BanClient, Who: "new"}}, Gone: true}}})
	}
	if got := strings.Join(all, " "); pages != 3 || len(all) != 26 || !strings.HasPrefix(got, "c00 c01") || !strings.HasSuffix(got, "c24 u") {
		t.Errorf("%d pages: %s", pages, got)
	}
}

// A CONNECT pays as good as nothing for a full list.
func BenchmarkFind(b *testing.B) {
	var l List
	news := persistence.BanNews{Whole: true}
	for i := range 100_000 {
		news.Changes = append(news.Changes, put(persistence.BanKind(1+i%2), fmt.Sprint("client-", i), 0))
	}
	for i := range 1000 {
		news.Changes = append(news.Changes, put(persistence.BanAddress, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), 0))
	}
	news.Changes = append(news.Changes, put(persistence.BanAddress, "2001:db8::/32", 0), put(persistence.BanAddress, "192.0.2.1/32", 0))
	l.Apply(0, &news)
	peer := Peer{Client: "somebody", Username: "some", HasUsername: true, Addr: netip.MustParseAddr("198.51.100.3")}
	b.ReportAllocs()
	for b.Loop() {
		if l.Find(1, peer) != nil {
			b.Fatal("banned")
		}
	}
}
