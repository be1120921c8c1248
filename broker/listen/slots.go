package listen

import (
	"sync"
	"sync/atomic"
)

// slots is the table of connections. An index with a generation stands for a
// connection in the kernel's event data, where no Go pointer may stand, and an
// event that comes late, for a connection that is gone, finds nothing.
//
// Beside each connection stands the tick at which its deadline has to be looked
// at. The sweeper reads those, four bytes each, and touches a connection only
// when it may be due.
type slots struct {
	chunks atomic.Pointer[[]*chunk]

	mu   sync.Mutex
	free []uint32
	used uint32
	gen  uint32
}

const chunkBits = 8

type chunk struct {
	conns [1 << chunkBits]atomic.Pointer[Conn]
	due   [1 << chunkBits]atomic.Uint32
}

func (s *slots) init() { s.chunks.Store(new([]*chunk)) }

func (s *slots) at(slot uint32) (*chunk, uint32) {
	return (*s.chunks.Load())[slot>>chunkBits], slot & (1<<chunkBits - 1)
}

// add gives c its slot and generation.
func (s *slots) add(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	c.gen = s.gen
	if n := len(s.free); n > 0 {
		c.slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		c.slot = s.used
		s.used++
		if old := *s.chunks.Load(); int(c.slot>>chunkBits) == len(old) {
			grown := append(old[:len(old):len(old)], new(chunk))
			s.chunks.Store(&grown)
		}
	}
	ch, i := s.at(c.slot)
	ch.due[i].Store(0)
	ch.conns[i].Store(c)
}

func (s *slots) remove(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch, i := s.at(slot)
	ch.conns[i].Store(nil)
	s.free = append(s.free, slot)
}

// get returns the connection, nil if it is gone.
func (s *slots) get(slot, gen uint32) *Conn {
	ch, i := s.at(slot)
	if c := ch.conns[i].Load(); c != nil && c.gen == gen {
		return c
	}
	return nil
}

func (s *slots) due(slot uint32) *atomic.Uint32 {
	ch, i := s.at(slot)
	return &ch.due[i]
}

func (s *slots) each(f func(*Conn)) {
	for _, ch := range *s.chunks.Load() {
		for i := range ch.conns {
			if c := ch.conns[i].Load(); c != nil {
				f(c)
			}
		}
	}
}

// sweep calls f for connections that may be due; f says when to look again.
func (s *slots) sweep(now uint32, f func(*Conn) uint32) {
	for _, ch := range *s.chunks.Load() {
		for i := range ch.due {
			if ch.due[i].Load() > now {
				continue
			}
			if c := ch.conns[i].Load(); c != nil {
				// If somebody asks for another look meanwhile, that stays.
				ch.due[i].Store(never)
				next := f(c)
				ch.due[i].CompareAndSwap(never, next)
			}
		}
	}
}
