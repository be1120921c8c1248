package bridge

import (
	"testing"

	"github.com/herald-mqtt/herald/internal/redistest"
)

func TestFramesArriveOnceAndInOrder(t *testing.T) {
	s := redistest.Start(t)
	nodes := cluster(t, s, 3)
	const count = 20000
	var senders []*sender
	for _, from := range nodes {
		for _, to := range nodes {
			if from != to {
				senders = append(senders, newSender(from, to))
			}
		}
	}
	for range count {
		for _, s := range senders {
			s.send()
		}
	}
	for _, s := range senders {
		for _, n := range nodes {
			if n.self == s.to {
				s.settledWith(t, n)
			}
		}
	}
	t.Logf("%+v", nodes[0].Stats())
	eventually(t, "everything is acknowledged", func() bool { return nodes[0].Stats().Pending == 0 })
	eventually(t, "the stream is trimmed", func() bool { return s.Do("XLEN herald:{1}:in") == ":0" })
}
