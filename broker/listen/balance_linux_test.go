package listen

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The number of pollers follows the load, where a processor is free.
func TestBalancerDecides(t *testing.T) {
	loop, err := NewLoop(LoopConfig{Pollers: 3}, &engine{})
	require.NoError(t, err)
	defer loop.closePollers()
	b := newBalancer(loop)
	look := func(free float64, util ...float64) int {
		copy(b.util, util)
		sum := 0.0
		for _, u := range util {
			sum += u
		}
		b.decide(sum, free, true)
		return int(loop.active.Load())
	}
	require.Equal(t, 1, look(0.9, 0.7, 0, 0))
	require.Equal(t, 1, look(0.05, 0.95, 0, 0), "no processor is free")
	require.Nil(t, loop.pollers[0].plan.Load())
	require.Equal(t, 2, look(0.5, 0.95, 0, 0))
	require.EqualValues(t, 2, loop.pollers[0].plan.Load().every)
	require.Equal(t, 2, look(0.05, 0.95, 0.2, 0), "skewed: some of the busy one's go to the other")
	require.EqualValues(t, 3, loop.pollers[0].plan.Load().every)
	require.Equal(t, []*poller{loop.pollers[1]}, loop.pollers[0].plan.Load().to)
	require.Equal(t, 3, look(0.5, 0.9, 0.9, 0))
	for range coldLooks - 1 {
		require.Equal(t, 3, look(0.9, 0.1, 0.1, 0.1))
	}
	require.Equal(t, 3, look(0.9, 0.5, 0.3, 0.3), "busy again")
	for range coldLooks - 1 {
		require.Equal(t, 3, look(0.9, 0.1, 0.1, 0.1))
	}
	require.Equal(t, 2, look(0.9, 0.1, 0.1, 0.1))
	require.Equal(t, loop.pollers[:2], loop.pollers[2].plan.Load().to)
}

func TestParseStat(t *testing.T) {
	all, idle, ok := parseStat([]byte("cpu  10 1 20 300 40 0 5 2 7 0\ncpu0 1 2 3\n"))
	require.True(t, ok)
	require.EqualValues(t, 378, all)
	require.EqualValues(t, 340, idle)
	for _, bad := range []string{"", "cpu", "cpu  1 2 3\n", "intr 1 2 3 4 5 6\n"} {
		_, _, ok := parseStat([]byte(bad))
		require.False(t, ok, bad)
	}
	require.InDelta(t, 0.5, newBalancer(&Loop{}).free(), 0.5)
}

// Connections move between pollers all the time, in the middle of everything:
// nothing is lost or done twice.
func TestConnectionsMove(t *testing.T) {
	b := start(t, Config{}, LoopConfig{Pollers: 3}, nil, nil)
	stop := make(chan struct{})
	var movers sync.WaitGroup
	movers.Go(func() {
		for seq := uint32(1); ; seq++ {
			select {
			case <-stop:
				return
			default:
			}
			for i, p := range b.loop.pollers {
				p.plan.Store(&plan{seq: seq*3 + uint32(i), every: 1, to: []*poller{b.loop.pollers[(i+1)%3], b.loop.pollers[(i+2)%3]}})
			}
			b.loop.Each(func(c *Conn) { c.Pause(); c.Resume() })
			time.Sleep(200 * time.Microsecond) // the pace of the moves
		}
	})
	var clients sync.WaitGroup
	for seed := range uint64(8) {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(seed, 2))
			for i := range 6 {
				c := b.connectAs(fmt.Sprint(seed, "-", i))
				for range 8 {
					var in, want []byte
					for range 1 + r.IntN(4) {
						p := publishFrame("t", string(bytes.Repeat([]byte{'x'}, r.IntN(2)*r.IntN(100_000)+r.IntN(50))))
						in = append(append(in, p...), subscribeFrame(9)...)
						want = append(append(want, p...), subackFrame(9)...)
					}
					done := make(chan struct{})
					go func() {
						defer close(done)
						for len(in) > 0 {
							n := min(len(in), 1+r.IntN(100_000))
							_, _ = c.Write(in[:n])
							in = in[n:]
						}
					}()
					c.expect(want)
					<-done
				}
				if r.IntN(2) == 0 {
					c.send([]byte{0xe0, 0})
				}
				_ = c.Close()
			}
		})
	}
	clients.Wait()
	require.Eventually(t, func() bool { return b.e.closed.Load() == 48 }, 10*time.Second, time.Millisecond)
	close(stop)
	movers.Wait()
	require.Greater(t, b.loop.Stats().Moved, int64(50))
}
