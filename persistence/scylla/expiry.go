package scylla

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sort"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Sessions that expire are found by time: in buckets of 2^20 ms (17.5 minutes),
// each in a few shards, with a list of the buckets that there are. Nothing is
// removed from a bucket when a session comes back or expires later; who reads it
// asks the session's row and removes what is no longer true.
const (
	expiryShift  = 20
	expiryShards = 4
)

func expiryBucket(expires int64) int64 { return expires >> expiryShift }

func expiryShard(key []byte) int16 {
	h := fnv.New32a()
	h.Write(key)
	return int16(h.Sum32() % expiryShards)
}

func (p *plan) expiry(key []byte, expires int64) {
	s := p.s
	bucket, shard := expiryBucket(expires), expiryShard(key)
	ts := p.ts - 1 // of the row that it belongs to
	p.add(putExpiry, part{partExpiry, bucket, int64(shard)}, len(key), bucket, shard, expires, key, int32(0), ts)
	if _, known := s.caches.expiries.GetIfPresent(bucket); !known {
		p.add(putExpiryBucket, part{}, 0, int16(0), bucket, int32(0), ts)
		p.after = append(p.after, func(err error) {
			if err == nil {
				s.caches.expiries.Set(bucket, struct{}{})
			}
		})
	}
}

// due is a row of a bucket.
type due struct {
	bucket  int64
	shard   int16
	expires int64
	key     []byte
}

// ExpiredSessions implements [persistence.Store].
func (s *Store) ExpiredSessions(ctx context.Context, now int64, limit int) ([]persistence.Session, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("read expired sessions: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var rows []persistence.Session
	buckets := s.rows(ctx, getExpiryBuckets, 500, int16(0), expiryBucket(now))
	defer buckets.close()
	var bucket int64
	for more := false; len(rows) < limit && !more && buckets.next(&bucket); {
		var err error
		if rows, more, err = s.expiredIn(ctx, bucket, now, limit, rows); err != nil {
			return nil, s.failed(ctx, "read expired sessions", err)
		}
	}
	if buckets.err != nil {
		return nil, s.failed(ctx, "read expired sessions", buckets.err)
	}
	return rows, nil
}

// expiredIn appends those of one bucket, earliest first. more tells whether it has
// others, which come before any other bucket's.
func (s *Store) expiredIn(ctx context.Context, bucket, now int64, limit int, rows []persistence.Session) (_ []persistence.Session, more bool, err error) {
	var found [expiryShards][]due
	wait, wctx := errgroup.WithContext(ctx)
	// A page of each shard: what is no longer true in it makes room for more.
	page := max(2*(limit-len(rows)), 64)
	page = min(page, 2000)
	full := false
	for i := range found {
		wait.Go(func() error {
			rows := s.rows(wctx, getExpiry, page, bucket, int16(i), now)
			defer rows.close()
			d := due{bucket: bucket, shard: int16(i)}
			for len(found[i]) < page && rows.next(&d.expires, &d.key) {
				found[i] = append(found[i], d)
				d.key = nil
			}
			return rows.err
		})
	}
	if err := wait.Wait(); err != nil {
		return rows, false, err
	}
	var all []due
	horizon := now // behind it another page may have earlier ones
	for i := range found {
		if len(found[i]) == page {
			full = true
			horizon = min(horizon, found[i][page-1].expires)
		}
		all = append(all, found[i]...)
	}
	sort.Slice(all, func(i, k int) bool {
		if all[i].expires != all[k].expires {
			return all[i].expires < all[k].expires
		}
		return bytes.Compare(all[i].key, all[k].key) < 0
	})
	sessions, err := s.ask(ctx, all)
	if err != nil {
		return rows, false, err
	}
	var stale []write
	for i, d := range all {
		switch row := sessions[i]; {
		case row == nil || row.Expires != d.expires:
			ts := d.expires*1000 + 1 // before any later session with this very moment
			if now := s.clock.next(); now > ts {
				ts = now
			}
			stale = append(stale, write{stmt: delExpiry, part: part{partExpiry, bucket, int64(d.shard)}, size: 64,
				args: []any{ts, d.bucket, d.shard, d.expires, d.key}})
		case len(rows) < limit && (!full || d.expires <= horizon):
			rows = append(rows, *row)
		}
	}
	removed := make(chan error, 1)
	if len(stale) > 0 {
		s.background(stale, func(err error) { removed <- err })
	} else {
		removed <- nil
	}
	if full && len(rows) < limit {
		select {
		case err := <-removed:
			if err != nil {
				return rows, false, err
			}
		case <-ctx.Done():
			return rows, false, ctx.Err()
		}
		if len(stale) > 0 {
			return s.expiredIn(ctx, bucket, now, limit, rows[:len(rows):len(rows)])
		}
	}
	if len(all) == len(stale) && !full && bucket < expiryBucket(now)-100 {
		// All of it is true no more, and nobody adds to what is long past.
		s.caches.expiries.Invalidate(bucket)
		ws := []write{{stmt: delExpiryBucket, size: 64, args: []any{s.clock.next(), int16(0), bucket}}}
		for i := range int16(expiryShards) {
			ws = append(ws, write{stmt: delExpiries, size: 64, args: []any{s.clock.next(), bucket, i}})
		}
		s.background(ws, nil)
	}
	return rows, full, nil
}

// ask reads the sessions' rows; nil stands for one that is not there.
func (s *Store) ask(ctx context.Context, all []due) ([]*persistence.Session, error) {
	rows := make([]*persistence.Session, len(all))
	wait, ctx := errgroup.WithContext(ctx)
	wait.SetLimit(32)
	for i := range all {
		wait.Go(func() error {
			row, err := s.session(ctx, all[i].key)
			if errors.Is(err, gocql.ErrNotFound) {
				return nil
			}
			rows[i] = &row
			return err
		})
	}
	return rows, wait.Wait()
}

// willShards divide the wills, which are read all together when a node starts.
const willShards = 256

func willShard(id herald.SessionID) int16 {
	return int16((uint64(id) * 0x9e3779b97f4a7c15) >> 56 % willShards)
}
