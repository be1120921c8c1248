// Package pebble is the embedded store: a folder with a journal of its own and a
// Pebble database.
//
// A batch is encoded into the current commit group, the group becomes one
// record of the journal, and one fsync later all of the group counts. Entries
// of inboxes then stay in memory, in tails, until they are settled: a session
// that keeps up costs the journal's bytes and nothing else. Only what is still
// unsettled when its journal segment grows old is written to Pebble, in bulk;
// then Pebble is flushed and the segment is used again. Everything else
// (sessions, subscriptions, windows, retained messages, wills) goes to Pebble's
// memory as soon as it is in the journal.
//
// The obvious design, every entry a row of Pebble and Pebble's own log, was
// measured first: 2.5 µs of CPU an entry, most of it for rows that are deleted a
// second later.
//
// FORMAT.md draws what is on disk.
//
// Goroutines: the writer (commit.go) owns the journal's current segment and
// applies groups; the preparer (journal.go) makes segments; the keeper
// (keeper.go) spills, sweeps and watches the disk. Locks: Store.applying before
// tails.mu; committer.mu and journal.mu are leaves.
package pebble

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	crdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Options tune a store. The zero value is good.
type Options struct {
	// Logger gets what an operator should know; nil is nobody.
	Logger *zap.Logger
	// InlineUpTo is the number of targets up to which a message is kept in each
	// inbox; for more it is kept once. Default 16.
	InlineUpTo int
	// SegmentBytes is the size up to which journal segments grow. Two that are
	// full are kept, one is written and one is ready, so a busy journal takes
	// four to six times that, and the newest entries of inboxes as much memory.
	// Default 32 MiB, at least 64 KiB.
	SegmentBytes int64
	// CacheBytes is for blocks of Pebble. Default 32 MiB.
	CacheBytes int64
	// MemTableBytes is the size of a Pebble memtable; there are up to four.
	// Default 16 MiB.
	MemTableBytes int
	// MaxPendingBytes bounds what is committed and not yet written; Commit
	// blocks beyond. Default 16 MiB.
	MaxPendingBytes int
	// LazyDelay is how long lazy batches wait for company. Default 100 ms.
	LazyDelay time.Duration
	// SweepInterval is how often settled and expired data is removed. Default
	// 10 s.
	SweepInterval time.Duration
	// ReserveBytes of disk space must be left, else nothing is committed until
	// there is more again. Default 128 MiB; negative: do not look.
	ReserveBytes int64
	// FS holds the files. nil is the operating system's.
	FS vfs.FS
	// Now is the wall clock. nil is time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	set := func(v *int64, def int64) {
		if *v == 0 {
			*v = def
		}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.InlineUpTo == 0 {
		o.InlineUpTo = 16
	}
	set(&o.SegmentBytes, 32<<20)
	o.SegmentBytes = align(max(o.SegmentBytes, 64<<10), page)
	set(&o.CacheBytes, 32<<20)
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 16 << 20
	}
	if o.MaxPendingBytes == 0 {
		o.MaxPendingBytes = 16 << 20
	}
	if o.LazyDelay == 0 {
		o.LazyDelay = 100 * time.Millisecond
	}
	if o.SweepInterval == 0 {
		o.SweepInterval = 10 * time.Second
	}
	set(&o.ReserveBytes, 128<<20)
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Store is the embedded [persistence.Store].
type Store struct {
	// Fixed at construction.
	opts    Options
	dir     string
	log     *zap.Logger
	lock    interface{ Close() error }
	db      *crdb.DB
	journal *journal
	commits *committer
	stats   stats

	// applying is held while a group is applied, and by the keeper while it
	// moves entries from tails to Pebble, so that what is settled in between
	// cannot come back.
	applying sync.Mutex
	applier  atomic.Int32 // the writer waits for applying; the keeper lets it pass
	apply    applier      // guarded by applying
	tails    tails

	maxID    atomic.Uint64
	retained atomic.Int64
	spilled  atomic.Bool   // there may be entries of inboxes in Pebble
	bans     atomic.Uint64 // changes of the list of bans

	health  healthState
	keeper  keeper
	flushed <-chan struct{} // of a flush that goes on; whoever may flush: Open, the keeper, Close

	mu      sync.Mutex // guards below
	closed  bool
	readers sync.WaitGroup
	workers sync.WaitGroup
	stop    chan struct{}
}

var _ persistence.Store = (*Store)(nil)

// Open opens the store in dir, which is made if it does not exist, and recovers
// everything that was acknowledged. Errors wrap [herald.ErrInUse] if somebody
// else has it open, [herald.ErrCorrupt], [herald.ErrSchemaNewer] or what the
// file system said.
func Open(dir string, opts Options) (*Store, error) {
	return open(dir, opts, migrations)
}

func open(dir string, opts Options, steps []migration) (_ *Store, err error) {
	opts = opts.withDefaults()
	s := &Store{opts: opts, dir: dir, log: opts.Logger, stop: make(chan struct{})}
	defer func() {
		if err != nil {
			s.abort()
			err = fmt.Errorf("open store %s: %w", dir, readable(err))
		}
	}()
	fs := opts.FS
	journalDir := fs.PathJoin(dir, "journal")
	parents := missing(fs, dir)
	for _, d := range []string{dir, journalDir} {
		if err := fs.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	lock, err := fs.Lock(fs.PathJoin(dir, "LOCK"))
	if err != nil {
		if errors.Is(err, syscall.EAGAIN) || err.Error() == "lock held by current process" {
			return nil, herald.ErrInUse
		}
		return nil, err
	}
	s.lock = lock
	s.health.init()
	if err := s.openPebble(fs.PathJoin(dir, "db")); err != nil {
		return nil, err
	}
	id, err := s.checkSchema(steps)
	if err != nil {
		return nil, err
	}
	s.tails.wide = opts.InlineUpTo
	s.tails.of = make(map[herald.SessionID]*tail)
	s.apply.init(s)
	s.journal = newJournal(fs, journalDir, id, opts.SegmentBytes)
	for _, d := range append(parents, dir) { // the folders' names are durable, too
		if err := syncDir(fs, d); err != nil {
			return nil, err
		}
	}
	if err := s.recover(); err != nil {
		return nil, err
	}
	s.commits = newCommitter(s)
	s.keeper.init(s)
	s.start()
	if err := s.commits.begin(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) start() {
	for _, run := range []func(){s.journal.prepare, s.commits.run, s.commits.undertake, s.keeper.run} {
		s.workers.Add(1)
		go func() {
			defer s.workers.Done()
			run()
		}()
	}
}

// abort releases what a failed Open had taken.
func (s *Store) abort() {
	if s.commits != nil {
		s.commits.stop()
		s.journal.shut()
		close(s.stop)
		if s.wait(&s.workers) {
			s.journal.close()
		}
	}
	if s.db != nil {
		s.closePebble()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// Close implements [persistence.Store].
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return herald.ErrClosed
	}
	s.closed = true
	s.mu.Unlock()

	s.commits.stop()
	s.wait(&s.readers)
	close(s.stop)
	s.journal.shut()
	if s.wait(&s.workers) {
		s.journal.close()
	}
	err := s.closePebble()
	if lerr := s.lock.Close(); err == nil {
		err = lerr
	}
	if err != nil {
		return fmt.Errorf("close store: %w", readable(err))
	}
	return nil
}

// wait waits for a group of goroutines. Those that wait for a database that has
// died are left behind; then it returns false.
func (s *Store) wait(group *sync.WaitGroup) bool {
	all := make(chan struct{})
	go func() { group.Wait(); close(all) }()
	select {
	case <-all:
		return true
	case <-s.health.died:
	}
	select {
	case <-all:
		return true
	case <-time.After(2 * lastRites):
		return false
	}
}

// enter begins a read; leave ends it. Close waits in between.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return herald.ErrClosed
	}
	if err := s.health.fatal(); err != nil {
		return err
	}
	s.readers.Add(1)
	return nil
}

func (s *Store) leave() { s.readers.Done() }

// Health implements [persistence.Store].
func (s *Store) Health() error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return herald.ErrClosed
	}
	return s.health.reason()
}

// MaxID implements [persistence.Store].
func (s *Store) MaxID() herald.ID { return herald.ID(s.maxID.Load()) }

// RetainedCount implements [persistence.Store].
func (s *Store) RetainedCount() int64 { return s.retained.Load() }

// sawID keeps track of the highest ID.
func (s *Store) sawID(id uint64) {
	for {
		v := s.maxID.Load()
		if id <= v || s.maxID.CompareAndSwap(v, id) {
			return
		}
	}
}

// missing lists the folders in which a name is made when dir is: the one that is there
// already, and those below that are not.
func missing(fs vfs.FS, dir string) (in []string) {
	for {
		parent := fs.PathDir(dir)
		in = append(in, parent)
		if _, err := fs.Stat(parent); err == nil || parent == dir {
			slices.Reverse(in)
			return in
		}
		dir = parent
	}
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
