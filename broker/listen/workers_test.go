package listen

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/stretchr/testify/require"
)

// No more workers run than allowed; what is beyond waits its turn, and workers
// that have nothing to do end.
func TestWorkersAreBounded(t *testing.T) {
	var now, most atomic.Int64
	release := make(chan struct{})
	h := &hook{control: func(*mqtt.Client, packets.Packet) error {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		now.Add(-1)
		return nil
	}}
	b := start(t, Config{}, LoopConfig{MaxWorkers: 3}, nil, h)
	var clients []*client
	for i := range 12 {
		clients = append(clients, b.connectAs(fmt.Sprint("c", i)))
	}
	other := b.connectAs("other")
	for i, c := range clients {
		c.send(subscribeFrame(uint16(i + 1)))
	}
	require.Eventually(t, func() bool { return now.Load() == 3 }, 5*time.Second, time.Millisecond)
	// Data and PINGREQ of others do not wait for workers.
	p := publishFrame("a", "b")
	other.send(p, pingreqFrame)
	other.expect(p, pingrespFrame)
	close(release)
	for i, c := range clients {
		c.expect(subackFrame(uint16(i + 1)))
	}
	require.EqualValues(t, 3, most.Load())
	require.Eventually(t, func() bool { return b.loop.workersRunning() == 0 }, 10*time.Second, 10*time.Millisecond)
}
