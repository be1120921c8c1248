// Package admin is the HTTP endpoint for operators: is the process alive, can
// it serve, what do its counters say; and the API with which it is told what to do.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/config"
)

const (
	// A request, body included, must be complete by then, header and body no larger.
	readTimeout = 10 * time.Second
	maxHeader   = 16 << 10
	maxBody     = 16 << 10
	// A profile may be taken over as long as this.
	writeTimeout = 90 * time.Second
	idleTimeout  = time.Minute
	// What a stop allows the requests under way.
	stopTimeout = 2 * time.Second
)

// Options is what the endpoint shows. All of it is called from many goroutines.
type Options struct {
	// Ready returns the reasons why the node cannot serve; none: it can.
	Ready func() []string
	// Metrics is what /metrics serves.
	Metrics prometheus.Gatherer
	// Status is what /api/v1/status serves, as JSON. nil: nobody can tell yet.
	Status func() any
	// Drain has the node send its clients elsewhere, at rate connections a second; 0
	// is the default. An error that wraps herald.ErrUnavailable is not the asker's
	// fault.
	Drain func(rate int) error
	// Kick ends the connection of a client, at whichever node it is; here: at this one.
	Kick func(client string) (here bool, err error)
	// Ban keeps clients from connecting, at all nodes, Unban lets them connect again. An
	// error that wraps herald.ErrUnavailable, herald.ErrNotFound or ErrFull is not the
	// asker's fault.
	Ban   func(context.Context, Ban) (Ban, error)
	Unban func(context.Context, Ban) error
	// Bans returns at most limit bans behind that which an earlier page has as Next;
	// empty: from the first.
	Bans func(after string, limit int) (BanPage, error)
	// Version is shown on the page.
	Version string
	Log     *zap.Logger
}

// Server is the endpoint. It listens from [Listen] on and answers while
// [Server.Run] runs.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen opens the address of c, which must not be empty. Each Server must be
// given to Run, or Closed.
func Listen(c config.Admin, o Options) (*Server, error) {
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("admin.address %s: %w", c.Address, err)
	}
	return &Server{
		listener: l,
		http: &http.Server{
			Handler:           handler(c, o),
			ReadTimeout:       readTimeout,
			ReadHeaderTimeout: readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          zap.NewStdLog(o.Log.Named("admin")),
		},
	}, nil
}

// Addr is the address in use, with the port that was chosen for port 0.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives the address back if Run is not to be called.
func (s *Server) Close() error { return s.listener.Close() }

// Run answers requests until ctx ends, then lets those under way finish for a
// moment. It returns nil after such a stop.
func (s *Server) Run(ctx context.Context) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := s.http.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.http.Close()
		}
		stopped <- err
	})
	err := s.http.Serve(s.listener)
	if stop() { // ctx has not ended: serving failed by itself
		return fmt.Errorf("admin: %w", err)
	}
	return <-stopped
}

func handler(c config.Admin, o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, status{Status: "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reasons := o.Ready(); len(reasons) > 0 {
			answer(w, http.StatusServiceUnavailable, status{Status: "not ready", Reasons: reasons})
			return
		}
		answer(w, http.StatusOK, status{Status: "ready"})
	})
	api(mux, o)
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		ErrorLog:            zap.NewStdLog(o.Log.Named("metrics")),
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		header(w, "text/html; charset=utf-8")
		_ = page.Execute(w, struct { // an error here is a client that went away
			Version string
			Reasons []string
			Pprof   bool
		}{o.Version, o.Ready(), c.Pprof})
	})
	if c.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// status is the body of /healthz and /readyz.
type status struct {
	Status  string   `json:"status"`
	Reasons []string `json:"reasons,omitempty"`
}

func answer(w http.ResponseWriter, code int, s any) {
	header(w, "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(s) // an error here is a client that went away
}

func header(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Herald</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style>
<h1>Herald</h1>
<p>MQTT broker, {{.Version}}.</p>
{{if .Reasons}}<p>Not ready:</p>
<ul>{{range .Reasons}}<li>{{.}}</li>{{end}}</ul>{{else}}<p>Ready.</p>{{end}}
<p><a href="/healthz">/healthz</a>, <a href="/readyz">/readyz</a>, <a href="/metrics">/metrics</a>{{if .Pprof}}, <a href="/debug/pprof/">/debug/pprof/</a>{{end}}</p>
`))
