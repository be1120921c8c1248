package session

import (
	"math"
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// item is messages from..to of a run that wait.
type item struct {
	run      *wire.Run
	g        *Grant
	src      herald.SessionID
	from, to int32
	pid      uint16 // sent before under this packet id
}

// feedState tells where a session gets its messages from.
type feedState uint8

const (
	// lagging: from the inbox; what arrives is left there.
	lagging feedState = iota
	// loading: a page was asked for; what arrives meanwhile is kept aside.
	loading
	// live: from memory.
	live
)

// feed is what is due and has no packet id yet.
//
// The story of catching up: a page is asked for from pos on, without an upper
// bound, and what arrives until it comes is kept aside. If the page reaches
// the end, it and what was kept aside are everything there is, and the session
// is live. Three things make that exact. pos never passes closed time, because
// an entry with a lower ID may still be committed. What was loaded from above
// closed time stands in seen, because it may be read or arrive again. And a
// page that does not reach the end throws away what was kept aside: it will be
// read.
type feed struct {
	mem Memory // fixed

	state    feedState
	pos      herald.ID              // what lies at or below was loaded
	asked    herald.ID              // closed time when the page was asked for
	open     herald.ID              // and what it was without a ceiling
	guarded  bool                   // there was one: nothing above open is taken
	seen     map[herald.ID]struct{} // above pos: loaded, or settled before
	aside    []item
	asideN   int
	overflow bool

	pending queue
	count   int
	bytes   int
}

// restart sets the feed to what lies behind a mark.
func (f *feed) restart(low herald.ID, above []herald.ID) {
	f.state, f.pos = lagging, low
	for _, id := range above {
		f.skip(id)
	}
}

// skip keeps an entry from being loaded.
func (f *feed) skip(id herald.ID) {
	if f.seen == nil {
		f.seen = make(map[herald.ID]struct{})
	}
	f.seen[id] = struct{}{}
}

// forget drops from seen what can come no more.
func (f *feed) forget(closed herald.ID) {
	for id := range f.seen {
		if id <= closed {
			delete(f.seen, id)
		}
	}
}

// admit decides what becomes of an arrival for a durable session: true, it is
// to be sent or to wait; false, it was kept aside or left in the inbox.
// Messages that were loaded already are cut off it.
func (f *feed) admit(it *item, of holder, env Env) bool {
	switch f.state {
	case lagging:
		return false
	case loading:
		if f.asideN += int(it.to - it.from); f.asideN > f.mem.Pending {
			f.overflow, f.aside = true, nil
		}
		if !f.overflow {
			f.aside = append(f.aside, *it)
		}
		return false
	}
	if len(f.seen) > 0 && !f.fresh(it) {
		return false
	}
	if f.count+int(it.to-it.from) > f.mem.Pending || f.bytes > f.mem.Bytes {
		if f.count > 0 {
			f.lag(of, env)
			return false
		}
	}
	return true
}

// fresh pushes what of it was not seen, and tells whether that is all of it.
func (f *feed) fresh(it *item) bool {
	whole := true
	for i := it.from; i < it.to; i++ {
		if _, ok := f.seen[it.run.Messages[i].ID]; ok {
			whole = false
			break
		}
	}
	if whole {
		return true
	}
	for i := it.from; i < it.to; i++ {
		if _, ok := f.seen[it.run.Messages[i].ID]; !ok {
			one := *it
			one.from, one.to = i, i+1
			f.push(one)
		}
	}
	return false
}

// holder is whose feed it is: it names every entry of its inbox that it has in
// its hands, or is done with and has not marked.
type holder interface {
	eachHeld(f func(herald.ID))
	marked() herald.ID // what lies at or below is done with
}

// lag turns a live feed into one that reads its inbox: everything above closed
// time that is in memory, or settled, must not be loaded again.
func (f *feed) lag(of holder, env Env) {
	// A delivery to many began when closed time was lower than it is, so it may lie
	// below what was marked since.
	f.state, f.pos = lagging, max(env.Closed, of.marked())
	above := func(id herald.ID) {
		if id > f.pos {
			f.skip(id)
		}
	}
	of.eachHeld(above)
	f.pending.each(func(it *item) {
		if it.src == 0 {
			for i := it.from; i < it.to; i++ {
				above(it.run.Messages[i].ID)
			}
		}
	})
}

func (s *Session) marked() herald.ID { return s.low }

// Look has the session look at its inbox again: something may stand there that
// was not, and will not be, delivered.
func (s *Session) Look(env Env, fx *Effects) {
	if !s.attached || !s.inbox {
		return
	}
	s.feed.look(s, s.capped(env))
	s.Pump(env, fx)
}

// look has the inbox read from closed time on, whatever was read of it.
func (f *feed) look(of holder, env Env) {
	switch f.state {
	case live:
		f.lag(of, env)
	case loading:
		f.overflow, f.aside = true, nil // what is being read does not reach the end
	}
}

// eachHeld implements holder.
func (s *Session) eachHeld(f func(herald.ID)) {
	for _, sl := range s.window.slots {
		if sl.state != free && sl.src == 0 {
			f(sl.id)
		}
	}
	for _, id := range s.settled {
		f(id)
	}
}

// read asks for a page.
func (s *Session) read(env Env, fx *Effects) {
	s.feed.open, s.feed.guarded = env.Closed, s.ceiling != 0
	s.feed.read(s.capped(env), fx)
}

func (f *feed) read(env Env, fx *Effects) {
	f.state, f.asked = loading, env.Closed
	f.aside, f.asideN, f.overflow = nil, 0, false
	fx.Read, fx.After, fx.ReadLimit = true, f.pos, f.mem.Page+len(f.seen)
}

// page takes what was read in; pid tells under which packet id an entry was sent
// before, 0 for none. end tells whether the feed has caught up.
func (f *feed) page(entries []persistence.Entry, limit int, pid func(herald.ID) uint16) (end bool) {
	end = len(entries) < limit && !f.overflow
	msgs := make([]*herald.Message, len(entries))
	for i := range entries {
		msgs[i] = entries[i].Message
	}
	run := wire.MakeRun(msgs)
	var grants grantCache
	for i := range entries {
		id := msgs[i].ID
		if _, ok := f.seen[id]; ok {
			continue
		}
		f.push(item{run: run, g: grants.of(&entries[i]), from: int32(i), to: int32(i + 1), pid: pid(id)})
		f.skip(id)
	}
	switch {
	case end:
		f.pos = max(f.pos, f.asked)
	case len(entries) > 0:
		f.pos = max(f.pos, min(f.asked, msgs[len(msgs)-1].ID))
	}
	if end {
		f.state = live
		for i := range f.aside {
			if it := f.aside[i]; f.fresh(&it) {
				f.push(it)
			}
		}
	} else {
		f.state = lagging
	}
	f.aside, f.asideN, f.overflow = nil, 0, false
	f.forget(f.pos)
	return end
}

// hungry tells whether little is left of what was loaded.
func (f *feed) hungry() bool {
	return f.state == lagging && f.count <= f.mem.Pending/2 && f.bytes <= f.mem.Bytes/2
}

// behind tells whether a page read now would bring pos forward: with enough in
// memory, nothing else does, and what is settled above pos can block the session.
func (f *feed) behind(env Env) bool { return f.state == lagging && env.Closed > f.asked }

// Page brings what was asked for with Read, at most limit entries; fewer mean
// that the inbox holds no more.
func (s *Session) Page(entries []persistence.Entry, limit int, env Env, fx *Effects) {
	if s.feed.state != loading || !s.attached {
		return
	}
	if s.feed.guarded {
		// What lies above is not all there is: what is missing would come later.
		n := slices.IndexFunc(entries, func(en persistence.Entry) bool { return en.Message.ID > s.feed.open })
		if n >= 0 {
			entries = entries[:n]
		}
		limit = len(entries)
	}
	var waiting map[herald.ID]uint16
	for _, sl := range s.window.slots {
		if sl.state == awaited && sl.src == 0 {
			if waiting == nil {
				waiting = make(map[herald.ID]uint16)
			}
			waiting[sl.id] = sl.pid
		}
	}
	// What was sent before and lies above closed time may be in the inbox and not in
	// the page: so this is not the last one.
	for id := range waiting {
		if id > s.feed.asked && !slices.ContainsFunc(entries, func(en persistence.Entry) bool { return en.Message.ID == id }) {
			limit = len(entries)
			break
		}
	}
	if s.feed.page(entries, limit, func(id herald.ID) uint16 { return waiting[id] }) {
		s.orphans(fx)
	}
	s.Pump(env, fx)
}

// orphans ends what was under way when its entry is not in the inbox any more
// (it can only have been removed by force): PUBREL frees the packet id with a
// client that holds it.
func (s *Session) orphans(fx *Effects) {
	due := make(map[uint16]bool)
	s.feed.pending.each(func(it *item) {
		if it.pid != 0 {
			due[it.pid] = true
		}
	})
	s.window.each(func(sl *slot) {
		if sl.state == awaited && sl.src == 0 && !due[sl.pid] {
			s.orphan(sl, fx)
		}
	})
}

func (s *Session) orphan(sl *slot, fx *Effects) {
	sl.state, sl.qos, sl.seq = released, 2, s.window.next()
	if sl.src != 0 {
		fx.Settled = append(fx.Settled, Settled{Source: sl.src, ID: sl.id})
	}
	s.window.inflight++
	fx.Out = wire.AppendAck(fx.Out, s.p.Version, wire.TypePubrel, sl.pid, 0)
}

// push appends an item to what waits.
func (f *feed) push(it item) {
	f.pending.push(it)
	f.count += int(it.to - it.from)
	for i := it.from; i < it.to; i++ {
		f.bytes += it.run.Messages[i].Size()
	}
}

// took takes the n messages before it.from out of the count.
func (f *feed) took(it *item, n int) {
	f.count -= n
	for i := it.from - int32(n); i < it.from; i++ {
		f.bytes -= it.run.Messages[i].Size()
	}
}

// lowest is the lowest ID that waits, or the highest there is.
func (f *feed) lowest() herald.ID {
	low := herald.ID(math.MaxUint64)
	note := func(it *item) {
		if it.src != 0 {
			return
		}
		for i := it.from; i < it.to; i++ {
			if id := it.run.Messages[i].ID; id != 0 { // 0: of an ephemeral session
				low = min(low, id)
			}
		}
	}
	f.pending.each(note)
	for i := range f.aside {
		note(&f.aside[i])
	}
	return low
}

// grantCache shares the grants of a page's entries.
type grantCache struct{ plain [3][2]*Grant }

func (c *grantCache) of(e *persistence.Entry) *Grant {
	if len(e.Identifiers) > 0 || e.QoS > 2 {
		return &Grant{QoS: min(e.QoS, 2), Retain: e.Retain, Identifiers: e.Identifiers}
	}
	r := 0
	if e.Retain {
		r = 1
	}
	if c.plain[e.QoS][r] == nil {
		c.plain[e.QoS][r] = &Grant{QoS: e.QoS, Retain: e.Retain}
	}
	return c.plain[e.QoS][r]
}

// queue is a first-in first-out ring of items.
type queue struct {
	ring []item // length a power of two
	head int
	n    int
}

func (q *queue) push(it item) {
	if q.n == len(q.ring) {
		ring := make([]item, max(8, 2*len(q.ring)))
		for i := range q.n {
			ring[i] = q.ring[(q.head+i)&(len(q.ring)-1)]
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)&(len(q.ring)-1)] = it
	q.n++
}

func (q *queue) front() *item { return &q.ring[q.head] }

func (q *queue) back() *item { return &q.ring[(q.head+q.n-1)&(len(q.ring)-1)] }

func (q *queue) popBack() {
	*q.back() = item{}
	q.n--
}

func (q *queue) pop() {
	q.ring[q.head] = item{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	if q.n--; q.n == 0 && len(q.ring) > 64 {
		q.ring, q.head = nil, 0
	}
}

func (q *queue) each(f func(*item)) {
	for i := range q.n {
		f(&q.ring[(q.head+i)&(len(q.ring)-1)])
	}
}
