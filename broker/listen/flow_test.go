package listen

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// While paused nothing is processed, control frames included; Resume goes on
// with what was read already, and no readiness is lost.
func TestPauseAndResume(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		var conn atomic.Pointer[Conn]
		var calls atomic.Int64
		e := &engine{data: func(c *Conn, w *Worker, f []byte) {
			calls.Add(1)
			conn.Store(c)
			c.Pause()
			c.End(w, append(c.Begin(), f...))
		}}
		b := start(t, cfg, LoopConfig{}, e, nil)
		c := b.connect()
		p := publishFrame("a", "b")
		const n = 40
		var in, out []byte
		for i := range n {
			in = append(append(append(in, p...), subscribeFrame(uint16(i+1))...), pingreqFrame...)
			out = append(append(append(out, p...), subackFrame(uint16(i+1))...), pingrespFrame...)
		}
		go func() {
			for len(in) > 0 { // in two halves: left-over and unread bytes
				k := min(len(in), 100)
				_, _ = c.Write(in[:k])
				in = in[k:]
			}
		}()
		for i := range n {
			require.Eventually(t, func() bool { return calls.Load() == int64(i+1) }, 10*time.Second, 20*time.Microsecond)
			k := len(out) / n
			c.expect(out[i*k : i*k+len(p)]) // the SUBSCRIBE behind it waits
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Microsecond))
			if cfg.Protocol == TCP || cfg.Protocol == Unix { // the others do not survive a timeout
				_, err := io.ReadFull(c, make([]byte, 1))
				require.Error(t, err, "nothing may come while paused")
			}
			require.EqualValues(t, i+1, calls.Load())
			conn.Load().Resume()
			c.expect(out[i*k+len(p) : i*k+k])
		}
	})
}

// Pause and Resume by other goroutines, at any moment: nothing is lost.
func TestPauseAtAnyMoment(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		b := start(t, cfg, LoopConfig{}, nil, nil)
		c := b.connect()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		b.loop.Each(func(c *Conn) {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						c.Pause()
						c.Resume()
					}
				}
			})
		})
		p := bytes.Repeat(publishFrame("a", "payload"), 50)
		p = append(p, subscribeFrame(1)...)
		want := append(bytes.Repeat(publishFrame("a", "payload"), 50), subackFrame(1)...)
		for range 200 {
			c.send(p)
			c.expect(want)
		}
		close(stop)
		wg.Wait()
	})
}

// A client that reads late gets everything: what the kernel does not take goes
// out when there is room. Room tells, and Drained comes.
func TestSlowReader(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		const bound = 256 << 10
		var drained atomic.Int64
		conns := make(chan *Conn, 1)
		e := &engine{
			data:    func(c *Conn, _ *Worker, _ []byte) { conns <- c },
			drained: func(c *Conn, _ *Worker) { drained.Add(1) },
		}
		b := start(t, cfg, LoopConfig{WriteBound: bound}, e, nil)
		c := b.connect()
		c.send(publishFrame("a", "b"))
		conn := <-conns
		w := NewWorker()
		var sent []byte
		for len(sent) < 16<<20 || conn.Room() > 0 {
			k := binary.BigEndian.AppendUint32(nil, uint32(len(sent)))
			chunk := bytes.Repeat(k, 4096)
			conn.End(w, append(conn.Begin(), chunk...))
			w.Flush()
			sent = append(sent, chunk...)
			if len(sent) > 64<<20 {
				t.Fatal("the kernel takes everything")
			}
		}
		require.LessOrEqual(t, conn.Room(), 0)
		got := make([]byte, len(sent))
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err := io.ReadFull(c, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(sent, got))
		require.Eventually(t, func() bool { return conn.Room() == bound && drained.Load() >= 1 }, 10*time.Second, time.Millisecond)
	})
}

// Many goroutines write to few connections: each packet arrives once, whole, and
// in the order of its writer.
func TestWritersCombine(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		const writers, packets = 6, 800
		conns := make(chan *Conn, 8)
		e := &engine{data: func(c *Conn, _ *Worker, _ []byte) { conns <- c }}
		b := start(t, cfg, LoopConfig{}, e, nil)
		var clients []*client
		var targets []*Conn
		for range 3 {
			c := b.connect()
			c.send(publishFrame("a", "b"))
			clients, targets = append(clients, c), append(targets, <-conns)
		}
		var wg sync.WaitGroup
		for id := range writers {
			wg.Go(func() {
				w := NewWorker()
				for i := range packets {
					for _, c := range targets {
						p := c.Begin()
						p = append(p, byte(id))
						p = binary.BigEndian.AppendUint32(p, uint32(i))
						c.End(w, append(p, make([]byte, id*10)...))
					}
					if i%(id+1) == 0 {
						w.Flush()
					}
				}
				w.Flush()
			})
		}
		for _, c := range clients {
			var next [writers]uint32
			r := io.Reader(c)
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			for range writers * packets {
				head := make([]byte, 5)
				_, err := io.ReadFull(r, head)
				require.NoError(t, err)
				id := head[0]
				require.Less(t, id, byte(writers))
				require.Equal(t, next[id], binary.BigEndian.Uint32(head[1:]))
				next[id]++
				_, err = io.ReadFull(r, make([]byte, int(id)*10))
				require.NoError(t, err)
			}
		}
		wg.Wait()
	})
}

// A client that makes the broker answer and never reads is cut off, whether mochi,
// the listener or the engine answers.
func TestAnswersUnread(t *testing.T) {
	for name, frame := range map[string][]byte{"PINGREQ": pingreqFrame, "PUBLISH": publishFrame("a", "b")} {
		t.Run(name, func(t *testing.T) {
			e := &engine{data: func(c *Conn, w *Worker, frames []byte) {
				c.End(w, append(c.Begin(), frames...)) // as many bytes as an engine's answers, or more
			}}
			b := start(t, Config{}, LoopConfig{WriteBound: 64 << 10, MaxPacketSize: 64 << 10}, e, nil)
			c := b.connect()
			frames := bytes.Repeat(frame, 16<<10)
			end := time.Now().Add(20 * time.Second)
			_ = c.SetWriteDeadline(end)
			for {
				if _, err := c.Write(frames); err != nil {
					break
				}
			}
			require.True(t, time.Now().Before(end), "it was not cut off")
			require.Eventually(t, func() bool { return b.e.closed.Load() == 1 }, 10*time.Second, time.Millisecond)
		})
	}
}

// A client to which a message of the greatest size is on its way may ping.
func TestPingBehindLargeMessage(t *testing.T) {
	const size = 8 << 20
	conns := make(chan *Conn, 1)
	e := &engine{data: func(c *Conn, _ *Worker, _ []byte) { conns <- c }}
	b := start(t, Config{}, LoopConfig{WriteBound: 64 << 10, MaxPacketSize: size}, e, nil)
	c := b.connect()
	c.send(publishFrame("a", "b"))
	conn, w := <-conns, NewWorker()
	conn.End(w, append(conn.Begin(), make([]byte, size)...))
	w.Flush()
	require.Less(t, conn.Room(), -(64 << 10))
	c.send(pingreqFrame)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err := io.ReadFull(c, make([]byte, size+2))
	require.NoError(t, err)
}
