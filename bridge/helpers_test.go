package bridge

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/herald-mqtt/herald/internal/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// owner is a Handler that writes down what it gets.
type owner struct {
	mu     sync.Mutex
	frames map[uint16][]uint64 // numbers in the first 8 bytes, by sender
	gaps   map[uint16]int
	lost   []error
	routes map[uint16]map[string]bool
	events map[uint16][]string
	block  chan struct{} // if not nil, Receive waits until it is closed
}

func newOwner() *owner {
	return &owner{
		frames: map[uint16][]uint64{}, gaps: map[uint16]int{},
		routes: map[uint16]map[string]bool{}, events: map[uint16][]string{},
	}
}

func (o *owner) Receive(from Peer, frames [][]byte) {
	o.mu.Lock()
	block := o.block
	for _, f := range frames {
		o.frames[from.Node] = append(o.frames[from.Node], binary.BigEndian.Uint64(f))
	}
	o.mu.Unlock()
	if block != nil {
		<-block
	}
}

func (o *owner) Gap(from Peer) {
	o.mu.Lock()
	o.gaps[from.Node]++
	o.mu.Unlock()
}

func (o *owner) Lost(reason error) {
	o.mu.Lock()
	o.lost = append(o.lost, reason)
	o.mu.Unlock()
}

func (o *owner) Apply(from Peer, c Change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.routes[from.Node] == nil {
		o.routes[from.Node] = map[string]bool{}
	}
	for _, s := range c.Add {
		o.routes[from.Node][s] = true
	}
	for _, s := range c.Remove {
		delete(o.routes[from.Node], s)
	}
	for _, e := range c.Events {
		o.events[from.Node] = append(o.events[from.Node], string(e))
	}
}

func (o *owner) Replace(from Peer, routes []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.routes[from.Node] = map[string]bool{}
	for _, s := range routes {
		o.routes[from.Node][s] = true
	}
}

func (o *owner) received(node uint16) []uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]uint64(nil), o.frames[node]...)
}

func (o *owner) count(node uint16) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.frames[node])
}

func (o *owner) losses() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]error(nil), o.lost...)
}

func (o *owner) has(node uint16, route string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.routes[node][route]
}

func (o *owner) routeCount(node uint16) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.routes[node])
}

// node is one end of a test.
type node struct {
	*Bridge
	*owner
	self Peer
}

func open(t testing.TB, s *redistest.Server, self Peer, change ...func(*Options)) *node {
	t.Helper()
	o := newOwner()
	opts := Options{URL: s.URL(), Cluster: "test", Self: self, Handler: o, Timeout: 400 * time.Millisecond, Patience: 100 * time.Millisecond}
	if testing.Verbose() {
		opts.Log = zaptest.NewLogger(t, zaptest.WrapOptions(zap.Fields(zap.Uint16("self", self.Node))))
	}
	for _, f := range change {
		f(&opts)
	}
	b, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return &node{b, o, self}
}

// cluster opens n nodes, 1 to n, that know each other.
func cluster(t testing.TB, s *redistest.Server, n int, change ...func(*Options)) []*node {
	t.Helper()
	var nodes []*node
	var peers []Peer
	for i := range n {
		nodes = append(nodes, open(t, s, Peer{uint16(i + 1), 1}, change...))
		peers = append(peers, nodes[i].self)
	}
	for _, n := range nodes {
		n.SetPeers(peers)
	}
	for _, n := range nodes {
		if err := n.Ready(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// eventually waits for what can be seen.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// inOrder fails the test unless the numbers rise and none comes twice.
func inOrder(t testing.TB, got []uint64) {
	t.Helper()
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Fatalf("number %d after %d, at %d of %d", got[i], got[i-1], i, len(got))
		}
	}
}

// sender appends the numbers 1, 2, ... and notes what becomes of each.
type sender struct {
	from *node
	to   Peer

	mu       sync.Mutex
	next     uint64
	accepted map[uint64]bool  // Redis had it, or it is held and arrived
	held     map[uint64]bool  // reported as held, outcome not known yet
	refused  map[uint64]error // for the outbox
	open     int
}

func newSender(from, to *node) *sender {
	return &sender{from: from, to: to.self, accepted: map[uint64]bool{}, held: map[uint64]bool{}, refused: map[uint64]error{}}
}

func (s *sender) send() {
	s.mu.Lock()
	s.next++
	n := s.next
	s.open++
	s.mu.Unlock()
	err := s.from.AppendAsync(s.to, number(n), func(err error) { s.done(n, err) })
	if err != nil {
		s.done(n, err)
	}
}

func (s *sender) done(n uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held[n] {
		s.open--
	}
	switch {
	case err == nil:
		s.accepted[n] = true
		delete(s.held, n)
	case fmt.Sprint(err) == ErrHeld.Error():
		if s.held[n] {
			panic("held twice")
		}
		s.held[n] = true
	default:
		delete(s.held, n)
		s.refused[n] = err
	}
}

func (s *sender) outcome() (accepted, held, refused, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.accepted), len(s.held), len(s.refused), s.open
}

// settledWith waits until every frame has an outcome, and checks it against what
// the other side received: each accepted frame once, no refused one, in order.
func (s *sender) settledWith(t testing.TB, to *node) {
	t.Helper()
	eventually(t, "an outcome for all", func() bool {
		_, held, _, open := s.outcome()
		return held == 0 && open == 0
	})
	eventually(t, "all that was accepted arrives", func() bool {
		accepted, _, _, _ := s.outcome()
		return to.count(s.from.self.Node) >= accepted
	})
	got := to.received(s.from.self.Node)
	inOrder(t, got)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range got {
		if !s.accepted[n] {
			t.Fatalf("%d arrived although it was refused: %v", n, s.refused[n])
		}
	}
	if len(got) != len(s.accepted) {
		t.Fatalf("%d arrived, %d were accepted", len(got), len(s.accepted))
	}
}
