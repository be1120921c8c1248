package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/herald-mqtt/herald"
)

// The protocols of a listener.
const (
	TCP  = "tcp"
	TLS  = "tls"
	WS   = "ws"
	WSS  = "wss"
	Unix = "unix"
)

// Config is one place where clients connect.
type Config struct {
	// ID names the listener, uniquely.
	ID string
	// Protocol is TCP, TLS, WS, WSS or Unix.
	Protocol string
	// Address is host:port, or for Unix the socket's file. An empty host is
	// every interface, port 0 a free one.
	Address string
	// Path of the URL for WS and WSS; empty is /mqtt.
	Path string
	// TLS is needed for TLS and WSS; see LoadTLS and Listener.SetTLS.
	TLS *tls.Config
	// ProxyProtocol: each connection must begin with a PROXY protocol header,
	// version 1 or 2, and its source is the client's address.
	ProxyProtocol bool
	// MaxConnections bounds the connections of this listener; what is beyond is
	// closed at once. 0 is no bound.
	MaxConnections int
}

// Listener accepts connections and gives them to the loop. It is a mochi
// listener: add it with Server.AddListener.
type Listener struct {
	cfg  Config
	loop *Loop
	net  net.Listener
	addr net.Addr

	tls      atomic.Pointer[tls.Config] // of the handshakes that begin
	conns    atomic.Int64
	bytesIn  atomic.Int64
	bytesOut atomic.Int64

	establishFn atomic.Pointer[listeners.EstablishFn]
	closing     chan struct{}
	closeOnce   sync.Once
	serving     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	young  map[*socket]struct{} // in their handshakes
}

var _ listeners.Listener = (*Listener)(nil)

// New binds the address. The error wraps [herald.ErrInUse] if somebody else has
// it.
func New(cfg Config, loop *Loop) (*Listener, error) {
	if cfg.Path == "" {
		cfg.Path = "/mqtt"
	}
	if (cfg.Protocol == TLS || cfg.Protocol == WSS) && cfg.TLS == nil {
		return nil, fmt.Errorf("listen: %s %s: no certificate", cfg.Protocol, cfg.Address)
	}
	ln, err := bind(cfg)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen: %s %s: %w: %w", cfg.Protocol, cfg.Address, herald.ErrInUse, err)
		}
		return nil, fmt.Errorf("listen: %s %s: %w", cfg.Protocol, cfg.Address, err)
	}
	l := &Listener{cfg: cfg, loop: loop, net: ln, addr: ln.Addr(), closing: make(chan struct{}), young: map[*socket]struct{}{}}
	if cfg.TLS != nil {
		l.SetTLS(cfg.TLS)
	}
	return l, nil
}

// SetTLS has the handshakes that begin from now on use conf. Connections that there
// are go on.
func (l *Listener) SetTLS(conf *tls.Config) {
	if l.cfg.Protocol == WSS {
		conf = conf.Clone()
		conf.NextProtos = []string{"http/1.1"} // a WebSocket does not begin over HTTP/2 here
	}
	l.tls.Store(conf)
}

// bind opens the socket. What is set on it is inherited by the connections that
// it accepts, so that none of them costs a system call for it.
func bind(cfg Config) (net.Listener, error) {
	switch cfg.Protocol {
	case TCP, TLS, WS, WSS:
		lc := net.ListenConfig{Control: listenOptions, KeepAlive: -1}
		return lc.Listen(context.Background(), "tcp", cfg.Address)
	case Unix:
		if err := removeStale(cfg.Address); err != nil {
			return nil, err
		}
		return net.Listen("unix", cfg.Address)
	}
	return nil, fmt.Errorf("unknown protocol %q", cfg.Protocol)
}

// removeStale removes a socket file that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket: %w", path, syscall.EADDRINUSE)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return syscall.EADDRINUSE
	}
	return os.Remove(path)
}

// ID is the listener's name.
func (l *Listener) ID() string { return l.cfg.ID }

// Address is the address that was bound, the real port included.
func (l *Listener) Address() string { return l.addr.String() }

// Protocol is the configured one.
func (l *Listener) Protocol() string { return l.cfg.Protocol }

// Connections is the number of open ones.
func (l *Listener) Connections() int { return int(l.conns.Load()) }

// Init is mochi's; the address is bound already.
func (l *Listener) Init(*slog.Logger) error { return nil }

// Serve accepts until Close. Mochi calls it on a goroutine of its own.
func (l *Listener) Serve(establish listeners.EstablishFn) {
	l.establishFn.Store(&establish)
	l.serving.Add(1)
	defer l.serving.Done()
	l.accept()
}

func (l *Listener) establish(id string, c net.Conn) error {
	return (*l.establishFn.Load())(id, c)
}

// Close stops accepting. It does not end connections: the engine tells their
// clients why first, and [Loop.Stop] ends what is left.
func (l *Listener) Close(closeClients listeners.CloseFn) {
	l.closeOnce.Do(func() {
		close(l.closing)
		_ = l.net.Close()
		l.closeYoung()
		if closeClients != nil {
			closeClients(l.cfg.ID)
		}
	})
	l.serving.Wait()
}

// admit counts a new connection in; false: it is one too many.
func (l *Listener) admit() bool {
	own, all := l.conns.Add(1), l.loop.sockets.Add(1)
	most, mostOfAll := int64(l.cfg.MaxConnections), int64(l.loop.cfg.MaxConnections)
	if most > 0 && own > most || mostOfAll > 0 && all > mostOfAll {
		l.dismiss()
		l.loop.counts.refused.Add(1)
		return false
	}
	return true
}

// dismiss counts a connection out whose descriptor is closed.
func (l *Listener) dismiss() {
	l.conns.Add(-1)
	l.loop.sockets.Add(-1)
}

// backOff waits after a failed accept; false: the listener was closed.
func (l *Listener) backOff(err error, wait *time.Duration) bool {
	*wait = min(max(2*(*wait), 10*time.Millisecond), time.Second)
	l.loop.log.Warn("cannot accept, trying again", "listener", l.cfg.ID, "error", err, "wait", *wait)
	t := time.NewTimer(*wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.closing:
		return false
	}
}
