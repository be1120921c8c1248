package simulation

import (
	"fmt"
	"slices"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Commit implements [persistence.Store].
func (s *Shared) Commit(b *persistence.Batch, done func(error)) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if s.dead {
		if done != nil {
			go done(fmt.Errorf("commit: %w", herald.ErrClosed))
		}
		return
	}
	b = cloneBatch(b)
	if s.opts.Bug == bugMarkPast {
		for i := range b.Marks {
			s.markPast(&b.Marks[i])
		}
	}
	j := &job{s: s, b: b, done: done, since: time.Now()}
	defer s.kick()
	if s.fenced() {
		s.line = append(s.line, j)
		s.fail(j)
		return
	}
	s.db.watch(s, b)
	p := &planner{s: s, ts: s.next(stampsOf(b)), job: j}
	ts := p.ts
	p.batch(b)
	j.steps = p.steps()
	if j.whole = s.whole(b); j.whole {
		j.steps = s.intent(j, b, ts, j.steps)
	}
	s.begin(j)
}

// cloneBatch copies what a caller may use again when its done was called.
func cloneBatch(b *persistence.Batch) *persistence.Batch {
	c := *b
	c.Spreads = slices.Clone(b.Spreads)
	for i := range c.Spreads {
		sp := &c.Spreads[i]
		sp.Messages, sp.Targets = slices.Clone(sp.Messages), slices.Clone(sp.Targets)
	}
	c.Retain, c.Held, c.Sent, c.Marks = slices.Clone(b.Retain), slices.Clone(b.Held), slices.Clone(b.Sent), slices.Clone(b.Marks)
	c.Sessions, c.Subscribe, c.Unsubscribe = slices.Clone(b.Sessions), slices.Clone(b.Subscribe), slices.Clone(b.Unsubscribe)
	c.Wills, c.WillsGone, c.Delete = slices.Clone(b.Wills), slices.Clone(b.WillsGone), slices.Clone(b.Delete)
	return &c
}

// markPast lets a mark pass what is under way to its inbox.
func (s *Shared) markPast(m *persistence.Mark) {
	f := s.flights[m.Session]
	if f == nil {
		return
	}
	for _, j := range f.jobs {
		for _, sp := range j.b.Spreads {
			if slices.ContainsFunc(sp.Targets, func(t persistence.Target) bool { return t.Session == m.Session }) {
				m.Low = max(m.Low, sp.Messages[len(sp.Messages)-1].ID)
			}
		}
	}
	m.Above = slices.DeleteFunc(m.Above, func(id herald.ID) bool { return id <= m.Low })
}

// begin sends a job on its way.
func (s *Shared) begin(j *job) {
	if j.b != nil {
		s.line = append(s.line, j)
		for i := range j.b.Spreads {
			for _, t := range j.b.Spreads[i].Targets {
				f := s.flights[t.Session]
				if f == nil {
					f = &inFlight{}
					s.flights[t.Session] = f
				}
				f.jobs = append(f.jobs, j)
			}
		}
	}
	s.advance(j)
}

// advance begins the next step, or ends the job.
func (s *Shared) advance(j *job) {
	for j.left == 0 && len(j.steps) > 0 && !j.finished {
		if !j.free && s.fenced() {
			if j.begun && !s.over { // nobody could tell whether the rest will be found
				s.parked = append(s.parked, j)
				return
			}
			s.fail(j)
			return
		}
		ws := j.steps[0]()
		j.steps = j.steps[1:]
		j.begun = j.whole
		for _, w := range ws {
			w.job = j
		}
		j.left = len(ws)
		s.send(ws...)
	}
	if j.left == 0 && !j.finished {
		s.ends(j)
	}
}

func (s *Shared) fail(j *job) {
	j.err = fmt.Errorf("commit: %w", herald.ErrUnavailable)
	s.ends(j)
}

func (s *Shared) ends(j *job) {
	j.finished = true
	for _, f := range j.after {
		f(j.err)
	}
	if j.b == nil {
		return
	}
	for i := range j.b.Spreads {
		for _, t := range j.b.Spreads[i].Targets {
			s.popLocked(t.Session)
		}
	}
	for len(s.line) > 0 && s.line[0].finished {
		if j := s.line[0]; j.done != nil {
			s.told = append(s.told, func() { j.done(j.err) })
		}
		s.line = s.line[1:]
	}
}

// popLocked forgets what has arrived in an inbox, unless somebody reads it.
func (s *Shared) popLocked(id herald.SessionID) {
	f := s.flights[id]
	if f == nil || f.readers > 0 {
		return
	}
	for len(f.jobs) > 0 && f.jobs[0].finished {
		f.jobs = f.jobs[1:]
		f.first++
	}
	if len(f.jobs) == 0 {
		delete(s.flights, id)
	}
}
