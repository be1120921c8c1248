//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// small is a run of a few thousand messages.
func small(target string, qos byte) Config {
	return Config{
		Target: target, QoS: qos, Publishers: 4, Subscribers: 6, Topics: 2, Window: 20,
		Count: 500, Stall: 300 * time.Millisecond,
	}
}

func TestEverythingArrives(t *testing.T) {
	for _, protocol := range []byte{4, 5} {
		for qos := range byte(3) {
			for _, threads := range []int{1, 2} {
				t.Run(fmt.Sprintf("v%d qos%d threads%d", protocol, qos, threads), func(t *testing.T) {
					c := small(newFakeBroker(t, nil).addr(), qos)
					c.Protocol, c.Threads = protocol, threads
					begun, ended := 0, 0
					c.Measure = func(begin bool) {
						if begin {
							begun++
						} else {
							ended++
						}
					}
					r, err := Run(t.Context(), c)
					if err != nil {
						t.Fatal(err)
					}
					// Two publishers and three subscribers on each topic.
					if r.Published != 2000 || r.Delivered != 6000 || r.IntervalDelivered != 6000 {
						t.Errorf("published %d, delivered %d, in the interval %d; want 2000, 6000, 6000", r.Published, r.Delivered, r.IntervalDelivered)
					}
					if r.Lost+r.Duplicates+r.Reordered+r.BadAcks+r.WrongQoS+r.Foreign != 0 {
						t.Errorf("faults without a fault: %+v", r)
					}
					if begun != 1 || ended != 1 {
						t.Errorf("Measure was called %d and %d times", begun, ended)
					}
					if r.Latency[0].Quantile(0.5) <= 0 {
						t.Error("no latency")
					}
				})
			}
		}
	}
}

// Publishers and subscribers may be at different brokers: what is published at one
// that nothing leaves is lost.
func TestFromAnotherBroker(t *testing.T) {
	to, from := newFakeBroker(t, nil), newFakeBroker(t, nil)
	c := small(to.addr(), 0)
	c.From = from.addr()
	r, err := Run(t.Context(), c)
	var stall *StallError
	if !errors.As(err, &stall) || r.Published == 0 || r.Delivered != 0 {
		t.Fatalf("%v, result %+v", err, r)
	}
	c.Target, c.From = from.addr(), from.addr()
	if r, err = Run(t.Context(), c); err != nil || r.Delivered != 6000 {
		t.Fatalf("%v, result %+v", err, r)
	}
}

func TestByTime(t *testing.T) {
	c := small(newFakeBroker(t, nil).addr(), 1)
	c.Count, c.Warmup, c.Duration = 0, 20*time.Millisecond, 100*time.Millisecond
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if r.Interval < 100*time.Millisecond || r.IntervalDelivered == 0 || r.IntervalDelivered >= r.Delivered {
		t.Errorf("interval %v with %d of %d", r.Interval, r.IntervalDelivered, r.Delivered)
	}
	if r.Latency[0].Count() == 0 || r.Delivered != 3*r.Published {
		t.Errorf("%d latencies, published %d, delivered %d", r.Latency[0].Count(), r.Published, r.Delivered)
	}
}

func TestRate(t *testing.T) {
	c := small(newFakeBroker(t, nil).addr(), 1)
	c.Count, c.Duration, c.Rate = 0, 500*time.Millisecond, 2000
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if r.IntervalPublished < 900 || r.IntervalPublished > 1100 {
		t.Errorf("%d published in half a second at 2000/s", r.IntervalPublished)
	}
}

// A broker that loses one message must not get a rate out of the run.
func TestLossIsReported(t *testing.T) {
	for qos := range byte(3) {
		for _, window := range []int{1, 20} {
			t.Run(fmt.Sprintf("qos%d window%d", qos, window), func(t *testing.T) {
				b := newFakeBroker(t, func(n int) (int, bool) {
					if n == 1000 {
						return 0, false
					}
					return 1, false
				})
				c := small(b.addr(), qos)
				c.Window = window
				r, err := Run(t.Context(), c)
				var stall *StallError
				if !errors.As(err, &stall) || stall.Lost < 1 {
					t.Fatalf("error %v, want a stall", err)
				}
				if r.Lost < 1 || window == 20 && r.Lost != 1 {
					t.Errorf("%d lost, want 1", r.Lost)
				}
			})
		}
	}
}

// A time-bound run with a loss that the window could hide ends with it too.
func TestLossIsReportedByTime(t *testing.T) {
	b := newFakeBroker(t, func(n int) (int, bool) {
		if n == 10 {
			return 0, false
		}
		return 1, false
	})
	c := small(b.addr(), 0)
	c.Count, c.Duration = 0, 50*time.Millisecond
	r, err := Run(t.Context(), c)
	var stall *StallError
	if !errors.As(err, &stall) || stall.Lost != 1 || r.Lost != 1 {
		t.Fatalf("error %v, result %+v, want one message lost", err, r)
	}
}

func TestMissingAcknowledgementStalls(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		b := newFakeBroker(t, nil)
		b.set(func() { b.noAck = true })
		_, err := Run(t.Context(), small(b.addr(), qos))
		var stall *StallError
		if !errors.As(err, &stall) || stall.Lost != 0 || stall.Unacked != 4*20 {
			t.Errorf("qos %d: error %v, want 80 unacknowledged", qos, err)
		}
	}
}

func TestDuplicateIsReported(t *testing.T) {
	b := newFakeBroker(t, func(n int) (int, bool) {
		if n == 1000 {
			return 2, false
		}
		return 1, false
	})
	r, err := Run(t.Context(), small(b.addr(), 2))
	if err != nil || r.Duplicates != 1 || r.Delivered != 6000 {
		t.Errorf("error %v, result %+v, want one duplicate", err, r)
	}
}

// A message that a broker hands to the subscribers of another topic does not
// count as theirs.
func TestMisroutedIsForeign(t *testing.T) {
	b := newFakeBroker(t, nil)
	b.set(func() { b.misroute = true })
	r, err := Run(t.Context(), small(b.addr(), 0))
	var stall *StallError
	if !errors.As(err, &stall) || r.Delivered != 0 || r.Foreign == 0 {
		t.Errorf("error %v, result %+v, want only foreign messages", err, r)
	}
}

func TestReorderIsReported(t *testing.T) {
	b := newFakeBroker(t, func(n int) (int, bool) { return 1, n == 1000 })
	c := small(b.addr(), 1)
	c.Publishers = 2 // one per topic, so that the next message is of the same
	r, err := Run(t.Context(), c)
	if err != nil || r.Reordered != 1 || r.Duplicates != 0 || r.Lost != 0 {
		t.Errorf("error %v, result %+v, want one reordered", err, r)
	}
}

func TestBrokerThatCloses(t *testing.T) {
	b := newFakeBroker(t, nil)
	b.set(func() {
		b.fault = func(n int) (int, bool) {
			if n == 1000 {
				for _, subs := range b.subs {
					_ = subs[0].conn.Close()
				}
			}
			return 1, false
		}
	})
	_, err := Run(t.Context(), small(b.addr(), 0))
	if err == nil {
		t.Error("no error although the broker closed connections")
	}
}

func TestCancel(t *testing.T) {
	b := newFakeBroker(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c := small(b.addr(), 0)
	c.Count, c.Duration = 0, time.Hour
	if _, err := Run(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestNothingListens(t *testing.T) {
	b := newFakeBroker(t, nil)
	_ = b.ln.Close()
	if _, err := Run(t.Context(), small(b.addr(), 0)); err == nil {
		t.Error("no error without a broker")
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Target: "127.0.0.1:1", QoS: 3},
		{Target: "127.0.0.1:1", Protocol: 3},
		{Target: "127.0.0.1:1", Topics: 2},
		{Target: "127.0.0.1:1", Payload: 8},
		{Target: "127.0.0.1:1", Window: 1 << 20},
		{Target: "127.0.0.1:1", Rate: -1},
	} {
		if _, err := Run(t.Context(), c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// The path of a message allocates nothing: what a run allocates does not grow
// with its length.
func TestNoAllocationPerMessage(t *testing.T) {
	c := Config{Target: "none", QoS: 1, Window: 100}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	f := &flow{topic: "t"}
	p := newPublisher(&c, f, 0)
	s := newSubscriber(&c, f)
	l := &loop{config: &c, acks: make([]byte, 0, readSize), pubs: []*publisher{p}}
	at := func(uint64) int64 { return 1 }
	allocs := testing.AllocsPerRun(100, func() {
		l.acks = l.acks[:0]
		run := p.fill(p.ready(), 1, at)
		if used, err := l.receive(s, run, true); used != len(run) || err != nil {
			t.Fatal(used, err)
		}
		acks := l.acks
		if used, err := l.acknowledged(p, acks); used != len(acks) || err != nil {
			t.Fatal(used, err)
		}
	})
	if allocs != 0 || p.acked != p.sent || p.acked < 100*100 {
		t.Errorf("%v allocations per 100 messages, %d acknowledged of %d", allocs, p.acked, p.sent)
	}
}

func BenchmarkReceive(b *testing.B) {
	c := Config{Target: "none", QoS: 1, Window: 1000}
	_ = c.complete()
	f := &flow{topic: "t"}
	p := newPublisher(&c, f, 0)
	s := newSubscriber(&c, f)
	l := &loop{config: &c, acks: make([]byte, 0, readSize)}
	at := func(uint64) int64 { return 1 }
	b.ReportAllocs()
	for n := 0; n < b.N; {
		run := p.fill(1000, 1, at)
		l.acks = l.acks[:0]
		_, _ = l.receive(s, run, false)
		_, _ = l.acknowledged(p, l.acks)
		n += len(run) / p.stride
	}
}
