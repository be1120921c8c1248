package scylla

import (
	"context"
	"fmt"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// A table is read by ranges of tokens, some at a time: each goes to the servers
// that have it.
const (
	scanRanges = 256
	scanAtOnce = 4
	scanPage   = 1000
)

// ranges has f called for each range of tokens.
func (s *Store) ranges(ctx context.Context, f func(ctx context.Context, from, to int64) error) error {
	wait, ctx := errgroup.WithContext(ctx)
	wait.SetLimit(scanAtOnce)
	for i := range scanRanges {
		from, to := tokens(i)
		wait.Go(func() error { return f(ctx, from, to) })
	}
	return wait.Wait()
}

// ScanSessions implements [persistence.Store].
func (s *Store) ScanSessions(ctx context.Context, f func(persistence.Session) error) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("scan sessions: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var mu sync.Mutex
	var stop error
	err := s.ranges(ctx, func(ctx context.Context, from, to int64) error {
		rows := s.rows(ctx, scanSessions, scanPage, from, to)
		defer rows.close()
		var b []byte
		for rows.next(&b) {
			d := record.Decoder{B: b}
			row := d.Session()
			if d.Err != nil {
				s.undecoded("session", d.Err, zap.Uint64("session", uint64(row.ID)))
				continue
			}
			mu.Lock()
			if stop == nil {
				stop = f(row)
			}
			ended := stop
			mu.Unlock()
			if ended != nil {
				return ended
			}
		}
		return rows.err
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return s.failed(ctx, "scan sessions", err)
	}
	return nil
}

// ScanSubscriptions implements [persistence.Store].
func (s *Store) ScanSubscriptions(ctx context.Context, f func(herald.SessionID, persistence.Subscription) error) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("scan subscriptions: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var mu sync.Mutex
	var stop error
	// give hands over what one range has brought so far: whole sessions.
	give := func(subs []persistence.SubscriptionOf) error {
		mu.Lock()
		defer mu.Unlock()
		for i := range subs {
			if stop == nil {
				stop = f(subs[i].Session, subs[i].Subscription)
			}
			if stop != nil {
				return stop
			}
		}
		return nil
	}
	err := s.ranges(ctx, func(ctx context.Context, from, to int64) error {
		rows := s.rows(ctx, scanSubscribed, scanPage, from, to)
		defer rows.close()
		var session int64
		var filter, row []byte
		var subs []persistence.SubscriptionOf
		for rows.next(&session, &filter, &row) {
			if n := len(subs); n >= 500 && subs[n-1].Session != herald.SessionID(session) {
				if err := give(subs); err != nil {
					return err
				}
				subs = subs[:0]
			}
			if sub, ok := s.subscription(herald.SessionID(session), filter, row); ok {
				subs = append(subs, persistence.SubscriptionOf{Session: herald.SessionID(session), Subscription: sub})
			}
		}
		if rows.err != nil {
			return rows.err
		}
		return give(subs)
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return s.failed(ctx, "scan subscriptions", err)
	}
	return nil
}
