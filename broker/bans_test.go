package broker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/admin"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/pebble"
)

func banClient(id string) admin.Ban   { return admin.Ban{Client: &id} }
func banUsername(n string) admin.Ban  { return admin.Ban{Username: &n} }
func banAddress(net string) admin.Ban { return admin.Ban{Address: &net} }
func named(id, user string) wire.Connect {
	return wire.Connect{ClientID: []byte(id), Username: []byte(user), HasUsername: true}
}

func mustBan(t *testing.T, b *broker.Broker, what admin.Ban) {
	t.Helper()
	if _, err := b.Ban(t.Context(), what); err != nil {
		t.Fatal(err)
	}
}

func mustUnban(t *testing.T, b *broker.Broker, what admin.Ban) {
	t.Helper()
	if err := b.Unban(t.Context(), what); err != nil {
		t.Fatal(err)
	}
}

// connack connects and returns what CONNACK says; the connection is closed.
func connack(t *testing.T, addr string, c wire.Connect) byte {
	t.Helper()
	p := dial(t, addr, c)
	defer p.conn.Close()
	return p.until(wire.TypeConnack)[1]
}

// Who is banned is sent away and not let in, whatever the ban goes by, and nobody else
// is. Its session stays, and it gets its queue when the ban is removed.
func TestBan(t *testing.T) {
	for _, test := range []struct {
		name     string
		what     admin.Ban
		bystands bool // the other client is not concerned
	}{
		{"client", banClient("c"), true},
		{"username", banUsername("eve"), true},
		{"address", banAddress("127.0.0.0/8"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, addr, stop := startBroker(t, t.TempDir())
			t.Cleanup(stop)
			me := named("c", "eve")
			me.SessionExpiry = 3600
			c := connect(t, addr, me)
			c.send(subscribe(1, "a", 1))
			c.until(wire.TypeSuback)
			other := connect(t, addr, named("other", "bob"))

			mustBan(t, b, test.what)
			if got := c.until(wire.TypeDisconnect); got[0] != wire.ReasonAdministrative {
				t.Errorf("DISCONNECT says %#x", got[0])
			}
			if _, _, err := c.next(); err == nil {
				t.Error("the connection goes on")
			}
			if got := connack(t, addr, me); got != wire.ReasonBanned {
				t.Errorf("CONNACK in MQTT 5 says %#x", got)
			}
			old := me
			old.Version, old.SessionExpiry, old.Properties = herald.V311, 0, nil
			if got := connack(t, addr, old); got != 5 {
				t.Errorf("CONNACK in MQTT 3.1.1 says %#x", got)
			}
			if test.bystands {
				other.send(publish(1, "a", 1, false, "queued"))
				other.until(wire.TypePuback)
				if got := connack(t, addr, named("third", "")); got != 0 {
					t.Errorf("another client is told %#x", got)
				}
			} else if got := other.until(wire.TypeDisconnect); got[0] != wire.ReasonAdministrative {
				t.Errorf("DISCONNECT of the other says %#x", got[0])
			}

			mustUnban(t, b, test.what)
			p := dial(t, addr, me)
			if ack := p.until(wire.TypeConnack); ack[1] != 0 || ack[0] != 1 {
				t.Fatalf("after the ban: CONNACK %x", ack)
			}
			if test.bystands {
				if _, _, payload := received(0x32, p.until(wire.TypePublish)); string(payload) != "queued" {
					t.Errorf("got %q", payload)
				}
			}
		})
	}
}

// Who is banned takes no session from anybody.
func TestBannedTakesNothingOver(t *testing.T) {
	b, addr, stop := startBroker(t, t.TempDir())
	t.Cleanup(stop)
	c := connect(t, addr, named("c", "bob"))
	mustBan(t, b, banUsername("eve"))
	if got := connack(t, addr, named("c", "eve")); got != wire.ReasonBanned {
		t.Fatalf("CONNACK says %#x", got)
	}
	c.send([]byte{wire.TypePingreq << 4, 0})
	c.until(wire.TypePingresp)
}

// What Ban has returned of holds after a kill, and a ban ends by itself.
func TestBanOutlivesAKill(t *testing.T) {
	dir := t.TempDir()
	b, _, stop := startBroker(t, dir)
	t.Cleanup(stop)
	mustBan(t, b, banClient("ever"))
	mustBan(t, b, banAddress("192.0.2.0/24"))
	mustBan(t, b, banClient("gone"))
	mustUnban(t, b, banClient("gone"))
	soon := banClient("soon")
	until := time.Now().Add(1500 * time.Millisecond)
	soon.Until, soon.Reason, soon.By = &until, "for a test", "me"
	made, err := b.Ban(t.Context(), soon)
	if err != nil || made.Since == nil || made.Until.UnixMilli() != until.UnixMilli() {
		t.Fatalf("%+v, %v", made, err)
	}
	b, addr, stop := startBroker(t, crash(t, dir))
	t.Cleanup(stop)
	if got := connack(t, addr, named("ever", "")); got != wire.ReasonBanned {
		t.Errorf("CONNACK says %#x", got)
	}
	if got := connack(t, addr, named("gone", "")); got != 0 {
		t.Errorf("CONNACK says %#x", got)
	}
	for {
		got, now := connack(t, addr, named("soon", "")), time.Now()
		if got == 0 && time.Now().Before(until) {
			t.Error("a ban has ended too early")
		}
		if got == 0 {
			break
		}
		if now.After(until.Add(patience)) {
			t.Fatal("a ban does not end")
		}
		time.Sleep(10 * time.Millisecond)
	}
	page, err := b.Bans("", 10)
	if err != nil || page.Total != 2 || page.Next != "" || *page.Bans[0].Client != "ever" || *page.Bans[1].Address != "192.0.2.0/24" {
		t.Errorf("%+v, %v", page, err)
	}
}

// sharedStore is a store that several nodes have and that may fail to tell the list
// of bans.
type sharedStore struct {
	*pebble.Store
	fail    atomic.Bool
	failed  atomic.Int64
	hold    chan struct{} // not nil: Session waits for it
	waiting chan struct{}
}

func (*sharedStore) Close() error { return nil }

func (s *sharedStore) BanNews(ctx context.Context, since uint64) (persistence.BanNews, error) {
	if s.fail.Load() {
		s.failed.Add(1)
		return persistence.BanNews{}, fmt.Errorf("for a test: %w", herald.ErrUnavailable)
	}
	return s.Store.BanNews(ctx, since)
}

func (s *sharedStore) Session(ctx context.Context, kind persistence.Kind, name string) (persistence.Session, error) {
	if s.hold != nil && name == "held" {
		s.waiting <- struct{}{}
		<-s.hold
	}
	return s.Store.Session(ctx, kind, name)
}

func newSharedStore(t *testing.T) *sharedStore {
	t.Helper()
	s, err := pebble.Open(t.TempDir(), pebble.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &sharedStore{Store: s}
}

// on runs a node on a store.
func on(t *testing.T, s persistence.Store, change func(*config.Config)) (*broker.Broker, string) {
	t.Helper()
	cfg := config.Default()
	cfg.Listeners = []config.Listener{{Protocol: config.TCP, Address: "127.0.0.1:0"}}
	if change != nil {
		change(&cfg)
	}
	b, err := broker.On(cfg, s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("stop:", err)
		}
	})
	for end := time.Now().Add(patience); len(b.Ready()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not ready: ", b.Ready())
		}
	}
	return b, strings.TrimPrefix(b.Listening()[0], "tcp ")
}

// A node learns from the store alone what was banned at another: nobody tells it.
// While the store does not tell it either, what it knows stays in force.
func TestBansComeFromTheStore(t *testing.T) {
	s := newSharedStore(t)
	a, _ := on(t, s, nil)
	b, addr := on(t, s, nil)
	c := connect(t, addr, named("c", "eve"))

	began := time.Now()
	mustBan(t, a, banUsername("eve"))
	if got := c.until(wire.TypeDisconnect); got[0] != wire.ReasonAdministrative {
		t.Errorf("DISCONNECT says %#x", got[0])
	}
	if took := time.Since(began); took > 5*time.Second { // 2 s are promised, on a machine that has time
		t.Errorf("it took %v", took)
	}

	s.fail.Store(true)
	before := s.failed.Load()
	if err := b.Unban(t.Context(), banUsername("eve")); !errors.Is(err, herald.ErrUnavailable) {
		t.Errorf("unban while the store is away: %v", err)
	}
	for end := time.Now().Add(patience); s.failed.Load() < before+4; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody asks for bans")
		}
	}
	if got := connack(t, addr, named("c", "eve")); got != wire.ReasonBanned {
		t.Errorf("while the store is away: CONNACK %#x", got)
	}
	s.fail.Store(false)
	mustUnban(t, a, banUsername("eve"))
	for end := time.Now().Add(patience); connack(t, addr, named("c", "eve")) != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the ban is still in force at another node")
		}
	}
}

// A client that is banned between its CONNECT and its CONNACK is sent away.
func TestBannedWhileItConnects(t *testing.T) {
	s := newSharedStore(t)
	s.hold, s.waiting = make(chan struct{}), make(chan struct{}, 1)
	b, addr := on(t, s, nil)
	c := dial(t, addr, named("held", ""))
	<-s.waiting
	mustBan(t, b, banClient("held"))
	close(s.hold)
	for {
		first, body, err := c.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a banned client stays")
		}
		if err != nil {
			break
		}
		if k := wire.Type(first); k == wire.TypeDisconnect && body[0] != wire.ReasonAdministrative {
			t.Errorf("DISCONNECT says %#x", body[0])
		}
	}
	if got := connack(t, addr, named("held", "")); got != wire.ReasonBanned {
		t.Errorf("CONNACK says %#x", got)
	}
}

func TestBansAreBoundedAndChecked(t *testing.T) {
	b, _ := on(t, newSharedStore(t), func(c *config.Config) { c.Bans.Max = 2 })
	mustBan(t, b, banClient("one"))
	mustBan(t, b, banClient("two"))
	mustBan(t, b, banClient("two"))
	if _, err := b.Ban(t.Context(), banClient("three")); !errors.Is(err, admin.ErrFull) {
		t.Errorf("the third of two: %v", err)
	}
	past := time.Now().Add(-time.Second)
	for name, bad := range map[string]admin.Ban{
		"nobody": {}, "an address": banAddress("here"), "over": {Client: banClient("c").Client, Until: &past},
		"reason": {Client: banClient("c").Client, Reason: strings.Repeat("x", 300)},
	} {
		if _, err := b.Ban(t.Context(), bad); err == nil || errors.Is(err, herald.ErrUnavailable) || errors.Is(err, admin.ErrFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Unban(t.Context(), banClient("three")); !errors.Is(err, herald.ErrNotFound) {
		t.Errorf("unban nobody: %v", err)
	}
	mustUnban(t, b, banClient("one"))
	mustBan(t, b, banClient("three"))
	page, err := b.Bans("", 1)
	if err != nil || page.Total != 2 || len(page.Bans) != 1 || *page.Bans[0].Client != "three" || page.Next != "client:three" {
		t.Errorf("%+v, %v", page, err)
	}
	if page, err = b.Bans(page.Next, 1); err != nil || len(page.Bans) != 1 || *page.Bans[0].Client != "two" || page.Next != "" {
		t.Errorf("%+v, %v", page, err)
	}
	if _, err := b.Bans("nonsense", 1); err == nil {
		t.Error("nonsense is taken")
	}
}

// A ban by address goes by what the PROXY protocol says, over WebSocket, too, and not
// by the balancer's address.
func TestBanByProxiedAddress(t *testing.T) {
	b, _ := on(t, newSharedStore(t), func(c *config.Config) {
		c.Listeners = []config.Listener{
			{Protocol: config.TCP, Address: "127.0.0.1:0", ProxyProtocol: true},
			{Protocol: config.WS, Address: "127.0.0.1:0", Path: "/mqtt", ProxyProtocol: true},
		}
	})
	mustBan(t, b, banAddress("198.51.100.0/24"))
	mustBan(t, b, banAddress("2001:db8::/32"))
	for _, l := range b.Listening() {
		protocol, addr, _ := strings.Cut(l, " ")
		addr, _, _ = strings.Cut(addr, "/")
		for header, want := range map[string]byte{
			"PROXY TCP4 198.51.100.7 127.0.0.1 5000 1883\r\n": wire.ReasonBanned,
			"PROXY TCP6 2001:db8::7 ::1 5000 1883\r\n":        wire.ReasonBanned,
			"PROXY TCP4 198.51.101.7 127.0.0.1 5000 1883\r\n": 0,
		} {
			conn, err := net.DialTimeout("tcp", addr, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, header); err != nil {
				t.Fatal(err)
			}
			if protocol == config.WS {
				d := websocket.Dialer{Subprotocols: []string{"mqtt"}, NetDial: func(string, string) (net.Conn, error) { return conn, nil }}
				ws, _, err := d.Dial("ws://"+addr+"/mqtt", nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := ws.WriteMessage(websocket.BinaryMessage, wire.AppendConnect(nil, &wire.Connect{Version: herald.V5, ClientID: []byte("c")})); err != nil {
					t.Fatal(err)
				}
				_ = ws.SetReadDeadline(time.Now().Add(patience))
				if _, body, err := ws.ReadMessage(); err != nil || body[3] != want {
					t.Errorf("%s %q: CONNACK %x, %v, want %#x", protocol, header, body, err, want)
				}
				continue
			}
			p := &peer{t: t, conn: conn, in: bufio.NewReader(conn)}
			p.send(wire.AppendConnect(nil, &wire.Connect{Version: herald.V5, ClientID: []byte("c")}))
			if got := p.until(wire.TypeConnack)[1]; got != want {
				t.Errorf("%s %q: CONNACK %#x, want %#x", protocol, header, got, want)
			}
		}
	}
}
