package scylla

import (
	"context"
	"sync"
)

// asks has many that ask for the same thing at the same time wait for one answer,
// but never for one that was already being sought when they asked: it may be from
// before something that they know of, such as a publish that another node has
// acknowledged. So of those who ask while an answer is under way all wait for the
// next one.
type asks struct {
	mu sync.Mutex // guards below
	of map[string]*ask
}

// ask is one question on its way.
type ask struct {
	done chan struct{} // closed when value and err are there
	val  any
	err  error
	next *ask // of those who have come since; guarded by asks.mu
	f    func() (any, error)
}

// enter asks, or joins those whose question has not been sent.
func (a *asks) enter(key string, f func() (any, error)) *ask {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = make(map[string]*ask)
	}
	cur := a.of[key]
	if cur != nil && cur.next != nil {
		return cur.next
	}
	q := &ask{done: make(chan struct{}), f: f}
	if cur != nil {
		cur.next = q
		return q
	}
	a.of[key] = q
	go a.run(key, q)
	return q
}

// run answers one question after the other, while there is another.
func (a *asks) run(key string, q *ask) {
	for q != nil {
		q.val, q.err = q.f()
		a.mu.Lock()
		if q.next == nil {
			delete(a.of, key)
		} else {
			a.of[key] = q.next
		}
		next := q.next
		a.mu.Unlock()
		close(q.done)
		q = next
	}
}

// once asks f for what key stands for, together with others. f's context is the
// store's: one asker's end is not the others'.
func (s *Store) once(ctx context.Context, key string, f func(ctx context.Context) (any, error)) (any, error) {
	q := s.reads.enter(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.GiveUp)
		defer cancel()
		return f(ctx)
	})
	select {
	case <-q.done:
		return q.val, q.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
