package scylla

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"

	"github.com/gocql/gocql"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// The patrol removes what no session removes for itself: retained messages that have
// expired, the traces of those that were removed, and the messages of wide publishes
// that nobody has before himself any more. It goes slowly, a part of a table at a
// time, and remembers nothing. Any number of nodes may do so at once: all of it may be
// done twice.
const (
	// patrolTopics is how often a shard of the index is read.
	patrolTopics = time.Hour / indexShards
	// patrolPayloads is how often one of scanRanges ranges of payloads is.
	patrolPayloads = 24 * time.Hour / scanRanges
	// removalAge is how long the removal of a retained message stands in for it: no
	// older one can turn up after that.
	removalAge = time.Hour
	// payloadAge is from when on a wide publish is looked at: most sessions have it
	// behind them by then.
	payloadAge = 24 * time.Hour
)

// patrol is the body of the goroutine that removes garbage, until the store closes.
func (s *Store) patrol() {
	topics, payloads := time.NewTicker(patrolTopics), time.NewTicker(patrolPayloads)
	defer topics.Stop()
	defer payloads.Stop()
	shard, at := rand.IntN(indexShards), rand.IntN(scanRanges) // nodes look at different ones
	for {
		var err error
		select {
		case <-s.ctx.Done():
			return
		case <-topics.C:
			if s.circuit.reason() == nil {
				err = s.sweepTopics(int16(shard), removalAge)
				shard = (shard + 1) % indexShards
			}
		case <-payloads.C:
			if s.circuit.reason() == nil {
				from, to := tokens(at)
				_, err = s.sweepPayloads(from, to, payloadAge)
				at = (at + 1) % scanRanges
			}
		}
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("removing what is no longer needed; it is tried again later", zap.Error(err))
		}
	}
}

// sweepTopics removes from a shard of the index, and from under their topics, the
// removals that are older than age; what has expired that long ago becomes a removal.
func (s *Store) sweepTopics(shard int16, age time.Duration) error {
	ago := s.opts.Now().Add(-age).UnixMilli()
	before := herald.IDAt(ago)
	rows := s.rows(s.ctx, getIndex, 1000, shard, []byte{})
	defer rows.close()
	var ws []write
	var topic, state []byte
	for rows.next(&topic, &state) {
		id, ok, err := live(state)
		end := expires(state)
		key, ts, where := append([]byte(nil), topic...), idStamp(id), part{partIndex, int64(shard), 0}
		switch {
		case err != nil:
		case ok && end != 0 && end < ago:
			// Greater than the message, and no greater than a newer one.
			gone := appendState(id, stateExpired)
			ws = append(ws, write{stmt: putRetained, size: 64, args: []any{key, gone, int32(0), ts}},
				write{stmt: putIndex, part: where, size: 64, args: []any{shard, key, gone, int32(0), ts}})
		case !ok && id < before:
			// With the removal's own timestamp: a newer message stays.
			ws = append(ws, write{stmt: delRetained, size: 64, args: []any{ts, key}},
				write{stmt: delIndex, part: where, size: 64, args: []any{ts, shard, key}})
		}
		if len(ws) >= 1000 {
			if err := s.await(ws); err != nil {
				return err
			}
			ws = nil
		}
	}
	if rows.err != nil {
		return unavailable(rows.err)
	}
	return s.await(ws)
}

// The message of a wide publish is part 0 of its partition. The others name the
// sessions that have an entry pointing at it, so that it can be told when nobody needs
// it any more; a publish that is spread in several batches has one for each.
//
// They carry the clock and not the message's ID as timestamp: should they be written
// once more after they were removed, they are there again.
func (s *Store) payloadRows(m *herald.Message, targets []byte, ttl int32) []write {
	ts := s.clock.next()
	row := record.AppendMessage([]byte{record.V1}, m, nil)
	where := part{partPayload, int64(m.ID), 0}
	h := fnv.New64a()
	h.Write(targets)
	list := int64(h.Sum64()>>1 | 1)
	return []write{
		{stmt: putPayload, part: where, size: len(row) + 64, args: []any{int64(m.ID), int64(0), row, ttl, ts}},
		{stmt: putPayload, part: where, size: len(targets) + 64, args: []any{int64(m.ID), list, targets, ttl, ts}},
	}
}

// targetsRow is version, then each session (8, big endian).
func targetsRow(targets []persistence.Target) []byte {
	row := append(make([]byte, 0, 1+8*len(targets)), record.V1)
	for i := range targets {
		row = binary.BigEndian.AppendUint64(row, uint64(targets[i].Session))
	}
	return row
}

// late is how long a write may be on its way (microseconds).
const late = int64(10 * time.Minute / time.Microsecond)

// sweepPayloads removes from a range of tokens the messages of wide publishes that are
// older than age and that every session has settled, or has gone from. It returns how
// many.
func (s *Store) sweepPayloads(from, to int64, age time.Duration) (n int, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Minute)
	defer cancel()
	before := herald.IDAt(s.opts.Now().Add(-age).UnixMilli())
	marks := make(map[herald.SessionID]herald.ID)
	rows := s.rows(ctx, scanPayloads, 500, from, to)
	defer rows.close()
	var v int64
	for rows.next(&v) {
		id := herald.ID(v)
		if id >= before {
			continue
		}
		// What is written while, or shortly before, this looks is not removed.
		ts := s.clock.next() - late
		needed, err := s.needed(ctx, id, marks)
		if err != nil {
			return n, unavailable(err)
		}
		if needed {
			continue
		}
		if err := s.await([]write{{stmt: delPayload, size: 64, args: []any{ts, v}}}); err != nil {
			return n, err
		}
		n++
	}
	if rows.err != nil {
		return n, unavailable(rows.err)
	}
	return n, nil
}

// needed tells whether a session still has the entry of a wide publish before it.
// marks remembers how far sessions have come.
func (s *Store) needed(ctx context.Context, id herald.ID, marks map[herald.SessionID]herald.ID) (bool, error) {
	lists := s.rows(ctx, getTargets, 8, int64(id))
	defer lists.close()
	var row []byte
	for lists.next(&row) {
		d := record.Decoder{B: row}
		d.Version()
		if d.Err != nil || len(row)%8 != 1 {
			s.undecoded("payload", errors.Join(d.Err, herald.ErrCorrupt), zap.Uint64("id", uint64(id)))
			return true, nil
		}
		const atOnce = 64
		for at := 1; at < len(row); at += 8 * atOnce {
			some := row[at:min(at+8*atOnce, len(row))]
			found, err := s.anyBefore(ctx, id, some, marks)
			if found || err != nil {
				return found, err
			}
		}
		row = nil
	}
	return false, lists.err
}

var errNeeded = errors.New("needed")

// anyBefore asks some sessions.
func (s *Store) anyBefore(ctx context.Context, id herald.ID, sessions []byte, marks map[herald.SessionID]herald.ID) (bool, error) {
	if len(marks) > 100_000 {
		clear(marks)
	}
	n := len(sessions) / 8
	lows := make([]herald.ID, n)
	wait, ctx := errgroup.WithContext(ctx)
	wait.SetLimit(16)
	for i := range n {
		session := herald.SessionID(binary.BigEndian.Uint64(sessions[8*i:]))
		if marks[session] >= id {
			continue
		}
		wait.Go(func() (err error) {
			if lows[i], err = s.low(ctx, session); err != nil || lows[i] >= id {
				return err
			}
			// It lags, has never acknowledged anything, or is no more.
			there, err := s.hasEntry(ctx, session, id)
			if err == nil && there {
				err = errNeeded
			}
			return err
		})
	}
	err := wait.Wait()
	if errors.Is(err, errNeeded) {
		return true, nil
	}
	if err == nil {
		for i, low := range lows {
			if low != 0 {
				marks[herald.SessionID(binary.BigEndian.Uint64(sessions[8*i:]))] = low
			}
		}
	}
	return false, err
}

// low reads a session's mark; 0 if there is none.
func (s *Store) low(ctx context.Context, id herald.SessionID) (herald.ID, error) {
	var row []byte
	err := s.one(ctx, getSwept, []any{int64(id), slotMark, int64(0)}, &row)
	if errors.Is(err, gocql.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	d := record.Decoder{B: row}
	d.Version()
	low, _ := d.Mark()
	if d.Err != nil {
		return 0, nil // the entry itself decides
	}
	return low, nil
}

// hasEntry tells whether an entry stands in an inbox, in either kind of bucket.
func (s *Store) hasEntry(ctx context.Context, session herald.SessionID, id herald.ID) (bool, error) {
	for _, bucket := range []int64{coarse(id), -(fine(id) + 1)} {
		var got int64
		err := s.one(ctx, getEntry, []any{int64(session), bucket, int64(id)}, &got)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, gocql.ErrNotFound) {
			return false, err
		}
	}
	return false, nil
}

// tokens is one of scanRanges equal ranges.
func tokens(i int) (from, to int64) {
	const step = math.MaxUint64/scanRanges + 1
	from = math.MinInt64 + int64(uint64(i)*step)
	return from, from + int64(step-1)
}
