package bridge

import "sync/atomic"

// Stats counts since Open.
type Stats struct {
	FramesSent, EntriesSent, BytesSent uint64 // first and repeated; bytes as Redis got them
	FramesResent                       uint64
	FramesReceived, BytesReceived      uint64
	Duplicates                         uint64 // frames that came again and were dropped
	Gaps                               uint64 // entries that came too early and were dropped
	Skipped                            uint64 // frames given up because they cannot be read
	Undecodable                        uint64 // entries skipped: not ours, damaged, or of another version
	Stale                              uint64 // entries for or of a former incarnation
	Overflows                          uint64 // frames refused
	Held                               uint64 // frames reported with ErrHeld
	Outages, Losses                    uint64 // times that Redis was away, or may have lost something
	Announced, Applied, Snapshots      uint64 // announcements made and applied, snapshots written
	Pending, PendingBytes              int    // frames kept for all peers, now
}

type counters struct {
	framesSent, entriesSent, bytesSent, framesResent atomic.Uint64
	framesReceived, bytesReceived, duplicates, gaps  atomic.Uint64
	skipped, undecodable, stale, overflow, held      atomic.Uint64
	outages, losses, announced, applied, snapshots   atomic.Uint64
}

// Stats returns the counters.
func (b *Bridge) Stats() Stats {
	c := &b.stats
	s := Stats{
		FramesSent: c.framesSent.Load(), EntriesSent: c.entriesSent.Load(), BytesSent: c.bytesSent.Load(),
		FramesResent: c.framesResent.Load(), FramesReceived: c.framesReceived.Load(),
		BytesReceived: c.bytesReceived.Load(), Duplicates: c.duplicates.Load(), Gaps: c.gaps.Load(),
		Skipped: c.skipped.Load(), Undecodable: c.undecodable.Load(), Stale: c.stale.Load(),
		Overflows: c.overflow.Load(), Held: c.held.Load(), Outages: c.outages.Load(), Losses: c.losses.Load(),
		Announced: c.announced.Load(), Applied: c.applied.Load(), Snapshots: c.snapshots.Load(),
	}
	for _, p := range b.allPeers() {
		n, size := p.link.size()
		s.Pending += n
		s.PendingBytes += size
	}
	return s
}
