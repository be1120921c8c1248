package simulation

import (
	"fmt"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// read reads up to n packets.
func (c *client) read(n int) error {
	conn := c.conn
	all, err := parse(conn.read(n), c.version)
	if err != nil {
		return err
	}
	for _, p := range all {
		c.w.logf("%s reads %v", c.name, p)
		if err := c.take(p); err != nil {
			return fmt.Errorf("%s: %v: %w", c.name, p, err)
		}
		if c.conn != conn {
			return nil
		}
	}
	if len(all) == 0 && conn.closed() {
		if !c.leaving && c.w.calm(conn) {
			return fmt.Errorf("%s: the broker closed the connection", c.name)
		}
		c.lose(false)
	}
	return nil
}

// take takes a packet.
func (c *client) take(p packet) error {
	if !c.up && p.kind != wire.TypeConnack {
		return fmt.Errorf("before CONNACK")
	}
	switch p.kind {
	case wire.TypeConnack:
		return c.connack(p)
	case wire.TypePublish:
		return c.receivePublish(p)
	case wire.TypePuback, wire.TypePubrec:
		return c.acked(p)
	case wire.TypePubrel:
		delete(c.held, p.pid)
		a := c.find(func(a *arrival) bool { return a.p.pid == p.pid && a.p.qos == 2 })
		c.owed = append(c.owed, sent{kind: wire.TypePubcomp, pid: p.pid, a: a, data: c.ack(wire.TypePubcomp, p.pid)})
	case wire.TypePubcomp:
		i := slices.IndexFunc(c.out, func(o *outbound) bool { return o.pid == p.pid && o.m.qos == 2 })
		if i < 0 || !c.out[i].released {
			return fmt.Errorf("belongs to nothing")
		}
		c.finished(i)
	case wire.TypeSuback, wire.TypeUnsuback:
		r := c.asked[p.pid]
		if r == nil || r.leave != (p.kind == wire.TypeUnsuback) || c.version == herald.V5 && p.codes[0] >= 0x80 {
			return fmt.Errorf("belongs to nothing, or refuses")
		}
		delete(c.asked, p.pid)
		if !r.leave {
			if p.codes[0] != r.sub.qos {
				return fmt.Errorf("grants %d", p.codes[0])
			}
			if !slices.ContainsFunc(mapValues(c.asked), func(o *request) bool { return o.sub == r.sub }) {
				r.sub.active = true
				c.gen.expectRetained(r)
			}
		}
	case wire.TypeDisconnect:
		if c.w.calm(c.conn) && !c.leaving {
			return fmt.Errorf("for no reason")
		}
	default:
		return fmt.Errorf("a server does not send that")
	}
	return nil
}

func mapValues(m map[uint16]*request) (all []*request) {
	for _, r := range m {
		all = append(all, r)
	}
	return all
}

func (c *client) find(f func(*arrival) bool) *arrival {
	if i := slices.IndexFunc(c.unacked, f); i >= 0 {
		return c.unacked[i]
	}
	return nil
}

// connack is the start of the connection: what is under way is sent again.
func (c *client) connack(p packet) error {
	if p.reason != 0 {
		if c.w.fleet != nil { // another node may take it
			c.lose(true)
			return nil
		}
		return fmt.Errorf("refused")
	}
	if err := c.checkPresent(p.present); err != nil {
		return err
	}
	c.up, c.fresh = true, false
	c.w.ledger.resumed(c, p.present)
	if !p.present {
		c.newSession()
	}
	c.present = presence{known: true, exists: true, lasts: c.lasting}
	for _, o := range c.out {
		if o.released {
			c.net = append(c.net, sent{kind: wire.TypePubrel, pid: o.pid, data: c.ack(wire.TypePubrel, o.pid)})
			continue
		}
		o.counted = true
		c.quota++
		c.sendPublish(o, true)
	}
	return nil
}

// checkPresent: a session is never forgotten, nor remembered when it has ended.
func (c *client) checkPresent(present bool) error {
	k, now := c.present, c.w.now()
	early, late := c.w.slack()
	expiry := time.Duration(c.expiry) * time.Second
	switch {
	case c.clean:
		if present {
			return fmt.Errorf("session present after a clean start") // [MQTT-3.2.2-2]
		}
	case !k.known || c.ghost && present && c.w.opts.Shared:
	case !k.exists && present:
		return fmt.Errorf("session present, but there was none")
	case k.exists && k.lasts && !present && (c.expiry == 0 || now.Before(k.left.Add(expiry-early))):
		return fmt.Errorf("the session was forgotten")
	case k.exists && present && !k.lasts:
		return fmt.Errorf("session present, but it ended with the connection")
	case k.exists && present && c.expiry > 0 && !k.noted.IsZero() && c.began.After(k.noted.Add(expiry+late)):
		return fmt.Errorf("session present, but it has expired")
	}
	return nil
}

// newSession forgets what the client knew of its session [MQTT-3.2.2-4].
func (c *client) newSession() {
	if c.gen != nil {
		c.gen.end()
	}
	c.gen = c.w.ledger.generation(c)
	c.out, c.held = nil, map[uint16]*message{}
	c.subs, c.asked = map[string]*subscription{}, map[uint16]*request{}
}

// acked takes a PUBACK or PUBREC: they come in the order of the publishes
// [MQTT-4.6.0-2], [MQTT-4.6.0-3].
func (c *client) acked(p packet) error {
	qos := byte(1)
	if p.kind == wire.TypePubrec {
		qos = 2
	}
	i := slices.IndexFunc(c.out, func(o *outbound) bool { return o.pid == p.pid && o.m.qos == qos })
	if i < 0 {
		return fmt.Errorf("belongs to nothing")
	}
	if len(c.acks[qos]) == 0 || c.acks[qos][0] != p.pid {
		return fmt.Errorf("out of order, want %v", c.acks[qos])
	}
	c.acks[qos] = c.acks[qos][1:]
	o := c.out[i]
	if p.reason >= 0x80 {
		return fmt.Errorf("refused")
	}
	c.w.ledger.accepted(o.m)
	if qos == 1 {
		c.finished(i)
		return nil
	}
	if o.released {
		return fmt.Errorf("came before")
	}
	o.released = true
	c.net = append(c.net, sent{kind: wire.TypePubrel, pid: o.pid, data: c.ack(wire.TypePubrel, o.pid)})
	return nil
}

func (c *client) finished(i int) {
	if c.out[i].counted {
		c.quota--
	}
	c.out = slices.Delete(c.out, i, i+1)
}

// receivePublish takes a PUBLISH.
func (c *client) receivePublish(p packet) error {
	if p.alias != 0 {
		if p.alias > c.aliases {
			return fmt.Errorf("topic alias %d, the maximum is %d", p.alias, c.aliases) // [MQTT-3.1.2-26]
		}
		if p.topic == "" {
			p.topic = c.aliasOf[p.alias]
		}
		c.aliasOf[p.alias] = p.topic
	}
	m := c.w.ledger.find(p)
	if m == nil {
		return fmt.Errorf("nobody published that on %q", p.topic)
	}
	a := &arrival{p: p, m: m}
	if p.qos > 0 {
		if other := c.find(func(a *arrival) bool { return a.p.pid == p.pid }); other != nil {
			return fmt.Errorf("the packet id is that of %q, which is not acknowledged", other.p.payload)
		}
		c.unacked = append(c.unacked, a)
	}
	switch p.qos {
	case 1:
		c.owed = append(c.owed, sent{kind: wire.TypePuback, pid: p.pid, a: a, data: c.ack(wire.TypePuback, p.pid)})
	case 2:
		c.owed = append(c.owed, sent{kind: wire.TypePubrec, pid: p.pid, a: a, data: c.ack(wire.TypePubrec, p.pid)})
		if had, ok := c.held[p.pid]; ok { // [MQTT-4.3.3-10]
			if had != m {
				return fmt.Errorf("the packet id is that of %q, which was not released", had.payload)
			}
			if !p.dup {
				return fmt.Errorf("sent again without DUP") // [MQTT-3.3.1-1]
			}
			return nil
		}
		c.held[p.pid] = m
	}
	return c.gen.arrived(a)
}
