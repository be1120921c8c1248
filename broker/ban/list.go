package ban

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/herald-mqtt/herald/persistence"
)

// Peer is who wants to connect, or has.
type Peer struct {
	Client      string
	Username    string
	HasUsername bool
	Addr        netip.Addr // invalid: not over IP
}

// List is the bans of a node. The zero value has none. Any number of goroutines may
// use it.
//
// Client identifiers and user names are looked up in a map each. Networks of one
// length are in a map, and an address is looked up once for each length that there
// is: in practice one to three times, 129 at most.
type List struct {
	n atomic.Int64 // bans in m, so that an empty list costs nothing

	mu sync.RWMutex // guards below
	m  map[persistence.BanKey]*persistence.Ban
	// networks are the bans by address; lengths, how many there are of each: [0] of
	// IPv4, [1] of IPv6.
	networks map[netip.Prefix]*persistence.Ban
	lengths  [2][129]int
	next     int64              // no ban ends before; 0: none ever does
	sorted   []*persistence.Ban // for Page, not written again; nil: to be made
	changes  uint64
}

// Len is how many bans there are, some of which may have ended since Expire.
func (l *List) Len() int { return int(l.n.Load()) }

// Find returns a ban that keeps a peer away at the moment now, or nil. It must not be
// changed.
func (l *List) Find(now int64, p Peer) *persistence.Ban {
	if l.n.Load() == 0 {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if b := l.m[persistence.BanKey{Kind: persistence.BanClient, Who: p.Client}]; inForce(b, now) {
		return b
	}
	if p.HasUsername {
		if b := l.m[persistence.BanKey{Kind: persistence.BanUsername, Who: p.Username}]; inForce(b, now) {
			return b
		}
	}
	if !p.Addr.IsValid() || len(l.networks) == 0 {
		return nil
	}
	a := p.Addr.Unmap().WithZone("")
	for bits, n := range l.lengths[family(a)] {
		if n == 0 {
			continue
		}
		if network, err := a.Prefix(bits); err == nil {
			if b := l.networks[network]; inForce(b, now) {
				return b
			}
		}
	}
	return nil
}

// inForce tells whether a ban is there and ends later than now.
func inForce(b *persistence.Ban, now int64) bool {
	return b != nil && (b.Until == 0 || b.Until > now)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Get returns the ban with a key that is in force at the moment now.
func (l *List) Get(now int64, k persistence.BanKey) (persistence.Ban, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	b := l.m[k]
	if !inForce(b, now) {
		return persistence.Ban{}, false
	}
	return *b, true
}

// Apply brings the list to what the news say, and returns the bans that are in force
// now and were not there before.
func (l *List) Apply(now int64, n *persistence.BanNews) (fresh []persistence.Ban) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.m
	was := make(map[persistence.BanKey]bool) // those that change: in force before
	if n.Whole {
		l.m, l.networks, l.lengths, l.next = nil, nil, [2][129]int{}, 0
	}
	for i := range n.Changes {
		c := &n.Changes[i]
		if _, again := was[c.BanKey]; !again {
			was[c.BanKey] = inForce(old[c.BanKey], now)
		}
		l.removeLocked(c.BanKey)
		if b := c.Ban; !c.Gone && inForce(&b, now) {
			l.addLocked(&b)
		}
	}
	for k, before := range was {
		if b := l.m[k]; b != nil && !before {
			fresh = append(fresh, *b)
		}
	}
	l.changedLocked()
	return fresh
}

// Expire drops what has ended.
func (l *List) Expire(now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == 0 || now < l.next {
		return
	}
	l.next = 0
	for k, b := range l.m {
		if !inForce(b, now) {
			l.removeLocked(k)
		} else {
			l.endsLocked(b)
		}
	}
	l.changedLocked()
}

func (l *List) changedLocked() {
	l.sorted = nil
	l.changes++
	l.n.Store(int64(len(l.m)))
}

func (l *List) endsLocked(b *persistence.Ban) {
	if b.Until != 0 && (l.next == 0 || b.Until < l.next) {
		l.next = b.Until
	}
}

func (l *List) addLocked(b *persistence.Ban) {
	if l.m == nil {
		l.m = make(map[persistence.BanKey]*persistence.Ban)
	}
	l.m[b.BanKey] = b
	l.endsLocked(b)
	if p, ok := prefixOf(b.BanKey); ok {
		if l.networks == nil {
			l.networks = make(map[netip.Prefix]*persistence.Ban)
		}
		if l.networks[p] == nil {
			l.lengths[family(p.Addr())][p.Bits()]++
		}
		l.networks[p] = b
	}
}

func (l *List) removeLocked(k persistence.BanKey) {
	if l.m[k] == nil {
		return
	}
	delete(l.m, k)
	if p, ok := prefixOf(k); ok {
		delete(l.networks, p)
		l.lengths[family(p.Addr())][p.Bits()]--
	}
}

// prefixOf is the network of a ban by address. What is no network as CheckKey makes
// them keeps nobody away.
func prefixOf(k persistence.BanKey) (netip.Prefix, bool) {
	if k.Kind != persistence.BanAddress {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(k.Who)
	return p, err == nil && p == p.Masked() && p.String() == k.Who && !p.Addr().Is4In6()
}

// Page returns at most limit bans in force behind a key, by kind and who, how many
// there are in all, and whether more follow. The zero key is the beginning.
func (l *List) Page(now int64, behind persistence.BanKey, limit int) (page []persistence.Ban, total int, more bool) {
	l.Expire(now)
	sorted, total := l.inOrder()
	at, found := slices.BinarySearchFunc(sorted, behind, func(b *persistence.Ban, k persistence.BanKey) int {
		return compare(b.BanKey, k)
	})
	if found {
		at++
	}
	rest := sorted[at:]
	for _, b := range rest[:min(limit, len(rest))] {
		page = append(page, *b)
	}
	return page, total, len(rest) > limit
}

// inOrder is all bans, by kind and who. It sorts them without holding up those who
// connect: 100,000 take a tenth of a second.
func (l *List) inOrder() (sorted []*persistence.Ban, total int) {
	l.mu.RLock()
	sorted, total, changes := l.sorted, len(l.m), l.changes
	if sorted != nil {
		l.mu.RUnlock()
		return sorted, total
	}
	sorted = make([]*persistence.Ban, 0, total)
	for _, b := range l.m {
		sorted = append(sorted, b)
	}
	l.mu.RUnlock()
	slices.SortFunc(sorted, func(a, b *persistence.Ban) int { return compare(a.BanKey, b.BanKey) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changes == changes {
		l.sorted = sorted
	}
	return sorted, total
}

func compare(a, b persistence.BanKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Who, b.Who))
}
