package listen

import (
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/stretchr/testify/require"
)

// While CONNECT is carried out nothing is read, and it is known nevertheless that the
// client has closed its connection.
func TestGone(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		conns, leave := make(chan *Conn), make(chan struct{})
		h := &hook{establish: func(cl *mqtt.Client) {
			conns <- cl.Net.Conn.(*Conn)
			<-leave
		}}
		b := start(t, cfg, LoopConfig{}, nil, h)
		client := b.dial()
		client.send(connectFrame("c", 4), pingreqFrame) // which is left unread
		c := <-conns
		require.False(t, c.Gone())
		require.NoError(t, client.Close())
		require.Eventually(t, c.Gone, 5*time.Second, time.Millisecond)
		close(leave)
		require.Eventually(t, func() bool { return b.loop.Stats().Connections == 0 }, 5*time.Second, time.Millisecond)
		require.True(t, c.Gone())
	})
}

// It is gone as well when the broker closes it.
func TestGoneWhenClosedHere(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		conns := make(chan *Conn, 1)
		b := start(t, cfg, LoopConfig{}, nil, &hook{establish: func(cl *mqtt.Client) { conns <- cl.Net.Conn.(*Conn) }})
		client := b.connect()
		c := <-conns
		require.False(t, c.Gone())
		c.CloseAfter(nil, nil)
		require.True(t, c.Gone())
		client.expectEnd()
	})
}
