package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"

	"github.com/herald-mqtt/herald"
)

// api adds what is below /api/. Every answer is JSON: what was asked for, or a
// failure.
func api(mux *http.ServeMux, o Options) {
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "there is no %s", r.URL.Path)
	})
	route(mux, http.MethodGet, "/api/v1/status", func(w http.ResponseWriter, _ *http.Request) { tell(w, http.StatusOK, o) })
	route(mux, http.MethodPost, "/api/v1/kick", func(w http.ResponseWriter, r *http.Request) { kick(w, r, o) })
	mux.HandleFunc("/api/v1/bans", func(w http.ResponseWriter, r *http.Request) { bans(w, r, o) })
	route(mux, http.MethodPost, "/api/v1/drain", func(w http.ResponseWriter, r *http.Request) { drain(w, r, o) })
}

// route serves one method of a path, and says so to who tries another.
func route(mux *http.ServeMux, method, path string, h http.HandlerFunc) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != method:
			w.Header().Set("Allow", method)
			fail(w, http.StatusMethodNotAllowed, "%s wants %s", path, method)
		case method != http.MethodGet && !trusted(r):
			fail(w, http.StatusForbidden, "%s is only for requests from this machine, made by no browser and no proxy", path)
		default:
			h(w, r)
		}
	})
}

// trusted tells whether who asks may change something. There is no login yet, so it
// has to come from this machine: not through a proxy that runs here, nor from a page
// that a browser shows here.
func trusted(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		return false
	}
	for _, h := range []string{"Origin", "Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(h) != "" {
			return false
		}
	}
	return true
}

// failure is the body of an answer that is none.
type failure struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, code int, format string, args ...any) {
	answer(w, code, failure{fmt.Sprintf(format, args...)})
}

func tell(w http.ResponseWriter, code int, o Options) {
	var s any
	if o.Status != nil {
		s = o.Status()
	}
	if s == nil {
		fail(w, http.StatusServiceUnavailable, "the node is starting")
		return
	}
	answer(w, code, s)
}

// drain takes {"rate": N} or nothing, and answers with the status.
func drain(w http.ResponseWriter, r *http.Request, o Options) {
	var req struct {
		Rate int `json:"rate"`
	}
	if !read(w, r, &req) {
		return
	}
	if o.Drain == nil {
		fail(w, http.StatusServiceUnavailable, "the node is starting")
		return
	}
	switch err := o.Drain(req.Rate); {
	case errors.Is(err, herald.ErrUnavailable):
		fail(w, http.StatusServiceUnavailable, "%v", err)
	case err != nil:
		fail(w, http.StatusBadRequest, "%v", err)
	default:
		tell(w, http.StatusAccepted, o)
	}
}

// kick takes {"client": ID}, and answers whether the client was connected to this node;
// if not, the other nodes have been told.
func kick(w http.ResponseWriter, r *http.Request, o Options) {
	var req struct {
		Client string `json:"client"`
	}
	if !read(w, r, &req) {
		return
	}
	switch {
	case req.Client == "" || len(req.Client) > 65535:
		fail(w, http.StatusBadRequest, "client: want 1 to 65535 bytes")
	case o.Kick == nil:
		fail(w, http.StatusServiceUnavailable, "the node is starting")
	default:
		here, err := o.Kick(req.Client)
		if err != nil {
			fail(w, http.StatusServiceUnavailable, "%v", err)
			return
		}
		answer(w, http.StatusOK, map[string]bool{"here": here})
	}
}

// read reads a request's body, which may be empty, into v; if that fails it has
// answered.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		fail(w, http.StatusRequestEntityTooLarge, "the body has more than %d bytes", maxBody)
		return false
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "reading the body: %v", err)
		return false
	}
	if len(body) == 0 {
		return true
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, "the body has to be application/json")
		return false
	}
	if err := strict(body, v); err != nil {
		fail(w, http.StatusBadRequest, "the body: %v", err)
		return false
	}
	return true
}

// strict decodes one JSON value that has nothing but the fields of v.
func strict(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}
