package engine

import (
	"errors"
	"testing"

	"github.com/herald-mqtt/herald/bridge"
)

// refusing is a transport that takes no frames while it is down.
type refusing struct {
	Cluster // the rest is not called
	up      bool
	sent    []string
	done    []func(error)
}

func (r *refusing) Available() bool { return r.up }

func (r *refusing) AppendAsync(_ bridge.Peer, frame []byte, done func(error)) error {
	if !r.up && done != nil {
		return bridge.ErrUnavailable
	}
	r.sent, r.done = append(r.sent, string(frame)), append(r.done, done)
	return nil
}

// Who waits for a frame is let go once, whether it was taken or not; the frames
// still go, in their order, when Redis is back.
func TestLetGo(t *testing.T) {
	r := &refusing{up: true}
	e := &Engine{}
	e.nodes.Cluster = r
	p := &peer{e: e}
	got := make(map[string][]error)
	send := func(name string) {
		p.send([]byte(name), func(err error) { got[name] = append(got[name], err) }, 0)
	}
	send("held")
	send("in time")
	r.done[0](bridge.ErrHeld)
	r.done[1](bridge.ErrHeld)
	r.done[1](nil)
	r.up = false
	send("first")
	send("second")
	if len(got) != 1 || len(got["in time"]) != 1 || got["in time"][0] != nil {
		t.Fatalf("before: %v", got)
	}
	for range 2 {
		if dropped := p.letGo(); dropped != 0 {
			t.Errorf("%d frames dropped", dropped)
		}
	}
	for _, name := range []string{"held", "first", "second"} {
		if len(got[name]) != 1 || !errors.Is(got[name][0], errLetGo) {
			t.Errorf("%s: %v, want to be let go once", name, got[name])
		}
	}
	r.done[0](nil) // nobody is told twice
	r.up = true
	send("third")
	for _, done := range r.done[2:] {
		done(nil)
	}
	if want := []string{"held", "in time", "first", "second", "third"}; len(r.sent) != len(want) {
		t.Fatalf("sent %q, want %q", r.sent, want)
	} else {
		for i := range want {
			if r.sent[i] != want[i] {
				t.Errorf("sent %q, want %q", r.sent, want)
			}
		}
	}
	if len(got["held"]) != 1 || len(got["first"]) != 1 || len(got["third"]) != 1 || got["third"][0] != nil {
		t.Errorf("after: %v", got)
	}
	if len(p.held) != 0 || p.holding.Load() != 0 {
		t.Errorf("still held: %d", len(p.held))
	}
}

// Frames that nobody waits for any more are kept within a bound.
func TestLetGoIsBounded(t *testing.T) {
	e := &Engine{}
	e.nodes.Cluster = &refusing{}
	p := &peer{e: e}
	let := 0
	for range 5 {
		p.send(make([]byte, keptBytes/4), func(error) { let++ }, 0)
	}
	if dropped := p.letGo(); dropped != 1 || len(p.queue) != 4 || let != 5 {
		t.Errorf("%d dropped, %d kept, %d let go", dropped, len(p.queue), let)
	}
}
