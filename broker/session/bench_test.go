package session

import (
	"fmt"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// cycle delivers a run and acknowledges it.
func cycle(s *Session, fx *Effects, r *wire.Run, qos byte) {
	fx.Out = fx.Out[:0]
	first := s.window.last + 1
	s.Deliver(r, 0, len(r.Messages), grant2, 0, Env{}, fx)
	for i := range r.Messages {
		if pid := first + uint16(i); qos == 1 {
			s.Puback(pid, fx)
		} else if qos == 2 {
			s.Pubrec(pid, 0, fx)
			s.Pubcomp(pid, fx)
		}
	}
}

func benchRun(qos byte, n int) *wire.Run {
	var ids []herald.ID
	for i := range n {
		ids = append(ids, herald.ID(i+1))
	}
	return run(qos, ids...)
}

// BenchmarkDeliver is a run of publishes to one ephemeral session, which
// acknowledges them.
func BenchmarkDeliver(b *testing.B) {
	for qos := range byte(3) {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("qos=%d/run=%d", qos, n), func(b *testing.B) {
				s, fx := attached(false, 64)
				r := benchRun(qos, n)
				b.ReportAllocs()
				for b.Loop() {
					s.window.last = 0
					cycle(s, fx, r, qos)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/message")
			})
		}
	}
}

// The hot path costs no allocation per message.
func TestDeliverDoesNotAllocate(t *testing.T) {
	for qos := range byte(3) {
		s, fx := attached(false, 64)
		r := benchRun(qos, 64)
		if n := testing.AllocsPerRun(100, func() {
			s.window.last = 0
			cycle(s, fx, r, qos)
		}); n > 0 {
			t.Errorf("QoS %d: %v allocations for 64 messages", qos, n)
		}
	}
}
