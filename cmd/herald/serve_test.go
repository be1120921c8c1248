package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/config"
)

// fakeNode is a broker without MQTT.
type fakeNode struct {
	registry *prometheus.Registry
	run      func(ctx context.Context) error

	mu      sync.Mutex
	reasons []string
}

func (n *fakeNode) Run(ctx context.Context) error  { return n.run(ctx) }
func (n *fakeNode) Registry() *prometheus.Registry { return n.registry }

func (n *fakeNode) Ready() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reasons
}

func (n *fakeNode) say(reasons ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = reasons
}

func newFakeNode() *fakeNode {
	n := &fakeNode{registry: prometheus.NewRegistry(), reasons: []string{"recovering"}}
	n.run = func(ctx context.Context) error { <-ctx.Done(); return nil }
	n.registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "herald_fake", Help: "For the test."}))
	return n
}

// output is a buffer that can be waited on.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) wait(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		o.mu.Lock()
		m := re.FindStringSubmatch(o.b.String())
		o.mu.Unlock()
		if m != nil {
			return m
		}
	}
	t.Fatalf("no %q in:\n%s", pattern, o.b.String())
	return nil
}

// serving is a running serve command with a fake node.
type serving struct {
	out, errs output
	done      chan error
}

func serveFake(open opener, args ...string) *serving {
	s := &serving{done: make(chan error, 1)}
	cmd := newServeCommand(open)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append([]string{"--set", "admin.address=127.0.0.1:0"}, args...))
	cmd.SetOut(&s.out)
	cmd.SetErr(&s.errs)
	go func() { s.done <- cmd.ExecuteContext(context.Background()) }()
	return s
}

func (s *serving) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("serve does not end")
		return nil
	}
}

func statusOf(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.status
	}
	if err != nil {
		return exitFailed
	}
	return exitDone
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// The admin endpoint is there while the store recovers and while the node
// stops; the listeners are printed when they are open, not before.
func TestServeLife(t *testing.T) {
	n := newFakeNode()
	release, stopping := make(chan struct{}), make(chan struct{})
	n.run = func(ctx context.Context) error {
		<-ctx.Done()
		close(stopping)
		<-release
		return nil
	}
	opening := make(chan struct{})
	s := serveFake(func(config.Config, *zap.Logger) (node, error) { <-opening; return n, nil })
	admin := s.out.wait(t, `admin on (http://\S+)\n`)[1]

	if code, body := fetch(t, admin+"/readyz"); code != 503 || !strings.Contains(body, `"starting"`) {
		t.Errorf("while opening: %d %s", code, body)
	}
	if code, _ := fetch(t, admin+"/healthz"); code != 200 {
		t.Errorf("not alive while opening: %d", code)
	}
	close(opening)
	n.say("recovering: 40 %")
	if strings.Contains(s.out.b.String(), "listening") {
		t.Error("says that it listens before it is ready")
	}
	n.say()
	s.out.wait(t, `listening on tcp 127\.0\.0\.1:1883\nlistening on ws 127\.0\.0\.1:8083/mqtt\n`)
	if code, body := fetch(t, admin+"/readyz"); code != 200 {
		t.Errorf("ready: %d %s", code, body)
	}
	if code, body := fetch(t, admin+"/metrics"); code != 200 || !strings.Contains(body, "herald_fake 0") {
		t.Errorf("metrics: %d %s", code, body)
	}
	signalSelf(t, syscall.SIGTERM)
	<-stopping
	if code, body := fetch(t, admin+"/readyz"); code != 503 || !strings.Contains(body, `"stopping"`) {
		t.Errorf("while stopping: %d %s", code, body)
	}
	close(release)
	if err := s.wait(t); err != nil {
		t.Errorf("graceful stop: %v", err)
	}
}

func signalSelf(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func TestServeReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "herald.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log: {level: warn}")
	n := newFakeNode()
	n.say()
	var log *zap.Logger
	s := serveFake(func(_ config.Config, l *zap.Logger) (node, error) { log = l; return n, nil }, "--config", file)
	s.out.wait(t, "listening")
	log.Info("too early")

	write("log: {level: debug}\nmqtt: {max_qos: 1}\nnode: {name: other}")
	signalSelf(t, syscall.SIGHUP)
	s.errs.wait(t, `only after a restart\s.*"mqtt\.max_qos", "node\.name"`)
	log.Debug("now it is seen")
	s.errs.wait(t, "now it is seen")

	write("log: {level: loud}")
	signalSelf(t, syscall.SIGHUP)
	s.errs.wait(t, `refused, nothing changed.*log\.level: must be one of`)
	log.Debug("still debug")
	s.errs.wait(t, "still debug")

	signalSelf(t, syscall.SIGINT)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.errs.b.String(), "too early") {
		t.Error("the level warn let an info through")
	}
}

// certified is a node that has certificates.
type certified struct {
	*fakeNode
	read chan error // what reading them again comes to
}

func (n *certified) ReloadCertificates() (int, error) {
	err := <-n.read
	if err != nil {
		return 0, err
	}
	return 2, nil
}

// SIGHUP has certificates read again, unless the configuration is refused.
func TestServeReloadsCertificates(t *testing.T) {
	n := &certified{newFakeNode(), make(chan error, 1)}
	n.say()
	s := serveFake(func(config.Config, *zap.Logger) (node, error) { return n, nil })
	s.out.wait(t, "listening")
	n.read <- errors.New("listeners[1]: torn")
	signalSelf(t, syscall.SIGHUP)
	s.errs.wait(t, `certificates refused, the old ones stay.*torn`)
	n.read <- nil
	signalSelf(t, syscall.SIGHUP)
	s.errs.wait(t, `certificates read again.*"listeners": 2`)
	signalSelf(t, syscall.SIGINT)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}

func TestServeFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	runs := func(err error) opener {
		return func(config.Config, *zap.Logger) (node, error) {
			n := newFakeNode()
			n.run = func(context.Context) error { return err }
			return n, nil
		}
	}
	tests := []struct {
		name   string
		open   opener
		args   []string
		status int
		want   string
	}{
		{"the store does not open", func(config.Config, *zap.Logger) (node, error) {
			return nil, fmt.Errorf("store ./data: %w", herald.ErrSchemaNewer)
		}, nil, exitRefused, "schema newer than the program"},
		{"a listener's port is taken", runs(fmt.Errorf("listen :1: %w", syscall.EADDRINUSE)), nil, exitRefused, "address already in use"},
		{"the data folder is taken", runs(fmt.Errorf("data: %w", herald.ErrInUse)), nil, exitRefused, "in use"},
		{"the admin port is taken", runs(nil), []string{"--set", "admin.address=" + taken.Addr().String()}, exitRefused, "admin.address " + taken.Addr().String()},
		{"fails at work", runs(fmt.Errorf("engine: %w", herald.ErrCorrupt)), nil, exitFailed, "data corrupt"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := serveFake(tt.open, tt.args...).wait(t)
			if statusOf(err) != tt.status || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v with status %d, want %q with %d", err, statusOf(err), tt.want, tt.status)
			}
		})
	}
}

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"json": `"msg":"hello"`, "console": "INFO\thello"} {
		var out output
		log, level, err := newLog(config.Log{Level: "info", Format: format}, syncer{&out})
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("hidden")
		log.Info("hello")
		level.SetLevel(zap.DebugLevel)
		log.Debug("shown")
		text := out.b.String()
		if !strings.Contains(text, want) || strings.Contains(text, "hidden") || !strings.Contains(text, "shown") {
			t.Errorf("%s: %s", format, text)
		}
	}
}

type syncer struct{ io.Writer }

func (syncer) Sync() error { return nil }
