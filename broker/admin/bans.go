package admin

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/herald-mqtt/herald"
)

// Ban is a ban, as JSON has it. Client, Username or Address says who: exactly one of
// them is not nil.
type Ban struct {
	Client   *string `json:"client,omitempty"`
	Username *string `json:"username,omitempty"`
	// Address is an IP address, or a network in CIDR notation; in answers, a network.
	Address *string    `json:"address,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	By      string     `json:"by,omitempty"`
	Since   *time.Time `json:"since,omitempty"` // not in requests
	Until   *time.Time `json:"until,omitempty"` // nil: for ever
}

// BanPage is a part of the list of bans.
type BanPage struct {
	Bans  []Ban `json:"bans"`
	Total int   `json:"total"` // of the whole list
	// Next is for the next request's "after"; empty: this was the last page.
	Next string `json:"next,omitempty"`
}

// ErrFull is wrapped by Options.Ban when there are as many bans as there may be.
var ErrFull = errors.New("the list of bans is full")

// Bans on one page of an answer.
const (
	defaultPage = 100
	maxPage     = 1000
)

// bans takes what may be done with the list of bans.
func bans(w http.ResponseWriter, r *http.Request, o Options) {
	switch {
	case !trusted(r): // also who only looks: it names people
		fail(w, http.StatusForbidden, "%s is only for requests from this machine, made by no browser and no proxy", r.URL.Path)
	case r.Method == http.MethodGet && o.Bans != nil:
		listBans(w, r, o)
	case r.Method == http.MethodPost && o.Ban != nil:
		ban(w, r, o)
	case r.Method == http.MethodDelete && o.Unban != nil:
		unban(w, r, o)
	case r.Method == http.MethodGet || r.Method == http.MethodPost || r.Method == http.MethodDelete:
		fail(w, http.StatusServiceUnavailable, "the node is starting")
	default:
		w.Header().Set("Allow", "GET, POST, DELETE")
		fail(w, http.StatusMethodNotAllowed, "%s wants GET, POST or DELETE", r.URL.Path)
	}
}

// listBans takes ?limit=N&after=NEXT, and answers with a BanPage.
func listBans(w http.ResponseWriter, r *http.Request, o Options) {
	q := r.URL.Query()
	limit := defaultPage
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxPage {
			fail(w, http.StatusBadRequest, "limit: want 1 to %d", maxPage)
			return
		}
		limit = n
	}
	page, err := o.Bans(q.Get("after"), limit)
	if err != nil {
		refuseBan(w, err)
		return
	}
	if page.Bans == nil {
		page.Bans = []Ban{}
	}
	answer(w, http.StatusOK, page)
}

// ban takes a Ban, or one with "for", how long it is to last, and answers with the Ban
// that is in force.
func ban(w http.ResponseWriter, r *http.Request, o Options) {
	var req struct {
		Ban
		For string `json:"for"`
	}
	if !read(w, r, &req) {
		return
	}
	b := req.Ban
	if req.For != "" {
		d, err := time.ParseDuration(req.For)
		if err != nil || d <= 0 || b.Until != nil {
			fail(w, http.StatusBadRequest, `for: want how long it lasts, like "90m" or "24h", and no "until" with it`)
			return
		}
		until := time.Now().Add(d)
		b.Until = &until
	}
	if b.Since != nil || !b.one() {
		fail(w, http.StatusBadRequest, "want one of client, username and address; and no since")
		return
	}
	made, err := o.Ban(r.Context(), b)
	if err != nil {
		refuseBan(w, err)
		return
	}
	answer(w, http.StatusOK, made)
}

// unban takes ?client=, ?username= or ?address=, and answers with that.
func unban(w http.ResponseWriter, r *http.Request, o Options) {
	var b Ban
	for name, values := range r.URL.Query() {
		at, ok := map[string]**string{"client": &b.Client, "username": &b.Username, "address": &b.Address}[name]
		if !ok || len(values) != 1 {
			fail(w, http.StatusBadRequest, "want one of client, username and address")
			return
		}
		*at = &values[0]
	}
	if !b.one() {
		fail(w, http.StatusBadRequest, "want one of client, username and address")
		return
	}
	if err := o.Unban(r.Context(), b); err != nil {
		refuseBan(w, err)
		return
	}
	answer(w, http.StatusOK, b)
}

// one tells whether exactly one thing says who is banned.
func (b *Ban) one() bool {
	n := 0
	for _, s := range []*string{b.Client, b.Username, b.Address} {
		if s != nil {
			n++
		}
	}
	return n == 1
}

func refuseBan(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	switch {
	case errors.Is(err, herald.ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, ErrFull):
		code = http.StatusConflict
	case errors.Is(err, herald.ErrUnavailable), errors.Is(err, context.Canceled):
		code = http.StatusServiceUnavailable
	}
	fail(w, code, "%v", err)
}
