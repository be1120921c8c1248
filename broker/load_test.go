package broker_test

import (
	"context"
	"math"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/pebble"
)

// What a start makes of wills whose clients were connected when the process died. The
// row of one says that it was put away: then its will's did not get in any more, and
// the delay counts from there.
func TestWillsAtStart(t *testing.T) {
	store, err := pebble.Open(t.TempDir(), pebble.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	const hour = 3_600_000
	now := time.Now().UnixMilli()
	away := now - hour/2
	will := func(id herald.SessionID) persistence.Will {
		return persistence.Will{Session: id, Delay: 3600, Message: herald.Message{Topic: "t", Payload: []byte("x"), QoS: 1}}
	}
	done := make(chan error, 1)
	store.Commit(&persistence.Batch{
		Sessions: []persistence.Session{
			{ID: 1 << 40, Name: "connected", ExpiryInterval: 7200, Connected: away - hour},
			{ID: 2 << 40, Name: "put away", ExpiryInterval: 7200, Connected: away - hour, Disconnected: away, Expires: away + 2*hour},
			{ID: 3 << 40, Name: "shorter", ExpiryInterval: 2400, Connected: away - hour, Disconnected: away, Expires: away + 2_400_000},
		},
		Wills: []persistence.Will{will(1 << 40), will(2 << 40), will(3 << 40)},
	}, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	e := engine.New(engine.Config{MaxQoS: 2, Now: func() time.Time { return time.UnixMilli(now) }}, store, zap.NewNop())
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wills, err := store.Wills(context.Background(), math.MaxInt64, true, 10)
	e.Stop(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	due := map[herald.SessionID]int64{1 << 40: now + hour, 2 << 40: away + hour, 3 << 40: away + 2_400_000}
	for _, w := range wills {
		if w.Due != due[w.Session] {
			t.Errorf("will of %d is due at %d, not %d", w.Session>>40, w.Due-now, due[w.Session]-now)
		}
	}
	if len(wills) != len(due) {
		t.Errorf("%d wills", len(wills))
	}
}
