package admin

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/config"
)

// banNode notes what it is told of bans.
type banNode struct {
	made, removed []Ban
	asked         []string
	err           error
}

func (n *banNode) options() Options {
	return Options{
		Ready: func() []string { return nil }, Metrics: prometheus.NewRegistry(), Log: zap.NewNop(),
		Ban: func(_ context.Context, b Ban) (Ban, error) {
			if n.err != nil {
				return b, n.err
			}
			n.made = append(n.made, b)
			now := time.Now()
			b.Since = &now
			return b, nil
		},
		Unban: func(_ context.Context, b Ban) error {
			if n.err == nil {
				n.removed = append(n.removed, b)
			}
			return n.err
		},
		Bans: func(after string, limit int) (BanPage, error) {
			n.asked = append(n.asked, fmt.Sprintf("%s %d", after, limit))
			return BanPage{Total: 7, Next: "client:x"}, n.err
		},
	}
}

func (n *banNode) ask(t *testing.T, method, path, body string, change func(*http.Request)) (int, map[string]any) {
	t.Helper()
	return ask(t, handler(config.Admin{}, n.options()), method, path, body, change)
}

func TestBans(t *testing.T) {
	n := &banNode{}
	code, v := n.ask(t, "POST", "/api/v1/bans", `{"client":"c","reason":"r","by":"b","for":"90m"}`, nil)
	if code != 200 || v["client"] != "c" || v["reason"] != "r" || v["by"] != "b" || v["since"] == nil || v["until"] == nil {
		t.Errorf("%d %v", code, v)
	}
	if d := time.Until(*n.made[0].Until); d > 90*time.Minute || d < 89*time.Minute {
		t.Errorf("it lasts %v", d)
	}
	for _, body := range []string{`{"username":""}`, `{"address":"192.0.2.0/24","until":"2126-01-01T00:00:00Z"}`} {
		if code, v := n.ask(t, "POST", "/api/v1/bans", body, nil); code != 200 {
			t.Errorf("%s: %d %v", body, code, v)
		}
	}
	if *n.made[1].Username != "" || n.made[1].Until != nil || *n.made[2].Address != "192.0.2.0/24" || n.made[2].Until.Year() != 2126 {
		t.Errorf("%+v", n.made)
	}
	if code, v := n.ask(t, "GET", "/api/v1/bans", "", nil); code != 200 || v["total"] != 7.0 || v["next"] != "client:x" || fmt.Sprint(v["bans"]) != "[]" {
		t.Errorf("%d %v", code, v)
	}
	n.ask(t, "GET", "/api/v1/bans?limit=1000&after=client%3Aa%26b", "", nil)
	if got := strings.Join(n.asked, ","); got != " 100,client:a&b 1000" {
		t.Errorf("asked for %q", got)
	}
	for _, q := range []string{"client=a%20b", "username=", "address=192.0.2.1"} {
		if code, v := n.ask(t, "DELETE", "/api/v1/bans?"+q, "", nil); code != 200 {
			t.Errorf("%s: %d %v", q, code, v)
		}
	}
	if len(n.removed) != 3 || *n.removed[0].Client != "a b" || *n.removed[1].Username != "" || *n.removed[2].Address != "192.0.2.1" {
		t.Errorf("removed %+v", n.removed)
	}
	for err, want := range map[error]int{
		fmt.Errorf("x: %w", herald.ErrNotFound): 404, fmt.Errorf("x: %w", herald.ErrUnavailable): 503, fmt.Errorf("x: %w", ErrFull): 409, fmt.Errorf("bad"): 400,
	} {
		n.err = err
		for _, r := range [][3]string{{"POST", "/api/v1/bans", `{"client":"c"}`}, {"DELETE", "/api/v1/bans?client=c", ""}} {
			if code, v := n.ask(t, r[0], r[1], r[2], nil); code != want || v["error"] != err.Error() {
				t.Errorf("%s, %v: %d %v", r[0], err, code, v)
			}
		}
	}
}

// What cannot be understood, or comes from elsewhere, changes and shows nothing.
func TestBansRefuses(t *testing.T) {
	n := &banNode{}
	elsewhere := func(r *http.Request) { r.RemoteAddr = "192.0.2.1:80" }
	browser := func(r *http.Request) { r.Header.Set("Origin", "http://x") }
	for _, c := range []struct {
		method, path, body string
		change             func(*http.Request)
		code               int
	}{
		{"GET", "", "", elsewhere, 403},
		{"POST", "", `{"client":"c"}`, elsewhere, 403},
		{"DELETE", "?client=c", "", elsewhere, 403},
		{"POST", "", `{"client":"c"}`, browser, 403},
		{"PUT", "", `{"client":"c"}`, nil, 405},
		{"GET", "?limit=0", "", nil, 400},
		{"GET", "?limit=1001", "", nil, 400},
		{"GET", "?limit=x", "", nil, 400},
		{"POST", "", ``, nil, 400},
		{"POST", "", `{}`, nil, 400},
		{"POST", "", `{"reason":"r"}`, nil, 400},
		{"POST", "", `{"client":"c","username":"u"}`, nil, 400},
		{"POST", "", `{"client":1}`, nil, 400},
		{"POST", "", `{"client":"c","who":"x"}`, nil, 400},
		{"POST", "", `{"client":"c","for":"soon"}`, nil, 400},
		{"POST", "", `{"client":"c","for":"-1h"}`, nil, 400},
		{"POST", "", `{"client":"c","for":"1h","until":"2126-01-01T00:00:00Z"}`, nil, 400},
		{"POST", "", `{"client":"c","until":"tomorrow"}`, nil, 400},
		{"POST", "", `{"client":"c","since":"2026-01-01T00:00:00Z"}`, nil, 400},
		{"POST", "", `{"client":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413},
		{"DELETE", "", "", nil, 400},
		{"DELETE", "?client=c&username=u", "", nil, 400},
		{"DELETE", "?client=c&client=d", "", nil, 400},
		{"DELETE", "?who=c", "", nil, 400},
	} {
		if code, v := n.ask(t, c.method, "/api/v1/bans"+c.path, c.body, c.change); code != c.code || v["error"] == "" {
			t.Errorf("%s %s %.60s: %d %v, want %d", c.method, c.path, c.body, code, v, c.code)
		}
	}
	if len(n.made)+len(n.removed)+len(n.asked) > 0 {
		t.Errorf("made %v, removed %v, asked %v", n.made, n.removed, n.asked)
	}
	none := &node{}
	for _, r := range [][2]string{{"GET", ""}, {"POST", `{"client":"c"}`}, {"DELETE", ""}} {
		if code, _ := none.ask(t, r[0], "/api/v1/bans", r[1], nil); code != 503 {
			t.Errorf("%s before the node is there: %d", r[0], code)
		}
	}
}
