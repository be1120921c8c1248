package engine

import (
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
)

// enqueue puts a shipment behind those of the client that are under way.
func (c *client) enqueue(s *shipment) {
	c.pmu.Lock()
	c.line = append(c.line, s)
	c.grewLocked(s)
	c.pmu.Unlock()
}

// enqueueIfBusy does so if there are any, and tells whether it did. The
// shipment has nothing to commit.
func (c *client) enqueueIfBusy(s *shipment) bool {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	if len(c.line) == 0 {
		return false
	}
	s.done = true
	c.line = append(c.line, s)
	c.grewLocked(s)
	return true
}

// grewLocked counts a shipment that is under way.
func (c *client) grewLocked(s *shipment) {
	c.unacked += s.unacked
	c.waitLocked(s.weight)
}

// waitLocked adds to the weight of what is under way, and holds the client back
// while it is too much.
func (c *client) waitLocked(weight int) {
	c.weight += weight
	if c.in == nil {
		return
	}
	switch {
	case !c.paused && c.weight > maxUnderWay:
		c.paused = true
		c.in.Pause()
	case c.paused && c.weight <= maxUnderWay/2:
		c.paused = false
		c.in.Resume()
	}
}

// maxUnderWay is how much of one client may be under way to the store before no
// more is read from it, in bytes. It is many times what one fsync takes, and a
// small part of what the store gathers before it holds everybody back.
const maxUnderWay = 512 << 10

// underWay adds to the weight of what is under way of the client, apart from its
// line.
func (c *client) underWay(weight int) {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	c.waitLocked(weight)
}

// ready notes that s is committed, and returns it if it is the first in line.
func (c *client) ready(s *shipment) *shipment {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	s.done = true
	if c.line[0] != s {
		return nil
	}
	return s
}

// dequeue takes the finished shipment s, the head of the line, out of it,
// acknowledges it, and returns the next one if that waited for nothing
// but its turn. Acknowledgements go out in the order of the publishes
// [MQTT-4.6.0-2], [MQTT-4.6.0-3].
func (c *client) dequeue(s *shipment, w *listen.Worker) *shipment {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	if s.err == nil {
		c.acknowledgeLocked(s.acks, w)
	}
	c.unacked -= s.unacked
	c.line[0] = nil
	c.line = c.line[1:]
	c.waitLocked(-s.weight)
	if len(c.line) == 0 {
		c.line = nil
		if c.drained != nil {
			close(c.drained)
			c.drained = nil
		}
		return nil
	}
	if next := c.line[0]; next.done {
		return next
	}
	return nil
}

// acknowledge appends acknowledgements to the client's connection.
func (c *client) acknowledge(acks []byte, w *listen.Worker) {
	if len(acks) == 0 {
		return
	}
	c.pmu.Lock()
	defer c.pmu.Unlock()
	c.acknowledgeLocked(acks, w)
}

func (c *client) acknowledgeLocked(acks []byte, w *listen.Worker) {
	if len(acks) == 0 || c.in == nil {
		return
	}
	c.in.End(w, append(c.in.Begin(), acks...))
}

// fail closes the client's connection because nothing can be promised to it.
func (c *client) fail(reason byte, w *listen.Worker) {
	c.pmu.Lock()
	in := c.in
	c.pmu.Unlock()
	if in != nil {
		in.CloseAfter(w, wire.AppendDisconnect(nil, c.version, reason, "", ""))
		c.e.abandon(in)
	}
}
