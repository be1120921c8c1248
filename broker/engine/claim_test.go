package engine

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// registry is a store that has claims and one session, and notes what is asked of it.
type registry struct {
	persistence.Cluster // the rest is not called

	mu    sync.Mutex // guards below
	claim persistence.Claim
	row   persistence.Session
	read  func() // is called when it is read; may be nil
	calls []string
}

func (r *registry) did(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, what)
}

func (r *registry) take() (calls []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls, r.calls = r.calls, nil
	return calls
}

func (r *registry) set(c persistence.Claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claim = c
}

func (r *registry) Claimed(_ context.Context, _ persistence.Kind, name string) (persistence.Claim, error) {
	r.did("claimed")
	r.mu.Lock()
	defer r.mu.Unlock()
	if name != "c" {
		return persistence.Claim{}, nil
	}
	return r.claim, nil
}

func (r *registry) Claim(_ context.Context, _ persistence.Kind, _ string, old persistence.Claim, owner uint16, life uint64) (persistence.Claim, bool, error) {
	r.did("claim")
	r.mu.Lock()
	defer r.mu.Unlock()
	if old != r.claim {
		return r.claim, false, nil
	}
	r.claim = persistence.Claim{Owner: owner, Life: life, Epoch: old.Epoch + 1}
	return r.claim, true, nil
}

func (r *registry) Session(context.Context, persistence.Kind, string) (persistence.Session, error) {
	r.did("session")
	if r.read != nil {
		r.read()
	}
	if r.row.ID == 0 {
		return r.row, herald.ErrNotFound
	}
	return r.row, nil
}

func (r *registry) Seal(context.Context, herald.SessionID) error {
	r.did("seal")
	return nil
}

// neighbours are the other nodes of a node: they get its frames, and one of them may
// come to its end.
type neighbours struct {
	Cluster // the rest is not called
	store   *registry
	away    atomic.Bool // Redis is
	over    chan struct{}
	frames  chan frame
	beats   atomic.Int32
}

func (n *neighbours) Self() bridge.Peer { return bridge.Peer{Node: 1, Incarnation: 1} }
func (n *neighbours) Valid() bool       { return true }
func (n *neighbours) BeatNow()          { n.beats.Add(1) }
func (n *neighbours) Available() bool   { return !n.away.Load() }
func (n *neighbours) Live(bridge.Peer) bool {
	select {
	case <-n.over:
		return false
	default:
		return true
	}
}

func (n *neighbours) Received(context.Context) error {
	n.store.did("received")
	return nil
}

func (n *neighbours) Over(ctx context.Context, _ bridge.Peer) error {
	select {
	case <-n.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *neighbours) AppendAsync(_ bridge.Peer, b []byte, _ func(error)) error {
	f, err := decodeFrame(b)
	switch {
	case err != nil:
		return err
	case f.kind == frameReady:
		n.store.did("ready")
	default:
		n.frames <- f
	}
	return nil
}

// claiming makes the engine of node 1, in a bubble, where node 2 has the claim of "c"
// under epoch 7.
func claiming(t *testing.T) (*Engine, *neighbours) {
	store := &registry{claim: persistence.Claim{Owner: 2, Life: 1, Epoch: 7}}
	n := &neighbours{store: store, over: make(chan struct{}), frames: make(chan frame, 100)}
	e := &Engine{log: zap.NewNop(), store: store, errands: make(chan struct{}, 1)}
	e.claims.m = make(map[string]*claim)
	e.clients = make(map[string]*client)
	e.receiver = listen.NewWorker()
	e.ids = herald.NewIDs(1, 0)
	e.cfg.Now = time.Now
	e.owners.init()
	e.wills.init()
	e.nodes.init(n, store)
	e.life, e.endLife = context.WithCancel(context.Background())
	t.Cleanup(e.endLife)
	return e, n
}

// wanting claims the session and tells the outcome.
func wanting(e *Engine, gone func() bool) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := e.claim(e.life, ownerKey{persistence.Client, "c"}, toEnd, gone)
		done <- err
	}()
	synctest.Wait()
	return done
}

// What the owner answers is the claim: the store is not asked again.
func TestAGrantedClaimIsHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		began, done := time.Now(), wanting(e, nil)
		f := <-n.frames
		if f.kind != frameRelease || f.epoch != 7 || f.name != "c" || f.why != toEnd {
			t.Fatalf("asked for with %+v", f)
		}
		e.owners.answered(f.request, 8)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if c, ok := e.owners.owned(ownerKey{persistence.Client, "c"}); !ok || c != (persistence.Claim{Owner: 1, Life: 1, Epoch: 8}) {
			t.Errorf("has %+v, %v", c, ok)
		}
		if calls := n.store.take(); !slices.Equal(calls, []string{"claimed"}) || time.Since(began) > 0 {
			t.Errorf("the store was asked %q, and it took %v", calls, time.Since(began))
		}
	})
}

// The session's row is read while its owner waits for the others and for the store; not
// before it says so, and in vain if it does not give the session up after all.
func TestARowIsReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		n.store.row = persistence.Session{ID: 5, Name: "c"}
		done := make(chan secured, 1)
		go func() {
			s, err := e.secure("c", toServe, func() bool { return false })
			if err != nil {
				t.Error(err)
			}
			done <- s
		}()
		f := <-n.frames
		synctest.Wait()
		if calls := n.store.take(); !slices.Equal(calls, []string{"claimed"}) {
			t.Errorf("calls %q", calls)
		}
		from := bridge.Peer{Node: 2, Incarnation: 1}
		e.Receive(from, [][]byte{appendReady(nil, f.request)})
		synctest.Wait()
		if calls := n.store.take(); !slices.Equal(calls, []string{"session"}) {
			t.Errorf("calls %q", calls)
		}
		e.Receive(from, [][]byte{appendGranted(nil, f.request, 0)}) // it could not
		f = <-n.frames
		n.store.row.Epoch = 1 // its client went on there
		e.Receive(from, [][]byte{appendGranted(nil, f.request, 8)})
		s := <-done
		if row, err := s.row(); err != nil || row.Epoch != 1 {
			t.Errorf("row %+v, %v", row, err)
		}
		if calls := n.store.take(); !slices.Equal(calls, []string{"claimed", "session"}) {
			t.Errorf("calls %q", calls)
		}
	})
}

// hinting is a registry that tells sooner who had the claim.
type hinting struct {
	*registry
	hint persistence.Claim
}

func (h *hinting) ClaimHint(context.Context, persistence.Kind, string) (persistence.Claim, error) {
	h.did("hint")
	return h.hint, nil
}

// Whom to ask is looked up without agreement among the servers of the store; nothing else
// rests on that: who had the claim before, says so, and the store is asked at once.
func TestAHintDecidesNothing(t *testing.T) {
	k := ownerKey{persistence.Client, "c"}
	for _, test := range []struct {
		name       string
		hint, real persistence.Claim
		epoch      uint64 // that the owner answers
		asked      bool
		calls      []string
		has        persistence.Claim
	}{
		{"right", persistence.Claim{Owner: 2, Life: 1, Epoch: 7}, persistence.Claim{Owner: 2, Life: 1, Epoch: 7}, 8, true, []string{"hint"}, persistence.Claim{Owner: 1, Life: 1, Epoch: 8}},
		{"old", persistence.Claim{Owner: 3, Life: 1, Epoch: 5}, persistence.Claim{Owner: 1, Life: 1, Epoch: 8}, 0, true, []string{"hint", "claimed"}, persistence.Claim{Owner: 1, Life: 1, Epoch: 8}},
		{"this node", persistence.Claim{Owner: 1, Life: 1, Epoch: 7}, persistence.Claim{Owner: 1, Life: 1, Epoch: 7}, 0, false, []string{"hint", "claimed"}, persistence.Claim{Owner: 1, Life: 1, Epoch: 7}},
		{"nobody", persistence.Claim{}, persistence.Claim{}, 0, false, []string{"hint", "claim"}, persistence.Claim{Owner: 1, Life: 1, Epoch: 1}},
		{"nobody yet", persistence.Claim{}, persistence.Claim{Owner: 2, Life: 1, Epoch: 7}, 8, true, []string{"hint", "claim", "claimed"}, persistence.Claim{Owner: 1, Life: 1, Epoch: 8}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, n := claiming(t)
				n.store.set(test.real)
				e.nodes.store = &hinting{n.store, test.hint}
				began, done := time.Now(), wanting(e, nil)
				if test.asked {
					e.owners.answered((<-n.frames).request, test.epoch)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if calls := n.store.take(); !slices.Equal(calls, test.calls) || time.Since(began) > 0 {
					t.Errorf("the store was asked %q, and it took %v", calls, time.Since(began))
				}
				if c, ok := e.owners.owned(k); !ok || c != test.has {
					t.Errorf("has %+v, %v", c, ok)
				}
			})
		})
	}
}

// An owner that could not give the session up is asked again soon, and not at once.
func TestARefusedClaimIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		began, done := time.Now(), wanting(e, nil)
		for tries := range 3 {
			f := <-n.frames
			if min, took := time.Duration(1<<tries-1)*askFirst, time.Since(began); took != min {
				t.Errorf("asked for the %d. time after %v, want %v", tries+1, took, min)
			}
			if tries == 2 {
				n.store.set(persistence.Claim{Owner: 1, Life: 1, Epoch: 8})
			}
			e.owners.answered(f.request, 0)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A claim that waits goes on when the life of the owner is over, at once.
func TestTheEndOfAnOwnerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		began, done := time.Now(), wanting(e, nil)
		time.Sleep(700 * time.Millisecond)
		close(n.over)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 700*time.Millisecond {
			t.Errorf("it took %v, and the owner was gone after 0.7 s", took)
		}
		if n.store.claim != (persistence.Claim{Owner: 1, Life: 1, Epoch: 8}) {
			t.Errorf("the claim is %+v", n.store.claim)
		}
		if !e.owners.isUnsealed("c") {
			t.Error("nobody knows that it is to be sealed")
		}
	})
}

// While no answer can come the store is asked, soon and then less and less often.
func TestAClaimWithoutRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		n.away.Store(true)
		began, done := time.Now(), wanting(e, nil)
		time.Sleep(650 * time.Millisecond)
		if w := e.owners.wants(); len(w) != 1 || w[0].Node != 2 || w[0].Name != "c" || n.beats.Load() == 0 {
			t.Errorf("this node's row asks for %+v, after %d beats", w, n.beats.Load())
		}
		n.store.set(persistence.Claim{Owner: 1, Life: 1, Epoch: 8})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 700*time.Millisecond { // 100, 200 and 400 ms
			t.Errorf("it took %v", took)
		}
		if len(n.store.take()) != 4 || len(e.owners.wants()) != 0 || len(n.frames) != 0 {
			t.Error("the store was not asked four times, or something is left")
		}
	})
}

// For a client that is gone nothing is taken, and the owner is told so.
func TestAClaimForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		var gone atomic.Bool
		began, done := time.Now(), wanting(e, gone.Load)
		time.Sleep(300 * time.Millisecond)
		gone.Store(true)
		if err := <-done; !errors.Is(err, errGone) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(began); took > 300*time.Millisecond+goneLook {
			t.Errorf("noticed after %v", took)
		}
		asked, withdrawn := <-n.frames, <-n.frames
		if withdrawn.kind != frameWithdraw || withdrawn.request != asked.request {
			t.Errorf("after %+v the owner is told %+v", asked, withdrawn)
		}
		if err := <-wanting(e, gone.Load); !errors.Is(err, errGone) || len(n.frames) > 0 {
			t.Errorf("the owner is asked for one who is gone: %v", err)
		}
		if calls := n.store.take(); slices.Contains(calls, "claim") {
			t.Errorf("calls %q", calls)
		}
	})
}

// vanishing is the connection of a client that goes while its session is read.
type vanishing struct {
	Conn    // the rest is not called
	connect []byte
	gone    bool
}

func (c *vanishing) Connect() []byte { return c.connect }
func (c *vanishing) Gone() bool      { return c.gone }

// Nor does a clean start end a session for it, although it has the claim.
func TestACleanStartOfOneWhoHasGone(t *testing.T) {
	e, n := claiming(t)
	e.owners.set(ownerKey{persistence.Client, "c"}, persistence.Claim{Owner: 1, Life: 1, Epoch: 7})
	c := &vanishing{connect: wire.AppendConnect(nil, &wire.Connect{Version: herald.V5, ClientID: []byte("c"), Clean: true})}
	n.store.row = persistence.Session{ID: 5, Name: "c", ExpiryInterval: never}
	n.store.read = func() { c.gone = true }
	if _, err := e.Connect(c, "c"); !errors.Is(err, errGone) {
		t.Errorf("error %v", err)
	}
	if calls := n.store.take(); !slices.Equal(calls, []string{"session"}) {
		t.Errorf("calls %q", calls)
	}
}

// A node gives up what it has claimed without asking the store what that was, and not
// if the request was withdrawn.
func TestGivingUp(t *testing.T) {
	e, n := claiming(t)
	n.store.claim = persistence.Claim{Owner: 1, Life: 1, Epoch: 7}
	k := ownerKey{persistence.Client, "c"}
	e.owners.set(k, n.store.claim)
	to := e.meet(bridge.Peer{Node: 3, Incarnation: 1})
	give := func(epoch uint64, withdrawn bool) (uint64, []string) {
		t.Helper()
		w := new(atomic.Bool)
		w.Store(withdrawn)
		next, err := e.handOver(to, k, &frame{epoch: epoch, name: "c"}, w)
		if err != nil {
			t.Fatal(err)
		}
		return next, n.store.take()
	}
	if next, calls := give(7, true); next != 0 || len(calls) > 0 {
		t.Errorf("withdrawn: epoch %d, %q", next, calls)
	}
	if next, calls := give(6, false); next != 0 || len(calls) > 0 {
		t.Errorf("an epoch that has passed: epoch %d, %q", next, calls)
	}
	if next, calls := give(7, false); next != 8 || !slices.Equal(calls, []string{"ready", "received", "claim"}) {
		t.Errorf("epoch %d, %q", next, calls)
	}
	if next, calls := give(8, false); next != 0 || !slices.Equal(calls, []string{"claimed"}) {
		t.Errorf("what another node has: epoch %d, %q", next, calls)
	}
}

// What was claimed from a dead node is sealed before it is given to another: that one
// does not know that it has to.
func TestGivingUpSeals(t *testing.T) {
	e, n := claiming(t)
	n.store.claim = persistence.Claim{Owner: 1, Life: 1, Epoch: 7}
	n.store.row = persistence.Session{ID: 5, Name: "c"}
	k := ownerKey{persistence.Client, "c"}
	e.owners.set(k, n.store.claim)
	e.owners.unseal("c")
	to := e.meet(bridge.Peer{Node: 3, Incarnation: 1})
	if next, err := e.handOver(to, k, &frame{epoch: 7, name: "c"}, new(atomic.Bool)); next != 8 || err != nil {
		t.Errorf("epoch %d, %v", next, err)
	}
	if calls := n.store.take(); !slices.Equal(calls, []string{"session", "seal", "ready", "received", "claim"}) {
		t.Errorf("calls %q", calls)
	}
	if e.owners.isUnsealed("c") {
		t.Error("it is still to be sealed")
	}
}

// A request that is withdrawn with what comes at the same time is not carried out.
func TestWithdrawnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, n := claiming(t)
		n.store.claim = persistence.Claim{Owner: 1, Life: 1, Epoch: 7}
		e.owners.set(ownerKey{persistence.Client, "c"}, n.store.claim)
		from := bridge.Peer{Node: 3, Incarnation: 1}
		e.Receive(from, [][]byte{
			appendRelease(nil, 1, persistence.Client, toServe, 7, "c"),
			appendRelease(nil, 2, persistence.Client, toServe, 7, "d"),
			appendWithdraw(nil, 1),
		})
		for range 2 {
			if f := <-n.frames; f.kind != frameGranted || f.epoch != 0 {
				t.Errorf("answered %+v", f)
			}
		}
		synctest.Wait()
		if calls := n.store.take(); !slices.Equal(calls, []string{"claimed"}) { // of d
			t.Errorf("calls %q", calls)
		}
		if len(e.owners.requests) > 0 {
			t.Error("requests are kept")
		}
	})
}
