package listen

import "sync/atomic"

// counters are added to by one goroutine mostly, so each has its own.
type counters struct {
	bytesIn, bytesOut, reads, writes, waits, handed atomic.Int64
	queued                                          atomic.Int64 // bytes appended, less those that were dropped
	_                                               [64]byte
}

type gauges struct {
	conns, accepted, refused, panics, malformed, moved, slow atomic.Int64
}

// Stats is a snapshot of the counters since the start.
type Stats struct {
	BytesIn, BytesOut int64
	Connections       int64 // open now
	Accepted          int64
	Refused           int64 // closed at once because of max_connections
	Reads, Writes     int64 // system calls
	Waits             int64 // of the pollers, system calls
	Control           int64 // frames given to mochi
	Malformed         int64
	Panics            int64
	Pollers           int64 // in use
	Moved             int64 // connections, from poller to poller
	Pending           int64 // bytes that wait to be written, now
	Slow              int64 // connections ended because too many bytes waited, of all
}

// Stats returns a snapshot.
func (l *Loop) Stats() Stats {
	s := Stats{
		Connections: l.counts.conns.Load(), Accepted: l.counts.accepted.Load(), Refused: l.counts.refused.Load(),
		Panics: l.counts.panics.Load(), Malformed: l.counts.malformed.Load(),
		Pollers: int64(l.active.Load()), Moved: l.counts.moved.Load(), Slow: l.counts.slow.Load(),
	}
	var queued int64
	add := func(n *counters) {
		queued += n.queued.Load()
		s.BytesIn += n.bytesIn.Load()
		s.BytesOut += n.bytesOut.Load()
		s.Reads += n.reads.Load()
		s.Writes += n.writes.Load()
		s.Waits += n.waits.Load()
		s.Control += n.handed.Load()
	}
	add(&l.shared)
	for _, p := range l.pollers {
		add(&p.count)
	}
	s.Pending = max(0, queued-s.BytesOut)
	return s
}
