package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
)

// tray is a transport that takes frames while it is up.
type tray struct {
	Cluster
	up    bool
	taken []string
}

func (t *tray) Available() bool { return t.up }

func (t *tray) AppendAsync(_ bridge.Peer, frame []byte, done func(error)) error {
	if !t.up {
		return bridge.ErrUnavailable
	}
	f, err := decodeFrame(frame)
	switch {
	case err != nil:
		t.taken = append(t.taken, string(frame[:min(len(frame), 2)]))
	case f.kind == frameLook:
		t.taken = append(t.taken, fmt.Sprintf("look %d", f.id))
	case f.kind == frameClosed:
		t.taken = append(t.taken, fmt.Sprintf("closed %d", f.id))
	}
	if done != nil {
		done(nil)
	}
	return nil
}

func (t *tray) Received(context.Context) error { return nil }

// wants compares what was taken.
func (t *tray) wants(tb testing.TB, want ...string) {
	tb.Helper()
	if !slices.Equal(t.taken, want) {
		tb.Errorf("taken %q, want %q", t.taken, want)
	}
}

func newTray() (*tray, *peer) {
	t := &tray{}
	e := &Engine{}
	e.nodes.Cluster = t
	return t, &peer{e: e, routes: make(map[string]struct{})}
}

// big is a frame that begins with a name and fills half of what may wait.
func big(name string) []byte { return append([]byte(name), make([]byte, waitingBytes/2-2)...) }

func TestFramesKeepTheirOrderWhileRedisIsAway(t *testing.T) {
	r, p := newTray()
	acknowledged := 0
	for i := range 4 {
		var done func(error)
		if i == 1 {
			done = func(error) { acknowledged++ }
		}
		p.send(fmt.Appendf(nil, "m%d", i), done, herald.ID(10+i))
	}
	r.up = true
	p.send([]byte("m4"), nil, 14)
	r.wants(t, "m0", "m1", "m2", "m3", "m4")
	p.tell(20, time.Now())
	r.wants(t, "m0", "m1", "m2", "m3", "m4", "closed 20")
	if acknowledged != 1 || p.waiting != 0 {
		t.Errorf("acknowledged %d times, %d bytes wait", acknowledged, p.waiting)
	}
}

// What is newer than a lost frame comes after the word to look, however late that is.
func TestNothingOvertakesWhatWasLost(t *testing.T) {
	r, p := newTray()
	p.send(big("m0"), nil, 10)
	p.send(big("m1"), nil, 11)
	p.send(big("m2"), nil, 12) // lost
	p.send([]byte("m3"), nil, 13)
	told := 0
	p.send([]byte("m4"), func(error) { told++ }, 14)
	p.tell(9, time.Now())
	r.wants(t)
	r.up = true
	p.send([]byte("m5"), nil, 15) // behind
	r.wants(t, "m0", "m1")
	p.tell(12, time.Now()) // 13 was lost as well
	r.wants(t, "m0", "m1")
	p.tell(13, time.Now())
	r.wants(t, "m0", "m1", "look 13", "m4", "m5")
	p.send([]byte("m6"), nil, 16)
	r.wants(t, "m0", "m1", "look 13", "m4", "m5", "m6")
	if told != 1 || p.waiting != 0 || p.gap {
		t.Errorf("told %d times, %d bytes wait, gap %v", told, p.waiting, p.gap)
	}
}

// A second loss while the peer is about to be told of the first takes what waits
// behind that with it.
func TestALossBehindALoss(t *testing.T) {
	r, p := newTray()
	p.send(big("m0"), nil, 10)
	p.send(big("m1"), nil, 11)
	p.send([]byte("m2"), nil, 12) // lost
	r.up = true
	p.send(big("m3"), nil, 13)
	p.send(big("m4"), nil, 14)
	p.send([]byte("m5"), nil, 15) // lost, and so are 13 and 14
	p.tell(14, time.Now())
	r.wants(t, "m0", "m1")
	p.send([]byte("m6"), nil, 16)
	p.tell(15, time.Now())
	r.wants(t, "m0", "m1", "look 15", "m6")
}
