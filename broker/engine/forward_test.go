package engine

import (
	"context"
	"slices"
	"testing"

	"github.com/herald-mqtt/herald/bridge"
)

// carrier is a transport that takes frames while it is up, and gives back what a
// test tells it to.
type carrier struct {
	up    bool
	taken []string
	done  []func(error)
}

func (c *carrier) Self() bridge.Peer                               { return bridge.Peer{Node: 1, Incarnation: 1} }
func (c *carrier) Valid() bool                                     { return true }
func (c *carrier) Live(bridge.Peer) bool                           { return true }
func (c *carrier) Over(context.Context, bridge.Peer) error         { return nil }
func (c *carrier) BeatNow()                                        {}
func (c *carrier) Available() bool                                 { return c.up }
func (c *carrier) Received(context.Context) error                  { return nil }
func (c *carrier) Announce(bridge.Change) (bridge.Position, error) { return 0, nil }
func (c *carrier) Settled(context.Context, bridge.Position) error  { return nil }
func (c *carrier) AppendAsync(_ bridge.Peer, f []byte, done func(error)) error {
	if done != nil && !c.up {
		return bridge.ErrUnavailable
	}
	c.taken, c.done = append(c.taken, string(f)), append(c.done, done)
	return nil
}

// giveBack returns what was taken, as when Redis has never heard of it.
func (c *carrier) giveBack() {
	done := c.done
	c.taken, c.done = nil, nil
	for _, d := range done {
		d(bridge.ErrUnavailable)
	}
}

func (c *carrier) peer() *peer {
	e := &Engine{}
	e.nodes.Cluster = c
	return &peer{Peer: bridge.Peer{Node: 2, Incarnation: 1}, e: e}
}

// Frames reach another node in the order in which they were sent, although some were
// given back by the bridge after later ones had begun to wait [MQTT-4.6.0-5].
func TestFramesGivenBackKeepTheirOrder(t *testing.T) {
	c := &carrier{up: true}
	p := c.peer()
	wait := func(error) { t.Error("a frame was reported") }
	p.send([]byte("1"), wait, 0)
	p.send([]byte("2"), wait, 0)
	c.up = false // and not noticed until now: neither was sent
	p.send([]byte("3"), wait, 0)
	p.send([]byte("4"), wait, 0)
	c.giveBack()
	c.up = true
	p.send([]byte("5"), wait, 0)
	if want := []string{"1", "2", "3", "4", "5"}; !slices.Equal(c.taken, want) {
		t.Errorf("sent in the order %q, want %q", c.taken, want)
	}
}

// Who waits for a frame to a node that is over goes on: nobody there can miss it.
func TestAFrameForNobodyIsNotWaitedFor(t *testing.T) {
	for name, given := range map[string]bool{"waits here": false, "is given back": true} {
		t.Run(name, func(t *testing.T) {
			c := &carrier{up: given}
			p := c.peer()
			reported := 0
			p.send([]byte("1"), func(err error) {
				reported++
				if err != nil {
					t.Errorf("reported as %v", err)
				}
			}, 0)
			p.fail(nil)
			if given {
				c.giveBack()
			}
			if reported != 1 {
				t.Errorf("reported %d times, want once", reported)
			}
		})
	}
}
