package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/config"
)

// node is what the API is about.
type node struct {
	rates  []int
	kicked []string
	err    error
	gone   bool
}

func (n *node) options() Options {
	return Options{
		Ready: func() []string { return nil }, Metrics: prometheus.NewRegistry(), Log: zap.NewNop(),
		Status: func() any {
			if n.gone {
				return nil
			}
			return map[string]int{"drains": len(n.rates)}
		},
		Drain: func(rate int) error {
			if n.err == nil {
				n.rates = append(n.rates, rate)
			}
			return n.err
		},
		Kick: func(client string) (bool, error) {
			n.kicked = append(n.kicked, client)
			return true, nil
		},
	}
}

// ask has a request answered; change may be nil.
func (n *node) ask(t *testing.T, method, path, body string, change func(*http.Request)) (int, map[string]any) {
	t.Helper()
	return ask(t, handler(config.Admin{}, n.options()), method, path, body, change)
}

func ask(t *testing.T, h http.Handler, method, path, body string, change func(*http.Request)) (int, map[string]any) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:1234"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var v map[string]any
	if b, _ := io.ReadAll(w.Body); json.Unmarshal(b, &v) != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%s %s: %d, no JSON: %q", method, path, w.Code, b)
	}
	return w.Code, v
}

func TestAPI(t *testing.T) {
	n := &node{}
	if code, v := n.ask(t, "GET", "/api/v1/status", "", nil); code != 200 || v["drains"] != 0.0 {
		t.Errorf("status: %d %v", code, v)
	}
	for i, body := range []string{"", `{}`, `{"rate": 7}`} {
		if code, v := n.ask(t, "POST", "/api/v1/drain", body, nil); code != 202 || v["drains"] != float64(i+1) {
			t.Errorf("drain %q: %d %v", body, code, v)
		}
	}
	if got := fmt.Sprint(n.rates); got != "[0 0 7]" {
		t.Errorf("rates %s", got)
	}
	n.err = fmt.Errorf("%w: starting", herald.ErrUnavailable)
	if code, v := n.ask(t, "POST", "/api/v1/drain", "", nil); code != 503 || !strings.Contains(v["error"].(string), "starting") {
		t.Errorf("unavailable: %d %v", code, v)
	}
	n.err = errors.New("what a rate")
	if code, v := n.ask(t, "POST", "/api/v1/drain", `{"rate": -1}`, nil); code != 400 || v["error"] != "what a rate" {
		t.Errorf("a bad rate: %d %v", code, v)
	}
	n.gone = true
	if code, v := n.ask(t, "GET", "/api/v1/status", "", nil); code != 503 || v["error"] == "" {
		t.Errorf("before the node is there: %d %v", code, v)
	}
}

// What cannot be understood, or comes from elsewhere, changes nothing.
func TestAPIRefuses(t *testing.T) {
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	from := func(addr string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = addr } }
	for _, test := range []struct {
		name, method, path, body string
		change                   func(*http.Request)
		code                     int
	}{
		{"no such thing", "GET", "/api/v1/nothing", "", nil, 404},
		{"no such thing to be done", "POST", "/api/v2/drain", "", nil, 404},
		{"only looked at", "GET", "/api/v1/drain", "", nil, 405},
		{"a status cannot be told", "POST", "/api/v1/status", "", nil, 405},
		{"deleted", "DELETE", "/api/v1/drain", "", nil, 405},
		{"another machine", "POST", "/api/v1/drain", "", from("192.0.2.1:80"), 403},
		{"another machine, IPv6", "POST", "/api/v1/drain", "", from("[2001:db8::1]:80"), 403},
		{"no address", "POST", "/api/v1/drain", "", from("@"), 403},
		{"a page in a browser", "POST", "/api/v1/drain", "", header("Origin", "http://127.0.0.1:8080"), 403},
		{"through a proxy", "POST", "/api/v1/drain", "", header("X-Forwarded-For", "127.0.0.1"), 403},
		{"no JSON", "POST", "/api/v1/drain", "rate=1", nil, 400},
		{"half of it", "POST", "/api/v1/drain", `{"rate":`, nil, 400},
		{"two values", "POST", "/api/v1/drain", `{"rate":1}{"rate":2}`, nil, 400},
		{"a key that is unknown", "POST", "/api/v1/drain", `{"speed":1}`, nil, 400},
		{"no number", "POST", "/api/v1/drain", `{"rate":"fast"}`, nil, 400},
		{"half a connection", "POST", "/api/v1/drain", `{"rate":0.5}`, nil, 400},
		{"a list", "POST", "/api/v1/drain", `[1]`, nil, 400},
		{"of another kind", "POST", "/api/v1/drain", `{"rate":1}`, header("Content-Type", "text/plain"), 415},
		{"too much", "POST", "/api/v1/drain", `{"rate":` + strings.Repeat(" ", maxBody) + `1}`, nil, 413},
	} {
		n := &node{}
		code, v := n.ask(t, test.method, test.path, test.body, test.change)
		if code != test.code || v["error"] == "" || len(n.rates) > 0 {
			t.Errorf("%s: %d %v, %d drains; want %d", test.name, code, v, len(n.rates), test.code)
		}
	}
	n := &node{}
	if code, _ := n.ask(t, "POST", "/api/v1/drain", "", from("[::1]:80")); code != 202 {
		t.Errorf("this machine, IPv6: %d", code)
	}
}

// A kick names a client, and answers whether it was here.
func TestKick(t *testing.T) {
	n := &node{}
	for _, c := range []struct {
		body string
		code int
	}{
		{`{"client":"phone"}`, 200}, {`{"client":""}`, 400}, {``, 400}, {`{"client":1}`, 400}, {`{"clients":"x"}`, 400},
	} {
		code, v := n.ask(t, "POST", "/api/v1/kick", c.body, nil)
		if code != c.code || code == 200 && v["here"] != true {
			t.Errorf("%s: %d %v, want %d", c.body, code, v, c.code)
		}
	}
	if len(n.kicked) != 1 || n.kicked[0] != "phone" {
		t.Errorf("kicked %q", n.kicked)
	}
}
