package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/herald-mqtt/herald/broker/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine is a Handler that echoes data frames. Each function may be replaced.
type engine struct {
	data      func(c *Conn, w *Worker, frames []byte)
	malformed func(c *Conn, w *Worker, err *wire.Error)
	drained   func(c *Conn, w *Worker)
	closed    atomic.Int64
	timeouts  atomic.Int64
	onClosed  func(c *Conn)
}

func (e *engine) Data(c *Conn, w *Worker, frames []byte) {
	if e.data != nil {
		e.data(c, w, frames)
		return
	}
	c.End(w, append(c.Begin(), frames...))
}

func (e *engine) Malformed(c *Conn, w *Worker, err *wire.Error) {
	if e.malformed != nil {
		e.malformed(c, w, err)
		return
	}
	c.CloseAfter(w, []byte{0xe0, 1, err.Reason})
}

func (e *engine) Timeout(c *Conn, w *Worker) {
	e.timeouts.Add(1)
	c.CloseAfter(w, []byte{0xe0, 1, wire.ReasonKeepalive})
}

func (e *engine) Drained(c *Conn, w *Worker) {
	if e.drained != nil {
		e.drained(c, w)
	}
}

func (e *engine) Closed(c *Conn) {
	e.closed.Add(1)
	if e.onClosed != nil {
		e.onClosed(c)
	}
}

// hook is mochi's side of the test engine: it lets everybody in, and turns
// SUBSCRIBE into something that mochi ignores, having answered it.
type hook struct {
	mqtt.HookBase
	control   func(cl *mqtt.Client, pk packets.Packet) error
	establish func(cl *mqtt.Client)
}

func (*hook) ID() string { return "test" }
func (*hook) Provides(b byte) bool {
	return bytes.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnPacketRead, mqtt.OnSessionEstablish, mqtt.OnACLCheck}, []byte{b})
}
func (*hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*hook) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }
func (h *hook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	if h.establish != nil {
		h.establish(cl)
	}
}

func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Connect || pk.FixedHeader.Type == packets.Disconnect {
		return pk, nil
	}
	if h.control != nil {
		if err := h.control(cl, pk); err != nil {
			return pk, err
		}
	}
	if pk.FixedHeader.Type == packets.Subscribe {
		_, _ = cl.Net.Conn.Write([]byte{0x90, 3, byte(pk.PacketID >> 8), byte(pk.PacketID), 0})
		return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}, nil
	}
	return pk, nil
}

type broker struct {
	t      testing.TB
	loop   *Loop
	server *mqtt.Server
	l      *Listener
	e      *engine
	h      *hook
	once   sync.Once
}

func start(t testing.TB, cfg Config, lc LoopConfig, e *engine, h *hook) *broker {
	t.Helper()
	if e == nil {
		e = &engine{}
	}
	if h == nil {
		h = &hook{}
	}
	loop, err := NewLoop(lc, e)
	require.NoError(t, err)
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClientWritesPending = 1
	caps.TopicAliasMaximum = 0
	server := mqtt.New(&mqtt.Options{
		Capabilities: caps, ClientNetReadBufferSize: 16, ClientNetWriteBufferSize: 16,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	require.NoError(t, server.AddHook(h, nil))
	require.NoError(t, loop.Attach(server))
	if cfg.Protocol == "" {
		cfg.Protocol = TCP
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	cfg.ID = "l1"
	l, err := New(cfg, loop)
	require.NoError(t, err)
	loop.Start()
	require.NoError(t, server.AddListener(l))
	require.NoError(t, server.Serve())
	b := &broker{t: t, loop: loop, server: server, l: l, e: e, h: h}
	t.Cleanup(b.stop)
	return b
}

func (b *broker) stop() {
	b.once.Do(func() {
		b.l.Close(nil)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(b.t, b.loop.Stop(ctx))
		require.NoError(b.t, b.server.Close())
		s := b.loop.Stats()
		require.Zero(b.t, s.Connections)
		require.Equal(b.t, s.Accepted, b.e.closed.Load(), "Closed once per accepted connection")
	})
}

// transports are the ways in; every test of the stream's contents runs over all.
func transports(t *testing.T, f func(t *testing.T, cfg Config)) {
	t.Helper()
	for _, name := range []string{TCP, Unix, TLS, WS, WSS, "proxy"} {
		t.Run(name, func(t *testing.T) { f(t, transport(t, name)) })
	}
}

func transport(t testing.TB, name string) Config {
	cfg := Config{Protocol: name}
	switch name {
	case Unix:
		dir, err := os.MkdirTemp("", "herald")
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		cfg.Address = filepath.Join(dir, "s")
	case TLS, WSS:
		cfg.TLS = serverTLS(t)
	case "proxy":
		cfg.Protocol, cfg.ProxyProtocol = TCP, true
	}
	return cfg
}

func (b *broker) dial() *client {
	b.t.Helper()
	var c net.Conn
	var err error
	addr := b.l.Address()
	switch b.l.cfg.Protocol {
	case TLS:
		c, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	case WS, WSS:
		d := websocket.Dialer{Subprotocols: []string{"mqtt"}, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		var ws *websocket.Conn
		ws, _, err = d.Dial(map[string]string{WS: "ws", WSS: "wss"}[b.l.cfg.Protocol]+"://"+addr+"/mqtt", nil)
		if err == nil {
			require.Equal(b.t, "mqtt", ws.Subprotocol())
			c = &wsClient{websocketConn{Conn: ws}}
		}
	case Unix:
		c, err = net.Dial("unix", addr)
	default:
		c, err = net.Dial("tcp", addr)
	}
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = c.Close() })
	if b.l.cfg.ProxyProtocol {
		_, err := c.Write([]byte("PROXY TCP4 192.0.2.7 192.0.2.1 4711 1883\r\n"))
		require.NoError(b.t, err)
	}
	return &client{b.t, c}
}

// wsClient is a WebSocket whose Close frame reads as the end.
type wsClient struct{ websocketConn }

func (c *wsClient) Read(p []byte) (int, error) {
	n, err := c.websocketConn.Read(p)
	if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseAbnormalClosure) {
		err = io.EOF
	}
	return n, err
}

var serverTLS = func() func(t testing.TB) *tls.Config {
	var once sync.Once
	var conf *tls.Config
	return func(t testing.TB) *tls.Config {
		once.Do(func() {
			ca := newAuthority(t)
			dir := t.TempDir()
			cert, key := ca.issue(t, dir, "server")
			var err error
			conf, err = LoadTLS(cert, key, "")
			require.NoError(t, err)
		})
		return conf
	}
}()

// connect dials and completes the MQTT handshake.
func (b *broker) connect() *client {
	b.t.Helper()
	return b.connectAs(fmt.Sprint("c", clients.Add(1)))
}

var clients atomic.Int64 // ids: two connections of one client would take over

func (b *broker) connectAs(id string) *client {
	b.t.Helper()
	c := b.dial()
	c.send(connectFrame(id, 4))
	c.expect([]byte{0x20, 2, 0, 0})
	return c
}

type client struct {
	t testing.TB
	net.Conn
}

func (c *client) send(b ...[]byte) {
	c.t.Helper()
	_, err := c.Write(bytes.Join(b, nil))
	require.NoError(c.t, err)
}

// expect reads exactly what is wanted.
func (c *client) expect(want ...[]byte) {
	c.t.Helper()
	all := bytes.Join(want, nil)
	got := make([]byte, len(all))
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := io.ReadFull(c, got)
	require.NoError(c.t, err, "got %x", got[:n])
	require.True(c.t, bytes.Equal(all, got), "want %.64x\ngot  %.64x", all, got)
}

// expectEnd reads until the broker closes and returns what came before.
func (c *client) expectEnd() []byte {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	require.NoError(c.t, err)
	return b
}

// expectCut waits until the broker has ended the connection, however: at once, with a
// reset, or in the middle of a TLS record.
func (c *client) expectCut() {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("the connection is still there")
	}
}

func connectFrame(id string, level byte) []byte {
	b := []byte{0, 4, 'M', 'Q', 'T', 'T', level, 2, 0, 60}
	if level == 5 {
		b = append(b, 0)
	}
	b = append(b, byte(len(id)>>8), byte(len(id)))
	b = append(b, id...)
	return append([]byte{0x10, byte(len(b))}, b...)
}

func publishFrame(topic, payload string) []byte {
	n := 2 + len(topic) + len(payload)
	b := []byte{0x30}
	for n >= 128 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	b = append(b, byte(n), byte(len(topic)>>8), byte(len(topic)))
	return append(append(b, topic...), payload...)
}

func subscribeFrame(id uint16) []byte {
	return []byte{0x82, 6, byte(id >> 8), byte(id), 0, 1, 'a', 0}
}

func subackFrame(id uint16) []byte { return []byte{0x90, 3, byte(id >> 8), byte(id), 0} }

func portOf(addr string) int {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		panic(err)
	}
	return a.Port
}

func (l *Loop) workersRunning() int {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.pool.running
}
