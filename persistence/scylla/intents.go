package scylla

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocql/gocql"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// intents is what this node has written down and may not have finished.
//
// A queue in a table is read across the tombstones of everything that went through
// it. So the intents lie in buckets, each a partition that takes a few thousand
// and is then removed as a whole; the node's row says from which to which bucket
// there may be any, and is written ahead, before a bucket is used. A start reads
// those and never looks at them again: what a dying process had in flight and
// turns up later in one of them was never acknowledged, and is void.
type intents struct {
	mu     sync.Mutex // guards below
	bucket int64      // takes the next ones
	used   int        // of it
	opened int64      // when it was begun (mono)
	id     int64      // of the last intent
	high   int64      // the last bucket that the node's row allows
	low    int64      // what it says is the first
	gone   int64      // partitions below were removed
	open   map[int64]int
	saving chan struct{} // closed when the node's row has been written
}

const (
	bucketIntents = 2000
	bucketAge     = int64(10 * time.Second)
	bucketsAhead  = 16
	// maxIntent is where a batch's intent is divided: by messages, each with its
	// packet id.
	maxIntent = 256 << 10
)

// notes are the intents of one batch.
type notes struct {
	bucket int64
	ids    []int64
}

// begin makes writing down what it is about to do the first step of a job.
func (in *intents) begin(s *Store, j *job) {
	parts := divide(j.batch)
	in.mu.Lock()
	if in.used > 0 && (in.used+len(parts) > bucketIntents || mono()-in.opened > bucketAge) {
		in.bucket, in.used = in.bucket+1, 0
	}
	if in.used == 0 {
		in.opened = mono()
	}
	n := notes{bucket: in.bucket}
	in.used += len(parts)
	in.open[in.bucket]++
	first := step{must: true}
	for _, b := range parts {
		in.id++
		n.ids = append(n.ids, in.id)
		row := binary.BigEndian.AppendUint64([]byte{record.V1}, uint64(j.whole))
		row = record.AppendBatch(row, b)
		first.writes = append(first.writes, write{stmt: putIntent, part: part{partIntent, in.bucket, 0}, size: len(row) + 64,
			args: []any{int32(s.number.Load()), in.bucket, in.id, row, int32(0), j.whole}})
	}
	allowed := in.bucket <= in.high
	ahead := in.bucket > in.high-bucketsAhead/2
	in.mu.Unlock()
	steps := []step{first}
	if !allowed {
		steps = []step{{must: true, make: func() ([]write, error) { return nil, in.reserve(s, n.bucket) }}, first}
	} else if ahead {
		go func() { _ = in.reserve(s, n.bucket+bucketsAhead/2) }()
	}
	j.steps = append(steps, j.steps...)
	j.after = append(j.after, func(err error) { in.end(s, n, err, j.bound.Load()) })
}

// end removes a batch's intents when they are carried out, or when it is certain
// that they cannot be. Else they wait for the next start, or for whoever finishes
// this life. written: some may stand in the database.
func (in *intents) end(s *Store, n notes, err error, written bool) {
	if err != nil && !written {
		in.release(n.bucket)
		return
	}
	if err != nil && !lasting(err) {
		return
	}
	ws := make([]write, len(n.ids))
	for i, id := range n.ids {
		ws[i] = write{stmt: delIntent, part: part{partIntent, n.bucket, 1}, size: 64, args: []any{s.clock.next(), int32(s.number.Load()), n.bucket, id}}
	}
	s.background(ws, func(err error) {
		if err == nil {
			in.release(n.bucket)
		}
	})
}

// release tells that nothing of a batch is left in a bucket.
func (in *intents) release(bucket int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.open[bucket]--; in.open[bucket] <= 0 {
		delete(in.open, bucket)
	}
}

// reserve lets the node's row allow buckets up to upTo and some more.
func (in *intents) reserve(s *Store, upTo int64) error {
	for {
		in.mu.Lock()
		if upTo <= in.high {
			in.mu.Unlock()
			return nil
		}
		if busy := in.saving; busy != nil {
			in.mu.Unlock()
			select {
			case <-busy:
				continue
			case <-s.ctx.Done():
				return herald.ErrClosed
			}
		}
		in.saving = make(chan struct{})
		low, high := in.lowestLocked(), upTo+bucketsAhead
		in.mu.Unlock()
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timeout)
		err := s.saveBuckets(ctx, low, high)
		cancel()
		in.mu.Lock()
		if err == nil {
			in.high, in.low = high, low
		}
		gone := in.gone
		if err == nil {
			in.gone = low
		}
		close(in.saving)
		in.saving = nil
		in.mu.Unlock()
		if err != nil {
			return err
		}
		s.removeBuckets(gone, low)
	}
}

func (in *intents) lowestLocked() int64 {
	low := in.bucket
	for b := range in.open {
		low = min(low, b)
	}
	return low
}

func (s *Store) saveBuckets(ctx context.Context, low, high int64) error {
	return s.query(ctx, putBuckets, int32(s.number.Load()), low, high, int32(0), s.clock.next()).Exec()
}

// removeBuckets removes the partitions from one bucket to before another.
func (s *Store) removeBuckets(from, to int64) {
	var ws []write
	for b := from; b < to; b++ {
		ws = append(ws, write{stmt: delIntents, size: 64, args: []any{s.clock.next(), int32(s.number.Load()), b}})
	}
	if len(ws) > 0 {
		s.background(ws, nil)
	}
}

// recover finishes what the node's last run had begun, and takes its clock over.
// The clock of a node without a cluster is written about once a second.
func (s *Store) recover() error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	return s.takeOver(ctx, true, time.Second)
}

// takeOver begins where the last run with this number has ended: with a clock that
// is ahead of what was saved of its, and with buckets that it has never used. finish:
// what it had begun is carried out; else it is void.
func (s *Store) takeOver(ctx context.Context, finish bool, ahead time.Duration) error {
	in := &s.intents
	in.mu.Lock()
	in.open, in.used = make(map[int64]int), 0
	in.mu.Unlock()
	clock, low, high, err := s.nodeRow(ctx, uint16(s.number.Load()))
	if err != nil {
		return err
	}
	if clock != 0 {
		s.clock.saw(clock + ahead.Microseconds())
		// What the last run has put into inboxes since its clock was saved lies below
		// the machine's.
		raise(&s.maxID, uint64(herald.IDAt(max(clock, s.clock.now())/1000+1)))
	}
	bucket, gone := int64(0), int64(0)
	if high >= low {
		n := 0
		for b := low; b <= high && finish; b++ {
			k, err := s.finish(ctx, uint16(s.number.Load()), b, nil)
			if err != nil {
				return fmt.Errorf("finish what was begun: %w", err)
			}
			n += k
		}
		if n > 0 {
			s.log.Info("finished what the last run had begun", zap.Int("intents", n))
		}
		bucket, gone = high+1, low
	}
	sctx, cancel := context.WithTimeout(ctx, s.opts.GiveUp)
	defer cancel()
	err = s.saveBuckets(sctx, bucket, bucket+bucketsAhead)
	if err == nil && ahead > 0 { // a run that ends at once is followed by a later one
		err = s.saveClock(sctx)
	}
	if err != nil {
		return fmt.Errorf("write the node's row: %w", unavailable(err))
	}
	s.removeBuckets(gone, bucket)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.bucket, in.low, in.high, in.gone = bucket, bucket, bucket+bucketsAhead, bucket
	return nil
}

// nodeRow reads a node's row: its clock, and the buckets that may hold intents; none
// if high is below low.
func (s *Store) nodeRow(ctx context.Context, node uint16) (clock, low, high int64, err error) {
	var c, l, h *int64
	err = s.one(ctx, getNode, []any{int32(node)}, &c, &l, &h)
	if err != nil && !errors.Is(err, gocql.ErrNotFound) {
		return 0, 0, 0, fmt.Errorf("read the node's row: %w", unavailable(err))
	}
	low, high = 0, -1
	if c != nil {
		clock = *c
	}
	if l != nil && h != nil {
		low, high = *l, *h
	}
	return clock, low, high, nil
}

// finish carries out the intents of one bucket: those that only has, if it is not
// nil.
func (s *Store) finish(ctx context.Context, node uint16, bucket int64, only map[int64]bool) (n int, err error) {
	rows := s.rows(ctx, getIntents, 100, int32(node), bucket)
	defer rows.close()
	var id int64
	var row []byte
	for rows.next(&id, &row) {
		if only != nil && !only[id] {
			row = nil
			continue
		}
		d := record.Decoder{B: row}
		d.Version()
		ts := int64(d.Uint64())
		b := d.Batch()
		if d.Err != nil {
			s.undecoded("intent", d.Err, zap.Int64("bucket", bucket), zap.Int64("id", id))
			continue
		}
		if err := s.carryOut(b, ts); err != nil {
			return n, err
		}
		n++
		row = nil
	}
	if rows.err != nil {
		return n, unavailable(rows.err)
	}
	return n, nil
}

// carryOut writes a batch with the timestamp that it had.
func (s *Store) carryOut(b *persistence.Batch, ts int64) error {
	p := &plan{s: s, ts: ts, now: s.opts.Now().UnixMilli()}
	if err := p.rows(b); err != nil {
		return err
	}
	done := make(chan error, 1)
	j := &job{s: s, batch: b, done: func(err error) { done <- err }, since: mono(), after: p.after,
		steps: append([]step{{writes: p.first}, {writes: p.writes}}, s.ends(b.Delete, p.deleteAt)...)}
	if err := s.exec.admit(j); err != nil {
		return err
	}
	s.line.enter(j)
	j.next()
	return <-done
}

// divide cuts a batch into some whose encoding is not too large: a message goes
// with its packet id, and all else with the first.
func divide(b *persistence.Batch) []*persistence.Batch {
	size := 0
	for i := range b.Spreads {
		for _, m := range b.Spreads[i].Messages {
			size += m.Size()
		}
		size += 16 * len(b.Spreads[i].Targets)
	}
	for _, m := range b.Retain {
		size += m.Size()
	}
	if size <= maxIntent {
		return []*persistence.Batch{b}
	}
	of := make(map[herald.ID]int) // message → part
	var parts []*persistence.Batch
	room := 0
	place := func(m *herald.Message) *persistence.Batch {
		i, ok := of[m.ID]
		if !ok {
			if room < m.Size() || len(parts) == 0 {
				parts = append(parts, new(persistence.Batch))
				room = maxIntent
			}
			room -= m.Size()
			i = len(parts) - 1
			of[m.ID] = i
		}
		return parts[i]
	}
	for i := range b.Spreads {
		sp := &b.Spreads[i]
		at := make(map[*persistence.Batch]int)
		for _, m := range sp.Messages {
			p := place(m)
			k, ok := at[p]
			if !ok {
				k = len(p.Spreads)
				at[p] = k
				p.Spreads = append(p.Spreads, persistence.Spread{Targets: sp.Targets})
			}
			p.Spreads[k].Messages = append(p.Spreads[k].Messages, m)
		}
	}
	for _, m := range b.Retain {
		p := place(m)
		p.Retain = append(p.Retain, m)
	}
	rest := *b
	rest.Spreads, rest.Retain, rest.Held = parts[0].Spreads, parts[0].Retain, nil
	parts[0] = &rest
	for _, h := range b.Held {
		p := parts[of[h.ID]] // 0 if it is with no message
		p.Held = append(p.Held, h)
	}
	return parts
}
