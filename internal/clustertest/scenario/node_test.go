package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/herald-mqtt/herald/internal/checker"
)

// A node that is told to stop sends its clients elsewhere and hands its sessions
// over: another node has them at once, not when a lease has run out.
func TestDrain(t *testing.T) {
	if len(box.Nodes) == 1 {
		t.Skip("there is no other node")
	}
	name := names(t)
	sub := connect(t, C, name("sub"))
	sub.subscribe(name("t"), 2)
	pub := connect(t, A, name("pub"))
	pub.publish(name("t"), "in flight", 2)
	begun := sub.message()
	sub.ack(packets.PUBREC, begun.PacketID)
	sub.acked(packets.PUBREL, begun.PacketID)

	stopped := make(chan error, 1)
	go func() { stopped <- box.Nodes[C].Stop() }()
	reason := sub.await(packets.DISCONNECT).Content.(*packets.Disconnect).ReasonCode
	if reason != 0x9C && reason != 0x9D && reason != 0x8B {
		t.Errorf("DISCONNECT %#02x, want 0x9C, 0x9D or 0x8B", reason)
	}
	told := time.Now()
	sub = returns(t, B, name("sub")).wantPresent(true)
	took := time.Since(told)
	t.Logf("DISCONNECT %#02x, and the session was there %v later", reason, took.Round(time.Millisecond))
	if took > 4*time.Second {
		t.Errorf("the session was there after %v: that is a lease, no handing over", took)
	}
	sub.acked(packets.PUBREL, begun.PacketID)
	sub.ack(packets.PUBCOMP, begun.PacketID)
	pub.publish(name("t"), "after", 1)
	sub.takes("after")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := box.Nodes[C].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	// A node that has come back serves as before.
	back := connect(t, C, name("sub")).wantPresent(true)
	sub.disconnected(0x8E)
	pub.publish(name("t"), "back", 1)
	back.takes("back")
	back.quiet()
}

// While Redis is away, what durable sessions on other nodes are due comes through
// the store; a subscription is acknowledged only if it holds everywhere; and when
// Redis is back, empty, all is as it was.
func TestRedisAway(t *testing.T) {
	if box.Redis == nil {
		t.Skip("one node has no Redis")
	}
	name := names(t)
	sub := connect(t, B, name("sub"))
	sub.subscribe(name("t"), 2)
	pub := connect(t, A, name("pub"))
	pub.publish(name("t"), "with", 1)
	sub.takes("with")

	if err := box.Redis.Kill(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	pub.publish(name("t"), "without", 1)
	pub.publish(name("t"), "without, QoS 2", 2)
	sub.takes("without", "without, QoS 2")
	t.Logf("delivered through the store after %v", time.Since(begun).Round(time.Millisecond))

	// It is not acknowledged, or what is published after that arrives.
	late := connect(t, C, name("late"), clean, expires(0))
	p := packets.NewControlPacket(packets.SUBSCRIBE)
	content := p.Content.(*packets.Subscribe)
	content.PacketID, content.Subscriptions = late.newID(), []packets.SubOptions{{Topic: name("late"), QoS: 1}}
	late.send(p)
	early := awaitFor(late, packets.SUBACK, 2*time.Second)
	granted := early != nil && early.Content.(*packets.Suback).Reasons[0] < 0x80
	if granted {
		pub.publish(name("late"), "promised", 1)
	}

	if err := box.Redis.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := box.Await(context.Background()); err != nil {
		t.Fatal(err)
	}
	if granted {
		late.takes("promised")
	} else if early == nil {
		// It waits or is refused; if it is granted now, it holds.
		if p := awaitFor(late, packets.SUBACK, 3*patience); p == nil {
			t.Error("SUBSCRIBE has no answer")
		} else if p.Content.(*packets.Suback).Reasons[0] < 0x80 {
			pub.publish(name("late"), "promised", 1)
			late.takes("promised")
		}
	}
	pub.publish(name("t"), "again", 1)
	sub.takes("again")
	far := connect(t, C, name("far"), clean, expires(0))
	far.subscribe(name("t"), 0)
	pub.publish(name("t"), "for all", 0)
	far.takes("for all")
	sub.takes("for all")
	sub.quiet()
}

// awaitFor is the next packet if it is of a kind and comes in time.
func awaitFor(c *client, kind byte, within time.Duration) *packets.ControlPacket {
	c.t.Helper()
	select {
	case p, ok := <-c.in:
		if !ok {
			c.t.Fatalf("%s: the connection is closed", c.id)
		}
		if p.Type != kind {
			c.t.Fatalf("%s got %v", c.id, p)
		}
		return p
	case <-time.After(within):
		return nil
	}
}

// A node that cannot be a part of the cluster says why in one line, and ends with
// status 3.
func TestRefused(t *testing.T) {
	if box.Redis == nil {
		t.Skip("one node has no bridge")
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, test := range []struct{ what, set, says string }{
		{"a URL that is none", "bridge.redis=http://127.0.0.1", "bridge.redis"},
		{"nobody listens", "bridge.redis=redis://127.0.0.1:1", "bridge.redis"},
		{"no Redis", "bridge.redis=redis://" + silent.Addr().String(), "bridge.redis"},
		{"a name that another node has", "node.name=" + box.Nodes[0].Name, "node.name"},
		{"the embedded store", "store.engine=pebble", "store.engine"},
	} {
		t.Run(test.what, func(t *testing.T) {
			status, output := serve(t, "node.name=stranger", test.set)
			if status != 3 {
				t.Errorf("exit status %d, want 3", status)
			}
			if strings.Count(strings.TrimSpace(output), "\n") > 0 || !strings.Contains(output, test.says) {
				t.Errorf("want one line about %s, got:\n%s", test.says, output)
			}
		})
	}
}

// serve runs a further node, which is to end by itself, and returns what it wrote
// to stderr beside its log.
func serve(t *testing.T, set ...string) (status int, output string) {
	t.Helper()
	ports, err := checker.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"serve", "--config", box.Nodes[0].Args[2],
		"--set", fmt.Sprintf(`listeners=[{protocol: tcp, address: "127.0.0.1:%d"}]`, ports[0]),
		"--set", fmt.Sprintf("admin.address=127.0.0.1:%d", ports[1]),
		"--set", "node.data=" + t.TempDir(), "--set", "log.level=error", "--set", "log.format=json"}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, box.Nodes[0].Path, args...)
	cmd.Env = checker.Environ()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(strings.TrimSpace(stderr.String()), "\n") {
		if !strings.HasPrefix(line, "{") {
			lines = append(lines, line)
		}
	}
	return cmd.ProcessState.ExitCode(), strings.Join(lines, "\n")
}
