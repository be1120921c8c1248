package bridge

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
)

// giveUpAfter is how often frames are asked for again when entries that cannot
// be read lie where they should be.
const giveUpAfter = 5

// streamID is an entry's ID in its stream.
type streamID struct{ ms, seq uint64 }

func parseID(s string) (id streamID, ok bool) {
	ms, seq, found := strings.Cut(s, "-")
	var err, err2 error
	id.ms, err = strconv.ParseUint(ms, 10, 64)
	id.seq, err2 = strconv.ParseUint(seq, 10, 64)
	return id, found && err == nil && err2 == nil
}

func (id streamID) String() string {
	return strconv.FormatUint(id.ms, 10) + "-" + strconv.FormatUint(id.seq, 10)
}

func (id streamID) less(o streamID) bool {
	return id.ms < o.ms || id.ms == o.ms && id.seq < o.seq
}

// inbound reads this node's stream.
type inbound struct {
	b *Bridge

	// Owned by run.
	frames   [][]byte
	trimmed  streamID
	trimTime time.Time
	loggedAt time.Time
	bad      uint64 // entries that could not be read

	mu  sync.Mutex // guards below
	pos streamID   // of the last entry read; zero: from the beginning
}

// inState is what is known of a peer's frames.
type inState struct {
	link  uint64 // its newest link
	next  uint64 // the number expected
	asked time.Time
	tries int    // times asked without progress
	bad   uint64 // inbound.bad when asked first
	// Since the last acknowledgement that was not left to the clock.
	frames, bytes int
}

func (in *inbound) position() streamID {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.pos
}

// reset has the stream read from its beginning. What is known already is
// dropped by its numbers, and little is left of it.
func (in *inbound) reset() {
	in.mu.Lock()
	in.pos = streamID{}
	in.mu.Unlock()
}

// advance notes an entry as read, unless the stream is to be read anew since
// from was its position.
func (in *inbound) advance(from, to streamID) {
	in.mu.Lock()
	if in.pos == from {
		in.pos = to
	}
	in.mu.Unlock()
}

// run is the goroutine that receives.
func (in *inbound) run() {
	b := in.b
	for b.waitUp() {
		from := in.position()
		entries, err := b.read(b.keys.in, from)
		if err != nil {
			// Another Redis may answer next.
			in.reset()
			b.fail(err)
			continue
		}
		to := from
		for _, e := range entries {
			if id, ok := parseID(e.ID); ok {
				to = id
			}
			in.entry(e)
		}
		in.advance(from, to)
		in.trim(to)
	}
}

// read waits for entries behind a position, for blockFor at most. A wrong type
// is an error like any other: whoever has the name may let go of it.
func (b *Bridge) read(key string, from streamID) ([]redis.XMessage, error) {
	ctx, cancel := context.WithTimeout(b.ctx, blockFor+b.opts.Timeout)
	defer cancel()
	streams, err := b.reader.XRead(ctx, &redis.XReadArgs{
		Streams: []string{key, from.String()}, Count: readEntries, Block: blockFor,
	}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil, fmt.Errorf("%w: key %s is in use for something else", ErrUnfit, key)
	}
	if err != nil || len(streams) == 0 {
		return nil, err
	}
	return streams[0].Messages, nil
}

// trim removes what was read, now and then.
func (in *inbound) trim(to streamID) {
	now := time.Now()
	if to == in.trimmed || to == (streamID{}) || now.Sub(in.trimTime) < trimEvery {
		return
	}
	in.trimmed, in.trimTime = to, now
	behind := streamID{to.ms, to.seq + 1}
	if err := in.b.cmd.XTrimMinID(in.b.ctx, in.b.keys.in, behind.String()).Err(); err != nil {
		in.trimmed = streamID{}
		in.b.fail(err)
	}
}

// decode reads an entry of a stream; false, counted, if it is none.
func (b *Bridge) decode(e redis.XMessage, frames [][]byte) (header, [][]byte, error) {
	value, ok := e.Values[field].(string)
	if !ok {
		return header{}, frames, errShort
	}
	return decodeEntry([]byte(value), frames, b.opts.MaxFrame+entryBytes)
}

// entry takes one entry of the stream.
func (in *inbound) entry(e redis.XMessage) {
	b := in.b
	h, frames, err := b.decode(e, in.frames[:0])
	in.frames = frames
	defer func() {
		clear(in.frames)
		if cap(in.frames) > 4*entryFrames {
			in.frames = nil
		}
	}()
	if err != nil {
		b.stats.undecodable.Add(1)
		in.bad++
		if now := time.Now(); now.Sub(in.loggedAt) >= time.Second {
			in.loggedAt = now
			b.log.Warn("entry skipped", zap.String("stream", b.keys.in), zap.String("id", e.ID), zap.Error(err))
		}
		return
	}
	if h.to != b.opts.Self.Incarnation {
		b.stats.stale.Add(1)
		return
	}
	p := b.peerOf(h.from)
	if p == nil {
		b.stats.stale.Add(1)
		return
	}
	if b.opts.Observe != nil && h.clock != 0 {
		b.opts.Observe(herald.ID(h.clock))
	}
	p.hears(h)
	in.take(p, h, frames)
	if h.flags&flagAnswer != 0 {
		p.link.say(0)
	}
}

// hears takes what an entry says beside its frames.
func (p *peer) hears(h header) {
	p.link.acknowledged(h.ackLink, h.ack, h.flags&flagGap != 0)
	p.announced.Store(max(p.announced.Load(), h.announced))
	if h.routeAck > p.routeAck.Load() {
		p.routeAck.Store(h.routeAck)
		p.b.routes.settle()
	}
	if h.flags&flagRoutes != 0 {
		p.b.routes.missing(h.routeAck)
	}
	if !p.heard.Swap(true) || h.flags&flagAnswer != 0 {
		p.b.routes.settle()
	}
}

// take hands on the frames that are next, and no others.
func (in *inbound) take(p *peer, h header, frames [][]byte) {
	b, s := in.b, &p.in
	switch {
	case h.link < s.link:
		b.stats.stale.Add(1)
		return
	case h.link > s.link:
		if s.link != 0 {
			// The peer had dropped us; what it kept then is gone.
			b.opts.Handler.Gap(p.Peer)
		}
		*s = inState{link: h.link, next: 1}
		p.link.accepted(s.link, 0)
	}
	if h.first > s.next {
		b.stats.gaps.Add(1)
		if !in.giveUp(p) {
			return
		}
		b.stats.skipped.Add(h.first - s.next)
		b.log.Warn("frames given up", zap.Uint16("node", p.Node), zap.Uint64("frames", h.first-s.next))
		s.next = h.first
		p.link.accepted(s.link, s.next-1)
		b.opts.Handler.Gap(p.Peer)
	}
	if known := min(s.next-h.first, uint64(len(frames))); known > 0 {
		b.stats.duplicates.Add(known)
		frames = frames[known:]
		p.link.unsaid()
	}
	if len(frames) == 0 {
		return
	}
	b.opts.Handler.Receive(p.Peer, frames)
	s.tries = 0
	s.next += uint64(len(frames))
	p.link.accepted(s.link, s.next-1)
	s.frames += len(frames)
	bytes := 0
	for _, f := range frames {
		bytes += len(f)
	}
	s.bytes += bytes
	b.stats.bytesReceived.Add(uint64(bytes))
	b.stats.framesReceived.Add(uint64(len(frames)))
	if s.frames >= b.opts.WindowFrames/8 || s.bytes >= b.opts.WindowBytes/8 {
		s.frames, s.bytes = 0, 0
		p.link.say(0)
	}
}

// giveUp asks for missing frames, at most every askEvery/2. If entries that
// cannot be read turn up instead, again and again, it returns true: better to
// lose these than to stand still.
func (in *inbound) giveUp(p *peer) bool {
	s, now := &p.in, time.Now()
	if now.Sub(s.asked) < askEvery/2 {
		return false
	}
	if s.tries == 0 {
		s.bad = in.bad - min(in.bad, 1) // the one before may be why
	}
	s.asked = now
	s.tries++
	if s.tries > giveUpAfter && in.bad-s.bad >= giveUpAfter {
		s.tries = 0
		return true
	}
	p.link.say(flagGap)
	return false
}
