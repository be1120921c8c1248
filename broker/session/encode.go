package session

import (
	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// deliver0 sends at QoS 0, or drops what does not fit.
func (s *Session) deliver0(run *wire.Run, from, to int, g *Grant, env Env, fx *Effects) {
	if len(fx.Out) > fx.Limit {
		fx.Dropped += to - from
		return
	}
	if !g.Retain && len(g.Identifiers) == 0 && s.aliases == nil && run.Static(s.p.Version, 0, s.p.MaxPacket) {
		fx.Out = run.AppendStatic(fx.Out, s.p.Version, 0, from, to)
		fx.Delivered += to - from
		return
	}
	for i := from; i < to; i++ {
		m := run.Messages[i]
		switch {
		case m.Expires != 0 && env.Now >= m.Expires:
			fx.Expired++
		case !s.append(m, 0, g, 0, false, env, fx):
			fx.TooLarge++
		default:
			fx.Delivered++
		}
	}
}

// append appends m as a PUBLISH, or returns false if it is longer than the
// client takes [MQTT-3.1.2-24].
func (s *Session) append(m *herald.Message, qos byte, g *Grant, pid uint16, dup bool, env Env, fx *Effects) bool {
	o := wire.Outgoing{
		Version: s.p.Version, QoS: qos, Retain: g.Retain && m.Retain, Dup: dup, PacketID: pid,
		Identifiers: g.Identifiers, Now: env.Now,
	}
	fresh := false
	if s.aliases != nil {
		if a, ok := s.aliases[m.Topic]; ok {
			o.Alias, o.Known = a, true
		} else if len(s.aliases) < int(s.p.AliasMaximum) {
			o.Alias, fresh = uint16(len(s.aliases)+1), true
		}
	}
	base := len(fx.Out)
	fx.Out = wire.AppendMessage(fx.Out, m, o)
	if s.fits(len(fx.Out) - base) {
		if fresh {
			s.aliases[m.Topic] = o.Alias
		}
		return true
	}
	fx.Out = fx.Out[:base]
	if fresh { // it may fit without the alias
		o.Alias = 0
		if fx.Out = wire.AppendMessage(fx.Out, m, o); s.fits(len(fx.Out) - base) {
			return true
		}
		fx.Out = fx.Out[:base]
	}
	return false
}

func (s *Session) fits(n int) bool { return s.p.MaxPacket == 0 || n <= int(s.p.MaxPacket) }

// tooLarge tells whether the client does not take m.
func (s *Session) tooLarge(m *herald.Message, qos byte, g *Grant) bool {
	if s.fits(wire.MessageSize(m, s.p.Version, len(g.Identifiers))) {
		return false
	}
	b := wire.AppendMessage(nil, m, wire.Outgoing{Version: s.p.Version, QoS: qos, PacketID: 1, Identifiers: g.Identifiers})
	return !s.fits(len(b))
}
