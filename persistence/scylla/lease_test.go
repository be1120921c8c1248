package scylla

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// narrows dials connections of which each lets so many bytes a second through.
type narrows struct {
	rate atomic.Int64 // 0: any number
	net.Dialer
}

func (n *narrows) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := n.Dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &narrow{Conn: c, of: n}, nil
}

type narrow struct {
	net.Conn
	of *narrows

	mu sync.Mutex // held while bytes are on their way
}

func (c *narrow) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rate := c.of.rate.Load(); rate > 0 {
		time.Sleep(time.Duration(len(b)) * time.Second / time.Duration(rate))
	}
	return c.Conn.Write(b)
}

// SetWriteDeadline does nothing: a connection that is narrow is not broken.
func (c *narrow) SetWriteDeadline(time.Time) error { return nil }

// While far more is written than the connections take, beats and readings of the
// members go on as if nothing were.
func TestBeatsPassWhatIsWritten(t *testing.T) {
	way := new(narrows)
	o := options(t)
	o.Dial, o.Timeout, o.GiveUp, o.Patience = way, time.Minute, time.Minute, time.Minute
	s, m := joined(t, o, "a")
	const session herald.SessionID = 1
	if err := tryCommit(s, &persistence.Batch{Sessions: []persistence.Session{{ID: session, Name: "c"}}}); err != nil {
		t.Fatal(err)
	}
	way.rate.Store(64 << 10)
	var wait sync.WaitGroup
	begun := time.Now()
	var last atomic.Int64 // when the last batch was written
	for i := range 32 {   // 16 s for one connection
		wait.Add(1)
		s.Commit(&persistence.Batch{Spreads: []persistence.Spread{{
			Messages: []*herald.Message{{ID: herald.IDAt(time.Now().UnixMilli()) + herald.ID(i), Topic: fmt.Sprint("t/", i), QoS: 1, Payload: make([]byte, 32<<10)}},
			Targets:  []persistence.Target{{Session: session + herald.SessionID(i), QoS: 1}},
		}}}, func(err error) {
			defer wait.Done()
			if err != nil {
				t.Error(err)
			}
			last.Store(int64(time.Since(begun)))
		})
	}
	beats := 0
	for ; time.Since(begun) < 4*time.Second; beats++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		now, ok, err := s.Beat(ctx, m, []byte("status"))
		if err != nil || !ok {
			t.Fatalf("beat %d after %v: %v, %v", beats, time.Since(begun), ok, err)
		}
		m = now
		if _, err := s.Members(ctx); err != nil {
			t.Fatalf("reading %d after %v: %v", beats, time.Since(begun), err)
		}
		cancel()
	}
	way.rate.Store(0)
	wait.Wait()
	if d := time.Duration(last.Load()); d < 4*time.Second {
		t.Errorf("all was written within %v: nothing stood in the way", d)
	}
	t.Logf("%d beats in 4 s", beats)
}
