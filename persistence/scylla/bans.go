package scylla

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/gocql/gocql"
	"github.com/scylladb/gocqlx/v2/qb"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// All bans stand in one partition, which only lightweight transactions write. version, a
// value of the whole partition, counts them: each change is conditional on it and
// leaves, in the same transaction, a row under its new value that says what was
// changed. So who knows some version reads one value to learn that nothing has changed,
// and else only what has.
const bans int8 = 0

// The first byte of a key.
const (
	banRow    byte = 1 // kind, who → ban
	banChange byte = 2 // version → ban, or its removal
)

const (
	// banChangeKept is how long it is known what was changed.
	banChangeKept = time.Hour
	// maxBanChanges are read one by one; after more the whole list is.
	maxBanChanges = 4096
)

var (
	getBanVersion = prepare(qb.Select("ban").Distinct("part", "version").Where(qb.Eq("part")))
	getBans       = prepare(qb.Select("ban").Columns("key", "row").Where(qb.Eq("part"), qb.GtNamed("key", "after"), qb.LtOrEqNamed("key", "upto")))
	countBan      = prepare(qb.Update("ban").Set("version").Where(qb.Eq("part")).If(qb.EqNamed("version", "old")))
	putBan        = prepare(qb.Update("ban").TTLNamed("ttl").Set("row").Where(qb.Eq("part"), qb.Eq("key")))
	delBan        = prepare(qb.Delete("ban").Where(qb.Eq("part"), qb.Eq("key")))
)

var _ persistence.Banner = (*Store)(nil)

// errBans is a programmer's mistake: a batch cannot count them.
var errBans = fmt.Errorf("%w: bans are changed by ChangeBan", herald.ErrUnavailable)

func banKey(k persistence.BanKey) []byte { return append([]byte{banRow, byte(k.Kind)}, k.Who...) }

func banChangeKey(version uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{banChange}, version)
}

// ChangeBan implements [persistence.Banner].
func (s *Store) ChangeBan(ctx context.Context, c persistence.BanChange) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, fmt.Errorf("change bans: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	ttl, live := timeToLive(c.Until, s.opts.Now().UnixMilli())
	c.Gone = c.Gone || !live
	begun := mono()
	var failed error
	for tries := 0; ; tries++ {
		version, err := s.banVersion(ctx, gocql.Consistency(gocql.LocalSerial))
		if err == nil {
			var ok bool
			// After an attempt without an answer the change may be there already. Then
			// it is made once more, which changes nothing.
			if ok, err = s.changeBan(ctx, &c, ttl, version); ok {
				return deref(version) + 1, nil
			}
		}
		if err != nil {
			failed = err
		}
		switch {
		case ctx.Err() != nil || err != nil && lasting(err):
			return 0, s.failed(ctx, "change bans", errors.Join(herald.ErrUnavailable, err))
		case failed != nil && mono()-begun > int64(s.opts.GiveUp):
			return 0, s.failed(ctx, "change bans", errors.Join(herald.ErrUnavailable, failed))
		case err == nil:
			continue // another was first
		case !s.exec.pauseFor(tries, s.opts.GiveUp, ctx.Done()):
			return 0, s.failed(ctx, "change bans", herald.ErrClosed)
		}
	}
}

// banVersion is nil if nothing was ever banned.
func (s *Store) banVersion(ctx context.Context, level gocql.Consistency) (*int64, error) {
	q := s.read(ctx, getBanVersion, bans)
	if level != 0 {
		q = q.Consistency(level)
	}
	var part int8
	var version *int64
	err := q.Scan(&part, &version)
	if errors.Is(err, gocql.ErrNotFound) {
		return nil, nil
	}
	return version, err
}

func deref(v *int64) uint64 {
	if v == nil {
		return 0
	}
	return uint64(*v)
}

// changeBan makes a change if the list still has the version old.
func (s *Store) changeBan(ctx context.Context, c *persistence.BanChange, ttl int32, old *int64) (bool, error) {
	next := deref(old) + 1
	row := record.AppendBan(nil, c)
	b := s.cql.Session.NewBatch(gocql.UnloggedBatch).WithContext(ctx).RetryPolicy(nil)
	b.Query(countBan.cql, int64(next), bans, old)
	if c.Gone {
		b.Query(delBan.cql, bans, banKey(c.BanKey))
	} else {
		b.Query(putBan.cql, ttl, row, bans, banKey(c.BanKey))
	}
	b.Query(putBan.cql, int32(banChangeKept/time.Second), row, bans, banChangeKey(next))
	ok, iter, err := s.cql.Session.MapExecuteBatchCAS(b, map[string]any{})
	if iter != nil {
		err = errors.Join(err, iter.Close())
	}
	return ok && err == nil, err
}

// BanNews implements [persistence.Banner].
func (s *Store) BanNews(ctx context.Context, since uint64) (persistence.BanNews, error) {
	if err := s.enter(ctx); err != nil {
		return persistence.BanNews{}, fmt.Errorf("read bans: %w", err)
	}
	defer s.leave()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	n, err := s.banNews(ctx, since)
	if err != nil {
		return persistence.BanNews{}, s.failed(ctx, "read bans", err)
	}
	return n, nil
}

func (s *Store) banNews(ctx context.Context, since uint64) (persistence.BanNews, error) {
	var version *int64
	err := s.retry(ctx, func() (err error) {
		version, err = s.banVersion(ctx, 0)
		return err
	})
	if err != nil {
		return persistence.BanNews{}, err
	}
	n := persistence.BanNews{Version: deref(version)}
	switch {
	case n.Version == since && since > 0:
		return n, nil
	case since > 0 && n.Version > since && n.Version-since <= maxBanChanges:
		rows, err := s.readBans(ctx, &n, banChangeKey(since), banChangeKey(n.Version))
		if err != nil || uint64(rows) == n.Version-since {
			return n, err
		}
		// What was changed is not known any more.
		n = persistence.BanNews{Version: n.Version}
	}
	n.Whole = true
	if n.Version > 0 {
		_, err = s.readBans(ctx, &n, []byte{banRow}, []byte{banRow + 1})
	}
	return n, err
}

// readBans reads rows behind one key, up to another, and tells how many there were.
func (s *Store) readBans(ctx context.Context, n *persistence.BanNews, after, upTo []byte) (int, error) {
	rows := s.rows(ctx, getBans, 500, bans, after, upTo)
	read := 0
	for {
		var key, row []byte
		if !rows.next(&key, &row) {
			return read, rows.err
		}
		read++
		d := record.Decoder{B: row}
		if c := d.Ban(); d.Err == nil {
			n.Changes = append(n.Changes, c)
			continue
		}
		n.Unreadable++
		s.undecoded("ban", d.Err, zap.Binary("key", key))
	}
}
