package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/admin"
	"github.com/herald-mqtt/herald/broker/config"
)

// drainable is a node that only notes what it is told.
type drainable struct {
	*fakeNode
	mu    sync.Mutex
	rates []int
}

func (d *drainable) Status() broker.Status {
	return broker.Status{Node: "fake", Peers: []broker.Peer{{Node: "other", Number: 7, Life: 2, Address: "h:1", Leaving: true}}}
}

func (d *drainable) Drain(rate int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rates = append(d.rates, rate)
	return nil
}

func (d *drainable) Kick(client string) bool { return client == "here" }

func (*drainable) Ban(_ context.Context, b admin.Ban) (admin.Ban, error) { return b, nil }

func (*drainable) Unban(context.Context, admin.Ban) error { return nil }

func (*drainable) Bans(string, int) (admin.BanPage, error) { return admin.BanPage{}, nil }

func (d *drainable) told() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.rates)
}

// A node that begins a new life because it was cut off goes on draining: what an
// operator has asked for holds until the process ends.
func TestDrainOutlivesALife(t *testing.T) {
	over := make(chan struct{})
	lives := make(chan *drainable, 3)
	first := true
	s := serveFake(func(config.Config, *zap.Logger) (node, error) {
		d := &drainable{fakeNode: newFakeNode()}
		d.say()
		if first {
			first = false
			d.run = func(context.Context) error {
				<-over
				return fmt.Errorf("for a test: %w", broker.ErrCutOff)
			}
		}
		lives <- d
		return d, nil
	})
	admin := s.out.wait(t, `admin on (http://\S+)`)[1]
	one := <-lives
	s.out.wait(t, "listening on")
	var out, errs strings.Builder
	if status := run([]string{"ctl", "drain", "--admin", admin, "--rate", "9"}, nil, &out, &errs); status != 0 {
		t.Fatalf("ctl drain: %d %s", status, errs.String())
	}
	if want := "peer other (number 7, life 2) at h:1, does not reach redis, takes no clients"; !strings.Contains(out.String(), want) {
		t.Errorf("got:\n%s\nwant: %s", out.String(), want)
	}
	close(over)
	var two *drainable
	select {
	case two = <-lives:
	case <-time.After(10 * time.Second):
		t.Fatal("there is no second life")
	}
	for end := time.Now().Add(10 * time.Second); len(two.told()) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if a, b := fmt.Sprint(one.told()), fmt.Sprint(two.told()); a != "[9]" || b != "[9]" {
		t.Errorf("the first life was told %s, the second %s", a, b)
	}
	signalSelf(t, syscall.SIGTERM)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}

// What answers may be anything.
func TestCtlIsNotMisled(t *testing.T) {
	for _, body := range []string{"", "null", "{}", "<html>", `{"node":1}`, `{"node":"`} {
		server := answering(t, body)
		var errs strings.Builder
		if status := run([]string{"ctl", "status", "--admin", server}, nil, io.Discard, &errs); status != 1 || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%q: status %d, %q", body, status, errs.String())
		}
	}
}

func answering(t *testing.T, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	t.Cleanup(s.Close)
	return s.URL
}
