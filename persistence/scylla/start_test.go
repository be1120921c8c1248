package scylla

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/internal/checker"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// device is the i-th of many sessions with one subscription each.
func device(i int) (persistence.Session, persistence.Subscription) {
	name := "device-" + strconv.Itoa(i)
	const born = 1_000_000_000 // milliseconds
	return persistence.Session{ID: herald.SessionID(herald.IDAt(born)) + herald.SessionID(i), Name: name, Version: 5,
			ExpiryInterval: 1<<32 - 1, Connected: born, Disconnected: born + 1},
		persistence.Subscription{Filter: "devices/" + name + "/in", QoS: 1}
}

// bulk writes n devices, in batches over many partitions: nothing that a store would
// do, but the quickest way into one server.
func bulk(t *testing.T, s *Store, n int) time.Duration {
	t.Helper()
	const each = 100
	start := time.Now()
	var at atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				i := int(at.Add(each)) - each
				if i >= n {
					return
				}
				b := s.cql.Session.NewBatch(gocql.UnloggedBatch)
				for k := i; k < min(i+each, n); k++ {
					row, sub := device(k)
					b.Query(putSession.cql, sessionKey(row.Kind, row.Name), record.AppendSession(nil, &row), int32(0), s.clock.next())
					b.Query(putSubscription.cql, int64(row.ID), []byte(sub.Filter), record.AppendSubscription(nil, &sub), int32(0), s.clock.next())
				}
				err := s.cql.Session.ExecuteBatch(b)
				for tries := 0; err != nil && tries < 10; tries++ {
					time.Sleep(100 * time.Millisecond << tries) // the server is at its limit
					err = s.cql.Session.ExecuteBatch(b)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// A node that starts on a store with many sessions reads their subscriptions by
// ranges of tokens, in parallel, and does not say that it is ready before it has all
// of them: what is published then reaches each. A million of them take 60 s at most.
func TestStartAtSize(t *testing.T) {
	n := atSize(20_000, 1_000_000)
	binary, err := checker.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := options(t)
	s := mustOpen(t, o)
	defer s.Close()
	loaded := bulk(t, s, n)
	if t.Failed() {
		return
	}
	t.Logf("%d sessions with a subscription each written in %v", n, loaded.Round(time.Millisecond))

	start, seen := time.Now(), make([]bool, n)
	first, _ := device(0)
	if err := s.ScanSubscriptions(t.Context(), func(id herald.SessionID, sub persistence.Subscription) error {
		i := int(id - first.ID)
		if i < 0 || i >= n || seen[i] {
			return fmt.Errorf("subscription %s of session %d is not one of those, or comes twice", sub.Filter, id)
		}
		seen[i] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	scan := time.Since(start)
	for i := range seen {
		if !seen[i] {
			t.Fatalf("subscription %d is missing", i)
		}
	}

	node, err := checker.Herald(binary, t.TempDir(), fmt.Sprintf("store:\n  engine: scylla\n  scylla: {hosts: [%s], port: %d, keyspace: %s}\n",
		o.Hosts[0], o.Port, o.Keyspace), nil)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	node.Ready = func(ctx context.Context) error {
		asked++
		return says(ctx, node.URL)
	}
	start = time.Now()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ready := time.Since(start)
	defer func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	}()
	// At once: to some from all over the range.
	host, port, _ := strings.Cut(node.Addr, ":")
	var wg sync.WaitGroup
	sample := []int{0, n / 7, n / 3, n / 2, n * 3 / 4, n - 1}
	for _, i := range sample {
		_, sub := device(i)
		wg.Go(func() {
			pub := exec.Command(binary, "pub", "-h", host, "-p", port, "-q", "1", "-t", sub.Filter, "-m", sub.Filter)
			pub.Env = checker.Environ()
			if out, err := pub.CombinedOutput(); err != nil {
				t.Errorf("herald pub: %v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	for _, i := range sample {
		row, sub := device(i)
		page, err := s.Inbox(t.Context(), row.ID, 0, ^herald.ID(0), 10, 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) != 1 || string(page[0].Message.Payload) != sub.Filter {
			t.Errorf("%s: %d entries, want what was published when the node was ready", sub.Filter, len(page))
		}
	}
	figure(t, ready <= time.Minute, "start", "%d sessions with a subscription each: scanned in %v, node ready and all routed %v after its start, at most 60 s asked",
		n, scan.Round(10*time.Millisecond), ready.Round(10*time.Millisecond))
	if asked < 2 {
		t.Error("the node was ready before anybody could ask")
	}
}

// says asks a node whether it is ready.
func says(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}
