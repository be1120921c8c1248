package listen

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	subprotocol = "mqtt" // [MQTT-6.0.0-3], [MQTT-6.0.0-4]
	// maxHeader bounds the request that asks for a WebSocket.
	maxHeader = 16 << 10
)

// writeBuffers is shared, so that only a WebSocket that writes holds a buffer.
var writeBuffers sync.Pool

var errNotBinary = errors.New("WebSocket message that is not binary")

// websocketConn is a WebSocket as a stream of bytes: where a message ends means
// nothing to MQTT [MQTT-6.0.0-2].
type websocketConn struct {
	*websocket.Conn
	message io.Reader // the one being read, or nil
}

func (c *websocketConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage { // [MQTT-6.0.0-1]
				_ = c.WriteControl(websocket.CloseMessage,
					websocket.FormatCloseMessage(websocket.CloseUnsupportedData, "binary only"), time.Now().Add(time.Second))
				return 0, errNotBinary
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if err != nil {
			c.message = nil
			if !errors.Is(err, io.EOF) {
				return n, err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (c *websocketConn) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite sends the Close frame.
func (c *websocketConn) CloseWrite() error {
	return c.WriteControl(websocket.CloseMessage,
		websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
}

// SetDeadline is not needed: the socket below has one.
func (c *websocketConn) SetDeadline(time.Time) error { return errors.ErrUnsupported }

var _ net.Conn = (*websocketConn)(nil)

// serveHTTP runs until the listener is closed.
func (l *Listener) serveHTTP() {
	upgrade := websocket.Upgrader{
		Subprotocols:     []string{subprotocol},
		HandshakeTimeout: l.loop.cfg.ConnectTimeout,
		ReadBufferSize:   1 << 10,
		WriteBufferSize:  1 << 10,
		WriteBufferPool:  &writeBuffers,
		// Browsers tell where a page came from; MQTT clients log in, so a
		// foreign page gains nothing.
		CheckOrigin: func(*http.Request) bool { return true },
	}
	mux := http.NewServeMux()
	mux.HandleFunc(l.cfg.Path, func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(websocket.Subprotocols(r), subprotocol) {
			http.Error(w, "the WebSocket subprotocol must be mqtt", http.StatusBadRequest)
			return
		}
		ws, err := upgrade.Upgrade(w, r, nil)
		if err != nil {
			return // it has been answered
		}
		s := underneath(ws.NetConn())
		if s == nil {
			_ = ws.Close()
			return
		}
		_ = s.SetDeadline(time.Time{})
		l.begin(&websocketConn{Conn: ws}, s, r.TLS)
	})
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: l.loop.cfg.ConnectTimeout,
		ReadTimeout:       l.loop.cfg.ConnectTimeout,
		WriteTimeout:      l.loop.cfg.ConnectTimeout,
		IdleTimeout:       l.loop.cfg.ConnectTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(l.loop.log.Handler(), slog.LevelDebug),
	}
	srv.SetKeepAlivesEnabled(false)
	var ln net.Listener = acceptor{l}
	if l.cfg.Protocol == WSS {
		ln = tls.NewListener(ln, &tls.Config{ // as it is when a handshake begins
			MinVersion:         tls.VersionTLS12,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return l.tls.Load(), nil },
		})
	}
	_ = srv.Serve(ln)
	_ = srv.Close()
}
