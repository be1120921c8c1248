package engine

import (
	"bytes"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
)

// intake is what one read of one connection brings, while it is taken apart.
// It is kept between reads so that its memory is.
type intake struct {
	pub  wire.Publish
	ack  wire.Ack
	acks []byte // acknowledgements of this read, in order

	// The run that is being gathered: consecutive PUBLISH frames with the same
	// topic, QoS and RETAIN flag.
	n      int
	flags  byte
	base   int      // where the first frame stands in the read
	frames []byte   // from the first frame on
	at     []uint32 // offsets in frames, n+1
	pid    []uint32 // offsets of packet ids in frames
	parts  []part
	topic  []byte
	raw    bool // the frames are fit to be sent as they are

	ship *shipment // being built; nil if nothing has to go through the line
}

// part is what of a PUBLISH lies where.
type part struct {
	props, payload uint32 // lengths; they are the end of the frame, in this order
	forward        []byte // props without alias and expiry, if they hold any
	cut            bool   // forward stands for props
	hasExpiry      bool
	dup            bool
	pid            uint16
	expiry         uint32
}

// Data takes complete data frames, back to back, of a connection: the
// listener's handler. Nothing of frames is kept.
func (e *Engine) Data(conn Conn, w *listen.Worker, frames []byte) {
	c, _ := conn.User().(*client)
	if c == nil || c.version == 0 {
		conn.Shutdown()
		return
	}
	c.reading.lock()
	defer c.reading.unlock()
	if c.ended {
		return // another connection has the session: see detach
	}
	s := e.scratch(w)
	in := &s.in
	in.acks, in.n, in.ship, in.topic = in.acks[:0], 0, nil, nil
	locked := false // c.mu, and the connection's buffer, for acknowledgements from the client
	defer e.caught(c, w, s, &locked)
	var err error
	for at, n := 0, 0; at < len(frames) && err == nil; at += n {
		n = wire.FrameLength(frames[at:])
		frame := frames[at : at+n]
		if wire.Type(frame[0]) == wire.TypePublish {
			if locked {
				locked = false
				e.unlockAcks(c, w, s)
			}
			err = e.publish(c, w, s, frames, at, n)
		} else if err = wire.ParseAck(frame, c.version, &in.ack); err == nil {
			if in.ack.Type == wire.TypePubrel {
				e.flushRun(c, w, s)
				if locked {
					locked = false
					e.unlockAcks(c, w, s)
				}
				e.pubrel(c, s)
			} else {
				if !locked {
					e.flushRun(c, w, s)
					locked = e.lockAcks(c, s)
				}
				if locked {
					err = c.acknowledged(&in.ack, &s.fx)
				}
			}
		}
	}
	if locked {
		locked = false
		e.unlockAcks(c, w, s)
	}
	e.flushRun(c, w, s)
	e.send(c, w, s)
	if err != nil {
		e.Malformed(conn, w, asWireError(err))
	}
}

// publish adds the PUBLISH that stands at at in the read, n bytes long, to the
// run, or begins a new one.
func (e *Engine) publish(c *client, w *listen.Worker, s *scratch, read []byte, at, n int) error {
	in := &s.in
	p := &in.pub
	if err := wire.ParsePublishSame(read[at:at+n], c.version, in.topic, p); err != nil {
		return err
	}
	topic := p.Topic
	if p.Alias != 0 {
		var err error
		if topic, err = c.alias(p.Alias, topic, e.cfg.AliasMaximum); err != nil {
			return err
		}
	}
	qos := p.QoS()
	if qos > e.cfg.MaxQoS {
		return errQoS
	}
	if qos > 0 && !(qos == 2 && c.core.Held(p.PacketID)) && c.over(in) { // one sent again is counted already
		return errReceiveMaximum // [MQTT-3.3.4-9]
	}
	same := in.n > 0 && in.n < maxRun && at == in.base+int(in.at[in.n]) && (p.Flags^in.flags)&^8 == 0 &&
		(p.Same && p.Alias == 0 || bytes.Equal(topic, in.topic))
	if !same {
		e.flushRun(c, w, s)
		in.begin(p.Flags, read, at, topic)
	}
	pt := part{props: uint32(len(p.Properties)), payload: uint32(len(p.Payload)), pid: p.PacketID, dup: p.Dup()}
	if p.Alias != 0 || p.HasExpiry {
		pt.cut, pt.hasExpiry, pt.expiry = true, p.HasExpiry, p.Expiry
		pt.forward = p.AppendForward(nil)
		in.raw = false
	}
	if p.Padded {
		in.raw = false
	}
	if qos == 2 {
		if c.core.Held(p.PacketID) { // [MQTT-4.3.3-10]
			e.stats.Duplicates.Add(1)
			e.flushRun(c, w, s)
			in.acks = wire.AppendAck(in.acks, c.version, wire.TypePubrec, p.PacketID, 0)
			return nil
		}
		c.core.Hold(p.PacketID)
	}
	base := in.at[in.n]
	if qos > 0 {
		in.pid = append(in.pid, base+uint32(p.PacketIDAt))
	}
	in.parts = append(in.parts, pt)
	in.at = append(in.at, base+uint32(n))
	in.n++
	return nil
}

// maxRun bounds the messages of one run, so that the memory that a slow
// receiver of one of them keeps is bounded.
const maxRun = 512

// begin starts a run whose first frame stands at at in the read.
func (in *intake) begin(flags byte, read []byte, at int, topic []byte) {
	in.n, in.flags, in.base, in.frames, in.topic = 0, flags, at, read[at:], topic
	in.at, in.pid, in.parts = append(in.at[:0], 0), in.pid[:0], in.parts[:0]
	in.raw = flags&1 == 0
}

// flushRun routes the run that was gathered, if any.
func (e *Engine) flushRun(c *client, w *listen.Worker, s *scratch) {
	in := &s.in
	if in.n == 0 {
		return
	}
	qos := in.flags >> 1 & 3
	e.stats.Received.Add(int64(in.n))
	e.stats.ReceivedByQoS[qos].Add(int64(in.n))
	if qos == 0 {
		e.routeQoS0(c, w, s)
	} else {
		e.route(c, s)
	}
	in.n = 0
}

// pubrel takes a client's PUBREL: the packet id is free again
// [MQTT-4.3.3-11]. A durable session's store learns it before PUBCOMP goes out,
// else a crash would make the next message under this id look like the last.
//
// A packet id that is not held gets the same PUBCOMP: nearly always it is a PUBREL
// sent again whose PUBCOMP got lost, and a client that is told 0x92 then reports
// a failure of what was delivered. mosquitto says 0x00, EMQX 0x92.
func (e *Engine) pubrel(c *client, s *scratch) {
	in := &s.in
	pid := in.ack.PacketID
	if c.core.Release(pid) && c.core.Durable() {
		sh := in.shipment(c)
		sh.batch.Held = append(sh.batch.Held, held(c, pid, 0))
	}
	in.acks = wire.AppendAck(in.acks, c.version, wire.TypePubcomp, pid, 0)
}

// shipment returns the one that is being built.
func (in *intake) shipment(c *client) *shipment {
	if in.ship == nil {
		in.ship = &shipment{from: c}
	}
	return in.ship
}

// send sends on what was gathered: the acknowledgements at once if nothing has
// to happen before.
func (e *Engine) send(c *client, w *listen.Worker, s *scratch) {
	in := &s.in
	sh := in.ship
	if sh == nil {
		if len(in.acks) == 0 {
			return
		}
		if c.idle() {
			c.acknowledge(in.acks, w)
			return
		}
		sh = &shipment{from: c}
	}
	in.ship = nil
	sh.acks = append([]byte(nil), in.acks...)
	sh.weight += len(sh.acks)
	e.number(sh)
	e.ship(sh, w)
}

// number gives the messages of a shipment that have none their IDs, if anything
// is kept of them, and tells the batch.
func (e *Engine) number(sh *shipment) {
	n := 0
	for i := range sh.runs {
		if r := &sh.runs[i]; r.numbered && r.run.Messages[0].ID == 0 {
			n += len(r.run.Messages)
		}
	}
	if n == 0 {
		return
	}
	ids, p := e.flight.beginFor(sh.from.name, e.ids, e.now(), n)
	sh.passage = append(sh.passage, p)
	k := 0
	for i := range sh.runs {
		r := &sh.runs[i]
		if !r.numbered || r.run.Messages[0].ID != 0 {
			continue
		}
		for j, m := range r.run.Messages {
			m.ID = ids.At(k)
			k++
			if r.hold {
				sh.batch.Held = append(sh.batch.Held, held(sh.from, r.pids[j], m.ID))
			}
		}
	}
}

// messages makes the messages of the gathered run, on the heap: they outlive
// the read.
func (in *intake) messages(c *client, topic string, now int64) ([]*herald.Message, []byte) {
	n := in.n
	arena := append([]byte(nil), in.frames[:in.at[n]]...)
	all := make([]herald.Message, n)
	ptrs := make([]*herald.Message, n)
	qos := in.flags >> 1 & 3
	retain := in.flags&1 != 0
	for i := range all {
		p := &in.parts[i]
		m := &all[i]
		ptrs[i] = m
		m.Publisher, m.Topic, m.QoS, m.Retain = c.h.id, topic, qos, retain
		end := in.at[i+1]
		payload := end - p.payload
		m.Payload = arena[payload:end:end]
		if p.cut {
			m.Properties = p.forward
		} else if p.props > 0 {
			m.Properties = arena[payload-p.props : payload : payload]
		}
		if p.hasExpiry {
			m.Expires = now + int64(p.expiry)*1000
		}
		if p.dup {
			arena[in.at[i]] &^= 8
		}
	}
	return ptrs, arena
}
