package membership_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/membership"
	"github.com/herald-mqtt/herald/broker/membership/membershiptest"
	"github.com/herald-mqtt/herald/persistence"
)

type life struct {
	node uint16
	life uint64
}

// world is a cluster to which things happen, with what must never be.
type world struct {
	rand *rand.Rand // used by the schedule only
	calm bool       // nothing goes wrong any more
	rows membershiptest.Rows
	// clock is what the process of that name takes for the time.
	clock func(name int) func() time.Time

	mu       sync.Mutex
	wrong    []string
	begun    map[life]time.Time // when it joined
	at       map[life]time.Time // when it was Finished or had left
	state    map[life]persistence.MemberState
	finished map[life]bool // Died has returned nil for it
	all      []*unit
	running  sync.WaitGroup
}

// unit is one life, or the attempt at one.
type unit struct {
	w     *world
	name  int
	store *membershiptest.Store
	end   context.CancelFunc

	// Guarded by w.mu.
	node   *membership.Node // nil: it has not joined
	looked map[uint16]uint64
	gone   bool // killed, or leaves, or refused
	ended  bool // the process is no more
	paused bool
	lost   int
}

type moods byte

const (
	well moods = iota
	slow
	flaky
	away
	numMoods
)

func (w *world) fail(format string, args ...any) {
	if len(w.wrong) < 5 {
		w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
	}
}

// changed is called at the moment at which a row changes.
func (w *world) changed(m persistence.Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := life{m.Node, m.Life}
	w.state[l] = m.State
	switch m.State {
	case persistence.Live:
		w.begun[l] = time.Now()
	case persistence.Finished:
		if !w.finished[l] {
			w.fail("%v is Finished before Died has returned", l)
		}
		w.overLocked(l)
	case persistence.Left:
		w.at[l] = time.Now()
	}
	w.checkLocked()
}

// overLocked: nothing of a life is left to be finished, nor of those before it.
func (w *world) overLocked(of life) {
	for l := range w.state {
		if l.node == of.node && l.life <= of.life && w.at[l].IsZero() {
			w.at[l] = time.Now()
		}
	}
}

// pay finishes what a life owes.
func (u *unit) pay(n *membership.Node) {
	m, owes := n.Owes()
	if !owes {
		return
	}
	for u.think(m) != nil {
		time.Sleep(beat)
	}
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	l := life{m.Node, m.Life}
	if u.gone || u.w.state[life{m.Node, m.Life + 1}] != persistence.Live {
		return
	}
	if s := u.w.state[l]; s != persistence.Dead {
		u.w.fail("%v is owed, which is %d", l, s)
	}
	u.w.overLocked(l)
	u.looked[l.node] = l.life
	n.Paid()
}

// checkLocked: whoever is valid is Live, and nobody else has its name or number.
func (w *world) checkLocked() {
	names, numbers := map[int]life{}, map[uint16]life{}
	for _, u := range w.all {
		if u.node == nil || u.ended || !u.node.Valid() {
			continue
		}
		l := life{u.node.Self().Node, u.node.Self().Life}
		if s := w.state[l]; s != persistence.Live {
			w.fail("%v is valid, its row says %d", l, s)
		}
		if other, ok := names[u.name]; ok {
			w.fail("%v and %v have one name and are both valid", other, l)
		}
		if other, ok := numbers[l.node]; ok {
			w.fail("%v and %v are both valid", other, l)
		}
		names[u.name], numbers[l.node] = l, l
	}
}

func (u *unit) Status() membership.Status {
	return membership.Status{Clock: herald.IDAt(time.Now().UnixMilli())}
}

func (u *unit) Peers([]membership.Peer) {}

// think is what a handler's call takes, and whether it fails.
func (u *unit) think(m persistence.Member) error {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(m.Node)<<32|m.Life))
	switch r.IntN(12) {
	case 0:
		return errors.New("not this time")
	case 1:
		time.Sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
	case 2:
		time.Sleep(time.Duration(r.IntN(12_000)) * time.Millisecond)
	default:
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
	}
	return nil
}

func (u *unit) Died(m persistence.Member) error {
	if err := u.think(m); err != nil {
		return err
	}
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	l := life{m.Node, m.Life}
	if s := u.w.state[l]; s == persistence.Live || s == persistence.Left {
		u.w.fail("Died called for %v, which is %d", l, s)
	}
	if !u.gone {
		u.w.finished[l] = true
	}
	return nil
}

func (u *unit) Finished(m persistence.Member) error {
	u.w.mu.Lock()
	for l := range u.w.state {
		if l.node == m.Node && l.life <= m.Life && u.w.at[l].IsZero() {
			u.w.fail("told that %v is Finished, which is %d", l, u.w.state[l])
		}
	}
	u.w.mu.Unlock()
	if err := u.think(m); err != nil {
		return err
	}
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	u.looked[m.Node] = max(u.looked[m.Node], m.Life)
	return nil
}

func (u *unit) Lost() {
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	u.lost++
	if u.lost > 1 {
		u.w.fail("Lost twice")
	}
	if l := (life{u.node.Self().Node, u.node.Self().Life}); u.w.state[l] == persistence.Live {
		u.w.fail("%v is told that it is lost, but lives", l)
	}
}

// launch starts a process with that name.
func (w *world) launch(name int, former persistence.Member) {
	ctx, end := context.WithCancel(context.Background())
	u := &unit{w: w, name: name, store: w.rows.Open(nil), end: end, looked: map[uint16]uint64{}}
	mood := well
	if !w.calm {
		mood = moods(max(0, w.rand.IntN(6)-2))
	}
	u.feel(mood, w.rand.Uint64())
	w.mu.Lock()
	w.all = append(w.all, u)
	w.mu.Unlock()
	w.running.Go(func() {
		n, err := membership.Join(ctx, membership.Options{
			Store: u.store, Name: fmt.Sprint("n", name), Lease: lease, Beat: beat, Handler: u, Former: former, Now: w.clock(name),
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			u.gone, u.ended = true, true
			return
		}
		if u.gone {
			w.running.Go(n.Close)
			return
		}
		u.node = n
		n.Start()
		w.running.Go(func() { u.pay(n) })
	})
}

// feel has the store treat the process in some way from now on.
func (u *unit) feel(m moods, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	u.store.Faults(func(op string) (f membershiptest.Fault) {
		mu.Lock()
		defer mu.Unlock()
		some := func(most int) time.Duration { return time.Duration(r.IntN(most)) * time.Millisecond }
		f.Before, f.After = some(20), some(20)
		switch m {
		case slow:
			f.Before, f.After = some(1200), some(1200)
		case flaky:
			f.Before, f.After = some(300), some(300)
			switch r.IntN(8) {
			case 0:
				f.Refuse = true
			case 1:
				f.Lose = true
			case 2:
				f.Late = op == "beat"
				f.Before = some(8000)
			case 3:
				f.After = some(8000)
			}
		case away:
			f.Refuse = true
			f.After = some(5000)
		}
		return f
	})
}

// up are the processes that run.
func (w *world) up() []*unit {
	w.mu.Lock()
	defer w.mu.Unlock()
	var up []*unit
	for _, u := range w.all {
		if !u.gone {
			up = append(up, u)
		}
	}
	return up
}

func (w *world) kill(u *unit) {
	u.store.Kill()
	w.mu.Lock()
	u.gone, u.ended = true, true
	n := u.node
	w.mu.Unlock()
	u.end()
	if n != nil {
		w.running.Go(n.Close)
	}
}

// tend ends processes that are lost, and starts what does not run.
func (w *world) tend(names int) {
	running := map[int]bool{}
	for _, u := range w.up() {
		w.mu.Lock()
		lost := u.lost > 0
		w.mu.Unlock()
		if lost {
			w.kill(u)
			continue
		}
		running[u.name] = true
	}
	for name := range names {
		if !running[name] && w.rand.IntN(4) == 0 {
			w.launch(name, persistence.Member{})
		}
	}
}

// happen does something to somebody.
func (w *world) happen(names int) {
	w.tend(names)
	up := w.up()
	if len(up) == 0 {
		return
	}
	u := up[w.rand.IntN(len(up))]
	w.mu.Lock()
	n := u.node
	w.mu.Unlock()
	switch w.rand.IntN(14) {
	case 0, 1:
		w.kill(u)
	case 2:
		w.kill(u)
		if n != nil {
			w.launch(u.name, n.Self())
		}
	case 3:
		u.store.Pause()
		u.paused = true
	case 4, 5, 6:
		for _, u := range up {
			if u.paused && w.rand.IntN(2) == 0 {
				u.store.Resume()
				u.paused = false
			}
		}
	case 7, 8:
		u.feel(moods(w.rand.IntN(int(numMoods))), w.rand.Uint64())
	case 9:
		m := moods(w.rand.IntN(int(numMoods)))
		for _, u := range up {
			u.feel(m, w.rand.Uint64())
		}
	case 10, 11:
		for _, u := range up {
			u.feel(well, w.rand.Uint64())
		}
	case 12:
		w.launch(w.rand.IntN(names), persistence.Member{}) // perhaps a second one of that name
	case 13:
		if n == nil || u.paused {
			return
		}
		w.mu.Lock()
		u.gone = true
		w.mu.Unlock()
		w.running.Go(func() {
			ctx, end := context.WithTimeout(context.Background(), 20*time.Second)
			defer end()
			_ = n.Leave(ctx) // else it is found dead
			w.mu.Lock()
			u.ended = true
			w.mu.Unlock()
			u.end()
		})
	}
}

// await has u wait until l is settled, and checks that it is.
func (w *world) await(u *unit, l life, limit time.Duration, must bool) {
	w.running.Go(func() {
		ctx, end := context.WithTimeout(context.Background(), limit)
		defer end()
		err := u.node.Settled(ctx, l.node, l.life)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			if must && !u.gone {
				w.fail("not settled: %v", err)
			}
			return
		}
		s := w.state[l]
		if w.at[l].IsZero() {
			w.fail("%v is settled for %d, and %d", l, u.node.Self().Node, s)
		}
		if s == persistence.Left {
			return
		}
		for _, o := range w.all {
			if o.node == nil || o.ended || !o.node.Valid() {
				continue
			}
			m := o.node.Self()
			if w.begun[life{m.Node, m.Life}].Before(w.at[l]) && o.looked[l.node] < l.life {
				w.fail("%v is settled for node %d, node %d has not looked", l, u.node.Self().Node, m.Node)
			}
		}
	})
}

// dead are all lives that are over or should be: those without a process.
func (w *world) dead() []life {
	w.mu.Lock()
	defer w.mu.Unlock()
	live := map[life]bool{}
	for _, u := range w.all {
		if u.node != nil && !u.gone {
			live[life{u.node.Self().Node, u.node.Self().Life}] = true
		}
	}
	var dead []life
	for l := range w.state {
		if !live[l] {
			dead = append(dead, l)
		}
	}
	return dead
}

// run is one schedule: what was wrong, and how many lives there were.
func run(t *testing.T, seed uint64, names int, clock func(int) func() time.Time) (wrong []string, lives int) {
	synctest.Test(t, func(*testing.T) {
		w := &world{
			rand: rand.New(rand.NewPCG(seed, 1)), clock: clock,
			begun: map[life]time.Time{}, at: map[life]time.Time{}, state: map[life]persistence.MemberState{}, finished: map[life]bool{},
		}
		w.rows.Changed = w.changed
		for name := range names {
			w.launch(name, persistence.Member{})
		}
		for range 60 {
			for range 1 + w.rand.IntN(80) {
				time.Sleep(time.Duration(20+w.rand.IntN(20)) * time.Millisecond)
				w.mu.Lock()
				w.checkLocked()
				w.mu.Unlock()
			}
			w.happen(names)
			if dead := w.dead(); len(dead) > 0 {
				for _, u := range w.up() {
					w.mu.Lock()
					joined := u.node != nil
					w.mu.Unlock()
					if joined {
						w.await(u, dead[w.rand.IntN(len(dead))], 15*time.Second, false)
					}
				}
			}
		}
		w.recover(names)
		for _, u := range w.up() {
			w.kill(u)
		}
		w.running.Wait()
		synctest.Wait()
		wrong, lives = w.wrong, len(w.state)
	})
	return wrong, lives
}

// recover ends all faults: in the end everybody who is to be alive is, and every
// death is settled.
func (w *world) recover(names int) {
	w.calm = true
	for _, u := range w.up() {
		u.feel(well, w.rand.Uint64())
		u.store.Resume()
	}
	for range 400 { // a handler may take 40 s, one after the other
		time.Sleep(500 * time.Millisecond)
		w.tend(names)
	}
	up := w.up()
	w.mu.Lock()
	if len(up) != names {
		w.fail("%d processes run in the end, not %d", len(up), names)
	}
	for _, u := range up {
		if u.node == nil || !u.node.Valid() {
			w.fail("n%d is not valid in the end (joined: %v)", u.name, u.node != nil)
		}
	}
	w.mu.Unlock()
	for _, l := range w.dead() {
		w.mu.Lock()
		if w.at[l].IsZero() {
			w.fail("%v is %d in the end", l, w.state[l])
		}
		w.mu.Unlock()
		for _, u := range up {
			if u.node != nil {
				w.await(u, l, time.Second, true)
			}
		}
	}
	time.Sleep(2 * time.Second)
}

// skewed clocks differ by up to 4 s.
func skewed(name int) func() time.Time {
	return func() time.Time { return time.Now().Add(time.Duration(name-2) * 2 * time.Second) }
}

// Whatever happens, nobody is valid whom the others hold for dead, no two have one
// name or number, deaths are finished before they are settled, and in the end all
// are.
func TestSchedules(t *testing.T) {
	total := 0
	for seed := range uint64(schedules) {
		wrong, lives := run(t, seed, 2+int(seed%4), skewed)
		total += lives
		if len(wrong) > 0 {
			t.Fatalf("seed %d: %q", seed, wrong)
		}
	}
	if total < 8*schedules {
		t.Errorf("only %d lives in %d schedules", total, schedules)
	}
}

// wall is a clock without a monotonic reading, which is set back now and then.
func wall(int) func() time.Time {
	return func() time.Time {
		now := time.Now().Round(0)
		return now.Add(-time.Duration(now.Unix()/20) * 3 * time.Second)
	}
}

// The schedules find a lease that is checked on the wall clock.
func TestSchedulesFindWallClock(t *testing.T) {
	for seed := range uint64(50) {
		if wrong, _ := run(t, seed, 4, wall); len(wrong) > 0 {
			t.Logf("seed %d: %q", seed, wrong[0])
			return
		}
	}
	t.Error("not found")
}
