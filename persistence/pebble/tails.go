package pebble

import (
	"sort"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// tails are the newest entries of all inboxes: those whose journal segments are
// still there. A session that keeps up has its entries settled before their
// segment grows old, and nothing of them is ever written to Pebble. A session
// without such entries has no tail: at rest it costs nothing.
type tails struct {
	// Fixed at construction.
	wide int // a message for more targets than that is written once

	mu      sync.Mutex // guards below; taken after Store.applying
	of      map[herald.SessionID]*tail
	free    []*tail
	entries int
}

// tail is the end of one inbox, by rising ID.
type tail struct {
	items  []item
	head   int    // items before it are settled
	oldest uint64 // no item is of an older segment
}

type item struct {
	id  herald.ID
	msg *herald.Message // nil: settled
	how *how
	seg uint64
}

// how an entry is to be sent. Shared by all entries that agree.
type how struct {
	qos    byte
	retain bool
	wide   bool
	ids    []uint32
}

// plain are the hows without subscription identifiers.
var plain = func() (p [3][2][2]how) {
	for q := range p {
		for r := range p[q] {
			for w := range p[q][r] {
				p[q][r][w] = how{qos: byte(q), retain: r == 1, wide: w == 1}
			}
		}
	}
	return p
}()

func howOf(t *persistence.Target, wide bool) *how {
	if len(t.Identifiers) > 0 {
		// The target may be written again once the batch is done.
		return &how{qos: t.QoS, retain: t.Retain, wide: wide, ids: append([]uint32(nil), t.Identifiers...)}
	}
	r, w := 0, 0
	if t.Retain {
		r = 1
	}
	if wide {
		w = 1
	}
	return &plain[min(t.QoS, 2)][r][w]
}

// entry is the item as readers see it.
func (it *item) entry() persistence.Entry {
	return persistence.Entry{
		Message: it.msg, QoS: min(it.how.qos, it.msg.QoS), Retain: it.how.retain, Identifiers: it.how.ids,
	}
}

// maxFree bounds the tails kept for reuse, maxFreeItems their size.
const (
	maxFree      = 1024
	maxFreeItems = 64
)

// spread puts the messages of sp, committed in segment seg, into their inboxes.
// Hot: once per message and target.
func (ts *tails) spread(sp *persistence.Spread, seg uint64) {
	wide := len(sp.Targets) > ts.wide
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for i := range sp.Targets {
		target := &sp.Targets[i]
		t := ts.of[target.Session]
		if t == nil {
			if n := len(ts.free); n > 0 {
				t, ts.free = ts.free[n-1], ts.free[:n-1]
			} else {
				t = new(tail)
			}
			t.oldest = seg
			ts.of[target.Session] = t
		}
		h := howOf(target, wide)
		for _, m := range sp.Messages {
			if t.add(item{id: m.ID, msg: m, how: h, seg: seg}) {
				ts.entries++
			}
		}
	}
}

// add keeps the order; an ID that is there already changes nothing.
func (t *tail) add(it item) bool {
	n := len(t.items)
	if n == t.head || t.items[n-1].id < it.id {
		if n == cap(t.items) && t.head > n/2 {
			t.compact()
		}
		t.items = append(t.items, it)
		return true
	}
	at := t.find(it.id)
	if t.items[at].id == it.id {
		return false
	}
	t.items = append(t.items, item{})
	copy(t.items[at+1:], t.items[at:])
	t.items[at] = it
	return true
}

// compact moves the items to the front.
func (t *tail) compact() {
	n := copy(t.items, t.items[t.head:])
	clear(t.items[n:])
	t.items, t.head = t.items[:n], 0
}

// find is the place of the first item at or behind id.
func (t *tail) find(id herald.ID) int {
	return t.head + sort.Search(len(t.items)-t.head, func(i int) bool { return t.items[t.head+i].id >= id })
}

// mark settles what m says.
func (ts *tails) mark(m *persistence.Mark) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.of[m.Session]
	if t == nil {
		return
	}
	for t.head < len(t.items) && t.items[t.head].id <= m.Low {
		ts.dropLocked(t, t.head)
		t.head++
	}
	for _, id := range m.Above {
		ts.settleLocked(t, id)
	}
	ts.trimLocked(m.Session, t)
}

// settle settles one entry.
func (ts *tails) settle(s herald.SessionID, id herald.ID) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.of[s]; t != nil {
		ts.settleLocked(t, id)
		ts.trimLocked(s, t)
	}
}

func (ts *tails) settleLocked(t *tail, id herald.ID) {
	if at := t.find(id); at < len(t.items) && t.items[at].id == id {
		ts.dropLocked(t, at)
	}
}

func (ts *tails) dropLocked(t *tail, at int) {
	if it := &t.items[at]; it.msg != nil {
		it.msg, it.how = nil, nil
		ts.entries--
	}
}

// trimLocked passes over settled items at the front, and lets an empty tail go.
func (ts *tails) trimLocked(s herald.SessionID, t *tail) {
	for t.head < len(t.items) && t.items[t.head].msg == nil {
		t.head++
	}
	if t.head < len(t.items) {
		return
	}
	delete(ts.of, s)
	if len(ts.free) < maxFree && cap(t.items) <= maxFreeItems {
		t.items, t.head = t.items[:0], 0
		ts.free = append(ts.free, t)
	}
}

// drop removes everything of a session.
func (ts *tails) drop(s herald.SessionID) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.of[s]
	if t == nil {
		return
	}
	for at := t.head; at < len(t.items); at++ {
		ts.dropLocked(t, at)
	}
	ts.trimLocked(s, t)
}

// read appends to dst the entries with from < ID ≤ upTo, at most limit.
func (ts *tails) read(s herald.SessionID, from, upTo herald.ID, limit int, dst []persistence.Entry) []persistence.Entry {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.of[s]
	if t == nil {
		return dst
	}
	for at := t.find(from + 1); at < len(t.items) && limit > 0; at++ {
		it := &t.items[at]
		if it.id > upTo {
			break
		}
		if it.msg != nil {
			dst = append(dst, it.entry())
			limit--
		}
	}
	return dst
}

// old lists, by rising session, the sessions that may have items of segments up
// to seg.
func (ts *tails) old(seg uint64) []herald.SessionID {
	ts.mu.Lock()
	var list []herald.SessionID
	for s, t := range ts.of {
		if t.oldest <= seg {
			list = append(list, s)
		}
	}
	ts.mu.Unlock()
	sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
	return list
}

// peek appends to dst up to limit unsettled items of segments up to seg of one
// session, from the front. rest tells that there may be more of them. If not,
// the tail is known to be younger.
func (ts *tails) peek(s herald.SessionID, seg uint64, limit int, dst []item) (out []item, rest bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.of[s]
	if t == nil {
		return dst, false
	}
	youngest := ^uint64(0)
	for at := t.head; at < len(t.items); at++ {
		it := &t.items[at]
		if it.msg == nil {
			continue
		}
		if it.seg > seg {
			youngest = min(youngest, it.seg)
			continue
		}
		if len(dst) >= limit {
			return dst, true
		}
		dst = append(dst, *it)
	}
	if youngest != ^uint64(0) {
		t.oldest = youngest
	}
	return dst, false
}

// forget lets go of items that are in Pebble now.
func (ts *tails) forget(s herald.SessionID, items []item) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.of[s]
	if t == nil {
		return
	}
	for i := range items {
		ts.settleLocked(t, items[i].id)
	}
	ts.trimLocked(s, t)
}
