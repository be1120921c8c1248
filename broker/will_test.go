package broker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/wire"
)

// crash returns a copy of what a node that is still running has on its disk: what
// the next one would find if it were killed now.
func crash(t *testing.T, dir string) string {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		to := filepath.Join(t.TempDir(), "crashed")
		err := os.CopyFS(to, os.DirFS(dir))
		switch {
		case err == nil:
			return to
		case time.Now().After(end): // a file was renamed meanwhile: try again
			t.Fatal(err)
		}
	}
}

// Wills of clients that were connected when the process died: a will without
// delay is sent although its client is back at once, that of a session which
// ended with the process is sent without its delay [MQTT-3.1.3-9], and one whose
// client is back before the delay is over is not.
func TestWillsAfterCrash(t *testing.T) {
	dir := t.TempDir()
	addr, stop := runNode(t, dir)
	t.Cleanup(stop)
	will := func(id string, delay uint32) wire.Connect {
		return wire.Connect{
			ClientID: []byte(id), HasWill: true, WillTopic: []byte("will/" + id), WillQoS: 1, WillDelay: delay,
			WillPayload: []byte("x"),
		}
	}
	at, later, ends := will("at", 0), will("later", 3600), will("ends", 3600)
	at.SessionExpiry, later.SessionExpiry = 7200, 7200
	w := connect(t, addr, wire.Connect{ClientID: []byte("watch"), SessionExpiry: 7200})
	w.send(subscribe(1, "will/#", 1))
	w.until(wire.TypeSuback)
	connect(t, addr, at)
	connect(t, addr, later)
	connect(t, addr, ends)

	again, stopAgain := runNode(t, crash(t, dir))
	t.Cleanup(stopAgain)
	later.WillDelay = 0
	connect(t, again, at)
	connect(t, again, later).send([]byte{wire.TypeDisconnect << 4, 0})
	w = connect(t, again, wire.Connect{ClientID: []byte("watch"), SessionExpiry: 7200})
	got := make(map[string]bool)
	for !got["will/at"] || !got["will/ends"] {
		first, body, err := w.next()
		if err != nil {
			t.Fatalf("only %v came: %v", got, err)
		}
		if wire.Type(first) == wire.TypePublish {
			topic, pid, _ := received(first, body)
			got[topic] = true
			w.send(wire.AppendAck(nil, herald.V5, wire.TypePuback, pid, 0))
		}
	}
	if got["will/later"] {
		t.Error("a will was sent although its client was back in time")
	}
}

// Wills whose delays are over at the same look are published in the order in which
// they were due: the latest retained one of a topic is the one that stays.
func TestDelayedWillsKeepTheirOrder(t *testing.T) {
	addr, stop := runNode(t, t.TempDir())
	t.Cleanup(stop)
	w := connect(t, addr, wire.Connect{ClientID: []byte("watch")})
	w.send(subscribe(1, "will", 0))
	w.until(wire.TypeSuback)
	const wills = 20
	var clients [wills]*peer
	for i := range clients {
		clients[i] = connect(t, addr, wire.Connect{
			ClientID: fmt.Appendf(nil, "c%02d", i), SessionExpiry: 7200,
			HasWill: true, WillTopic: []byte("will"), WillDelay: 1, WillPayload: []byte{byte(i)},
		})
	}
	for _, c := range clients {
		c.send([]byte{wire.TypeDisconnect << 4, 1, wire.ReasonDisconnectWill})
		for {
			if _, _, err := c.next(); err != nil {
				break // the session is put away
			}
		}
	}
	for i := range byte(wills) {
		first, body, err := w.next()
		if err != nil || wire.Type(first) != wire.TypePublish || body[len(body)-1] != i {
			t.Fatalf("will %d: got %x %x, %v", i, first, body, err)
		}
	}
}
