package scylla

import (
	"context"
	"fmt"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// clockSkew is how far the clocks of two nodes may be apart (milliseconds).
const clockSkew = 5 * 60 * 1000

// birth is the first coarse bucket in which a session can have entries: nothing
// is older than it, by whatever node's clock.
func birth(id herald.SessionID) int64 {
	const skew = clockSkew << 22
	if id < skew {
		return 0
	}
	return coarse(herald.ID(id - skew))
}

// newestCoarse is the last coarse bucket in which there can be entries.
func (s *Store) newestCoarse() int64 {
	return max(coarse(herald.IDAt(s.opts.Now().UnixMilli()+clockSkew)), coarse(s.MaxID()))
}

// Inbox implements [persistence.Store]. It begins in the bucket of after, so what is
// settled costs nothing: neither rows nor tombstones of it are met.
func (s *Store) Inbox(ctx context.Context, id herald.SessionID, after, upTo herald.ID, limit, maxBytes int, dst []persistence.Entry) ([]persistence.Entry, error) {
	if err := s.enter(ctx); err != nil {
		return dst, fmt.Errorf("read inbox: %w", err)
	}
	defer s.leave()
	if limit <= 0 || after >= upTo {
		return dst, nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	v := s.flights.look(id)
	defer v.end()
	start := len(dst)
	r := &inboxRead{s: s, view: v, ctx: ctx, session: id, after: clampID(after), upTo: clampID(upTo), limit: limit, maxBytes: maxBytes}
	for {
		r.start = len(dst)
		var err error
		if dst, err = r.read(dst); err != nil {
			return dst[:start], s.failed(ctx, "read inbox", err)
		}
		missing := r.limit - (len(dst) - r.start)
		if !r.full() || r.missing == 0 || missing <= 0 {
			return dst, nil
		}
		// The payloads of some have expired. A page that is not full is the last.
		left := maxBytes
		for _, e := range dst[start:] {
			left -= e.Message.Size()
		}
		if left <= 0 && len(dst) > start {
			return dst, nil
		}
		r = &inboxRead{s: s, view: v, ctx: ctx, session: id, after: r.last, upTo: r.upTo, limit: missing, maxBytes: left}
	}
}

// inboxRead is one page of an inbox.
type inboxRead struct {
	s           *Store
	view        *view
	ctx         context.Context
	session     herald.SessionID
	after, upTo int64
	limit       int
	maxBytes    int

	start    int // where the page begins in dst
	settled  map[int64]bool
	n        int
	last     int64 // ID of the newest that was looked at
	missing  int   // entries without a message
	weight   int
	pointers []int // entries whose message is still missing
	ids      []int64
}

func (r *inboxRead) read(dst []persistence.Entry) ([]persistence.Entry, error) {
	first := coarse(herald.ID(r.after))
	first = max(first, birth(r.session))
	last := min(r.s.newestCoarse(), coarse(herald.ID(r.upTo)))
	// Looking ahead at a few coarse buckets at a time: for most sessions that is
	// all there are.
	var wait errgroup.Group
	wait.Go(func() (err error) { r.settled, err = r.readSettled(); return err })
	const ahead = 8
	for c := first; c <= last; c += ahead {
		n := int(min(ahead, last-c+1))
		shelves := make([]*shelf, n)
		for i := range n {
			wait.Go(func() (err error) { shelves[i], err = r.open(c + int64(i)); return err })
		}
		err := wait.Wait()
		wait = errgroup.Group{}
		for _, sh := range shelves {
			if err == nil && !r.full() {
				dst, err = r.take(sh, dst)
			}
			sh.close()
		}
		if err != nil {
			return dst, err
		}
		if r.full() {
			break
		}
	}
	return r.resolve(dst)
}

func (r *inboxRead) full() bool { return r.n >= r.limit || r.n > 0 && r.weight > r.maxBytes }

// readSettled reads which entries behind after were released.
func (r *inboxRead) readSettled() (map[int64]bool, error) {
	rows := r.s.rows(r.ctx, getSettled, 2000, int64(r.session), slotSettled, r.after)
	var id int64
	var all map[int64]bool
	for rows.next(&id) {
		if all == nil {
			all = make(map[int64]bool)
		}
		all[id] = true
	}
	return all, rows.err
}

// pageSize is how many rows to ask for at once, so that a page of large messages
// stays small.
func (r *inboxRead) pageSize() int {
	mean := max(int(r.s.pageRow.Load()), 64)
	return max(16, min(r.limit+1, 2000, 512<<10/mean))
}

// shelf reads a coarse bucket and its fine ones side by side.
type shelf struct {
	r     *inboxRead
	main  cursor
	fines []int64 // not opened
	side  cursor
}

// cursor is at one row of a partition.
type cursor struct {
	rows *rows
	id   int64
	row  []byte
	ok   bool
}

func (c *cursor) next() error {
	c.row = nil
	c.ok = c.rows.next(&c.id, &c.row)
	return c.rows.err
}

func (r *inboxRead) cursor(bucket int64) (cursor, error) {
	c := cursor{rows: r.s.rows(r.ctx, getInbox, r.pageSize(), int64(r.session), bucket, r.after, r.upTo)}
	return c, c.next()
}

func (r *inboxRead) open(c int64) (*shelf, error) {
	sh := &shelf{r: r}
	var wait errgroup.Group
	wait.Go(func() (err error) { sh.main, err = r.cursor(c); return err })
	wait.Go(func() error {
		fines, err := r.s.directory(r.ctx, r.session, c)
		for _, f := range fines {
			if f >= fine(herald.ID(r.after)) && f <= fine(herald.ID(r.upTo)) {
				sh.fines = append(sh.fines, f)
			}
		}
		return err
	})
	err := wait.Wait()
	if err == nil {
		err = sh.advance()
	}
	return sh, err
}

// directory reads which fine buckets belong to a coarse one, ascending.
func (s *Store) directory(ctx context.Context, id herald.SessionID, c int64) ([]int64, error) {
	rows := s.rows(ctx, getDirectory, 2000, int64(id), c, int64(0))
	var row int64
	var fines []int64
	for rows.next(&row) {
		fines = append(fines, -row-1)
	}
	for i, k := 0, len(fines)-1; i < k; i, k = i+1, k-1 {
		fines[i], fines[k] = fines[k], fines[i]
	}
	return fines, rows.err
}

// advance moves the side cursor to the next row of the fine buckets.
func (sh *shelf) advance() error {
	if sh.side.ok {
		if err := sh.side.next(); err != nil {
			return err
		}
	}
	for !sh.side.ok && len(sh.fines) > 0 {
		f := sh.fines[0]
		sh.fines = sh.fines[1:]
		var err error
		if sh.side, err = sh.r.cursor(-(f + 1)); err != nil {
			return err
		}
	}
	return nil
}

func (sh *shelf) close() {
	if sh == nil {
		return
	}
	for _, c := range []*cursor{&sh.main, &sh.side} {
		if c.rows != nil {
			c.rows.close()
		}
	}
}

// take appends a shelf's entries by ID; the same one may stand in both.
func (r *inboxRead) take(sh *shelf, dst []persistence.Entry) ([]persistence.Entry, error) {
	last := int64(-1)
	for !r.full() && (sh.main.ok || sh.side.ok) {
		side := sh.side.ok && (!sh.main.ok || sh.side.id < sh.main.id)
		c := &sh.main
		if side {
			c = &sh.side
		}
		if c.id != last && !r.settled[c.id] && !r.view.hides(c.id) {
			dst = r.add(c, dst)
		}
		last, r.last = c.id, c.id
		var err error
		if side {
			err = sh.advance()
		} else {
			err = c.next()
		}
		if err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func (r *inboxRead) add(c *cursor, dst []persistence.Entry) []persistence.Entry {
	e, err := record.DecodeEntry(c.row)
	if err != nil {
		r.s.undecoded("inbox", err, zap.Uint64("session", uint64(r.session)), zap.Int64("id", c.id))
		return dst
	}
	mean := r.s.pageRow.Load()
	r.s.pageRow.Store(mean + (int64(len(c.row))-mean)/16)
	if e.Message == nil {
		r.pointers = append(r.pointers, len(dst))
		r.ids = append(r.ids, c.id)
		r.weight += len(c.row)
		if m := r.s.caches.payload(herald.ID(c.id)); m != nil {
			e.Message = m
			r.weight += m.Size()
		}
	} else {
		r.weight += e.Message.Size()
	}
	r.n++
	return append(dst, e)
}

// resolve fetches the messages of wide publishes.
func (r *inboxRead) resolve(dst []persistence.Entry) ([]persistence.Entry, error) {
	if len(r.pointers) == 0 {
		return dst, nil
	}
	wait, ctx := errgroup.WithContext(r.ctx)
	wait.SetLimit(16)
	for i, at := range r.pointers {
		if dst[at].Message != nil {
			continue
		}
		wait.Go(func() (err error) {
			dst[at].Message, err = r.s.payload(ctx, herald.ID(r.ids[i]))
			return err
		})
	}
	if err := wait.Wait(); err != nil {
		return dst, err
	}
	kept, weight := dst[:r.start], 0
	for _, e := range dst[r.start:] {
		if e.Message == nil {
			r.missing++ // expired
			continue
		}
		if len(kept) > r.start && weight > r.maxBytes {
			break
		}
		weight += e.Message.Size()
		kept = append(kept, e)
	}
	return kept, nil
}

// bucketsOf lists the partitions of an inbox from one coarse bucket to before
// another.
func (s *Store) bucketsOf(ctx context.Context, id herald.SessionID, from, to int64) ([]int64, error) {
	from = max(from, 0)
	n := max(int(to-from), 0)
	fines := make([][]int64, n)
	wait, ctx := errgroup.WithContext(ctx)
	wait.SetLimit(16)
	for i := range n {
		wait.Go(func() (err error) { fines[i], err = s.directory(ctx, id, from+int64(i)); return err })
	}
	if err := wait.Wait(); err != nil {
		return nil, unavailable(err)
	}
	all := make([]int64, 0, n)
	for i := range n {
		for _, f := range fines[i] {
			all = append(all, -(f + 1))
		}
		all = append(all, from+int64(i)) // last: it has the directory
	}
	return all, nil
}
