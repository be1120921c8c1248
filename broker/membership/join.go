package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"go.uber.org/zap"
)

// Join begins a life of the node called o.Name. It waits until the former one is
// over: a row that is Live is watched for a lease, and if it beats the name is taken
// ([herald.ErrInUse]); else the life is declared dead and finished by the others. If
// there are none, this life goes on in its place, and owes what it had begun: see
// [Node.Owes]. While the store is away it waits for it, until ctx ends.
//
// The lease runs from here on: [Node.Start] is to be called within it. A second Join
// of a life that was lost may be made with the same options.
func Join(ctx context.Context, o Options) (*Node, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	n := &Node{
		o: o, base: o.Now(), wake: make(chan struct{}, 1), results: make(chan result, ops),
		warned: map[uint16]uint64{}, changed: make(chan struct{}),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	j := joining{Node: n, candidate: candidate{timing: o.timing(), name: o.Name, former: o.Former}}
	if err := j.join(ctx); err != nil {
		n.cancel()
		return nil, fmt.Errorf("membership: node %q: %w", o.Name, err)
	}
	return n, nil
}

type joining struct {
	*Node
	candidate candidate
	wall      time.Time     // at the start of the last reading
	clocks    bool          // others have told their clocks,
	ahead     time.Duration // and so much this one is ahead of the one it is least ahead of
	strange   int           // times in a row that the name seemed free and was not
}

func (j *joining) join(ctx context.Context) error {
	for {
		again, err := j.step(ctx)
		if again == 0 || err != nil && !passing(err) {
			return err
		}
		if err != nil {
			j.o.Log.Warn("membership: cannot join yet", zap.Error(err))
			j.candidate.watch.restart()
		}
		if stop := pause(ctx, again); stop != nil {
			return errors.Join(stop, err)
		}
	}
}

// passing tells whether an error may go by itself.
func passing(err error) bool {
	return errors.Is(err, herald.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errFinish)
}

var errFinish = errors.New("finishing the life before")

// step reads once, and does what follows. again is when to step again; 0: it has
// joined.
func (j *joining) step(ctx context.Context) (again time.Duration, err error) {
	soon := max(j.o.Beat/4, time.Millisecond)
	bound, cancel := context.WithTimeout(ctx, j.o.Lease)
	defer cancel()
	wall := j.o.Now()
	rows, err := j.o.Store.Members(bound)
	if err != nil {
		return soon, fmt.Errorf("reading the nodes: %w", err)
	}
	before := j.wall
	j.wall = wall
	now := j.now()
	what, own := j.candidate.step(now, rows)
	j.compare(before, now, rows)
	switch what {
	case moveTaken:
		return soon, fmt.Errorf("node name already taken: %w", herald.ErrInUse)
	case moveBury:
		if _, err := j.o.Store.Change(bound, own, persistence.Live, persistence.Dead); err != nil {
			return soon, fmt.Errorf("declaring the life before dead: %w", err)
		}
		return time.Millisecond, nil
	case moveJoin, moveSucceed:
		if j.clocks && j.ahead > j.o.MaxSkew {
			return soon, fmt.Errorf("%w: %s ahead of the other nodes, %s is allowed",
				ErrClock, j.ahead.Round(time.Millisecond), j.o.MaxSkew)
		}
		if what == moveJoin {
			return j.take(bound, rows, persistence.Member{}, soon)
		}
		if err := j.o.Store.Finish(ctx, own); err != nil {
			return soon, fmt.Errorf("%w: %w", errFinish, err)
		}
		bound, cancel := context.WithTimeout(ctx, j.o.Lease)
		defer cancel()
		return j.take(bound, rows, own, soon)
	}
	return soon, nil
}

// compare takes the clocks of nodes that have beaten since the reading before, which
// began at before: what other rows say may be old.
func (j *joining) compare(before time.Time, now time.Duration, rows []persistence.Member) {
	for _, row := range rows {
		if row.State != persistence.Live || !j.candidate.watch.beats(row) || j.candidate.watch.still(now, row) > 0 {
			continue
		}
		s, err := decodeStatus(row.Status)
		if err != nil || s.Clock == 0 {
			continue
		}
		if ahead := before.Sub(s.Clock.Time()); !j.clocks || ahead < j.ahead {
			j.clocks, j.ahead = true, ahead
		}
		if s.Clock > j.follow {
			j.follow, j.followed = s.Clock, now
		}
	}
}

// take begins the life, in the place of former if that is a life.
func (j *joining) take(ctx context.Context, rows []persistence.Member, former persistence.Member, soon time.Duration) (time.Duration, error) {
	n := j.Node
	looked := make(map[uint16]uint64, len(rows))
	for _, row := range rows {
		// What was over before has nothing to do with sessions that come later.
		looked[row.Node] = over(row)
		if row.State == persistence.Left {
			looked[row.Node] = row.Life
		}
	}
	v := &view{looked: looked}
	v.rows, v.peers = rows, n.peersIn(rows, -1)
	status := Status{Clock: herald.IDAt(n.o.Now().UnixMilli())}
	if former.Life != 0 {
		v.owes = cmp.Or(owedBy(former), former.Life)
	}
	n.complete(&status, v)

	joined := n.now()
	var self persistence.Member
	var err error
	if former.Life != 0 {
		self, err = n.o.Store.Succeed(ctx, former, status.encode())
	} else {
		self, err = n.o.Store.Join(ctx, n.o.Name, status.encode())
	}
	if errors.Is(err, herald.ErrInUse) && j.strange < 3 {
		j.strange++ // somebody was faster: the rows will tell
		return soon, nil
	}
	if err != nil {
		return soon, err
	}
	n.self = self
	n.machine = newMachine(n.o.timing(), self, joined, looked, v.owes)
	n.until.Store(int64(n.machine.until()))
	n.view.Store(v)
	n.publish()
	return 0, nil
}
