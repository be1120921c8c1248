package bridge

import (
	"errors"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/internal/redistest"
)

// traffic sends from nodes[0] to nodes[1] until stopped, at a rate that lets the
// test last.
func traffic(s *sender) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				for range 10 {
					s.send()
				}
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// Whatever happens to Redis, what was accepted arrives once and in order, and
// what was refused does not arrive.
func TestNothingIsLostOrTwice(t *testing.T) {
	faults := map[string]func(t *testing.T, r *redistest.Server, nodes []*node){
		"killed and emptied": func(t *testing.T, r *redistest.Server, nodes []*node) {
			r.Kill()
			eventually(t, "unavailable", func() bool { return !nodes[0].Available() })
			r.RestartEmpty()
		},
		"emptied at once":  func(t *testing.T, r *redistest.Server, _ []*node) { r.RestartEmpty() },
		"rolled back":      func(t *testing.T, r *redistest.Server, _ []*node) { r.Restart() },
		"flushed":          func(t *testing.T, r *redistest.Server, _ []*node) { r.Do("FLUSHALL") },
		"a stream deleted": func(t *testing.T, r *redistest.Server, _ []*node) { r.Do("DEL herald:{2}:in") },
		"connections cut": func(t *testing.T, r *redistest.Server, _ []*node) {
			for range 5 {
				r.Do("CLIENT KILL TYPE normal SKIPME yes")
			}
		},
		"frozen for less than a timeout": func(t *testing.T, r *redistest.Server, _ []*node) {
			r.Freeze()
			time.Sleep(100 * time.Millisecond) // the length of the fault
			r.Thaw()
		},
		"frozen until it counts as away": func(t *testing.T, r *redistest.Server, nodes []*node) {
			r.Freeze()
			eventually(t, "frames are held", func() bool { return nodes[0].Stats().Held > 0 })
			r.Thaw()
		},
		"out of memory": func(t *testing.T, r *redistest.Server, nodes []*node) {
			r.Do("CONFIG SET maxmemory 1")
			eventually(t, "unavailable", func() bool { return !nodes[0].Available() })
			r.Do("CONFIG SET maxmemory 0")
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := redistest.Start(t)
			nodes := cluster(t, r, 2)
			s := newSender(nodes[0], nodes[1])
			stop := traffic(s)
			for range 3 {
				before := nodes[1].count(1)
				eventually(t, "traffic", func() bool { return nodes[1].count(1) >= before+300 })
				r.Save()
				eventually(t, "traffic after the snapshot", func() bool { return nodes[1].count(1) >= before+600 })
				fault(t, r, nodes)
				eventually(t, "available", func() bool { return nodes[0].Available() && nodes[1].Available() })
			}
			before := nodes[1].count(1)
			eventually(t, "traffic after the fault", func() bool { return nodes[1].count(1) >= before+300 })
			stop()
			s.settledWith(t, nodes[1])
			accepted, _, refused, _ := s.outcome()
			t.Logf("%d accepted, %d refused, losses %v, sender %+v, receiver %+v",
				accepted, refused, nodes[0].losses(), nodes[0].Stats(), nodes[1].Stats())
		})
	}
}

func TestTheOwnerIsToldOfALoss(t *testing.T) {
	tests := map[string]struct {
		fault func(r *redistest.Server)
		want  error
	}{
		"emptied":    {func(r *redistest.Server) { r.RestartEmpty() }, ErrEmptied},
		"flushed":    {func(r *redistest.Server) { r.Do("FLUSHALL") }, ErrEmptied},
		"restarted":  {func(r *redistest.Server) { r.Restart() }, ErrRestarted},
		"went back":  {func(r *redistest.Server) { r.Do("DEL herald:{1}:in") }, ErrRolledBack},
		"only a cut": {func(r *redistest.Server) { r.Do("CLIENT KILL TYPE normal SKIPME yes") }, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := redistest.Start(t)
			nodes := cluster(t, r, 2)
			s := newSender(nodes[1], nodes[0])
			s.send()
			s.settledWith(t, nodes[0])
			eventually(t, "something is read", func() bool { return nodes[0].in.position() != streamID{} })
			r.Save()
			test.fault(r)
			if test.want == nil {
				s.send()
				s.settledWith(t, nodes[0])
				if lost := nodes[0].losses(); len(lost) != 0 {
					t.Errorf("told of %v", lost)
				}
				return
			}
			eventually(t, "the owner is told", func() bool { return len(nodes[0].losses()) > 0 })
			if lost := nodes[0].losses(); !errors.Is(lost[0], test.want) {
				t.Errorf("told of %v, want %v", lost, test.want)
			}
			s.send()
			s.settledWith(t, nodes[0])
		})
	}
}

// Redis is away: known at once, those who wait are refused, others are kept up to
// the bound.
func TestAwayIsKnownQuickly(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2, func(o *Options) { o.WindowFrames = 100 })
	r.Kill()
	start := time.Now()
	eventually(t, "unavailable", func() bool { return !nodes[0].Available() })
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("known after %v", took)
	}
	if err := nodes[0].Err(); err == nil {
		t.Error("no reason")
	}
	if err := nodes[0].AppendAsync(nodes[1].self, number(1), func(error) { t.Error("called") }); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with somebody waiting: %v", err)
	}
	for i := range 101 {
		err := nodes[0].AppendAsync(nodes[1].self, number(uint64(i+1)), nil)
		if want := i < 100; (err == nil) != want {
			t.Errorf("frame %d: %v", i, err)
		} else if !want && !errors.Is(err, ErrOverflow) {
			t.Errorf("frame %d: %v", i, err)
		}
	}
	r.Restart()
	eventually(t, "what was kept arrives", func() bool { return nodes[1].count(1) == 100 })
	inOrder(t, nodes[1].received(1))
}

// What never left is given back; it does not arrive.
func TestWhatWasNotSentIsGivenBack(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	s := newSender(nodes[0], nodes[1])
	s.send()
	s.settledWith(t, nodes[1]) // the link is there: nothing is on its way before the next
	r.Freeze()
	s.send() // on its way
	eventually(t, "the next is sent", func() bool {
		l := nodes[0].peers[2].link
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.sent > 1
	})
	s.send()
	s.send()
	eventually(t, "outcomes", func() bool { _, held, refused, _ := s.outcome(); return held == 1 && refused == 2 })
	for n, err := range s.refused {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%d: %v", n, err)
		}
	}
	r.Thaw()
	s.settledWith(t, nodes[1])
	if got := nodes[1].received(1); len(got) != 2 {
		t.Errorf("arrived: %v", got)
	}
}

// A receiver that does not keep up fills the window and no more.
func TestASlowReceiverBoundsTheSender(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2, func(o *Options) { o.WindowFrames = 1000; o.WindowBytes = 4000 })
	block := make(chan struct{})
	nodes[1].mu2(func(o *owner) { o.block = block })
	s := newSender(nodes[0], nodes[1])
	for range 1000 {
		s.send()
	}
	if n := nodes[0].Stats().PendingBytes; n > 4000 {
		t.Errorf("%d bytes are kept", n)
	}
	if _, _, refused, _ := s.outcome(); refused != 500 {
		t.Errorf("%d refused, want 500", refused)
	}
	nodes[1].mu2(func(o *owner) { o.block = nil })
	close(block)
	s.settledWith(t, nodes[1])
	eventually(t, "room again", func() bool { return nodes[0].Stats().Pending == 0 })
	if err := nodes[0].AppendAsync(nodes[1].self, make([]byte, 5000), nil); err != nil {
		t.Errorf("a frame above the window, alone: %v", err)
	}
	if err := nodes[0].AppendAsync(nodes[1].self, make([]byte, 17<<20), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a frame above the limit: %v", err)
	}
}

func (o *owner) mu2(f func(*owner)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f(o)
}

// A node that starts anew gets nothing that was meant for its predecessor, and
// who waits for that is told.
func TestANewIncarnationBeginsWithEmptyHands(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	s := newSender(nodes[0], nodes[1])
	s.send()
	s.settledWith(t, nodes[1])
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	s.send()
	eventually(t, "redis has it", func() bool { accepted, _, _, _ := s.outcome(); return accepted == 2 })

	again := open(t, r, Peer{2, 2})
	again.SetPeers([]Peer{nodes[0].self, again.self})
	eventually(t, "the new one is met", func() bool {
		return errors.Is(nodes[0].AppendAsync(nodes[1].self, number(9), nil), ErrGone)
	})
	nodes[0].SetPeers([]Peer{nodes[0].self, again.self})
	if err := again.Ready(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	s2 := newSender(nodes[0], again)
	s2.send()
	s2.settledWith(t, again)
	if again.Stats().Stale == 0 {
		t.Error("nothing stale was dropped")
	}
	nodes[0].mu2(func(o *owner) {
		if o.gaps[2] != 1 {
			t.Errorf("told %d times that node 2 started anew", o.gaps[2])
		}
	})
}

// A peer that was dropped and comes back by mistake of its owner is served by a
// new link, and told that frames may be missing.
func TestADroppedPeerComesBack(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	s := newSender(nodes[0], nodes[1])
	s.send()
	s.settledWith(t, nodes[1])
	nodes[0].SetPeers(nil)
	if err := nodes[0].AppendAsync(nodes[1].self, number(2), nil); !errors.Is(err, ErrGone) {
		t.Errorf("to a dropped peer: %v", err)
	}
	nodes[0].SetPeers([]Peer{nodes[1].self})
	s.send()
	s.settledWith(t, nodes[1])
	nodes[1].mu2(func(o *owner) {
		if o.gaps[1] != 1 {
			t.Errorf("told of %d gaps", o.gaps[1])
		}
	})
}

func TestCloseTellsWhoWaits(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	r.Freeze()
	got := make(chan error, 2)
	if err := nodes[0].AppendAsync(nodes[1].self, number(1), func(err error) { got <- err }); err != nil {
		t.Fatal(err)
	}
	_ = nodes[0].Close() // connections to a frozen server
	eventually(t, "told", func() bool { return len(got) > 0 })
	for err := range got {
		if errors.Is(err, herald.ErrClosed) {
			break
		}
		if !errors.Is(err, ErrHeld) {
			t.Errorf("told %v", err)
		}
	}
	if err := nodes[0].AppendAsync(nodes[1].self, number(2), nil); !errors.Is(err, herald.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := nodes[0].Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	r.Thaw()
}

// Entries that are not ours are counted and skipped, and hold up nobody.
func TestGarbageIsSkipped(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	s := newSender(nodes[0], nodes[1])
	for range 10 {
		r.Do("XADD herald:{2}:in * e garbage")
		r.Do("XADD herald:{2}:in * other x")
		r.Do("XADD herald:routes * e garbage")
		s.send()
	}
	s.settledWith(t, nodes[1])
	eventually(t, "counted", func() bool { return nodes[1].Stats().Undecodable == 30 })
}

// Redis loses what it acknowledged and nobody has read. Either side notices, or
// the sender asks when the acknowledgement is late.
func TestWhatRedisLostIsSentAgain(t *testing.T) {
	faults := map[string]func(r *redistest.Server){
		"emptied":          func(r *redistest.Server) { r.RestartEmpty() },
		"rolled back":      func(r *redistest.Server) { r.Restart() },
		"a stream deleted": func(r *redistest.Server) { r.Do("DEL herald:{2}:in") },
		"one entry lost": func(r *redistest.Server) {
			r.Do("XTRIM herald:{2}:in MAXLEN = 3")
		},
		// Nothing follows that would show it.
		"the newest entries lost": func(r *redistest.Server) { r.Do("XTRIM herald:{2}:in MAXLEN = 0") },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := redistest.Start(t)
			nodes := cluster(t, r, 2)
			block := make(chan struct{})
			nodes[1].mu2(func(o *owner) { o.block = block })
			s := newSender(nodes[0], nodes[1])
			accepted := func(want int) {
				eventually(t, "redis has it", func() bool { n, _, _, _ := s.outcome(); return n == want })
			}
			for i := range 50 {
				s.send()
				accepted(i + 1) // one entry each, more than one read brings
			}
			r.Save()
			for i := range 100 {
				s.send()
				accepted(50 + i + 1)
			}
			fault(r)
			nodes[1].mu2(func(o *owner) { o.block = nil })
			close(block)
			s.settledWith(t, nodes[1])
			eventually(t, "acknowledged", func() bool { return nodes[0].Stats().Pending == 0 })
			if nodes[0].Stats().FramesResent == 0 {
				t.Error("nothing was sent again")
			}
		})
	}
}

// Frames whose entries can never be read are given up, aloud, instead of being
// asked for without end.
func TestFramesThatCannotBeReadAreGivenUp(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	self := Peer{3, 1}
	// A node of a later release: every entry with frames 1 to 3 is of a version
	// that node 2 does not know, what it sends later is not.
	client := dial(must(parseURL(r.URL())), time.Second, nil)
	defer client.Close()
	quit := time.After(10 * time.Second)
	for nodes[1].count(3) == 0 {
		select {
		case <-quit:
			t.Fatal("stands still")
		default:
		}
		for _, h := range []header{{first: 1}, {first: 4}} {
			h.from, h.to, h.link = self, 1, 1
			entry, _ := appendEntry(nil, nil, h, [][]byte{number(h.first), number(h.first + 1), number(h.first + 2)}, 0)
			if h.first == 1 {
				entry[0] = 99
			}
			if err := client.Do(t.Context(), "XADD", "herald:{2}:in", "*", field, entry).Err(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Millisecond) // the peer's pace
	}
	inOrder(t, nodes[1].received(3))
	nodes[1].mu2(func(o *owner) {
		if o.gaps[3] != 1 {
			t.Errorf("told of %d gaps", o.gaps[3])
		}
	})
	if n := nodes[1].Stats().Skipped; n != 3 {
		t.Errorf("%d frames skipped", n)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// After a loss, Redis's clock may be behind what was read before.
func TestRedisComesBackWithAnEarlierClock(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	for _, key := range []string{"herald:{1}:in", "herald:{2}:in", "herald:routes"} {
		r.Do("XADD " + key + " 99999999999999-0 e x")
	}
	s := newSender(nodes[0], nodes[1])
	for range 2 {
		s.send()
		s.settledWith(t, nodes[1])
		position, err := nodes[0].Announce(Change{Add: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Settled(within(t, 5*time.Second), position); err != nil {
			t.Fatal(err)
		}
		r.RestartEmpty()
		eventually(t, "available", func() bool { return nodes[0].Available() && nodes[1].Available() })
	}
}
