package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// outboxOf is the inbox of what a node has still to spread: one entry per message
// that is due to very many sessions. It is committed before the publisher's
// acknowledgement; the sessions get theirs after it, some at a time, and what a
// crash leaves is spread again at the next start, or by a survivor, to the same
// keys. No session ID is that low.
func outboxOf(node uint16) herald.SessionID { return 1 + herald.SessionID(node) }

// spreadChunk is how many sessions get a message in one commit.
const spreadChunk = 1000

// outbox is the line of wide publishes. Their passages are not finished before
// they are spread, so no mark passes them.
type outbox struct {
	above int // fixed

	topics atomic.Int32 // wide publishes under way
	mu     sync.Mutex
	wake   sync.Cond
	line   []*shipment
	byName map[string]int // under way, by topic
	stop   bool
}

func (o *outbox) init(above int) {
	o.above = above
	o.wake.L = &o.mu
	o.byName = make(map[string]int)
}

// takes tells whether a run for n inboxes is to be spread in the background:
// because they are many, or because it must not overtake one of its topic that is.
// If so, it counts it as under way.
func (o *outbox) takes(n int, topic string) bool {
	if o.above <= 0 || n <= o.above && o.topics.Load() == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if n <= o.above && o.byName[topic] == 0 {
		return false
	}
	o.byName[topic]++
	o.topics.Add(1)
	return true
}

// over takes a run out of the count.
func (o *outbox) over(topic string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byName[topic]--; o.byName[topic] == 0 {
		delete(o.byName, topic)
	}
	o.topics.Add(-1)
}

// post puts a shipment into line if it has something to spread.
func (o *outbox) post(s *shipment) bool {
	for i := range s.runs {
		if s.runs[i].wide != nil {
			o.mu.Lock()
			o.line = append(o.line, s)
			o.wake.Signal()
			o.mu.Unlock()
			return true
		}
	}
	return false
}

// cancel takes a shipment whose commit failed out of the count.
func (o *outbox) cancel(s *shipment) {
	for i := range s.runs {
		if r := &s.runs[i]; r.wide != nil {
			o.over(r.run.Messages[0].Topic)
		}
	}
}

// end lets spreadOutbox return when the line is empty.
func (o *outbox) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stop = true
	o.wake.Signal()
}

// outboxSpread is the entry that stands for a wide publish until it is spread.
func (e *Engine) outboxSpread(msgs []*herald.Message) persistence.Spread {
	return persistence.Spread{Messages: msgs, Targets: []persistence.Target{{Session: outboxOf(e.nodes.self.Node), QoS: 2, Retain: true}}}
}

// wide lists the sessions with an inbox that a run is due to.
func (e *Engine) wide(r *routed) []due {
	var to []due
	for _, snap := range r.nodes {
		for i := range snap.Chunks() {
			for _, en := range snap.Chunk(i) {
				if en.QoS > 0 && en.Target.stored(r.epoch) && !(en.NoLocal && en.Target.id == r.from) {
					to = append(to, due{en.Target, e.grants.of(en.Options)})
				}
			}
		}
	}
	for _, d := range r.to {
		if d.g.QoS > 0 && d.h.stored(r.epoch) {
			to = append(to, d)
		}
	}
	return to
}

// spreadOutbox spreads what is in line, until Stop.
func (e *Engine) spreadOutbox() {
	o := &e.outbox
	w := listen.NewWorker()
	for {
		o.mu.Lock()
		for len(o.line) == 0 && !o.stop {
			o.wake.Wait()
		}
		if len(o.line) == 0 {
			o.mu.Unlock()
			return
		}
		s := o.line[0]
		o.line = o.line[1:]
		o.mu.Unlock()
		for i := range s.runs {
			r := &s.runs[i]
			if r.wide == nil {
				continue
			}
			for left := r.wide; ; {
				if left = e.spread(r.run, left, true, w); len(left) == 0 {
					break
				}
				select {
				case <-e.quit:
					return // its passage stays open: it is spread at the next start
				case <-time.After(time.Second):
				}
			}
			e.forward(s, r, toDurable, e.scratch(w))
			o.over(r.run.Messages[0].Topic)
		}
		for _, p := range s.passage {
			e.flight.finish(p)
		}
		e.store.Commit(&persistence.Batch{Lazy: true, Marks: []persistence.Mark{{Session: outboxOf(e.nodes.self.Node), Low: e.closed()}}}, nil)
	}
}

// spread puts the messages of a run into the inboxes of many sessions, and, if told
// so, delivers to those that are connected. It returns those who are left, if the
// store fails: who has it must not get it again.
func (e *Engine) spread(run *wire.Run, to []due, deliver bool, w *listen.Worker) (left []due) {
	s := e.scratch(w)
	for len(to) > 0 {
		chunk := to[:min(len(to), spreadChunk)]
		targets := make([]persistence.Target, len(chunk))
		for i, d := range chunk {
			targets[i] = persistence.Target{Session: d.h.id, QoS: d.g.QoS, Retain: d.g.Retain, Identifiers: d.g.Identifiers}
		}
		if err := e.commit(&persistence.Batch{Spreads: []persistence.Spread{{Messages: run.Messages, Targets: targets}}}); err != nil {
			e.log.Error("spreading a publish; it is tried again", errField(err))
			return to
		}
		to = to[len(chunk):]
		if !deliver {
			continue
		}
		env := e.env()
		for _, d := range chunk {
			e.deliverStored(d, run, env, w, s)
		}
		w.Flush()
	}
	return nil
}

// deliverStored hands a run that stands in its inbox to a session or group.
func (e *Engine) deliverStored(d due, run *wire.Run, env session.Env, w *listen.Worker, s *scratch) {
	r := routed{run: run, epoch: e.epoch.Load()}
	e.deliverTo(d.h, &r, d.g, env, w, s)
}

// recoverOutbox spreads what a crash left, before anybody connects. Who is
// subscribed now gets it: a subscription that ended meanwhile does not.
func (e *Engine) recoverOutbox(ctx context.Context) error {
	// A store may throw away what belongs to a session without a row. No group
	// has a name without a slash.
	id, name := outboxOf(e.nodes.self.Node), "outbox"
	if e.nodes.self.Node != 0 {
		name = fmt.Sprintf("outbox %d", e.nodes.self.Node)
	}
	if _, err := e.store.Session(ctx, persistence.Group, name); errors.Is(err, herald.ErrNotFound) {
		row := persistence.Session{ID: id, Kind: persistence.Group, Name: name, ExpiryInterval: never}
		if err := e.commit(&persistence.Batch{Sessions: []persistence.Session{row}}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return e.finishOutbox(ctx, id)
}

// finishOutbox spreads what stands in an outbox.
func (e *Engine) finishOutbox(ctx context.Context, id herald.SessionID) error {
	win, err := e.store.Window(ctx, id)
	if err != nil {
		return err
	}
	var page []persistence.Entry
	w := listen.NewWorker()
	cache := e.index.NewCache(16)
	for at := win.Low; ; {
		if page, err = e.store.Inbox(ctx, id, at, maxID, 64, pageBytes, page[:0]); err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for i := range page {
			m := page[i].Message
			at = m.ID
			r := routed{run: wire.MakeRun([]*herald.Message{m}), from: m.Publisher}
			var b persistence.Batch
			e.match(cache.Match([]byte(m.Topic)), &r, &b)
			if r.wide != nil {
				e.outbox.over(m.Topic)
			}
			// Nobody is connected yet, or who is looks at its inbox when all is done: what
			// is done may be done again.
			if to := e.wide(&r); len(e.spread(r.run, to, false, w)) > 0 {
				return herald.ErrUnavailable
			}
		}
		if err := e.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: id, Low: at}}}); err != nil {
			return err
		}
	}
	return nil
}
