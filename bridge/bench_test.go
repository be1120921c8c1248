package bridge

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/redistest"
)

// counter is a Handler that only counts.
type counter struct {
	frames atomic.Int64
	got    chan struct{} // if not nil, told of every Receive
}

func (c *counter) Receive(_ Peer, frames [][]byte) {
	c.frames.Add(int64(len(frames)))
	if c.got != nil {
		c.got <- struct{}{}
	}
}
func (*counter) Gap(Peer)               {}
func (*counter) Lost(error)             {}
func (*counter) Apply(Peer, Change)     {}
func (*counter) Replace(Peer, []string) {}

func pair(b *testing.B, c *counter, change ...func(*Options)) (from *node, to Peer) {
	r := redistest.Start(b)
	nodes := cluster(b, r, 1, change...)
	to = Peer{2, 1}
	receiver := open(b, r, to, append(change, func(o *Options) { o.Handler = c })...)
	receiver.SetPeers([]Peer{nodes[0].self})
	nodes[0].SetPeers([]Peer{to})
	if err := receiver.Ready(within(b, 5*time.Second)); err != nil {
		b.Fatal(err)
	}
	return nodes[0], to
}

// One way, through one Redis, everything on this machine: frames/s and what Redis
// is given for each.
func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{64, 256, 4096} {
		for _, over := range []int{-1, 0} {
			b.Run(fmt.Sprintf("size=%d/compress=%t", size, over == 0), func(b *testing.B) {
				var c counter
				from, to := pair(b, &c, func(o *Options) { o.CompressOver = over })
				payload := make([]byte, size)
				for i := range payload {
					payload[i] = byte(i * i >> 3)
				}
				b.ReportAllocs()
				b.SetBytes(int64(size))
				b.ResetTimer()
				for range b.N {
					for from.AppendAsync(to, payload, nil) != nil {
						time.Sleep(100 * time.Microsecond)
					}
				}
				for c.frames.Load() < int64(b.N) {
					time.Sleep(100 * time.Microsecond)
				}
				b.StopTimer()
				s := from.Stats()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
				b.ReportMetric(float64(s.BytesSent)/float64(s.FramesSent), "redisB/frame")
			})
		}
	}
}

// From AppendAsync to Receive with nothing else going on.
func BenchmarkLatency(b *testing.B) {
	c := counter{got: make(chan struct{}, 1)}
	from, to := pair(b, &c)
	for b.Loop() {
		if err := from.AppendAsync(to, make([]byte, 64), nil); err != nil {
			b.Fatal(err)
		}
		<-c.got
	}
}

// From Announce to Settled with two peers.
func BenchmarkSettled(b *testing.B) {
	nodes := cluster(b, redistest.Start(b), 3)
	i := 0
	for b.Loop() {
		i++
		position, err := nodes[0].Announce(Change{Add: []string{fmt.Sprint(i)}})
		if err == nil {
			err = nodes[0].Settled(b.Context(), position)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// 10,000 routes announced at once and settled.
func BenchmarkSettledBurst(b *testing.B) {
	nodes := cluster(b, redistest.Start(b), 3)
	for b.Loop() {
		var last Position
		for i := range 10000 {
			position, err := nodes[0].Announce(Change{Add: []string{fmt.Sprintf("some/longer/topic/%d", i)}})
			if err != nil {
				b.Fatal(err)
			}
			last = position
		}
		if err := nodes[0].Settled(b.Context(), last); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEntry(b *testing.B) {
	frames := make([][]byte, 1000)
	for i := range frames {
		frames[i] = number(uint64(i * i * 7919))
		frames[i] = append(frames[i], make([]byte, 56)...)
	}
	for _, over := range []int{0, 1} {
		b.Run(fmt.Sprintf("compress=%t", over == 1), func(b *testing.B) {
			var buf, scratch []byte
			var into [][]byte
			b.SetBytes(64 * 1000)
			b.ReportAllocs()
			for b.Loop() {
				buf, scratch = appendEntry(buf[:0], scratch, sample, frames, over)
				var err error
				if _, into, err = decodeEntry(buf, into[:0], 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
