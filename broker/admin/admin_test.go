package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server on a free port and returns its URL and what it shows as
// reasons.
func start(t *testing.T, c config.Admin) (string, *atomic.Pointer[[]string]) {
	t.Helper()
	var reasons atomic.Pointer[[]string]
	reasons.Store(&[]string{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "herald_test_total", Help: "For the test."}))
	c.Address = "127.0.0.1:0"
	s, err := Listen(c, Options{
		Ready:   func() []string { return *reasons.Load() },
		Metrics: registry, Version: "v<1>", Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return "http://" + s.Addr().String(), &reasons
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestEndpoints(t *testing.T) {
	url, reasons := start(t, config.Admin{})
	check := func(path string, code int, want string) {
		t.Helper()
		if c, body := get(t, url+path); c != code || !strings.Contains(body, want) {
			t.Errorf("%s: got %d %q, want %d with %q", path, c, body, code, want)
		}
	}
	check("/healthz", 200, `"alive"`)
	check("/readyz", 200, `{"status":"ready"}`)
	check("/metrics", 200, "herald_test_total 0")
	check("/", 200, "v&lt;1&gt;")
	check("/nothing", 404, "")
	check("/api/v1/", 404, "")
	check("/debug/pprof/", 404, "")

	reasons.Store(&[]string{"store: disk full", "stopping"})
	check("/readyz", 503, `{"status":"not ready","reasons":["store: disk full","stopping"]}`)
	check("/healthz", 200, `"alive"`)
	check("/", 200, "<li>store: disk full</li>")
}

func TestOnlyGet(t *testing.T) {
	url, _ := start(t, config.Admin{})
	r, err := http.Post(url+"/healthz", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("got %d", r.StatusCode)
	}
}

func TestPprofWhenSwitchedOn(t *testing.T) {
	url, _ := start(t, config.Admin{Pprof: true})
	if code, body := get(t, url+"/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("got %d %.100q", code, body)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, err = Listen(config.Admin{Address: l.Addr().String()}, Options{Log: zap.NewNop()})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "admin.address "+l.Addr().String()) {
		t.Errorf("got %v", err)
	}
}
