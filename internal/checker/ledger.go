package checker

import (
	"fmt"
	"math"
	"sync"
	"time"
)

// ledger holds what was published, acknowledged and seen. Lock order: an
// audience's mutex, then a stream's, then tally.
type ledger struct {
	// Fixed before the run starts.
	run       uint64
	start     time.Time
	streams   map[[2]uint16]*stream // by publisher and topic
	audiences []*audience
	onAck     func(time.Time)         // may be nil
	onReason  func(time.Time, string) // may be nil

	mu      sync.Mutex // guards below
	report  Report
	lastAck time.Time // of any publisher; zero: pauses are not measured
	faults  []faultTime
}

// now is the time since the run's start, for examples.
func (l *ledger) now() time.Duration { return time.Since(l.start).Round(time.Millisecond) }

// faultTime is when a fault was injected, since the run's start.
type faultTime struct {
	at   time.Duration
	name string
}

// faulted notes that a fault is about to be injected.
func (l *ledger) faulted(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, faultTime{at: l.now(), name: name})
	if l.report.Faults == nil {
		l.report.Faults = make(map[string]int)
	}
	l.report.Faults[name]++
}

// faultBefore describes the last fault before a time.
func (l *ledger) faultBefore(at time.Duration) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := "no fault before"
	for _, f := range l.faults {
		if f.at > at {
			return text + fmt.Sprintf(", %s at %v after", f.name, f.at)
		}
		text = fmt.Sprintf("%s at %v before", f.name, f.at)
	}
	return text
}

// reason counts what a broker said.
func (l *ledger) reason(text string) {
	if l.onReason != nil {
		l.onReason(time.Now(), text)
	}
	l.tally(func(r *Report) {
		if r.Reasons == nil {
			r.Reasons = make(map[string]int)
		}
		r.Reasons[text]++
	})
}

// tally changes the report under its lock.
func (l *ledger) tally(change func(r *Report)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.report)
}

func (l *ledger) protocol(format string, args ...any) {
	at := l.now()
	l.tally(func(r *Report) { r.Protocol.add("%s at %v", fmt.Sprintf(format, args...), at) })
}

// What is known about one publish.
const (
	markAcked = 1 << iota
	markResent
	markRefused
)

// stream is what one publisher's session sends to one topic.
type stream struct {
	// Fixed.
	publisher uint16
	topic     uint16
	who       string
	name      string // of the topic
	qos       byte

	mu    sync.Mutex
	marks []uint8  // by sequence - 1
	acked []uint32 // milliseconds since the run's start, by sequence - 1
}

func (s *stream) String() string { return fmt.Sprintf("%s QoS %d to %s", s.who, s.qos, s.name) }

// next begins a publish and returns its sequence.
func (s *stream) next() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = append(s.marks, 0)
	s.acked = append(s.acked, 0)
	return uint64(len(s.marks))
}

// begun is how many publishes have been begun.
func (s *stream) begun() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.marks))
}

func (s *stream) mark(seq uint64, flag uint8, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks[seq-1] |= flag
	if flag == markAcked {
		s.acked[seq-1] = uint32(at.Milliseconds())
	}
}

// marked returns the flags of a publish; ok is false if it was never begun.
func (s *stream) marked(seq uint64) (flags uint8, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq == 0 || seq > uint64(len(s.marks)) {
		return 0, false
	}
	return s.marks[seq-1], true
}

// acknowledged notes the PUBACK or PUBREC of a publish.
func (l *ledger) acknowledged(s *stream, seq uint64, reason byte) {
	now := time.Now()
	flag := uint8(markAcked)
	if reason >= 0x80 {
		flag = markRefused
	}
	s.mark(seq, flag, now.Sub(l.start))
	if reason >= 0x80 {
		l.reason(fmt.Sprintf("publish refused %#02x", reason))
	}
	l.tally(func(r *Report) {
		if reason >= 0x80 {
			r.Refused++
			return
		}
		r.Acknowledged++
		if l.onAck != nil {
			l.onAck(now)
		}
		if !l.lastAck.IsZero() {
			if pause := Seconds(now.Sub(l.lastAck)); pause > r.LongestPause {
				r.LongestPause = pause
			}
			l.lastAck = now
		}
	})
}

// measurePauses starts or stops the measurement of LongestPause; a pause that
// lasts when it is stopped counts.
func (l *ledger) measurePauses(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !on && !l.lastAck.IsZero() {
		l.report.LongestPause = max(l.report.LongestPause, Seconds(now.Sub(l.lastAck)))
	}
	l.lastAck = time.Time{}
	if on {
		l.lastAck = now
	}
}

// audience is one durable session with subscriptions or one shared group.
type audience struct {
	// Fixed.
	name  string
	group bool

	mu       sync.Mutex
	connects uint32 // of all members so far
	arrivals map[*stream]*arrivals
	last     time.Time // of the last arrival
}

// arrivals is what one audience has seen of one stream.
type arrivals struct {
	after int // what was begun after this sequence is due
	// first holds, by sequence - 1, the value of connects at the first
	// arrival; 0: not yet.
	first []uint32
	// top is the highest sequence seen, by member.
	top map[string]uint64
	// The previous arrival, for repeats out of order.
	prev        uint64
	prevConnect uint32
	settled     int // drain: all before this index have arrived or are not due
}

// expect notes that s may arrive at a from now on: a SUBSCRIBE is about
// to be sent, and PUBLISH may come before SUBACK.
func (a *audience) expect(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.arrivals[s] == nil {
		a.arrivals[s] = &arrivals{after: math.MaxInt, top: make(map[string]uint64)}
	}
}

// due notes that everything of s begun from now on is due to a; only the
// first call for a stream counts.
func (a *audience) due(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := a.arrivals[s]
	seen.after = min(seen.after, int(s.begun()))
}

// connected counts a member's connection.
func (a *audience) connected() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connects++
}

// arrival is one PUBLISH handed to the application of one member.
type arrival struct {
	member string
	label  label
	topic  string
	qos    byte
	dup    bool
}

// arrived judges an arrival.
func (l *ledger) arrived(a *audience, in arrival) {
	s := l.streams[[2]uint16{in.label.publisher, in.label.topic}]
	if s == nil || in.label.run != l.run {
		l.tally(func(r *Report) {
			r.Phantom.add("%s got publisher %d sequence %d of run %x on %s: not of this run", in.member, in.label.publisher, in.label.seq, in.label.run, in.topic)
		})
		return
	}
	if in.topic != s.name {
		l.tally(func(r *Report) {
			r.Corrupted.add("%s got %v, sequence %d, on topic %s", in.member, s, in.label.seq, in.topic)
		})
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	flags, ok := s.marked(in.label.seq)
	seen := a.arrivals[s]
	if !ok || seen == nil {
		why := "sequence never published"
		if ok {
			why = "no filter matches"
		}
		l.tally(func(r *Report) { r.Phantom.add("%s got %v, sequence %d: %s", in.member, s, in.label.seq, why) })
		return
	}
	a.last = time.Now()
	l.judge(a, s, seen, flags, in)
	seen.prev, seen.prevConnect = in.label.seq, a.connects
}

// judge compares an arrival with what came before; a.mu is held.
func (l *ledger) judge(a *audience, s *stream, seen *arrivals, flags uint8, in arrival) {
	seq := in.label.seq
	for uint64(len(seen.first)) < seq {
		seen.first = append(seen.first, 0)
	}
	describe := func() string {
		who := a.name
		if a.group {
			who = in.member + " of the " + a.name
		}
		before := "its first arrival"
		if n := seen.first[seq-1]; n != 0 {
			before = fmt.Sprintf("first seen on connection %d", n)
		}
		return fmt.Sprintf("%s got %v, sequence %d (QoS %d, DUP %t) at %v on connection %d, %s; previous %d, highest %d",
			who, s, seq, in.qos, in.dup, l.now(), a.connects, before, seen.prev, seen.top[in.member])
	}
	// A QoS 1 publish that was sent again is a second message to the broker; at
	// QoS 2 the broker has to notice.
	again := s.qos == 1 && flags&markResent != 0
	if seen.first[seq-1] == 0 {
		top := seen.top[in.member]
		switch {
		case top <= seq:
		case again && int(seq) <= seen.after:
			// Its first copy may have passed before the subscription was there.
		case a.group:
			l.tally(func(r *Report) { r.GroupDisorder++ })
		default:
			what := describe()
			l.tally(func(r *Report) { r.Reordered.add("%s", what) })
		}
		seen.first[seq-1] = a.connects
		seen.top[in.member] = max(top, seq)
		return
	}
	what := ""
	switch {
	case in.qos == 2:
		what = describe()
		l.tally(func(r *Report) { r.Duplicated.add("%s", what) })
	case again:
		l.tally(func(r *Report) { r.Repeats++ })
	case seen.first[seq-1] == a.connects:
		what = describe()
		l.tally(func(r *Report) { r.Needless.add("%s", what) })
	case !a.group && seen.prevConnect == a.connects && seen.prev >= seq:
		what = describe()
		l.tally(func(r *Report) { r.Reordered.add("repeat: %s", what) })
	default:
		l.tally(func(r *Report) { r.Repeats++ })
	}
}

// missing returns how many acknowledged publishes have not arrived yet at a;
// each gets those that are missing, if it is not nil.
func (a *audience) missing(each func(s *stream, seq uint64, ackedAt time.Duration)) (missing, expected int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s, seen := range a.arrivals {
		s.mu.Lock()
		start := max(seen.settled, seen.after)
		if each != nil {
			start = seen.after
		}
		for i := start; i < len(s.marks); i++ {
			acked := s.marks[i]&markAcked != 0
			seenIt := i < len(seen.first) && seen.first[i] != 0
			if acked {
				expected++
			}
			if acked && !seenIt {
				missing++
				if each != nil {
					each(s, uint64(i+1), time.Duration(s.acked[i])*time.Millisecond)
				}
			}
			// What is not answered yet may still become due.
			if i == start && (acked && seenIt || s.marks[i]&markRefused != 0) {
				start++
				seen.settled = start
			}
		}
		s.mu.Unlock()
	}
	return missing, expected
}

// lastArrival is when something last arrived at a.
func (a *audience) lastArrival() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// conclude fills the report's totals at the end of a run.
func (l *ledger) conclude() {
	published := 0
	for _, s := range l.streams {
		published += int(s.begun())
	}
	var missing, expected int
	for _, a := range l.audiences {
		m, e := a.missing(func(s *stream, seq uint64, ackedAt time.Duration) {
			fault := l.faultBefore(ackedAt)
			l.tally(func(r *Report) {
				r.Lost.add("%s did not get %v, sequence %d, acknowledged at %v; %s", a.name, s, seq, ackedAt, fault)
			})
		})
		missing, expected = missing+m, expected+e
	}
	l.tally(func(r *Report) {
		r.Published, r.Expected, r.Arrived = published, expected, expected-missing
	})
}
