package broker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/pebble"
)

// brokenStore hands out pages that the machine of the session named "broken"
// cannot live with: an entry without a message makes it panic.
type brokenStore struct {
	persistence.Store
	broken atomic.Uint64
}

func (s *brokenStore) Commit(b *persistence.Batch, done func(error)) {
	for _, row := range b.Sessions {
		if row.Name == "broken" {
			s.broken.Store(uint64(row.ID))
		}
	}
	s.Store.Commit(b, done)
}

func (s *brokenStore) Inbox(ctx context.Context, id herald.SessionID, after, upTo herald.ID, limit, maxBytes int, dst []persistence.Entry) ([]persistence.Entry, error) {
	if uint64(id) == s.broken.Load() {
		return append(dst, persistence.Entry{}), nil
	}
	return s.Store.Inbox(ctx, id, after, upTo, limit, maxBytes, dst)
}

// A panic of one session, on a goroutine that serves others, ends its connection
// and nothing else.
func TestPanicEndsOneConnection(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Data = t.TempDir()
	cfg.Listeners = []config.Listener{{Protocol: config.TCP, Address: "127.0.0.1:0"}}
	inner, err := pebble.Open(cfg.Node.Data, pebble.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.On(cfg, &brokenStore{Store: inner}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("stop:", err)
		}
	}()
	for end := time.Now().Add(patience); len(b.Ready()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not ready: ", b.Ready())
		}
	}
	addr := b.Listening()[0][len("tcp "):]

	sound := connect(t, addr, wire.Connect{ClientID: []byte("sound"), SessionExpiry: 300})
	sound.send(subscribe(1, "t", 1))
	sound.until(wire.TypeSuback)
	for range 3 { // each time it comes back it panics again
		broken := dial(t, addr, wire.Connect{ClientID: []byte("broken"), SessionExpiry: 300})
		for err := error(nil); err == nil; {
			_, _, err = broken.next()
		}
		sound.send(publish(7, "t", 1, false, "x"))
		_, pid, _ := received(wire.TypePublish<<4|2, sound.until(wire.TypePublish))
		sound.send(wire.AppendAck(nil, herald.V5, wire.TypePuback, pid, 0))
	}
}
