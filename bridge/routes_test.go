package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/redistest"
)

// A publish accepted after SUBACK reaches the subscriber: when Settled returns,
// every node has the route.
func TestSettledMeansEverybodyHasApplied(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 3)
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			for i := range 50 {
				route := fmt.Sprintf("%d/%d", n.self.Node, i)
				position, err := n.Announce(Change{Add: []string{route}})
				if err == nil {
					err = n.Settled(within(t, 5*time.Second), position)
				}
				if err != nil {
					t.Error(err)
					return
				}
				for _, other := range nodes {
					if other != n && !other.has(n.self.Node, route) {
						t.Errorf("node %d lacks %s", other.self.Node, route)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := nodes[0].Stats().Snapshots; n != 0 {
		t.Errorf("%d snapshots, nobody needed one", n)
	}
}

func TestRoutesGoAndEventsPassBy(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	for i := range 10 {
		position, err := nodes[0].Announce(Change{
			Add: []string{"a", "b"}, Remove: []string{"b"}, Events: [][]byte{{byte('0' + i)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Settled(within(t, 5*time.Second), position); err != nil {
			t.Fatal(err)
		}
	}
	if !nodes[1].has(1, "a") || nodes[1].has(1, "b") {
		t.Errorf("routes: %v", nodes[1].owner.routes)
	}
	nodes[1].mu2(func(o *owner) {
		if want := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}; !slices.Equal(o.events[1], want) {
			t.Errorf("events: %v", o.events[1])
		}
	})
}

// Settled waits for a live node however long it is silent, and no longer than it
// is among the peers.
func TestSettledWaitsForTheLive(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	dead := Peer{9, 1}
	nodes[0].SetPeers([]Peer{nodes[1].self, dead})
	position, err := nodes[0].Announce(Change{Add: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Settled(within(t, 200*time.Millisecond), position); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a silent peer: %v", err)
	}
	settled := make(chan error, 1)
	go func() { settled <- nodes[0].Settled(within(t, 5*time.Second), position) }()
	eventually(t, "somebody waits", func() bool { return nodes[0].Bridge.routes.waited() != 0 })
	nodes[0].SetPeers([]Peer{nodes[1].self})
	if err := <-settled; err != nil {
		t.Error(err)
	}
	nodes[0].SetPeers(nil)
	if err := nodes[0].Settled(within(t, time.Second), position+1000); err != nil {
		t.Errorf("alone: %v", err)
	}
}

// A joiner gets what the stream has no more, and is waited for as soon as it has
// said hello, even if the others have not heard of it otherwise.
func TestAJoinerCatchesUp(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	const count = 5000
	var position Position
	for i := range count {
		p, err := nodes[0].Announce(Change{Add: []string{fmt.Sprintf("route/%d", i)}})
		if err != nil {
			t.Fatal(err)
		}
		position = p
	}
	if err := nodes[0].Settled(within(t, 5*time.Second), position); err != nil {
		t.Fatal(err)
	}
	r.Do("XTRIM herald:routes MAXLEN = 1") // compaction
	joiner := open(t, r, Peer{3, 1})
	joiner.SetPeers([]Peer{nodes[0].self, nodes[1].self})
	if err := joiner.Ready(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n := joiner.routeCount(1); n != count {
		t.Fatalf("the joiner has %d routes", n)
	}
	for i := range 20 {
		route := fmt.Sprintf("later/%d", i)
		p, err := nodes[0].Announce(Change{Add: []string{route}})
		if err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Settled(within(t, 5*time.Second), p); err != nil {
			t.Fatal(err)
		}
		if !joiner.has(1, route) {
			t.Fatalf("settled, and the joiner lacks %s", route)
		}
	}
	if n := nodes[0].Stats().Snapshots; n != 1 {
		t.Errorf("%d snapshots", n)
	}
	joiner.owner.mu.Lock() // Apply waits for this
	p, err := nodes[0].Announce(Change{Add: []string{"last"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Settled(within(t, 200*time.Millisecond), p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("settled before the joiner has it: %v", err)
	}
	joiner.owner.mu.Unlock()
	if err := nodes[0].Settled(within(t, 5*time.Second), p); err != nil {
		t.Error(err)
	}
}

// Announcements that Redis lost before a peer read them are made again, in
// order, with their events, as long as the log has them.
func TestLostAnnouncementsAreMadeAgain(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2)
	nodes[1].owner.mu.Lock() // Apply waits for this
	const count = 200        // more than one read brings
	var position Position
	for i := range count {
		p, err := nodes[0].Announce(Change{Events: [][]byte{fmt.Appendf(nil, "%06d", i)}})
		if err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Flush(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		position = p
	}
	r.Do("XTRIM herald:routes MAXLEN = 3")
	nodes[1].owner.mu.Unlock()
	if err := nodes[0].Settled(within(t, 5*time.Second), position); err != nil {
		t.Fatal(err)
	}
	nodes[1].mu2(func(o *owner) {
		if got := o.events[1]; len(got) != count || !slices.IsSorted(got) {
			t.Errorf("%d events of %d", len(got), count)
		}
	})
}

// Whatever happens to Redis between and during announcements, everybody ends up
// with the same routes, and events come once and in order unless a snapshot had
// to step in.
func TestRoutesSurviveRedis(t *testing.T) {
	faults := map[string]func(r *redistest.Server){
		"emptied":         func(r *redistest.Server) { r.RestartEmpty() },
		"rolled back":     func(r *redistest.Server) { r.Restart() },
		"flushed":         func(r *redistest.Server) { r.Do("FLUSHALL") },
		"stream deleted":  func(r *redistest.Server) { r.Do("DEL herald:routes") },
		"stream cut":      func(r *redistest.Server) { r.Do("XTRIM herald:routes MAXLEN = 0") },
		"connections cut": func(r *redistest.Server) { r.Do("CLIENT KILL TYPE normal SKIPME yes") },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := redistest.Start(t)
			nodes := cluster(t, r, 3)
			quit, ended := make(chan struct{}), make(chan struct{})
			want := map[string]bool{}
			var position Position
			go func() {
				defer close(ended)
				for i := 0; ; i++ {
					select {
					case <-quit:
						return
					case <-time.After(time.Millisecond):
					}
					c := Change{Add: []string{fmt.Sprint(i)}, Events: [][]byte{fmt.Appendf(nil, "%06d", i)}}
					if i >= 20 {
						c.Remove = []string{fmt.Sprint(i - 20)}
					}
					p, err := nodes[0].Announce(c)
					if err != nil {
						t.Error(err)
						return
					}
					for _, s := range c.Add {
						want[s] = true
					}
					for _, s := range c.Remove {
						delete(want, s)
					}
					position = p
				}
			}()
			for range 3 {
				applied := nodes[2].Stats().Applied
				eventually(t, "announcements", func() bool { return nodes[2].Stats().Applied > applied+20 })
				r.Save()
				eventually(t, "announcements", func() bool { return nodes[2].Stats().Applied > applied+40 })
				fault(r)
			}
			close(quit)
			<-ended
			if err := nodes[0].Settled(within(t, 10*time.Second), position); err != nil {
				t.Fatal(err)
			}
			for _, n := range nodes[1:] {
				n.mu2(func(o *owner) {
					if len(o.routes[1]) != len(want) {
						t.Errorf("node %d has %d routes, want %d", n.self.Node, len(o.routes[1]), len(want))
					}
					for s := range want {
						if !o.routes[1][s] {
							t.Errorf("node %d lacks %s", n.self.Node, s)
						}
					}
					if !slices.IsSorted(o.events[1]) || len(slices.Compact(slices.Clone(o.events[1]))) != len(o.events[1]) {
						t.Errorf("node %d: events out of order or twice", n.self.Node)
					}
					if nodes[0].Stats().Snapshots == 0 && len(o.events[1]) != int(position) {
						t.Errorf("node %d: %d events of %d", n.self.Node, len(o.events[1]), position)
					}
				})
			}
			// Who joins after the loss has them too.
			joiner := open(t, r, Peer{4, 1})
			joiner.SetPeers([]Peer{nodes[0].self, nodes[1].self, nodes[2].self})
			if err := joiner.Ready(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			if n := joiner.routeCount(1); n != len(want) {
				t.Errorf("the joiner has %d routes, want %d", n, len(want))
			}
			t.Logf("%d announced: %+v", position, nodes[0].Stats())
		})
	}
}

// Announcements wait while Redis is away, up to the bound, then are refused and
// have not happened.
func TestAnnouncementsAreBounded(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2, func(o *Options) { o.LogBytes = 1000 })
	r.Kill()
	eventually(t, "unavailable", func() bool { return !nodes[0].Available() })
	taken := 0
	for i := 0; ; i++ {
		_, err := nodes[0].Announce(Change{Add: []string{fmt.Sprintf("%0100d", i)}})
		if errors.Is(err, ErrOverflow) {
			break
		}
		if err != nil || i > 1000 {
			t.Fatal(i, err)
		}
		taken++
	}
	if taken < 8 || taken > 10 {
		t.Errorf("%d announcements of 103 bytes in 1,000", taken)
	}
	r.Restart()
	eventually(t, "what was taken arrives", func() bool { return nodes[1].routeCount(1) == taken })
}

// A peer that is slow to apply costs the log no more than its bound: it gets a
// snapshot.
func TestASlowPeerGetsASnapshot(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	nodes := cluster(t, r, 2, func(o *Options) { o.LogBytes = 1000; o.Retention = time.Hour })
	nodes[1].owner.mu.Lock() // Apply waits for this
	position := Position(0)
	for i := range 200 {
		p, err := nodes[0].Announce(Change{Add: []string{fmt.Sprintf("%0100d", i)}})
		if errors.Is(err, ErrOverflow) {
			if err := nodes[0].Flush(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		position = p
	}
	if err := nodes[0].Flush(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	r.Do("DEL herald:routes")
	nodes[1].owner.mu.Unlock()
	if err := nodes[0].Settled(within(t, 5*time.Second), position); err != nil {
		t.Fatal(err)
	}
	if n := nodes[1].routeCount(1); n != int(position) {
		t.Errorf("%d routes, want %d", n, position)
	}
	nodes[0].Bridge.routes.mu.Lock()
	defer nodes[0].Bridge.routes.mu.Unlock()
	if n := nodes[0].Bridge.routes.bytes; n > 1000 {
		t.Errorf("the log has %d bytes", n)
	}
}
