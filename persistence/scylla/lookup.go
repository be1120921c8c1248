package scylla

import (
	"context"
	"errors"
	"sync"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald"
)

const (
	// lookupLanes is how many statements for retained messages are under way at once.
	// More that are asked for wait, and go together in the next one.
	lookupLanes = 16
	// lookupTopics bounds the topics of a statement. ScyllaDB takes 100.
	lookupTopics = 64
	// lookupPage is how many rows of it come at a time: each may be as large as a
	// message may.
	lookupPage = 16
)

// lookups read retained messages by topic. What is asked for while all lanes are under
// way is read by one statement, which costs the database less than half: when many
// clients subscribe at once, most of what they ask for is not there.
//
// Those who ask for the same topic share an answer, but never one that was already
// being sought when they asked: it may be from before something that they know of,
// such as a publish that another node has acknowledged.
type lookups struct {
	// Fixed at construction.
	s    *Store
	read func(asked []*lookup) // answers them

	mu      sync.Mutex // guards below
	waiting []*lookup
	of      map[string]*lookup // those
	lanes   int                // under way
}

// lookup is one question.
type lookup struct {
	topic string
	done  chan struct{} // closed when m and err are there
	m     *herald.Message
	err   error
}

func (l *lookups) init(s *Store) {
	l.s, l.of = s, make(map[string]*lookup)
	l.read = l.fromDatabase
}

// ask asks for what is retained under a topic.
func (l *lookups) ask(topic string) *lookup {
	if m, ok := l.s.caches.topic(topic); ok {
		a := &lookup{topic: topic, done: make(chan struct{}), m: m}
		close(a.done)
		return a
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.of[topic]; a != nil {
		return a
	}
	a := &lookup{topic: topic, done: make(chan struct{})}
	l.waiting = append(l.waiting, a)
	l.of[topic] = a
	if l.lanes < lookupLanes {
		l.lanes++
		go l.run()
	}
	return a
}

// answer waits for it: nil if nothing is retained.
func (a *lookup) answer(ctx context.Context) (*herald.Message, error) {
	select {
	case <-a.done:
		return a.m, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run is a lane: it answers while somebody waits.
func (l *lookups) run() {
	for {
		l.mu.Lock()
		n := min(len(l.waiting), lookupTopics)
		if n == 0 {
			l.waiting = nil
			l.lanes--
			l.mu.Unlock()
			return
		}
		asked := l.waiting[:n:n]
		l.waiting = l.waiting[n:]
		for _, a := range asked {
			delete(l.of, a.topic)
		}
		l.mu.Unlock()
		l.read(asked)
		for _, a := range asked {
			close(a.done)
		}
	}
}

// fromDatabase answers with one statement, or, if it fails while the database answers
// others, with one for each: what cannot be read, because its replicas are away, say, is
// not the others' concern.
func (l *lookups) fromDatabase(asked []*lookup) {
	if len(asked) == 1 {
		l.alone(asked)
		return
	}
	err := l.together(asked)
	switch {
	case err == nil:
	case l.s.circuit.reason() == nil && l.s.ctx.Err() == nil:
		l.alone(asked)
	default:
		for _, a := range asked {
			a.m, a.err = nil, err
		}
	}
}

// together answers with one statement; after an error none is answered.
func (l *lookups) together(asked []*lookup) error {
	s := l.s
	topics, gens := make([][]byte, len(asked)), make([]uint64, len(asked))
	by := make(map[string]*lookup, len(asked))
	for i, a := range asked {
		topics[i], gens[i] = []byte(a.topic), s.caches.gen(a.topic).Load()
		by[a.topic] = a
	}
	rows := s.rows(s.ctx, getManyRetained, lookupPage, topics)
	var topic, row []byte
	for rows.next(&topic, &row) {
		if a := by[string(topic)]; a != nil {
			a.m = s.retainedRow(a.topic, row)
		}
		topic, row = nil, nil // the next ones are others
	}
	rows.close()
	if rows.err != nil {
		return rows.err
	}
	for i, a := range asked {
		s.caches.keep(a.topic, a.m, gens[i])
	}
	return nil
}

// alone answers with a statement for each.
func (l *lookups) alone(asked []*lookup) {
	s := l.s
	var wait sync.WaitGroup
	for _, a := range asked {
		wait.Go(func() {
			gen := s.caches.gen(a.topic).Load()
			var row []byte
			a.m = nil
			switch err := s.one(s.ctx, getRetained, []any{[]byte(a.topic)}, &row); {
			case err == nil:
				a.m = s.retainedRow(a.topic, row)
			case !errors.Is(err, gocql.ErrNotFound):
				a.err = err
				return
			}
			s.caches.keep(a.topic, a.m, gen)
		})
	}
	wait.Wait()
}
