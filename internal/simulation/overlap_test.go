package simulation

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/broker/wire"
)

// What is published while a SUBSCRIBE with overlapping filters is carried out comes at
// the highest QoS of those that match, not at that of the first [MQTT-3.3.5-1]. In
// real time: it takes two processors.
func TestOverlappingFiltersAtOnce(t *testing.T) {
	e := engine.New(engine.Config{MaxQoS: 2}, prompt{NewStore(false, false), new(sync.Mutex)}, zap.NewNop())
	if err := e.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	dial := func(name string) *conn {
		con := &wire.Connect{Version: herald.V5, ClientID: []byte(name), Properties: connectProperties(1<<32-1, 60000, 0)}
		return newConn(e, name, wire.AppendConnect(nil, con), 1<<24, nil)
	}
	packets := func(c *conn) []packet {
		for c.pending.Load() == 0 {
			runtime.Gosched()
		}
		all, err := parse(c.read(1000), herald.V5)
		if err != nil {
			t.Error(err)
		}
		return all
	}
	stop := make(chan struct{})
	var publishers sync.WaitGroup
	for k := range 2 {
		publishers.Go(func() {
			p := dial(fmt.Sprintf("publisher %d", k))
			packets(p)
			for n := 0; ; n++ {
				select {
				case <-stop:
					p.hangUp()
					return
				default:
				}
				pid := uint16(n%60000 + 1)
				b := wire.AppendMessage(nil, &herald.Message{Topic: "t/0", Payload: []byte("x"), QoS: 2},
					wire.Outgoing{Version: herald.V5, QoS: 2, PacketID: pid})
				p.bring(input{data: wire.AppendAck(b, herald.V5, wire.TypePubrel, pid, 0)})
				packets(p)
			}
		})
	}
	for i := range 700 {
		c := dial(fmt.Sprintf("subscriber %d", i))
		c.bring(input{subscribe: &wire.Subscribe{PacketID: 1, Filters: []wire.SubscribeFilter{
			{Filter: []byte("t/+"), QoS: 1}, {Filter: []byte("#"), QoS: 2}, {Filter: []byte("t/0"), QoS: 2},
		}}})
		for n := 0; n < 4; {
			for _, p := range packets(c) {
				if p.kind != wire.TypePublish {
					continue
				}
				n++
				if p.qos < 2 {
					t.Fatalf("subscriber %d: %v", i, p)
				}
			}
		}
		c.bring(input{disconnect: &leave{hasExpiry: true}}) // the session ends
		<-c.end
	}
	close(stop)
	publishers.Wait()
	e.Stop(context.Background())
}
