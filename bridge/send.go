package bridge

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/herald-mqtt/herald"
)

// frame is one that the peer has not acknowledged.
type frame struct {
	payload []byte
	done    func(error) // nil when nobody waits, or no more
	held    bool        // done was told so
}

// link is the way to one peer: the frames that it has not acknowledged, and the
// goroutine that appends them to its stream.
//
// Frames are numbered from 1. A number, once sent, belongs to its frame for good:
// Redis may have it although it did not answer.
//
//	  acked     confirmed        next       sent
//	----|------------|------------|----------|---------> number
//	gone|  Redis has |  on the way | again    | never sent yet
//
// next falls back to send again; the others only rise.
type link struct {
	b    *Bridge
	peer *peer
	id   uint64
	wake chan struct{} // of capacity 1

	// Owned by run.
	batch   [][]byte
	packets []packet
	buf     []byte
	scratch []byte

	mu        sync.Mutex // guards below
	frames    []frame    // frames[head:] are acked+1, acked+2, ...
	head      int
	bytes     int // of the payloads
	acked     uint64
	confirmed uint64 // Redis has answered for all up to this
	next      uint64 // the first to be sent, or sent again
	sent      uint64 // the last that was ever sent
	finished  []result
	returning int // of finished: frames that are given back
	ended     error
	busy      bool      // run is in the middle of something
	failing   time.Time // since when no append to this peer has succeeded
	retryAt   time.Time // not to be tried before

	// What is to be said with the next entry.
	flags     byte
	speak     bool   // even if there are no frames
	inLink    uint64 // acknowledgement: all of the peer's link inLink
	inAck     uint64 // up to inAck
	saidAck   uint64
	ackedAt   time.Time // of the last progress: acknowledged, or confirmed from none
	saidAckAt time.Time
	rewoundTo uint64
	rewoundAt time.Time
}

type result struct {
	done func(error)
	err  error
}

// packet is an entry about to be sent.
type packet struct {
	header
	from, to int // its frames in batch
}

// links numbers the links of the process.
var links atomic.Uint64

func newLink(b *Bridge, p *peer) *link {
	return &link{b: b, peer: p, id: links.Add(1), wake: make(chan struct{}, 1), next: 1, ackedAt: time.Now()}
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// push takes a frame.
func (l *link) push(payload []byte, done func(error)) error {
	l.mu.Lock()
	n := len(l.frames) - l.head
	switch {
	case l.ended != nil:
		l.mu.Unlock()
		return l.ended
	case done != nil && (l.returning > 0 || l.failedLocked(time.Now())): // it would overtake those
		l.mu.Unlock()
		return fmt.Errorf("bridge: node %d: %w", l.peer.Node, ErrUnavailable)
	case n >= l.b.opts.WindowFrames, n > 0 && l.bytes+len(payload) > l.b.opts.WindowBytes:
		l.mu.Unlock()
		l.b.stats.overflow.Add(1)
		return fmt.Errorf("bridge: node %d: %w", l.peer.Node, ErrOverflow)
	}
	l.frames = append(l.frames, frame{payload: payload, done: done})
	l.bytes += len(payload)
	l.mu.Unlock()
	l.poke()
	return nil
}

// failedLocked tells whether appends to this peer fail for longer than anybody
// should wait, although Redis as a whole is there: one shard of a Redis Cluster
// is down, say.
func (l *link) failedLocked(now time.Time) bool {
	return !l.failing.IsZero() && now.Sub(l.failing) >= l.b.opts.Patience
}

// last is the number of the newest frame.
func (l *link) last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked + uint64(len(l.frames)-l.head)
}

// has tells whether the peer has everything up to a number, or is gone.
func (l *link) has(upTo uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended != nil || l.acked >= upTo
}

// say has flags sent, with an entry of its own if need be.
func (l *link) say(flags byte) {
	l.mu.Lock()
	l.flags |= flags
	l.speak = true
	l.mu.Unlock()
	l.poke()
}

// accepted notes how far the peer's frames have been received.
func (l *link) accepted(inLink, upTo uint64) {
	l.mu.Lock()
	if l.inLink != inLink {
		l.saidAck = 0
	}
	l.inLink, l.inAck = inLink, upTo
	l.mu.Unlock()
}

// unsaid has the acknowledgement said again: the peer sent what we have.
func (l *link) unsaid() {
	l.mu.Lock()
	l.saidAck = 0
	l.mu.Unlock()
}

// acknowledged drops what the peer has; with gap, the rest is sent again.
func (l *link) acknowledged(id, upTo uint64, gap bool) {
	l.mu.Lock()
	if id < l.id && gap {
		upTo = 0 // knows a former link, or none, and has nothing of this one yet
	} else if id != l.id || upTo > l.sent || l.ended != nil {
		l.mu.Unlock()
		return
	}
	if upTo > l.acked {
		n := int(upTo - l.acked)
		for i := l.head; i < l.head+n; i++ {
			f := &l.frames[i]
			l.bytes -= len(f.payload)
			if f.done != nil {
				l.finished = append(l.finished, result{f.done, nil})
			}
			*f = frame{}
		}
		if l.head += n; l.head == len(l.frames) {
			l.frames, l.head = l.frames[:0], 0
			if cap(l.frames) > 4096 {
				l.frames = nil // a burst is over
			}
		} else if l.head > 1024 && l.head > len(l.frames)/2 {
			n := copy(l.frames, l.frames[l.head:])
			clear(l.frames[n:])
			l.frames, l.head = l.frames[:n], 0
		}
		l.acked = upTo
		l.confirmed = max(l.confirmed, upTo)
		l.next = max(l.next, upTo+1)
		l.ackedAt = time.Now()
	}
	l.mu.Unlock()
	if gap {
		l.rewind(upTo + 1)
	}
	l.poke()
}

// rewind sends everything from the given number again, 0: all that is not
// acknowledged. Being asked twice for the same while it is on its way changes
// nothing.
func (l *link) rewind(from uint64) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if from != 0 && from == l.rewoundTo && now.Sub(l.rewoundAt) < askEvery {
		return
	}
	l.rewoundTo, l.rewoundAt = max(from, l.acked+1), now
	l.next = min(l.next, l.rewoundTo)
}

// tick asks for an acknowledgement that is late and gives one that is due.
func (l *link) tick(now time.Time) {
	l.mu.Lock()
	speak := l.inAck > l.saidAck
	if l.acked < l.confirmed && now.Sub(l.ackedAt) >= probeAfter {
		l.ackedAt = now
		l.flags |= flagAnswer
		speak = true
	}
	l.speak = l.speak || speak
	poke := speak || !l.retryAt.IsZero()
	failed := l.failedLocked(now)
	l.mu.Unlock()
	if failed {
		l.hold()
	}
	if poke {
		l.poke()
	}
}

// hold gives back what was never sent and has somebody waiting, and tells who
// waits for the rest that it is held. Redis has been away for longer than
// anybody should wait.
func (l *link) hold() {
	l.mu.Lock()
	keep := l.head
	for i := l.head; i < len(l.frames); i++ {
		f := &l.frames[i]
		number := l.acked + 1 + uint64(i-l.head)
		switch {
		case f.done == nil || number <= l.confirmed:
		case number > l.sent:
			l.finished = append(l.finished, result{f.done, ErrUnavailable})
			l.returning++
			l.bytes -= len(f.payload)
			continue
		case !f.held:
			f.held = true
			l.b.stats.held.Add(1)
			l.finished = append(l.finished, result{f.done, ErrHeld})
		}
		// Those behind move up: their numbers were never sent.
		l.frames[keep] = *f
		keep++
	}
	clear(l.frames[keep:])
	l.frames = l.frames[:keep]
	some := len(l.finished) > 0
	l.mu.Unlock()
	if some {
		l.poke()
	}
}

// end stops the link for good.
func (l *link) end(err error) {
	l.mu.Lock()
	if l.ended == nil {
		l.ended = err
	}
	l.mu.Unlock()
	l.poke()
}

func (l *link) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.busy && len(l.finished) == 0 && l.acked+uint64(len(l.frames)-l.head) <= l.confirmed
}

func (l *link) size() (frames, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.frames) - l.head, l.bytes
}

// run is the link's goroutine.
func (l *link) run() {
	for {
		select {
		case <-l.wake:
		case <-l.b.ctx.Done():
		}
		for l.step() {
		}
		l.mu.Lock()
		if l.b.ctx.Err() != nil && l.ended == nil {
			l.ended = herald.ErrClosed
		}
		ended := l.ended
		l.mu.Unlock()
		if ended != nil {
			l.finishAll(ended)
			return
		}
	}
}

func (l *link) finishAll(err error) {
	l.mu.Lock()
	all := l.finished
	for _, f := range l.frames[l.head:] {
		if f.done != nil {
			all = append(all, result{f.done, err})
		}
	}
	l.frames, l.head, l.bytes, l.finished = nil, 0, 0, nil
	l.mu.Unlock()
	for _, r := range all {
		r.done(r.err)
	}
}

// step tells who waits and sends one batch. It returns whether there may be more
// to do.
func (l *link) step() bool {
	l.mu.Lock()
	finished, returning := l.finished, l.returning
	l.finished = nil
	l.busy = len(finished) > 0
	if l.ended == nil && l.b.available.Load() && (l.retryAt.IsZero() || !time.Now().Before(l.retryAt)) {
		l.gatherLocked()
		l.busy = l.busy || len(l.packets) > 0
	}
	l.mu.Unlock()
	for _, r := range finished {
		r.done(r.err)
	}
	if returning > 0 {
		l.mu.Lock()
		l.returning -= returning
		l.mu.Unlock()
	}
	if len(l.packets) > 0 {
		l.send()
		clear(l.batch)
		l.batch, l.packets = l.batch[:0], l.packets[:0]
		return true
	}
	return len(finished) > 0
}

// gatherLocked makes entries of what is to be sent.
func (l *link) gatherLocked() {
	end := l.acked + uint64(len(l.frames)-l.head)
	if l.next > end && !l.speak {
		return
	}
	p := l.peer
	h := header{
		flags: l.flags, from: l.b.opts.Self, to: p.Incarnation, link: l.id,
		ackLink: l.inLink, ack: l.inAck,
		routeAck: p.applied.Load(), announced: l.b.routes.announced(),
	}
	if l.b.opts.Clock != nil {
		h.clock = uint64(l.b.opts.Clock())
	}
	l.flags, l.speak = 0, false
	l.saidAck, l.saidAckAt = l.inAck, time.Now()
	if l.acked == l.confirmed {
		l.ackedAt = l.saidAckAt // the wait for an acknowledgement begins
	}
	total := 0
	for again := true; again; again = l.next <= end && total < batchBytes {
		h.first = l.next
		k := packet{header: h, from: len(l.batch)}
		for size := 0; l.next <= end && len(l.batch)-k.from < entryFrames; l.next++ {
			f := &l.frames[l.head+int(l.next-l.acked-1)]
			if size += len(f.payload) + 2; size > entryBytes && len(l.batch) > k.from {
				break
			}
			if l.next <= l.sent {
				l.b.stats.framesResent.Add(1)
			}
			l.batch = append(l.batch, f.payload)
			total += len(f.payload)
		}
		k.to = len(l.batch)
		l.packets = append(l.packets, k)
		h.flags = 0
	}
	l.sent = max(l.sent, l.next-1)
}

// send appends the entries to the peer's stream in one round trip.
func (l *link) send() {
	ctx := l.b.ctx
	pipe := l.b.cmd.Pipeline()
	key := inKey(l.b.opts.Prefix, l.peer.Node)
	l.buf = l.buf[:0]
	ends := make([]int, len(l.packets))
	for i, k := range l.packets {
		l.buf, l.scratch = appendEntry(l.buf, l.scratch, k.header, l.batch[k.from:k.to], l.b.opts.CompressOver)
		ends[i] = len(l.buf)
	}
	cmds := make([]*redis.StringCmd, len(l.packets))
	start := 0
	for i, end := range ends {
		cmds[i] = pipe.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []any{field, l.buf[start:end]}})
		start = end
	}
	_, err := pipe.Exec(ctx)
	ok := 0
	for ok < len(cmds) && cmds[ok].Err() == nil {
		ok++
	}
	l.b.stats.entriesSent.Add(uint64(ok))
	l.b.stats.bytesSent.Add(uint64(len(l.buf)))
	l.b.stats.framesSent.Add(uint64(len(l.batch)))
	if cap(l.buf) > 2*batchBytes {
		l.buf, l.scratch = nil, nil // a large frame went by
	}

	l.mu.Lock()
	if ok > 0 {
		k := &l.packets[ok-1]
		l.confirmLocked(k.first + uint64(k.to-k.from) - 1)
	}
	if ok == len(cmds) {
		l.failing, l.retryAt = time.Time{}, time.Time{}
	} else {
		now := time.Now()
		if l.failing.IsZero() {
			l.failing = now
		}
		l.retryAt = now.Add(min(max(now.Sub(l.failing), backoffFirst), backoffLast))
		k := &l.packets[ok]
		l.next = min(l.next, max(k.first, l.acked+1))
		// Said again even if Redis has it: all flags are questions.
		l.flags |= l.packets[0].flags
		l.speak = true
	}
	l.mu.Unlock()
	if err == nil || l.b.ctx.Err() != nil {
		return
	}
	if e := cmds[min(ok, len(cmds)-1)].Err(); e != nil {
		err = e
	}
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		err = fmt.Errorf("%w: key %s is in use for something else", ErrUnfit, key)
	}
	l.b.fail(err)
}

// confirmLocked notes that Redis has everything up to the given number.
func (l *link) confirmLocked(upTo uint64) {
	for number := max(l.confirmed, l.acked) + 1; number <= upTo; number++ {
		f := &l.frames[l.head+int(number-l.acked-1)]
		if f.done != nil {
			l.finished = append(l.finished, result{f.done, nil})
			f.done = nil
		}
	}
	l.confirmed = max(l.confirmed, upTo)
}
