package listen

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/stretchr/testify/require"

	"github.com/herald-mqtt/herald"
)

// A connection that does not bring a complete CONNECT in time is closed, however
// far it came.
func TestConnectTimeout(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		t.Parallel()
		b := start(t, cfg, LoopConfig{ConnectTimeout: 500 * time.Millisecond}, nil, nil)
		for _, part := range [][]byte{nil, {0x10}, connectFrame("c1", 4)[:9]} {
			c := b.dial()
			if part != nil {
				c.send(part)
			}
			c.expectEnd()
			_ = c.Close()
		}
		require.EqualValues(t, 3, b.e.timeouts.Load())
	})
}

// Handshakes below MQTT have the same time, and end with the listener.
func TestHandshakeTimeout(t *testing.T) {
	for _, name := range []string{TLS, WS, WSS, "proxy"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, transport(t, name), LoopConfig{ConnectTimeout: 300 * time.Millisecond}, nil, nil)
			c, err := net.Dial("tcp", b.l.Address())
			require.NoError(t, err)
			defer c.Close()
			(&client{t, c}).expectEnd()
			require.Eventually(t, func() bool { return b.l.Connections() == 0 }, 5*time.Second, time.Millisecond)

			b = start(t, transport(t, name), LoopConfig{}, nil, nil)
			c, err = net.Dial("tcp", b.l.Address())
			require.NoError(t, err)
			defer c.Close()
			require.Eventually(t, func() bool { return b.l.Connections() == 1 }, 5*time.Second, time.Millisecond)
			begin := time.Now()
			b.stop()
			require.Less(t, time.Since(begin), 5*time.Second)
		})
	}
}

// Keepalive: silence ends the connection, any packet keeps it [MQTT-3.1.2-22].
func TestKeepalive(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		t.Parallel()
		h := &hook{establish: func(cl *mqtt.Client) { cl.Net.Conn.(*Conn).SetKeepalive(time.Second) }}
		b := start(t, cfg, LoopConfig{}, nil, h)
		c := b.connect()
		begin := time.Now()
		for time.Since(begin) < 3500*time.Millisecond { // longer than it may be silent
			c.send(pingreqFrame)
			c.expect(pingrespFrame)
			time.Sleep(500 * time.Millisecond) // the client's pace, not a wait for something
		}
		begin = time.Now()
		require.Equal(t, []byte{0xe0, 1, 0x8d}, c.expectEnd())
		require.Greater(t, time.Since(begin), time.Second, "not before 1.5 times the keepalive, less the last pause")
		require.Less(t, time.Since(begin), 4*time.Second)
	})
}

func TestMaxConnections(t *testing.T) {
	t.Run("listener", func(t *testing.T) { testMaxConnections(t, 2, 0) })
	t.Run("all listeners", func(t *testing.T) { testMaxConnections(t, 0, 2) })
}

func testMaxConnections(t *testing.T, own, all int) {
	transports(t, func(t *testing.T, cfg Config) {
		cfg.MaxConnections = own
		b := start(t, cfg, LoopConfig{MaxConnections: all}, nil, nil)
		c1, c2 := b.connect(), b.connect()
		network := "tcp"
		if cfg.Protocol == Unix {
			network = "unix"
		}
		c, err := net.Dial(network, b.l.Address())
		require.NoError(t, err)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		_ = c.Close()
		require.EqualValues(t, 1, b.loop.Stats().Refused)
		_ = c1.Close()
		require.Eventually(t, func() bool { return b.l.Connections() == 1 }, 5*time.Second, time.Millisecond)
		c3 := b.connect()
		c3.send(pingreqFrame)
		c3.expect(pingrespFrame)
		c2.send(pingreqFrame)
		c2.expect(pingrespFrame)
	})
}

// Who takes a port that is taken is told so at once.
func TestPortInUse(t *testing.T) {
	for _, name := range []string{TCP, TLS, WS, WSS, Unix} {
		cfg := transport(t, name)
		b := start(t, cfg, LoopConfig{}, nil, nil)
		cfg.Address = b.l.Address()
		_, err := New(cfg, b.loop)
		require.ErrorIs(t, err, herald.ErrInUse, name)
		require.ErrorContains(t, err, b.l.Address())
	}
}

func TestUnixSocketFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	// A socket that a killed process has left behind.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
	b := start(t, Config{Protocol: Unix, Address: path}, LoopConfig{}, nil, nil)
	b.connect()
	b.stop()
	require.NoFileExists(t, path)
	// Any other file is left alone.
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = New(Config{Protocol: Unix, Address: path}, b.loop)
	require.ErrorIs(t, err, herald.ErrInUse)
	require.FileExists(t, path)
}

func TestBadConfig(t *testing.T) {
	_, err := New(Config{Protocol: "udp", Address: "127.0.0.1:0"}, nil)
	require.ErrorContains(t, err, `"udp"`)
	_, err = New(Config{Protocol: TLS, Address: "127.0.0.1:0"}, nil)
	require.ErrorContains(t, err, "certificate")
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key := ca.issue(t, dir, "server")
	_, err = LoadTLS(filepath.Join(dir, "none.pem"), key, "")
	require.ErrorContains(t, err, "none.pem")
	_, err = LoadTLS(cert, key, filepath.Join(dir, "none.pem"))
	require.ErrorContains(t, err, "none.pem")
	_, err = LoadTLS(cert, key, key)
	require.ErrorContains(t, err, "no certificate")
}

// With client_ca only those come in who show a certificate of that authority.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	ca, stranger := newAuthority(t), newAuthority(t)
	cert, key := ca.issue(t, dir, "server")
	conf, err := LoadTLS(cert, key, ca.file(t, dir))
	require.NoError(t, err)
	seen := make(chan string, 1)
	b := start(t, Config{Protocol: TLS, TLS: conf}, LoopConfig{}, nil, &hook{
		establish: func(cl *mqtt.Client) { seen <- cl.Net.Conn.(*Conn).TLS().PeerCertificates[0].Subject.CommonName },
	})
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)

	try := func(c *tls.Config) error {
		c.RootCAs = pool
		nc, err := tls.Dial("tcp", b.l.Address(), c)
		if err != nil {
			return err
		}
		defer nc.Close()
		if _, err := nc.Write(connectFrame("c1", 4)); err != nil {
			return err
		}
		_ = nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = io.ReadFull(nc, make([]byte, 4))
		return err
	}
	pair := func(a *authority, name string) *tls.Config {
		cert, key := a.issue(t, dir, name)
		p, err := tls.LoadX509KeyPair(cert, key)
		require.NoError(t, err)
		return &tls.Config{Certificates: []tls.Certificate{p}}
	}
	require.Error(t, try(&tls.Config{}))
	require.Error(t, try(pair(stranger, "mallory")))
	require.NoError(t, try(pair(ca, "alice")))
	require.Equal(t, "alice", <-seen)
}

// Certificates are changed under a listener: who connects from then on sees the new
// one, who is connected stays.
func TestCertificatesChange(t *testing.T) {
	for _, protocol := range []string{TLS, WSS} {
		t.Run(protocol, func(t *testing.T) {
			dir := t.TempDir()
			ca := newAuthority(t)
			load := func(name string) *tls.Config {
				cert, key := ca.issue(t, dir, name)
				conf, err := LoadTLS(cert, key, "")
				require.NoError(t, err)
				return conf
			}
			b := start(t, Config{Protocol: protocol, TLS: load("old")}, LoopConfig{}, nil, nil)
			seen := func() string {
				c, err := tls.Dial("tcp", b.l.Address(), &tls.Config{InsecureSkipVerify: true})
				require.NoError(t, err)
				defer c.Close()
				return c.ConnectionState().PeerCertificates[0].Subject.CommonName
			}
			require.Equal(t, "old", seen())
			c := b.connect()
			b.l.SetTLS(load("new"))
			require.Equal(t, "new", seen())
			c.send(pingreqFrame)
			c.expect([]byte{0xd0, 0})
			b.connect()
		})
	}
}

func TestWebSocketRules(t *testing.T) {
	b := start(t, Config{Protocol: WS, Path: "/here"}, LoopConfig{}, nil, nil)
	url := "ws://" + b.l.Address()
	// The subprotocol must be asked for [MQTT-6.0.0-3].
	_, resp, err := websocket.DefaultDialer.Dial(url+"/here", nil)
	require.Error(t, err)
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
	_, resp, err = d.Dial(url+"/there", nil)
	require.Error(t, err)
	require.Equal(t, http.StatusNotFound, resp.StatusCode)

	// Frames and packets need not have the same borders [MQTT-6.0.0-2].
	ws, _, err := d.Dial(url+"/here", nil)
	require.NoError(t, err)
	defer ws.Close()
	for _, x := range connectFrame("c1", 4) {
		require.NoError(t, ws.WriteMessage(websocket.BinaryMessage, []byte{x}))
	}
	kind, m, err := ws.ReadMessage()
	require.NoError(t, err)
	require.Equal(t, websocket.BinaryMessage, kind)
	require.Equal(t, []byte{0x20, 2, 0, 0}, m)
	// Text ends the connection [MQTT-6.0.0-1].
	require.NoError(t, ws.WriteMessage(websocket.TextMessage, pingreqFrame))
	_, _, err = ws.ReadMessage()
	require.True(t, websocket.IsCloseError(err, websocket.CloseUnsupportedData), "%v", err)
}

// The PROXY header is required, in either version.
func TestProxyProtocol(t *testing.T) {
	remote := make(chan string, 1)
	b := start(t, transport(t, "proxy"), LoopConfig{}, nil, &hook{
		establish: func(cl *mqtt.Client) { remote <- cl.Net.Conn.RemoteAddr().String() },
	})
	try := func(header string) *client {
		nc, err := net.Dial("tcp", b.l.Address())
		require.NoError(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		c := &client{t, nc}
		c.send([]byte(header), connectFrame("c1", 4))
		return c
	}
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\xc0\x00\x02\x01\x12\x67\x07\x5b"
	try(v2).expect([]byte{0x20, 2, 0, 0})
	require.Equal(t, "192.0.2.9:4711", <-remote)
	try("PROXY TCP6 2001:db8::1 2001:db8::2 4712 1883\r\n").expect([]byte{0x20, 2, 0, 0})
	require.Equal(t, "[2001:db8::1]:4712", <-remote)
	// In pieces, and from a load balancer that only looks whether we live.
	c := try("")
	_ = c.Close()
	nc, err := net.Dial("tcp", b.l.Address())
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	c = &client{t, nc}
	for _, x := range []byte("PROXY TCP4 192.0.2.9 192.0.2.1 4713 1883\r\n") {
		c.send([]byte{x})
	}
	c.send(connectFrame("c1", 4))
	c.expect([]byte{0x20, 2, 0, 0})
	require.Equal(t, "192.0.2.9:4713", <-remote)
	c = try("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
	c.expect([]byte{0x20, 2, 0, 0})
	require.Equal(t, c.LocalAddr().String(), <-remote)
	for _, bad := range []string{
		"", "PROXY", "PROXY TCP4 nonsense\r\n", "PROXY " + strings.Repeat("x", 200),
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x01\x00",
	} {
		_, err := io.ReadAll(try(bad))
		_ = err // closed or reset: either way no answer came
	}
	require.Empty(t, remote)
}
