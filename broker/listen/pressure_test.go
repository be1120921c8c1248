package listen

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What waits to be written to all clients together is bounded: those on whose
// connections the most waits are ended, and nobody else. What is counted as waiting
// does wait.
func TestPendingOfAllIsBounded(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		const bound = 8 << 20
		conns := make(chan *Conn, 1)
		e := &engine{data: func(c *Conn, _ *Worker, _ []byte) { conns <- c }}
		b := start(t, cfg, LoopConfig{MaxPending: bound}, e, nil)
		open := func() (*client, *Conn) {
			c := b.connect()
			c.send(publishFrame("a", "b"))
			return c, <-conns
		}
		w := NewWorker()
		// fill appends until so much waits, whatever the kernel takes.
		fill := func(c *Conn, most int64) {
			for end := time.Now().Add(10 * time.Second); !c.dead.Load(); {
				require.True(t, time.Now().Before(end), "the kernel takes everything")
				if c.out.pending.Load() >= most {
					if time.Sleep(20 * time.Millisecond); c.out.pending.Load() >= most {
						return
					}
				}
				c.End(w, append(c.Begin(), bytes.Repeat(pingreqFrame, 32<<10)...))
				w.Flush()
			}
		}
		reads, _ := open()
		_, little := open()
		_, much := open()
		// The kernel may take more of one while the other is filled.
		for end := time.Now().Add(10 * time.Second); b.loop.Stats().Pending < 3<<20 && time.Now().Before(end); {
			fill(little, 1<<20)
			fill(much, 2<<20)
		}
		require.GreaterOrEqual(t, b.loop.Stats().Pending, int64(3<<20))
		time.Sleep(3 * pressure) // that it is ended for no reason would not show at once
		require.Zero(t, b.loop.Stats().Slow)

		_, most := open()
		fill(most, bound)
		require.Eventually(t, func() bool { return b.e.closed.Load() == 1 }, 10*time.Second, time.Millisecond)
		require.True(t, most.dead.Load())
		require.False(t, much.dead.Load() || little.dead.Load(), "another was ended, too")
		require.Equal(t, int64(1), b.loop.Stats().Slow)
		reads.send(publishFrame("a", "b"))
		<-conns

		require.Eventually(t, func() bool {
			return b.loop.Stats().Pending == much.out.pending.Load()+little.out.pending.Load()
		}, 10*time.Second, time.Millisecond)
		much.Shutdown()
		little.Shutdown()
		require.Eventually(t, func() bool { return b.loop.Stats().Pending == 0 }, 10*time.Second, time.Millisecond)
	})
}
