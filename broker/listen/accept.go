package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// socket is an accepted connection that counts against its listener until it is
// closed.
type socket struct {
	net.Conn
	lis   *Listener
	since uint32 // tick
	once  sync.Once
}

func (s *socket) Close() error {
	err := net.ErrClosed
	s.once.Do(func() {
		err = s.Conn.Close()
		s.lis.forget(s)
		s.lis.dismiss()
	})
	return err
}

func (s *socket) CloseWrite() error {
	if cw, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// acceptor is the net.Listener of everything that is not polled.
type acceptor struct{ l *Listener }

func (a acceptor) Addr() net.Addr { return a.l.addr }
func (a acceptor) Close() error   { return nil }

// Accept returns admitted connections, and an error only when the listener was
// closed.
func (a acceptor) Accept() (net.Conn, error) {
	l := a.l
	var wait time.Duration
	for {
		nc, err := l.net.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !l.backOff(err, &wait) {
				return nil, net.ErrClosed
			}
			continue
		}
		wait = 0
		if !l.admit() {
			_ = nc.Close()
			continue
		}
		s := &socket{Conn: nc, lis: l, since: l.loop.now.Load()}
		if !l.remember(s) {
			_ = s.Close()
			return nil, net.ErrClosed
		}
		if !l.cfg.ProxyProtocol {
			return s, nil
		}
		return proxyproto.NewConn(s, proxyproto.WithPolicy(proxyproto.REQUIRE),
			proxyproto.SetReadHeaderTimeout(l.loop.cfg.ConnectTimeout)), nil
	}
}

// underneath finds the socket below the layers.
func underneath(nc net.Conn) *socket {
	for {
		switch c := nc.(type) {
		case *socket:
			return c
		case *tls.Conn:
			nc = c.NetConn()
		case *proxyproto.Conn:
			nc = c.Raw()
		default:
			return nil
		}
	}
}

// acceptStreams runs until the listener is closed.
func (l *Listener) acceptStreams() {
	if l.cfg.Protocol == WS || l.cfg.Protocol == WSS {
		l.serveHTTP()
		return
	}
	for {
		nc, err := (acceptor{l}).Accept()
		if err != nil {
			return
		}
		l.serving.Go(func() { l.handshake(nc) })
	}
}

// handshake does what comes before MQTT, in time, and leaves the connection to a
// goroutine of its own.
func (l *Listener) handshake(nc net.Conn) {
	s := underneath(nc)
	if p, ok := nc.(*proxyproto.Conn); ok {
		if _, err := p.Read(nil); err != nil || p.ProxyHeader() == nil {
			l.loop.log.Debug("no PROXY header", "listener", l.cfg.ID, "remote", s.RemoteAddr().String(), "error", err)
			_ = s.Close()
			return
		}
	}
	var state *tls.ConnectionState
	if l.cfg.Protocol == TLS {
		ctx, cancel := context.WithTimeout(context.Background(), l.loop.cfg.ConnectTimeout)
		defer cancel()
		t := tls.Server(nc, l.tls.Load())
		if err := t.HandshakeContext(ctx); err != nil {
			l.loop.log.Debug("TLS handshake failed", "listener", l.cfg.ID, "remote", nc.RemoteAddr().String(), "error", err)
			_ = s.Close()
			return
		}
		st := t.ConnectionState()
		nc, state = t, &st
	}
	l.begin(nc, s, state)
}

// begin starts a connection whose handshakes are done.
func (l *Listener) begin(nc net.Conn, s *socket, state *tls.ConnectionState) {
	remote := nc.RemoteAddr()
	l.mu.Lock()
	closed := l.closed // then Loop.Stop may have ended all connections already
	if !closed {
		delete(l.young, s)
		c := l.newStream(nc, s, remote, state, s.since)
		l.loop.own.Go(c.stream.run)
	}
	l.mu.Unlock()
	if closed {
		_ = s.Close()
	}
}

// remember notes a socket that is in its handshake, so that Close can end it;
// false: the listener is closed.
func (l *Listener) remember(s *socket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.young[s] = struct{}{}
	return true
}

func (l *Listener) forget(s *socket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.young, s)
}

// closeYoung ends the handshakes under way.
func (l *Listener) closeYoung() {
	l.mu.Lock()
	l.closed = true
	var young []*socket
	for s := range l.young {
		young = append(young, s)
	}
	l.mu.Unlock()
	for _, s := range young {
		_ = s.Close()
	}
}
