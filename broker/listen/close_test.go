package listen

import (
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/stretchr/testify/require"

	"github.com/herald-mqtt/herald/broker/wire"
)

// Each frame that is wrong or out of place ends its connection, and what came
// before it counts.
func TestMalformed(t *testing.T) {
	for name, tc := range map[string]struct {
		first  bool // before CONNECT
		send   []byte
		reason byte
	}{
		"data before CONNECT":            {true, publishFrame("a", "b"), wire.ReasonProtocol},
		"control before CONNECT":         {true, subscribeFrame(1), wire.ReasonProtocol},
		"half of one before CONNECT":     {true, []byte{0x82}, wire.ReasonProtocol},
		"reserved type":                  {true, []byte{0x00, 0}, wire.ReasonProtocol},
		"second CONNECT":                 {false, connectFrame("c1", 5), wire.ReasonProtocol},
		"reserved flags":                 {false, []byte{0x83, 2, 0, 1}, wire.ReasonMalformed},
		"too large":                      {false, []byte{0x30, 0xff, 0xff, 0x7f}, wire.ReasonTooLarge},
		"remaining length of five bytes": {false, []byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, wire.ReasonMalformed},
		// bare mochi 2.7.9 panics on this one
		"SUBSCRIBE without options": {false, []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}, wire.ReasonMalformed},
		"PINGREQ with a body":       {false, []byte{0xc0, 1, 0}, wire.ReasonMalformed},
		"server's packet":           {false, []byte{0x90, 4, 0, 1, 0, 0}, wire.ReasonProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, Config{}, LoopConfig{MaxPacketSize: 1 << 20}, nil, nil)
			c := b.dial()
			p := publishFrame("a", "before")
			if !tc.first {
				c.send(connectFrame("c1", 5))
				buf := make([]byte, 64)
				_, err := c.Read(buf)
				require.NoError(t, err)
				c.send(p, tc.send, p)
				c.expect(p)
			} else {
				c.send(tc.send)
			}
			require.Equal(t, []byte{0xe0, 1, tc.reason}, c.expectEnd())
			require.EqualValues(t, 1, b.loop.Stats().Malformed)
		})
	}
}

// The last word of the broker arrives although the client goes on sending: the
// socket is not reset while the client may still read.
func TestCloseAfterReachesABusyClient(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		e := &engine{data: func(c *Conn, w *Worker, f []byte) { c.CloseAfter(w, []byte{0xe0, 1, 0x8e}) }}
		b := start(t, cfg, LoopConfig{}, e, nil)
		c := b.connect()
		stop := make(chan struct{})
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			p := publishFrame("a", string(make([]byte, 1000)))
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := c.Write(p); err != nil {
						return
					}
				}
			}
		}()
		require.Equal(t, []byte{0xe0, 1, 0x8e}, c.expectEnd())
		close(stop)
		_ = c.Close()
		<-sent
	})
}

// A client that does not close its side is shut down after two seconds.
func TestCloseAfterTimesOut(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		t.Parallel()
		var open atomic.Int64 // sockets when the engine was told
		e := &engine{
			data:     func(c *Conn, w *Worker, f []byte) { c.CloseAfter(w, make([]byte, 8<<20)) },
			onClosed: func(c *Conn) { open.Store(int64(c.lis.Connections())) },
		}
		b := start(t, cfg, LoopConfig{}, e, nil)
		c := b.connect()
		begin := time.Now()
		c.send(publishFrame("a", "b"))
		require.Eventually(t, func() bool { return b.e.closed.Load() == 1 && b.l.Connections() == 0 }, 10*time.Second, 10*time.Millisecond)
		require.EqualValues(t, 1, open.Load(), "the engine knows at once, the socket goes later")
		require.Greater(t, time.Since(begin), time.Second)
	})
}

// Whoever closes, and however often: Closed comes once and no descriptor stays.
func TestCloseFromEverySide(t *testing.T) {
	sides := map[string]func(t *testing.T, b *broker, c *client){
		"client closes":      func(_ *testing.T, _ *broker, c *client) { _ = c.Close() },
		"client disconnects": func(_ *testing.T, _ *broker, c *client) { c.send([]byte{0xe0, 0}); c.expectEnd(); _ = c.Close() },
		"shutdown": func(_ *testing.T, b *broker, _ *client) {
			b.loop.Each(func(c *Conn) {
				for range 4 {
					go c.Shutdown()
				}
			})
		},
		"close after": func(_ *testing.T, b *broker, c *client) {
			b.loop.Each(func(c *Conn) { c.CloseAfter(nil, []byte{0xe0, 0}); c.CloseAfter(nil, []byte{0xe0, 0}); _ = c.Close() })
			require.Equal(b.t, []byte{0xe0, 0}, c.expectEnd())
			_ = c.Close()
		},
		"all at once": func(_ *testing.T, b *broker, c *client) {
			b.loop.Each(func(c *Conn) { go c.CloseAfter(nil, []byte{0xe0, 0}); go c.Shutdown() })
			_, _ = c.Write(publishFrame("a", "b")) // unless it is too late
			_ = c.Close()
		},
		"paused": func(_ *testing.T, b *broker, c *client) {
			b.loop.Each((*Conn).Pause)
			c.send(publishFrame("a", "b"))
			b.loop.Each((*Conn).Shutdown)
		},
		"stop": func(_ *testing.T, b *broker, _ *client) { b.stop() },
	}
	for name, side := range sides {
		t.Run(name, func(t *testing.T) {
			transports(t, func(t *testing.T, cfg Config) {
				b := start(t, cfg, LoopConfig{}, nil, nil)
				c := b.connect()
				side(t, b, c)
				require.Eventually(t, func() bool { return b.e.closed.Load() == 1 }, 10*time.Second, time.Millisecond)
				require.Eventually(t, func() bool { return b.l.Connections() == 0 }, 10*time.Second, time.Millisecond)
			})
		})
	}
}

// A panic behind one connection ends that one.
func TestPanicEndsOneConnection(t *testing.T) {
	places := map[string]func(e *engine, h *hook){
		"Data":   func(e *engine, _ *hook) { e.data = func(*Conn, *Worker, []byte) { panic("boom") } },
		"Closed": func(e *engine, _ *hook) { e.onClosed = func(*Conn) { panic("boom") } },
		"Malformed": func(e *engine, _ *hook) {
			e.malformed = func(*Conn, *Worker, *wire.Error) { panic("boom") }
		},
		"a hook": func(_ *engine, h *hook) {
			h.control = func(*mqtt.Client, packets.Packet) error { panic("boom") }
		},
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			transports(t, func(t *testing.T, cfg Config) {
				e, h := &engine{}, &hook{}
				place(e, h)
				b := start(t, cfg, LoopConfig{}, e, h)
				other := b.connectAs("other")
				c := b.connect()
				switch name {
				case "Data":
					c.send(publishFrame("a", "b"))
				case "a hook":
					c.send(subscribeFrame(1))
				default:
					c.send([]byte{0, 0})
				}
				c.expectCut()
				_ = c.Close()
				require.Eventually(t, func() bool { return b.e.closed.Load() == 1 }, 10*time.Second, time.Millisecond)
				require.Eventually(t, func() bool { return b.loop.Stats().Panics == 1 }, 10*time.Second, time.Millisecond)
				other.send(pingreqFrame)
				other.expect(pingrespFrame)
			})
		})
	}
}

// A hook that refuses a packet, and one that returns an error code.
func TestHookRefuses(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		h := &hook{control: func(cl *mqtt.Client, pk packets.Packet) error {
			cl.Net.Conn.(*Conn).CloseAfter(nil, []byte{0xe0, 1, 0x82})
			return packets.ErrRejectPacket
		}}
		b := start(t, cfg, LoopConfig{}, nil, h)
		c := b.connect()
		c.send(subscribeFrame(1))
		require.Equal(t, []byte{0xe0, 1, 0x82}, c.expectEnd())
	})
}
