package listen

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/stretchr/testify/require"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

var pingreqFrame, pingrespFrame = []byte{0xc0, 0}, []byte{0xd0, 0}

func TestEcho(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		b := start(t, cfg, LoopConfig{}, nil, nil)
		c := b.connect()
		p := publishFrame("a/b", "hello")
		c.send(p)
		c.expect(p)
		c.send(subscribeFrame(7), p, pingreqFrame, p, subscribeFrame(8), p)
		c.expect(subackFrame(7), p, pingrespFrame, p, subackFrame(8), p)
		c.send([]byte{0xe0, 0})
		require.Empty(t, c.expectEnd())
		_ = c.Close()
		b.stop()
	})
}

// The stream may be cut anywhere; what comes out is the same.
func TestStreamCutAtEveryByte(t *testing.T) {
	b := start(t, Config{}, LoopConfig{}, nil, nil)
	p := publishFrame("topic", string(bytes.Repeat([]byte("x"), 130)))
	stream := bytes.Join([][]byte{connectFrame("cut", 4), p, subscribeFrame(1), pingreqFrame, p, subscribeFrame(2)}, nil)
	want := bytes.Join([][]byte{{0x20, 2, 0, 0}, p, subackFrame(1), pingrespFrame, p, subackFrame(2)}, nil)
	for cut := 1; cut < len(stream); cut++ {
		c := b.dial()
		c.send(stream[:cut])
		if cut%7 == 0 { // let the first part be read alone, most times
			require.Eventually(t, func() bool { return b.loop.Stats().BytesIn%int64(len(stream)) == int64(cut) },
				5*time.Second, 50*time.Microsecond)
		}
		c.send(stream[cut:])
		c.expect(want)
		_ = c.Close()
		require.Eventually(t, func() bool { return b.loop.Stats().BytesIn%int64(len(stream)) == 0 }, 5*time.Second, 50*time.Microsecond)
	}
}

// Random frames in random chunks: everything is answered, in order, whatever
// mix of data and control frames it is and however large a frame is.
func TestRandomChunks(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		b := start(t, cfg, LoopConfig{}, nil, nil)
		for seed := range uint64(6) {
			r := rand.New(rand.NewPCG(seed, 1))
			var in, want []byte
			for i := range 400 {
				switch k := r.IntN(12); {
				case k == 0:
					in, want = append(in, subscribeFrame(uint16(i+1))...), append(want, subackFrame(uint16(i+1))...)
				case k == 1:
					in, want = append(in, pingreqFrame...), append(want, pingrespFrame...)
				default:
					n := r.IntN(200)
					if r.IntN(60) == 0 {
						n = r.IntN(200_000)
					}
					p := publishFrame("t", string(bytes.Repeat([]byte{byte('a' + i%26)}, n)))
					in, want = append(in, p...), append(want, p...)
				}
			}
			c := b.connect()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for len(in) > 0 {
					n := min(1+r.IntN(1+r.IntN(50_000)), len(in))
					if _, err := c.Write(in[:n]); err != nil {
						return
					}
					in = in[n:]
				}
			}()
			c.expect(want)
			<-done
			_ = c.Close()
		}
	})
}

// A control frame is handled completely before the data behind it, and data
// before the control frame behind it.
func TestControlAndDataKeepTheirOrder(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		var mu sync.Mutex
		var log []string
		note := func(s string) { mu.Lock(); log = append(log, s); mu.Unlock() }
		e := &engine{data: func(c *Conn, w *Worker, frames []byte) {
			for len(frames) > 0 {
				n, err := wire.Split(frames, 0)
				if n == 0 || err != nil {
					note("bad")
					return
				}
				note(string(frames[5:n]))
				c.End(w, append(c.Begin(), frames[:n]...))
				frames = frames[n:]
			}
		}}
		h := &hook{control: func(_ *mqtt.Client, pk packets.Packet) error {
			note(fmt.Sprint("begin ", pk.PacketID))
			time.Sleep(time.Millisecond) // a slow hook; the data behind it must wait
			note(fmt.Sprint("end ", pk.PacketID))
			return nil
		}}
		b := start(t, cfg, LoopConfig{}, e, h)
		c := b.connect()
		var in, out []byte
		var want []string
		for i := range 30 {
			p := publishFrame("t", fmt.Sprint("data ", i))
			in = append(append(in, p...), subscribeFrame(uint16(i+1))...)
			out = append(append(out, p...), subackFrame(uint16(i+1))...)
			want = append(want, fmt.Sprint("data ", i), fmt.Sprint("begin ", i+1), fmt.Sprint("end ", i+1))
		}
		c.send(in)
		c.expect(out)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, want, log)
	})
}

// What belongs to the connection reaches later control frames and the engine.
func TestConnectionState(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		type session struct{ n int }
		seen := make(chan [2]any, 4)
		h := &hook{
			establish: func(cl *mqtt.Client) {
				c := cl.Net.Conn.(*Conn)
				require.Equal(t, connectFrame("c1", 5), c.Connect())
				c.ReleaseConnect()
				c.SetUser(&session{1})
			},
			control: func(cl *mqtt.Client, _ packets.Packet) error {
				seen <- [2]any{cl.Net.Conn.(*Conn).User(), cl.ID}
				return nil
			},
		}
		e := &engine{data: func(c *Conn, w *Worker, f []byte) { seen <- [2]any{c.User(), "data"} }}
		b := start(t, cfg, LoopConfig{}, e, h)
		c := b.dial()
		c.send(connectFrame("c1", 5))
		buf := make([]byte, 64)
		_, err := c.Read(buf)
		require.NoError(t, err)
		require.EqualValues(t, 0x20, buf[0])
		c.send([]byte{0x82, 7, 0, 1, 0, 0, 1, 'a', 0})
		require.Equal(t, [2]any{&session{1}, "c1"}, <-seen)
		c.send(publishFrame("a", "\x00"))
		require.Equal(t, [2]any{&session{1}, "data"}, <-seen)
		c2 := c
		b.loop.Each(func(c *Conn) {
			require.Equal(t, herald.V5, c.Version())
			require.Nil(t, c.Connect())
			require.Equal(t, "l1", c.Listener())
			require.Equal(t, cfg.TLS != nil, c.TLS() != nil)
			if cfg.ProxyProtocol {
				require.Equal(t, "192.0.2.7:4711", c.RemoteAddr().String())
			} else if cfg.Protocol == TCP {
				require.Equal(t, c2.LocalAddr().String(), c.RemoteAddr().String())
			}
		})
		require.Zero(t, b.server.Clients.Len(), "mochi has let go")
	})
}
