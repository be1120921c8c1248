package broker_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/herald-mqtt/herald/broker"
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

// A session is taken over, or ended, while its connection is subscribing: nothing
// of a session that has ended stays, neither in memory nor in the store.
func TestTakeOverWhileSubscribing(t *testing.T) {
	const filters, clients, rounds = 2000, 4, 15
	var big []byte // a SUBSCRIBE in MQTT 5
	for i := range filters {
		f := fmt.Sprint("f/", i)
		big = append(append(binary.BigEndian.AppendUint16(big, uint16(len(f))), f...), 1)
	}
	big = append(wire.AppendUvarint([]byte{0x82}, uint32(len(big)+3)), append([]byte{0, 1, 0}, big...)...)
	dir := t.TempDir()
	b, addr, stop := startBroker(t, dir)
	var wg sync.WaitGroup
	for k := range clients {
		wg.Go(func() {
			var unread []*peer
			for i := range rounds {
				p := dial(t, addr, wire.Connect{ClientID: []byte("same"), Clean: true, SessionExpiry: uint32(k % 2 * 3600)})
				_, _ = p.conn.Write(append(big, big...))
				if i%3 == 0 {
					_, _, _ = p.next()
				} else {
					unread = append(unread, p)
				}
			}
			for _, p := range unread { // none of them comes after what connects below
				_, _, _ = p.next()
			}
		})
	}
	wg.Wait()
	left := func(b *broker.Broker) float64 {
		all, err := b.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.GetName() == "herald_subscriptions" {
				return m.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatal("no herald_subscriptions")
		return 0
	}
	connect(t, addr, wire.Connect{ClientID: []byte("same"), Clean: true}) // when it is accepted, the one before is gone
	if n := left(b); n != 0 {
		t.Errorf("%v subscriptions of sessions that have ended are left", n)
	}
	stop()
	b, _, stop = startBroker(t, dir)
	defer stop()
	if n := left(b); n != 0 {
		t.Errorf("%v of them are in the store", n)
	}
}
