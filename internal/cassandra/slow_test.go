package cassandra_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/cassandra"
	"github.com/herald-mqtt/herald/internal/checker"
)

// slowProxy stands before a database and lets everything that comes back wait. Only
// the time grows, not the order: what was sent later arrives later.
func slowProxy(t *testing.T, to string, delay *atomic.Int64) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	type chunk struct {
		b   []byte
		due time.Time
	}
	slowly := func(dst, src net.Conn) {
		defer dst.Close()
		line := make(chan chunk, 4096)
		go func() {
			defer close(line)
			for {
				b := make([]byte, 32<<10)
				n, err := src.Read(b)
				if n > 0 {
					line <- chunk{b[:n], time.Now().Add(time.Duration(delay.Load()))}
				}
				if err != nil {
					return
				}
			}
		}()
		for c := range line {
			time.Sleep(time.Until(c.due))
			if _, err := dst.Write(c.b); err != nil {
				src.Close()
				for range line {
					continue
				}
				return
			}
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			go func() { defer server.Close(); _, _ = io.Copy(server, client) }()
			go slowly(client, server)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// With a database that takes its time, latency rises; memory does not, and nobody is
// disconnected.
func TestSlowDatabase(t *testing.T) {
	c := cassandra.Start(t, 1)
	if c.Given() {
		t.Skip("a database that was given says itself where it is: the proxy would be passed by")
	}
	var delay atomic.Int64
	port := slowProxy(t, net.JoinHostPort(c.Hosts()[0], fmt.Sprint(c.Port())), &delay)
	node := herald(t, port, 1, new(bytes.Buffer))
	stop := make(chan struct{})
	peak := make(chan float64, 1)
	go func() {
		most := 0.0
		for i := 0; ; i++ {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(500 * time.Millisecond):
			}
			d := time.Duration(i%4) * 250 * time.Millisecond // 0 to 750 ms
			if i > 40 {
				d = 0 // what is left may be delivered quickly
			}
			delay.Store(int64(d))
			most = max(most, residentBytes(node.URL))
		}
	}()
	report, err := checker.Run(context.Background(), checker.Config{
		Addrs: []string{node.Addr}, For: 15 * time.Second, Rate: 0, QoS1Publishers: 2, QoS2Publishers: 2,
		QoS1Subscribers: 2, QoS2Subscribers: 2, Window: 64, DropEvery: -1, PublisherDropEvery: -1,
		Quiet: 30 * time.Second, Drain: 2 * time.Minute,
		Processes: []*checker.Process{node}, Log: t.Logf,
	})
	close(stop)
	most := <-peak
	delay.Store(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v\nat most %.0f MB resident", report, most/1e6)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Closed > 0 {
		t.Errorf("%d connections were closed: %v", report.Closed, report.Reasons)
	}
	if most > 300e6 {
		t.Errorf("%.0f MB resident", most/1e6)
	}
}

// residentBytes asks a node for its memory.
func residentBytes(ready string) float64 {
	r, err := http.Get(strings.Replace(ready, "/readyz", "/metrics", 1))
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		var v float64
		if _, err := fmt.Sscanf(lines.Text(), "process_resident_memory_bytes %g", &v); err == nil {
			return v
		}
	}
	return 0
}
