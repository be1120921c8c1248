package bridge

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/redistest"
)

func TestURLs(t *testing.T) {
	good := map[string]string{
		"redis://h":                                 "h:6379",
		"redis://h:1/3":                             "h:1",
		"redis://[::1]:7":                           "[::1]:7",
		"redis://[::1]":                             "[::1]:6379",
		"rediss://u:p%40@a:1,b:2,c":                 "a:1 b:2 c:6379",
		"redis://:p@a,b?master=m":                   "a:26379 b:26379",
		"redis://a?cluster=true":                    "a:6379",
		"redis://a:1?master=m&sentinel_password=pw": "a:1",
	}
	for raw, want := range good {
		o, err := parseURL(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
		} else if got := strings.Join(o.Addrs, " "); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
	o, err := parseURL("rediss://u:p%40%3A@a:1")
	if err != nil || o.Username != "u" || o.Password != "p@:" || o.TLSConfig == nil {
		t.Errorf("user and password: %v", err)
	}
	for _, raw := range []string{
		"", "h:6379", "http://h", "redis://", "redis://h:0", "redis://h:x", "redis://h:70000", "redis://a,,b",
		"redis://h/x", "redis://h/-1", "redis://a,b/1", "redis://a?cluster=perhaps", "redis://a?what=1",
		"redis://a?master=m&cluster=true", "redis://u:secret%zz@h", "redis://u:secret@h h", "redis://h?%zz",
	} {
		if _, err := parseURL(raw); !errors.Is(err, ErrURL) {
			t.Errorf("%q: %v", raw, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the password: %v", raw, err)
		}
	}
}

// One clear line for everything that is wrong with the environment.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	try := func(change func(*Options)) error {
		opts := Options{URL: r.URL(), Cluster: "test", Self: Peer{1, 1}, Handler: newOwner(), Timeout: 200 * time.Millisecond}
		change(&opts)
		b, err := Open(within(t, 3*time.Second), opts)
		if err == nil {
			_ = b.Close()
			return nil
		}
		if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
			t.Errorf("not one line, or with the password: %v", err)
		}
		return err
	}
	if err := try(func(*Options) {}); err != nil {
		t.Fatal(err)
	}
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	silent := must(net.Listen("tcp", "127.0.0.1:0")) // accepts and says nothing
	defer silent.Close()
	_ = closed.Close()
	old := oldRedis(t)
	tests := []struct {
		name, url string
		change    func(*Options)
		is        error
		text      string
	}{
		{name: "another cluster", change: func(o *Options) { o.Cluster = "other" }, is: ErrForeign, text: `"herald" is used by cluster "test"`},
		{name: "nobody there", url: "redis://u:secret@" + closed.Addr().String(), text: "refused"},
		{name: "no answer", url: "redis://" + silent.Addr().String(), text: "timeout"},
		{name: "no streams", url: "redis://" + old, is: ErrUnfit, text: "streams of Redis 6.2"},
		{name: "password", url: "redis://u:secret@" + r.Addr, text: "WRONGPASS"},
		{name: "no such database", url: r.URL() + "/99", text: "DB index"},
		{name: "URL", url: "redis//h", is: ErrURL},
		{name: "no cluster id", change: func(o *Options) { o.Cluster = "" }, text: "required"},
		{name: "no incarnation", change: func(o *Options) { o.Self.Incarnation = 0 }, text: "out of range"},
		{name: "node number", change: func(o *Options) { o.Self.Node = 2000 }, text: "out of range"},
		{name: "name taken", change: func(o *Options) { o.Prefix = "taken" }, is: ErrUnfit, text: "taken:routes is in use"},
	}
	r.Do("SET taken:routes x")
	for _, test := range tests {
		err := try(func(o *Options) {
			if test.url != "" {
				o.URL = test.url
			}
			if test.change != nil {
				test.change(o)
			}
		})
		if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := try(func(o *Options) { o.Cluster = "other"; o.Prefix = "second" }); err != nil {
		t.Errorf("two clusters with a prefix each: %v", err)
	}
}

// oldRedis answers like a Redis without streams.
func oldRedis(t *testing.T) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					for range strings.Count(string(buf[:n]), "*") {
						if _, err := c.Write([]byte("-ERR unknown command\r\n")); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// A Redis that turns out to be another cluster's is not used.
func TestAnotherClusterTakesOver(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	r.Do("HSET herald:cluster id other")
	eventually(t, "unavailable", func() bool { return errors.Is(nodes[0].Err(), ErrForeign) })
	r.Do("HSET herald:cluster id test")
	eventually(t, "available", nodes[0].Available)
}

// The same over a Redis Cluster of three, whose shards hold different streams.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	var servers []*redistest.Server
	for range 3 {
		servers = append(servers, redistest.Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"))
	}
	for i, slots := range []string{"0 5000", "5001 11000", "11001 16383"} {
		if reply := servers[i].Do("CLUSTER ADDSLOTSRANGE " + slots); reply != "+OK" {
			t.Fatal(reply)
		}
		servers[i].Do("CLUSTER MEET " + strings.Replace(servers[0].Addr, ":", " ", 1))
	}
	for _, s := range servers {
		eventually(t, "the cluster forms", func() bool {
			return strings.Contains(s.Text("CLUSTER INFO"), "cluster_state:ok") &&
				strings.Contains(s.Text("CLUSTER INFO"), "cluster_slots_assigned:16384")
		})
	}
	nodes := cluster(t, servers[0], 3, func(o *Options) { o.URL += "?cluster=true" })
	for i, from := range nodes {
		to := nodes[(i+1)%3]
		s := newSender(from, to)
		for range 1000 {
			s.send()
		}
		s.settledWith(t, to)
		position, err := from.Announce(Change{Add: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := from.Settled(within(t, 5*time.Second), position); err != nil {
			t.Fatal(err)
		}
	}
}

// A Sentinel makes the replica the master; it may lack the newest writes.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port()))
	eventually(t, "the replica follows", func() bool {
		return strings.Contains(replica.Text("INFO replication"), "master_link_status:up")
	})
	sentinel := redistest.Sentinel(t, "m", master) // looks for replicas when it starts
	eventually(t, "the sentinel knows the replica", func() bool {
		return strings.HasPrefix(sentinel.Text("SENTINEL REPLICAS m"), "*1")
	})
	nodes := cluster(t, sentinel, 2, func(o *Options) { o.URL += "?master=m" })
	s := newSender(nodes[0], nodes[1])
	stop := traffic(s)
	eventually(t, "traffic", func() bool { return nodes[1].count(1) > 200 })
	master.Kill()
	began := time.Now()
	eventually(t, "the owner is told", func() bool { return len(nodes[1].losses()) > 0 && nodes[0].Available() })
	t.Logf("served again after %v: %+v", time.Since(began), nodes[0].Stats())
	before := nodes[1].count(1)
	eventually(t, "traffic over the new master", func() bool { return nodes[1].count(1) > before+200 })
	stop()
	s.settledWith(t, nodes[1])
}
