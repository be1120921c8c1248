package scylla

import (
	"context"
	"errors"
	"time"

	"github.com/gocql/gocql"
)

// retry has f called again while it makes sense: it is a read, so it may be
// repeated. What has begun goes on through a short outage, for as long as
// Options.GiveUp.
func (s *Store) retry(ctx context.Context, f func() error) error {
	var began int64 // when it had its first turn
	for tries := 0; ; tries++ {
		done, err := s.turn(ctx, s.turns.reads)
		if err != nil {
			return err
		}
		if tries == 0 {
			began = mono()
		}
		err = f()
		done()
		if err == nil {
			s.circuit.succeeded()
			return nil
		}
		if errors.Is(err, gocql.ErrNotFound) || ctx.Err() != nil || lasting(err) {
			return err
		}
		if s.circuit.reason() == nil {
			s.circuit.failed(err)
		}
		left := s.opts.GiveUp - time.Duration(mono()-began)
		if left <= 0 || !s.exec.pauseFor(tries, left, ctx.Done()) {
			return err
		}
	}
}

// one reads one row into dest; gocql.ErrNotFound if there is none.
func (s *Store) one(ctx context.Context, st *statement, args []any, dest ...any) error {
	return s.retry(ctx, func() error { return s.read(ctx, st, args...).Scan(dest...) })
}

// rows are the answer to a query, page by page; a page that fails is asked for
// again.
type rows struct {
	s     *Store
	ctx   context.Context
	st    *statement
	args  []any
	size  int
	iter  *gocql.Iter
	state []byte
	begun bool
	err   error
}

func (s *Store) rows(ctx context.Context, st *statement, size int, args ...any) *rows {
	return &rows{s: s, ctx: ctx, st: st, args: args, size: size}
}

// next scans the next row. It returns false at the end, or when err is set.
// Slices in dest must not be used twice.
func (r *rows) next(dest ...any) bool {
	for r.err == nil {
		if r.iter != nil {
			if r.iter.Scan(dest...) {
				return true
			}
			if r.err = r.iter.Close(); r.err != nil {
				break
			}
			r.iter = nil
		}
		if r.begun && len(r.state) == 0 {
			return false
		}
		r.page()
	}
	return false
}

// page asks for the next page.
func (r *rows) page() {
	r.err = r.s.retry(r.ctx, func() error {
		iter := r.s.read(r.ctx, r.st, r.args...).PageSize(r.size).PageState(r.state).Iter()
		if iter.NumRows() == 0 {
			state := iter.PageState()
			if err := iter.Close(); err != nil {
				return err
			}
			r.state, r.begun = state, true
			return nil
		}
		r.iter, r.state, r.begun = iter, iter.PageState(), true
		return nil
	})
}

// close ends reading early.
func (r *rows) close() {
	if r.iter != nil {
		_ = r.iter.Close()
		r.iter = nil
	}
}
