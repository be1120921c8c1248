package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/herald-mqtt/herald/internal/checker"
	"github.com/herald-mqtt/herald/internal/clustertest"
)

// ctl runs herald ctl against a node.
func ctl(t *testing.T, node int, args ...string) string {
	t.Helper()
	n := box.Nodes[node%len(box.Nodes)]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args = append(append([]string{"ctl"}, args...), "--admin", "http://"+n.Admin())
	cmd := exec.CommandContext(ctx, n.Path, args...)
	cmd.Env = checker.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("herald %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

type nodeStatus struct {
	Ready   bool
	Reasons []string
	Clients int
	Peers   []struct {
		Node    string
		Leaving bool
	}
	Drain struct {
		State      string
		Sent, Left int
	}
}

func statusOf(t *testing.T, node int) (s nodeStatus) {
	t.Helper()
	if out := ctl(t, node, "status", "--json"); json.Unmarshal([]byte(out), &s) != nil {
		t.Fatalf("status: %s", out)
	}
	return s
}

// comes waits until something is so.
func comes(t *testing.T, within time.Duration, what string, is func() bool) time.Duration {
	t.Helper()
	begun := time.Now()
	for !is() {
		if time.Since(begun) > within {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begun)
}

// readyz is what a node answers.
func readyz(node int) (code int, body string) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(box.Nodes[node].URL)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

// refusal is CONNACK's reason and server reference for a client that asks a node.
func refusal(t *testing.T, node int, id string) (byte, string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", box.Nodes[node].Addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := packets.NewControlPacket(packets.CONNECT)
	p.Content.(*packets.Connect).ClientID = id
	if _, err := p.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	ack, err := packets.ReadPacket(conn)
	if err != nil {
		t.Fatal(err)
	}
	c := ack.Content.(*packets.Connack)
	return c.ReasonCode, c.Properties.ServerReference
}

// old is an MQTT 3.1.1 CONNECT with clean session and the client id "v3".
var old = []byte{0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 2, 'v', '3'}

func connectOld(t *testing.T, node int) (net.Conn, []byte) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", box.Nodes[node].Addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	ack := make([]byte, 4)
	if _, err := conn.Write(old); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, ack); err != nil {
		t.Fatal(err)
	}
	return conn, ack
}

func elsewhereThan(node int) (addrs []string) {
	for i, n := range box.Nodes {
		if i != node {
			addrs = append(addrs, n.Addr)
		}
	}
	return addrs
}

// A node that an operator drains tells its clients where to go, not all at once,
// refuses new ones, hands the sessions over, and stays until it is stopped.
func TestOperatorDrains(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("there is no other node")
	}
	const clients, rate = 30, 10
	name := names(t)
	pub := connect(t, A, name("pub"))
	subs := make([]*client, clients)
	for i := range subs {
		subs[i] = connect(t, C, name(fmt.Sprint(i)))
		subs[i].subscribe(name("t"), 1)
	}
	v3, ack := connectOld(t, C)
	if !bytes.Equal(ack, []byte{0x20, 2, 0, 0}) {
		t.Fatalf("MQTT 3.1.1: CONNACK % x", ack)
	}
	begun := time.Now()
	if out := ctl(t, C, "drain", "--rate", fmt.Sprint(rate)); !strings.Contains(out, "draining, 10 connections/s") {
		t.Errorf("ctl drain: %s", out)
	}
	defer func() {
		if err := box.Nodes[C].Stop(); err != nil {
			t.Error(err)
		}
		if err := box.Nodes[C].Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}()
	comes(t, 5*time.Second, "readyz fails", func() bool {
		code, body := readyz(C)
		return code == http.StatusServiceUnavailable && strings.Contains(body, "draining")
	})
	told := make(map[string]int)
	for _, s := range subs {
		d := s.await(packets.DISCONNECT).Content.(*packets.Disconnect)
		if d.ReasonCode != 0x9D || !slices.Contains(elsewhereThan(C), d.Properties.ServerReference) {
			t.Fatalf("DISCONNECT %#02x, server reference %q", d.ReasonCode, d.Properties.ServerReference)
		}
		told[d.Properties.ServerReference]++
	}
	took := time.Since(begun)
	t.Logf("%d clients at %d/s told within %v: %v", clients+1, rate, took.Round(time.Millisecond), told)
	if took < (clients-2*rate)*time.Second/rate {
		t.Errorf("all were told within %v, which is faster than %d/s", took, rate)
	}
	if len(told) != len(box.Nodes)-1 {
		t.Errorf("not every other node was told of: %v", told)
	}
	if n, err := v3.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("MQTT 3.1.1: read %d, %v, want the end", n, err)
	}
	comes(t, 5*time.Second, "drained", func() bool { s := statusOf(t, C); return s.Drain.State == "drained" && s.Drain.Left == 0 })
	if s := statusOf(t, C); s.Drain.Sent < clients+1 || s.Ready || len(s.Peers) != len(box.Nodes)-1 {
		t.Errorf("status of the drained node: %+v", s)
	}
	comes(t, 5*time.Second, "the others know", func() bool {
		return slices.ContainsFunc(statusOf(t, A).Peers, func(p struct {
			Node    string
			Leaving bool
		}) bool {
			return p.Node == box.Nodes[C].Name && p.Leaving
		})
	})
	if reason, server := refusal(t, C, name("new")); reason != 0x9D || !slices.Contains(elsewhereThan(C), server) {
		t.Errorf("a new client gets CONNACK %#02x, server reference %q", reason, server)
	}
	if _, ack := connectOld(t, C); !bytes.Equal(ack, []byte{0x20, 2, 0, 3}) {
		t.Errorf("a new MQTT 3.1.1 client gets CONNACK % x", ack)
	}
	// The sessions go when they are asked for, with what was published meanwhile.
	pub.publish(name("t"), "while away", 1)
	for i := range subs {
		begun := time.Now()
		s := connect(t, A+i%2, name(fmt.Sprint(i))).wantPresent(true)
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("session %d was handed over after %v", i, took)
		}
		s.takes("while away")
	}
}

// A node that alone cannot reach Redis lets its clients go, acknowledges nothing
// that did not get through, and is not waited for by those who subscribe elsewhere.
func TestCutOffFromRedis(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("one node has no Redis")
	}
	name := names(t)
	live := connect(t, B, name("live"), clean, expires(0))
	live.subscribe(name("live"), 1)
	durable := connect(t, A, name("durable"))
	durable.subscribe(name("durable"), 1)
	idle := connect(t, C, name("idle"))
	idle.subscribe(name("idle"), 1)
	pub := connect(t, C, name("pub"))
	pub.publish(name("live"), "before", 1)
	live.takes("before")

	cut := time.Now()
	box.Nodes[C].ToRedis.Set(clustertest.Cut)
	healed := false
	defer func() {
		if !healed {
			box.Heal()
		}
	}()
	pub.publish(name("durable"), "through the store", 1)
	durable.takes("through the store")
	// Somebody who has no queue wants this: it waits for Redis, and is let go.
	waiting := message(name("live"), "waiting", 1)
	pub.post(waiting)
	type subscribed struct {
		node int
		took time.Duration
	}
	done := make(chan subscribed, 2)
	late := make([]*client, 2)
	for i, node := range []int{A, B} {
		late[i] = connect(t, node, name(fmt.Sprint("late", i)), clean, expires(0))
		p := packets.NewControlPacket(packets.SUBSCRIBE)
		content := p.Content.(*packets.Subscribe)
		content.PacketID, content.Subscriptions = late[i].newID(), []packets.SubOptions{{Topic: name(fmt.Sprint("late", i)), QoS: 1}}
		late[i].send(p)
		go func() {
			ack := <-late[i].in
			if ack != nil && ack.Type == packets.SUBACK && ack.Content.(*packets.Suback).Reasons[0] == 1 {
				done <- subscribed{node, time.Since(cut)}
			} else {
				done <- subscribed{node, -1}
			}
		}()
	}
	idleGone := idle.await(packets.DISCONNECT).Content.(*packets.Disconnect)
	if idleGone.ReasonCode != 0x9C || !slices.Contains(elsewhereThan(C), idleGone.Properties.ServerReference) {
		t.Errorf("DISCONNECT %#02x, server reference %q", idleGone.ReasonCode, idleGone.Properties.ServerReference)
	}
	t.Logf("clients sent away after %v", time.Since(cut).Round(time.Millisecond))
	if code, body := readyz(C); code != http.StatusServiceUnavailable || !strings.Contains(body, "redis") {
		t.Errorf("readyz: %d %s", code, body)
	}
	// Let go without an acknowledgement.
	for p := range pub.in {
		if p.Type == packets.PUBACK {
			t.Errorf("acknowledged what was not delivered: %v", p)
		}
	}
	// Elsewhere it is sent again.
	pub = returns(t, A, name("pub")).wantPresent(true)
	t.Logf("a session is elsewhere after %v", time.Since(cut).Round(time.Millisecond))
	waiting.Duplicate = true
	pub.publishMessage(waiting)
	live.takes("waiting")
	for range 2 {
		select {
		case s := <-done:
			if s.took < 0 || s.took > 8*time.Second {
				t.Errorf("subscribing at node %d: %v", s.node, s.took)
			}
			t.Logf("subscribed at node %d after %v", s.node, s.took.Round(time.Millisecond))
		case <-time.After(20 * time.Second):
			t.Fatal("no SUBACK")
		}
	}
	fresh := connect(t, B, name("fresh"), clean, expires(0))
	begun := time.Now()
	fresh.subscribe(name("fresh"), 1)
	t.Logf("subscribed at once in %v", time.Since(begun).Round(time.Millisecond))
	pub.publish(name("fresh"), "promised", 1)
	fresh.takes("promised")
	idle = returns(t, B, name("idle")).wantPresent(true)
	pub.publish(name("idle"), "moved", 1)
	idle.takes("moved")

	time.Sleep(time.Until(cut.Add(15 * time.Second))) // the cut is to last, whatever is seen of it
	box.Heal()
	healed = true
	back := comes(t, 30*time.Second, "the node serves again", func() bool { code, _ := readyz(C); return code == http.StatusOK })
	t.Logf("the node serves again %v after redis is back", back.Round(time.Millisecond))
	idle2 := connect(t, C, name("idle")).wantPresent(true)
	idle.disconnected(0x8E)
	pub.publish(name("idle"), "back", 1)
	idle2.takes("back")
	live.quiet()
}

// A node that is stopped while it does not reach Redis leaves all the same, when the
// others have looked for what it has committed: nobody waits for its lease to run out.
func TestStopWithoutRedis(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("one node has no Redis")
	}
	name := names(t)
	sub := connect(t, A, name("sub"))
	sub.subscribe(name("t"), 1)
	idle := connect(t, C, name("idle"))
	idle.subscribe(name("idle"), 1)
	pub := connect(t, C, name("pub"))
	box.Nodes[C].ToRedis.Set(clustertest.Cut)
	defer box.Heal()
	pub.publish(name("t"), "without redis", 1)
	begun := time.Now()
	if err := box.Nodes[C].Stop(); err != nil {
		t.Error(err)
	}
	stopped := time.Since(begun)
	pub = returns(t, B, name("pub")).wantPresent(true)
	t.Logf("stopped after %v, a session is elsewhere after %v", stopped.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	if after := time.Since(begun) - stopped; after > 5*time.Second {
		t.Errorf("a session is elsewhere %v after the stop: that is a lease, no leaving", after)
	}
	pub.publish(name("t"), "elsewhere", 1)
	sub.takes("without redis", "elsewhere")
	idle = returns(t, A, name("idle")).wantPresent(true)
	pub.publish(name("idle"), "moved", 1)
	idle.takes("moved")
	box.Heal()
	if err := box.Nodes[C].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
}
