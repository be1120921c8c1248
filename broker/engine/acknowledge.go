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

// enqueueIfBusy does so if there are any, or if s has to fail because one before it
// has, and tells whether it did, and whether s is the next to be delivered: those
// before it are then only being appended or acknowledged, and nobody who completes
// them comes back for it. The shipment has nothing to commit.
func (c *client) enqueueIfBusy(s *shipment) (busy, next bool) {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	if len(c.line) == 0 && c.broken == nil {
		return false, false
	}
	s.done, s.err = true, c.broken
	c.line = append(c.line, s)
	c.grewLocked(s)
	return true, c.delivered == len(c.line)-1
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

// mayCommit tells whether a shipment may go to the store now; else it goes when
// those before it are in.
func (c *client) mayCommit(s *shipment) bool {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	switch {
	case c.broken != nil:
		s.err = c.broken
		c.e.worker(c).put(s)
		return false
	case c.committing:
		c.commits = append(c.commits, s)
		return false
	}
	c.committing = true
	return true
}

// nextCommit notes that a commit has ended, and returns the shipments to be committed
// next, or, after an error, those that must not be.
func (c *client) nextCommit(err error) (next, failed []*shipment) {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	if err != nil {
		c.broken, failed, c.commits = err, c.commits, nil
	}
	n, weight := 0, 0
	for n < len(c.commits) && (n == 0 || weight+c.commits[n].weight <= maxTogether) {
		weight += c.commits[n].weight
		n++
	}
	c.committing = n > 0
	next = c.commits[:n:n]
	if c.commits = c.commits[n:]; len(c.commits) == 0 {
		c.commits = nil
	}
	return next, failed
}

// ready notes that s is committed, or has failed, and returns it if it is the next to
// be delivered.
func (c *client) ready(s *shipment) *shipment {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	s.done = true
	if s.err != nil && c.broken == nil {
		c.broken = s.err
	}
	return c.nextLocked()
}

// sentNext notes that s is delivered, and returns the next one that may be.
func (c *client) sentNext(s *shipment) *shipment {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	s.sent = true
	s.appends.Add(-1)
	c.delivered++
	return c.nextLocked()
}

// nextLocked is the next to be delivered, if it is ready. One of which nothing is stored
// fails with those before it: it would overtake them, which the client sends again.
func (c *client) nextLocked() *shipment {
	if c.delivered >= len(c.line) || !c.line[c.delivered].done {
		return nil
	}
	s := c.line[c.delivered]
	if s.err == nil && s.batch.Empty() {
		s.err = c.broken
	}
	return s
}

// dequeue takes the head of the line out of it if it is through, acknowledges it
// and returns it. Acknowledgements go out in the order of the publishes
// [MQTT-4.6.0-2], [MQTT-4.6.0-3].
func (c *client) dequeue(w *listen.Worker) *shipment {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	if len(c.line) == 0 || !c.line[0].sent || c.line[0].appends.Load() > 0 {
		return nil
	}
	s := c.line[0]
	if s.err == nil && !s.lost.Load() {
		c.acknowledgeLocked(s.acks, w)
	}
	c.unacked -= s.unacked
	c.line[0] = nil
	c.line = c.line[1:]
	c.delivered--
	c.waitLocked(-s.weight)
	if len(c.line) == 0 {
		c.line = nil
		if c.drained != nil {
			close(c.drained)
			c.drained = nil
		}
	}
	return s
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
	if len(acks) == 0 || c.in == nil || c.broken != nil {
		return // or what failed: the client sends all again
	}
	if c.e.fenced() { // others may serve its session by now
		c.in.CloseAfter(w, wire.AppendDisconnect(nil, c.version, wire.ReasonUnavailable, "", ""))
		c.e.abandon(c.in)
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
		var goodbye []byte
		if c.attached.Load() { // nothing comes before CONNACK [MQTT-3.14.0-1]
			goodbye = wire.AppendDisconnect(nil, c.version, reason, "", "")
		}
		in.CloseAfter(w, goodbye)
		c.e.abandon(in)
	}
}
