package session

import "cmp"

// Limit bounds what waits in a session's memory.
type Limit struct {
	// Counted: Effects tell what has settled, to somebody who counts the inbox.
	Counted bool
	// Messages and Bytes bound what waits of messages that are in no inbox; 0 is
	// no bound.
	Messages, Bytes int
	// Full is what happens beyond.
	Full Full
}

// Memory bounds what one session or group holds in memory, beside the window of
// packet ids. The zero value stands for the defaults.
type Memory struct {
	// Pending messages (4,096) and their Bytes (4 MiB) may wait in memory; past
	// either, a session with an inbox reads from it.
	Pending, Bytes int
	// Page is how many entries of an inbox are read at once (512).
	Page int
	// Settled bounds what may be settled above an entry that is not, before
	// nothing more is sent (16,384).
	Settled int
}

var defaults = Memory{Pending: maxPending, Bytes: maxPendingBytes, Page: pageEntries, Settled: maxSettled}

func (m Memory) orDefaults() Memory {
	return Memory{
		Pending: cmp.Or(m.Pending, maxPending), Bytes: cmp.Or(m.Bytes, maxPendingBytes),
		Page: cmp.Or(m.Page, pageEntries), Settled: cmp.Or(m.Settled, maxSettled),
	}
}

// Keep sets what the session holds in memory, before Attach.
func (s *Session) Keep(m Memory) { s.feed.mem = m.orDefaults() }

// Keep sets what the group holds in memory, before anything is delivered.
func (g *Group) Keep(m Memory) { g.feed.mem = m.orDefaults() }

// Full is what becomes of messages that find a queue full.
type Full byte

// What becomes of them.
const (
	// DropOldest drops what has waited longest.
	DropOldest Full = iota
	// DropNew drops what comes.
	DropNew
	// Disconnect ends the connection.
	Disconnect
)

// Bound sets the limits, before Attach.
func (s *Session) Bound(l Limit) { s.limit = l }

func (s *Session) full() bool {
	l := &s.limit
	return l.Messages > 0 && s.feed.count > l.Messages || l.Bytes > 0 && s.feed.bytes > l.Bytes
}

// overflow does with a queue that is too long what its limit says.
func (s *Session) overflow(fx *Effects) {
	if s.limit.Full == Disconnect {
		fx.Full = true
		return
	}
	for s.full() && s.feed.pending.n > 0 {
		if s.limit.Full == DropOldest {
			s.dropOldest(fx)
			continue
		}
		it := s.feed.pending.back()
		it.to--
		s.feed.count--
		s.feed.bytes -= it.run.Messages[it.to].Size()
		fx.Overflow++
		if it.from == it.to {
			s.feed.pending.popBack()
		}
	}
}

// DropOldest drops up to n of the messages that wait in memory, those that have
// waited longest, and returns how many there were. Messages that were sent are
// not dropped.
func (s *Session) DropOldest(n int, fx *Effects) int {
	dropped := 0
	for dropped < n && s.feed.pending.n > 0 && s.feed.pending.front().pid == 0 {
		s.dropOldest(fx)
		dropped++
	}
	return dropped
}

func (s *Session) dropOldest(fx *Effects) {
	it := s.feed.pending.front()
	m := it.run.Messages[it.from]
	it.from++
	s.feed.took(it, 1)
	src := it.src
	if it.from == it.to {
		s.feed.pending.pop()
	}
	fx.Overflow++
	s.settleID(src, m.ID, m, fx)
}
