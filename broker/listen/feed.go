package listen

import (
	"errors"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// what stopped feed.
type verdict byte

const (
	needMore verdict = iota // all complete frames are done
	handOver                // a control frame for mochi comes first
	halted                  // paused, or stopped
)

var (
	errNotConnect    = &wire.Error{Reason: wire.ReasonProtocol, Text: "packet before CONNECT"}
	errSecondConnect = &wire.Error{Reason: wire.ReasonProtocol, Text: "second CONNECT"}
	errUnknown       = &wire.Error{Reason: wire.ReasonUnspecified, Text: "unspecified error"}
)

const pingreq, pingresp = wire.TypePingreq << 4, wire.TypePingresp << 4

// feed processes the frames in b and says how many bytes are done with. With
// handOver, frame is the length of the control frame that comes next.
//
// Hot: once per read.
func (c *Conn) feed(w *Worker, b []byte) (done, frame int, v verdict) {
	start, pos := 0, 0
	version := c.Version()
	connected := version != 0
	limit := c.loop.cfg.MaxPacketSize
	if !connected && (limit == 0 || limit > c.loop.cfg.MaxConnectSize) {
		limit = c.loop.cfg.MaxConnectSize
	}
	for pos < len(b) {
		if version == herald.V31 {
			b[pos] = wire.First31(b[pos])
		}
		n, err := wire.Split(b[pos:], limit)
		if err == nil && !connected && !isConnect(b[pos]) {
			err = errNotConnect // [MQTT-3.1.0-1], before the rest of it came
		}
		if n == 0 && err == nil {
			break
		}
		if err == nil && wire.IsData(b[pos]) {
			pos += n
			continue
		}
		if pos > start {
			c.loop.handler.Data(c, w, b[start:pos])
			start = pos
			if c.stopped.Load() || c.paused.Load() {
				return pos, 0, halted
			}
		}
		if err == nil {
			err = c.check(b[pos : pos+n])
		}
		if err != nil {
			c.malformed(w, err)
			return pos, 0, halted
		}
		if b[pos] == pingreq {
			if !c.mayAnswer() {
				return pos, 0, halted
			}
			c.End(w, append(c.Begin(), pingresp, 0)) // [MQTT-3.12.4-1]
			pos += n
			start = pos
			continue
		}
		return pos, n, handOver
	}
	if pos > start {
		c.loop.handler.Data(c, w, b[start:pos])
		if c.stopped.Load() || c.paused.Load() {
			return pos, 0, halted
		}
	}
	return pos, 0, needMore
}

func isConnect(first byte) bool { return wire.Type(first) == wire.TypeConnect }

// check verifies a control frame completely, so that mochi's decoder meets
// nothing that it would not survive.
func (c *Conn) check(frame []byte) error {
	v := c.Version()
	if v != 0 {
		if isConnect(frame[0]) {
			return errSecondConnect // [MQTT-3.1.0-2]
		}
		return wire.Check(frame, v)
	}
	c.keepConnect(frame)
	connect, err := wire.CheckConnect(frame)
	if err == nil {
		c.version.Store(uint32(connect.Version))
	}
	return err
}

func (c *Conn) malformed(w *Worker, err error) {
	e, ok := errors.AsType[*wire.Error](err)
	if !ok {
		e = errUnknown
	}
	c.loop.counts.malformed.Add(1)
	c.loop.handler.Malformed(c, w, e)
	if !c.stopped.Load() {
		c.Shutdown()
	}
}

// keep stores b, the unprocessed rest of what was read, as the left-over. b may
// be the end of the left-over itself.
func (c *Conn) keep(b []byte) {
	if len(b) == 0 {
		c.releaseIn()
		return
	}
	if c.in != nil && cap(c.in.b) > 0 && inside(b, c.in.b) {
		c.off = len(c.in.b) - len(b)
		return
	}
	c.releaseIn()
	c.in = getBuffer(len(b))
	c.in.b, c.off = append(c.in.b, b...), 0
}

// inside tells whether b is the end of a.
func inside(b, a []byte) bool {
	return len(a) >= len(b) && &a[len(a)-1] == &b[len(b)-1]
}

// roomFor makes room in the left-over for the frame that it begins, as far as
// bytes arrive: the buffer doubles, whatever length the frame claims to have.
func (c *Conn) roomFor() {
	if c.off > 0 {
		n := copy(c.in.b, c.in.b[c.off:])
		c.in.b, c.off = c.in.b[:n], 0
	}
	have := len(c.in.b)
	if cap(c.in.b)-have >= have/2 {
		return
	}
	grown := getBuffer(2 * have)
	grown.b = append(grown.b, c.in.b...)
	putBuffer(c.in)
	c.in = grown
}
