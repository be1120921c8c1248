package scenario

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// Many ephemeral clients that join all at once, ten subscriptions each, have their
// SUBACKs within two seconds, and the routes are settled within five: what is then
// published on another node reaches each of them. With HERALD_TEST_FIGURES set,
// 10,000 clients; else 1,000, which only what is slow by design can make fail.
func TestSubscriptionsInABurst(t *testing.T) {
	clients, filters := 1000, 10
	if os.Getenv("HERALD_TEST_FIGURES") != "" {
		clients = 10_000
	}
	name := names(t)
	conns := make([]net.Conn, clients)
	took := make([]time.Duration, clients)
	errs := make(chan error, clients)
	begun := time.Now()
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			var err error
			conns[i], took[i], err = join(i, name, filters)
			if err != nil {
				errs <- fmt.Errorf("client %d: %w", i, err)
			}
		})
	}
	all.Wait()
	settled := time.Since(begun)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	slices.Sort(took)
	t.Logf("%d subscriptions of %d clients: the last SUBACK %v after the first CONNECT (5 s are asked of 100,000), the slowest %v after its SUBSCRIBE (2 s are asked), p99 %v",
		clients*filters, clients, settled.Round(time.Millisecond), took[clients-1].Round(time.Millisecond), took[clients*99/100].Round(time.Millisecond))
	if settled > 15*time.Second || took[clients-1] > 6*time.Second {
		t.Errorf("settled after %v, the slowest SUBACK after %v", settled, took[clients-1])
	}
	pub := connect(t, B, name("pub"), clean, expires(0))
	for i := 0; i < clients; i += 37 {
		topic := name(fmt.Sprintf("%d/%d", i, i%filters))
		pub.post(message(topic, "x", 0))
		_ = conns[i].SetReadDeadline(time.Now().Add(patience))
		p, err := packets.ReadPacket(conns[i])
		if err != nil {
			t.Fatalf("client %d does not get what is published after its SUBACK: %v", i, err)
		}
		if m, ok := p.Content.(*packets.Publish); !ok || m.Topic != topic {
			t.Fatalf("client %d got %v", i, p)
		}
	}
}

// join connects a client to one of the nodes and subscribes; took is from
// SUBSCRIBE to SUBACK.
func join(i int, name func(string) string, filters int) (conn net.Conn, took time.Duration, err error) {
	conn, err = net.DialTimeout("tcp", box.Nodes[i%len(box.Nodes)].Addr, patience)
	if err != nil {
		return nil, 0, err
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	p := packets.NewControlPacket(packets.CONNECT)
	content := p.Content.(*packets.Connect)
	content.ClientID, content.CleanStart = name(fmt.Sprint("c", i)), true
	if err := exchange(conn, p, packets.CONNACK); err != nil {
		return conn, 0, err
	}
	p = packets.NewControlPacket(packets.SUBSCRIBE)
	sub := p.Content.(*packets.Subscribe)
	sub.PacketID = 1
	for j := range filters {
		sub.Subscriptions = append(sub.Subscriptions, packets.SubOptions{Topic: name(fmt.Sprintf("%d/%d", i, j))})
	}
	begun := time.Now()
	err = exchange(conn, p, packets.SUBACK)
	return conn, time.Since(begun), err
}

// exchange sends a packet and demands an answer that accepts it.
func exchange(conn net.Conn, p *packets.ControlPacket, want byte) error {
	if _, err := p.WriteTo(conn); err != nil {
		return err
	}
	got, err := packets.ReadPacket(conn)
	if err != nil {
		return err
	}
	switch content := got.Content.(type) {
	case *packets.Connack:
		if content.ReasonCode == 0 {
			return nil
		}
	case *packets.Suback:
		if slices.Max(content.Reasons) < 0x80 {
			return nil
		}
	}
	return fmt.Errorf("got %v, want packet type %d", got, want)
}
