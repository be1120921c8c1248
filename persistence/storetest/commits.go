package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

var commitTests = []test{
	{"dones come in the order of one goroutine's commits, each once", func(h *harness) {
		const committers, each = 8, 300
		var wg, dones sync.WaitGroup
		s := h.session()
		for range committers {
			dones.Add(each)
			wg.Add(1)
			go func() {
				defer wg.Done()
				next := 0 // dones of one goroutine's commits do not overlap
				for i := range each {
					b := &persistence.Batch{Lazy: i%3 == 1}
					switch i % 4 {
					case 0:
						b.Spreads = []persistence.Spread{{Messages: messages(2, "t"), Targets: to(s)}}
					case 1:
						b.Marks = []persistence.Mark{{Session: s, Low: 1}}
					case 2:
						b.Retain = messages(1, "r")
					}
					h.store.Commit(b, func(err error) {
						if err != nil {
							h.Errorf("commit: %v", err)
						}
						if next != i {
							h.Errorf("done of commit %d came as number %d", i, next)
						}
						next++
						dones.Done()
					})
				}
			}()
		}
		wg.Wait()
		h.commit(&persistence.Batch{})
		h.wait(&dones)
	}},
	{"when done is called, every read sees the batch", func(h *harness) {
		s := h.session()
		var wg sync.WaitGroup
		for c := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range 50 {
					m := message(fmt.Sprintf("t/%d/%d", c, i), "x")
					held := persistence.Held{Session: s, PacketID: uint16(c*1000 + i + 1), ID: m.ID}
					if err := commit(h.store, &persistence.Batch{
						Spreads: []persistence.Spread{{Messages: []*herald.Message{m}, Targets: to(s)}},
						Retain:  []*herald.Message{m}, Held: []persistence.Held{held},
					}); err != nil {
						h.Errorf("commit: %v", err)
						return
					}
					if got, err := h.store.Inbox(ctx, s, m.ID-1, m.ID, 10, 1<<20, nil); err != nil || len(got) != 1 {
						h.Errorf("inbox: %d entries, %v", len(got), err)
					}
					if got, err := h.store.Retained(ctx, m.Topic); err != nil || got.ID != m.ID {
						h.Errorf("retained: %v", err)
					}
					if h.store.MaxID() < m.ID {
						h.Errorf("MaxID lags")
					}
				}
			}()
		}
		wg.Wait()
		h.equal("held", len(h.window(s).Held), 200)
	}},
	{"a lazy batch is done without a later one", func(h *harness) {
		s := h.session()
		h.commit(&persistence.Batch{Lazy: true, Marks: []persistence.Mark{{Session: s, Low: 5}}})
		h.twice(func() { h.equal("low", h.window(s).Low, herald.ID(5)) })
	}},
	{"close commits what is under way", func(h *harness) {
		s := h.session()
		var dones sync.WaitGroup
		for i := range 100 {
			dones.Add(1)
			h.store.Commit(&persistence.Batch{Lazy: i%2 == 0, Held: []persistence.Held{{Session: s, PacketID: uint16(i + 1), ID: newID()}}},
				func(err error) {
					if err != nil {
						h.Errorf("commit: %v", err)
					}
					dones.Done()
				})
		}
		h.reopen()
		h.wait(&dones)
		h.equal("held", len(h.window(s).Held), 100)
	}},
	{"empty batches and batches without done are taken", func(h *harness) {
		h.store.Commit(&persistence.Batch{}, nil)
		h.store.Commit(&persistence.Batch{Lazy: true}, nil)
		h.commit(&persistence.Batch{})
		h.noError("health", h.store.Health())
	}},
	{"done may commit", func(h *harness) {
		s := h.session()
		last := make(chan error, 1)
		var left atomic.Int64
		left.Store(50)
		var again func(error)
		again = func(err error) {
			if err != nil || left.Add(-1) == 0 {
				last <- err
				return
			}
			h.store.Commit(&persistence.Batch{Held: []persistence.Held{{Session: s, PacketID: 1, ID: newID()}}}, again)
		}
		again(nil)
		select {
		case err := <-last:
			h.noError("commit", err)
		case <-time.After(patience):
			h.Fatal("commits from done did not end")
		}
	}},
	{"readers and writers run at the same time", mixed},
	{"after close everything says ErrClosed", func(h *harness) {
		s := h.d.Open(h)
		h.noError("close", s.Close())
		if err := commit(s, &persistence.Batch{}); !errors.Is(err, herald.ErrClosed) {
			h.Errorf("Commit: %v", err)
		}
		_, err1 := s.Session(ctx, persistence.Client, "c")
		_, err2 := s.Inbox(ctx, 1, 0, 9, 1, 1, nil)
		_, err3 := s.Window(ctx, 1)
		_, err4 := s.Retained(ctx, "t")
		_, _, err5 := s.ScanRetained(ctx, "#", "", 1, 1, nil)
		for i, err := range []error{err1, err2, err3, err4, err5, s.Health(), s.Close()} {
			if !errors.Is(err, herald.ErrClosed) {
				h.Errorf("read %d: %v", i, err)
			}
		}
	}},
	{"a cancelled context ends a read", func(h *harness) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := h.store.ScanSessions(gone, func(persistence.Session) error { return nil }); !errors.Is(err, context.Canceled) {
			h.Errorf("ScanSessions: %v", err)
		}
		if _, err := h.store.Inbox(gone, 1, 0, 9, 1, 1, nil); !errors.Is(err, context.Canceled) {
			h.Errorf("Inbox: %v", err)
		}
	}},
}

// wait waits for wg, but not for ever.
func (h *harness) wait(wg *sync.WaitGroup) {
	h.Helper()
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(patience):
		h.Fatal("not every done was called")
	}
}

// mixed has sessions filled, read and settled at the same time. Each reader sees
// the messages of each of its publishers once and in order.
func mixed(h *harness) {
	const sessions, rounds, run = 4, 150, 10
	var wg sync.WaitGroup
	for range sessions {
		s := h.session()
		done := make(chan struct{})
		wg.Add(2)
		go func() {
			defer wg.Done()
			defer close(done)
			for range rounds {
				if err := commit(h.store, &persistence.Batch{Spreads: []persistence.Spread{{Messages: messages(run, "t"), Targets: to(s)}}}); err != nil {
					h.Errorf("commit: %v", err)
					return
				}
			}
		}()
		go func() {
			defer wg.Done()
			at, n := herald.ID(0), 0
			for last := false; ; {
				page, err := h.store.Inbox(ctx, s, at, ^herald.ID(0), 64, 1<<20, nil)
				if err != nil {
					h.Errorf("inbox: %v", err)
					return
				}
				for _, e := range page {
					if e.Message.ID <= at {
						h.Errorf("entry %d behind %d", e.Message.ID, at)
					}
					at = e.Message.ID
					n++
				}
				if len(page) > 0 {
					h.store.Commit(&persistence.Batch{Lazy: true, Marks: []persistence.Mark{{Session: s, Low: at}}}, nil)
					continue
				}
				if last {
					break
				}
				select {
				case <-done:
					last = true
				case <-time.After(time.Millisecond):
				}
			}
			if n != rounds*run {
				h.Errorf("%d entries, want %d", n, rounds*run)
			}
		}()
	}
	wg.Wait()
}
