package broker_test

import (
	"testing"

	"github.com/herald-mqtt/herald/broker/wire"
)

// Many connections with one client id at once: one of them stays, the others are
// closed, and nobody is sent anything before CONNACK [MQTT-3.14.0-1].
func TestTakeOverStorm(t *testing.T) {
	const n = 40
	addr := startNode(t)
	for round := range 10 {
		peers := make([]*peer, n)
		ended := make(chan int, n)
		alive := make(chan int, n)
		for i := range peers {
			c := wire.Connect{ClientID: []byte("same"), Clean: i%5 == 0}
			if i%3 > 0 {
				c.SessionExpiry = 300
			}
			peers[i] = dial(t, addr, c)
			go func(p *peer) {
				first, _, err := p.next()
				if err == nil && wire.Type(first) != wire.TypeConnack {
					t.Errorf("round %d: packet type %d before CONNACK", round, wire.Type(first))
				}
				for err == nil {
					if first, _, err = p.next(); err == nil && wire.Type(first) == wire.TypePingresp {
						alive <- i
					}
				}
				ended <- i
			}(peers[i])
		}
		left := make(map[int]bool, n)
		for i := range peers {
			left[i] = true
		}
		for len(left) > 1 {
			delete(left, <-ended)
		}
		for i := range left {
			_, _ = peers[i].conn.Write([]byte{wire.TypePingreq << 4, 0})
		}
		select {
		case i := <-alive:
			peers[i].conn.Close()
			<-ended
		case <-ended:
			t.Fatalf("round %d: no connection is left", round)
		}
	}
}
