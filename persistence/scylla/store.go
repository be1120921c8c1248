// Package scylla is the shared store: ScyllaDB, or anything else that speaks its
// CQL, such as Apache Cassandra.
//
// A batch becomes rows. All rows of all batches are in flight together, bounded;
// rows of one partition that wait at the same time go as one statement. A batch is
// done when its own rows are in. Every plain write carries a timestamp of a
// hybrid clock, so the order in which rows arrive does not matter and every write
// may be repeated.
//
// CQL has no atomic batch over partitions. What must happen as a whole (a QoS 2
// publish with its packet id; the end of a session) is written down first, as an
// intent; then its rows; then the intent goes. Open finishes what a crash left.
// From the moment when an intent may stand in the database, its batch is not
// given up while the process lives: see executor.
//
// FORMAT.md has the tables and their reasons.
//
// Goroutines: the executor's workers write packs; the releaser calls dones; the
// keeper (circuit.go) looks after clock and circuit, the sweeper after partitions that
// are settled, the patrol (garbage.go) after what nobody needs any more.
// Locks: order, then line.mu or a shard of flights; executor.mu, line.mu, intents.mu,
// flights and states are leaves. None is held while a statement is under way.
package scylla

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocql/gocql"
	"github.com/scylladb/gocqlx/v2"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Options say where the database is and tune the store. Hosts and Keyspace have to
// be given.
type Options struct {
	// Hosts are some of the servers; the others are found through them.
	Hosts []string
	// Port is where all of them speak CQL. Default 9042.
	Port     int
	Keyspace string
	// Datacenter is preferred, and is where a quorum is sought. Empty: that of
	// the server that answers.
	Datacenter string
	// ReplicationFactor is for a keyspace that is created: copies in the
	// datacenter. Default 3. Replication, if given, names it for each.
	ReplicationFactor int
	Replication       map[string]int
	Username          string
	Password          string
	TLS               *TLS
	// Dial opens connections; nil is the network.
	Dial gocql.Dialer

	// Node is the number of this node, which no other uses at the same time. Not in
	// a cluster.
	Node uint16
	// Cluster: several nodes have the database at the same time, and Join gives this
	// one its number. Until then the store can be read from, and nothing can be
	// committed. Retained messages are not cached: see CacheTTL.
	Cluster bool
	// Logger gets what an operator should know; nil is nobody.
	Logger *zap.Logger
	// InlineUpTo is the number of targets up to which a message is kept in each
	// inbox; for more it is kept once. Default 16.
	InlineUpTo int
	// Connections to each server (ScyllaDB: at least one to each shard).
	// Default 2. In a cluster there is one more, for the rows of members.
	Connections int
	// Concurrency bounds the writes that are in flight, the reads, and, half as many,
	// the lightweight transactions. Default 128.
	Concurrency int
	// MaxPendingBytes bounds what is committed and not yet written; Commit
	// blocks beyond. Default 16 MiB.
	MaxPendingBytes int
	// Timeout is for one attempt of a statement. Default 4 s. GiveUp is when a
	// commit that is still refused fails. Default 8 s.
	Timeout, GiveUp time.Duration
	// ConnectTimeout is for a connection. Default 2 s.
	ConnectTimeout time.Duration
	// Patience is how long nothing may succeed, while something is asked, before
	// the store says that it is not healthy and refuses work. Default 2 s: a
	// server that collects garbage comes back sooner.
	Patience time.Duration
	// SplitAfter is how many entries go into a coarse bucket of an inbox before
	// fine ones are used. Default 20,000.
	SplitAfter int
	// CountEvery is how old the count of retained messages may be. Default 10 s;
	// negative: count whenever asked.
	CountEvery time.Duration
	// CacheTTL is how long a retained message that was read is kept: as long may
	// another node's newer one be missed. Default 1 s; negative: not at all.
	CacheTTL time.Duration
	// CacheBytes bounds that cache and the one of wide publishes, each. Default
	// 32 MiB.
	CacheBytes int
	// Now is the wall clock. nil is time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	wait := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	set(&o.Port, 9042)
	set(&o.ReplicationFactor, 3)
	set(&o.InlineUpTo, 16)
	set(&o.Connections, 2)
	set(&o.Concurrency, 128)
	set(&o.MaxPendingBytes, 16<<20)
	set(&o.SplitAfter, 20_000)
	set(&o.CacheBytes, 32<<20)
	wait(&o.Timeout, 4*time.Second)
	wait(&o.GiveUp, 8*time.Second)
	wait(&o.ConnectTimeout, 2*time.Second)
	wait(&o.Patience, 2*time.Second)
	wait(&o.CountEvery, 10*time.Second)
	wait(&o.CacheTTL, time.Second)
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Cluster {
		o.CacheTTL = -1
	}
	return o
}

// Store is the shared [persistence.Store].
type Store struct {
	// Fixed at construction.
	opts    Options
	log     *zap.Logger
	cql     gocqlx.Session
	leases  gocqlx.Session // in a cluster one of its own, for the rows of members; else cql
	clock   stamps
	exec    *executor
	line    *line
	order   sync.Mutex // see begin
	circuit circuit
	intents intents
	flights flights
	caches  caches
	putting putting
	states  states
	reads   asks
	lookups lookups
	turns   turns
	count   count
	sweeps  sweeper
	slow    gocql.SpeculativeExecutionPolicy // of reads

	number  atomic.Uint32        // of this node
	life    atomic.Pointer[life] // in a cluster, from Join on
	lease   atomic.Pointer[func() bool]
	joining sync.Mutex
	beating unsure

	maxID   atomic.Uint64
	ownID   atomic.Uint64 // of those that this node has made
	corrupt atomic.Int64  // rows that could not be decoded
	pageRow atomic.Int64  // mean weight of an inbox row that was read, in bytes

	mu      sync.Mutex // guards below
	closed  bool
	readers sync.WaitGroup

	ctx    context.Context // ends when Close is done with commits
	cancel context.CancelFunc
	keeper sync.WaitGroup
}

var _ persistence.Store = (*Store)(nil)

// Open connects to the database, whose schema has to be there, and finishes what
// this node's last run had begun. Errors wrap [herald.ErrUnavailable] or
// [herald.ErrSchemaNewer].
func Open(opts Options) (*Store, error) {
	opts = opts.withDefaults()
	if !keyspaceName.MatchString(opts.Keyspace) {
		return nil, fmt.Errorf("store.scylla.keyspace: %q is not a name of a keyspace", opts.Keyspace)
	}
	cql, err := opts.connect(opts.Keyspace)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts, log: opts.Logger, cql: cql, leases: cql}
	if opts.Cluster {
		if s.leases, err = opts.connectLeases(); err != nil {
			cql.Close()
			return nil, err
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.cancel()
		s.disconnect()
		return nil, err
	}
	return s, nil
}

func (s *Store) disconnect() {
	s.cql.Close()
	if s.opts.Cluster {
		s.leases.Close()
	}
}

func (s *Store) open() error {
	version, err := schemaVersion(s.ctx, s.cql, s.opts.Keyspace)
	switch {
	case err != nil:
		return err
	case version > SchemaVersion:
		return newer(Status{Version: version, Newest: SchemaVersion})
	case version < SchemaVersion:
		return fmt.Errorf("%w: keyspace %s has schema version %d of %d (herald schema apply)", herald.ErrUnavailable, s.opts.Keyspace, version, SchemaVersion)
	}
	s.slow = &gocql.SimpleSpeculativeExecution{NumAttempts: 1, TimeoutDelay: 150 * time.Millisecond}
	s.clock.now = func() int64 { return s.opts.Now().UnixMicro() }
	if err := s.caches.init(&s.opts); err != nil {
		return err
	}
	s.states.init()
	s.lookups.init(s)
	s.turns.init(s.opts.Concurrency)
	s.circuit.init(s)
	s.line = newLine()
	s.exec = newExecutor(s)
	s.number.Store(uint32(s.opts.Node))
	if s.opts.Cluster {
		// Join does the rest.
	} else if err := s.recover(); err != nil {
		s.exec.stop()
		s.line.stop()
		return err
	}
	s.sweeps.init(s)
	s.keeper.Add(3)
	go func() { defer s.keeper.Done(); s.keep() }()
	go func() { defer s.keeper.Done(); s.sweeps.run() }()
	go func() { defer s.keeper.Done(); s.patrol() }()
	return nil
}

// Close implements [persistence.Store]. It waits for what is under way, but not
// for a database that does not answer.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return herald.ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	s.exec.drain()
	s.cancel() // ends reads and keepers
	s.readers.Wait()
	s.keeper.Wait()
	s.exec.stop()
	s.line.stop()
	var err error
	if s.circuit.reason() == nil && s.mayKeepClock() {
		ctx, cancel := context.WithTimeout(context.Background(), s.opts.Timeout)
		defer cancel()
		err = s.saveClock(ctx)
	}
	s.disconnect()
	s.caches.stop()
	s.states.of.StopAllGoroutines()
	if err != nil {
		return fmt.Errorf("close store: %w", unavailable(err))
	}
	return nil
}

// enter begins a read; leave ends it.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return herald.ErrClosed
	}
	if err := s.circuit.reason(); err != nil {
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
	return s.circuit.reason()
}

// MaxID implements [persistence.Store].
func (s *Store) MaxID() herald.ID { return herald.ID(s.maxID.Load()) }

// sawID keeps track of the highest ID, and the clock above it.
func (s *Store) sawID(id uint64) {
	raise(&s.maxID, id)
	if herald.ID(id).Node() == uint16(s.number.Load()) {
		raise(&s.ownID, id)
	}
}

func raise(v *atomic.Uint64, to uint64) {
	for {
		old := v.Load()
		if to <= old || v.CompareAndSwap(old, to) {
			return
		}
	}
}

// query is a read or a single write, not yet bound.
func (s *Store) query(ctx context.Context, st *statement, args ...any) *gocql.Query {
	return s.cql.Session.Query(st.cql, args...).WithContext(ctx)
}

// read is a query that may be asked of a second server if the first is slow.
func (s *Store) read(ctx context.Context, st *statement, args ...any) *gocql.Query {
	return s.query(ctx, st, args...).SetSpeculativeExecutionPolicy(s.slow)
}

// failed turns what went wrong while reading into an error of the contract.
func (s *Store) failed(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
		if s.ctx.Err() != nil {
			err = herald.ErrClosed
		}
	case errors.Is(err, herald.ErrNotFound), errors.Is(err, herald.ErrClosed):
	case errors.Is(err, gocql.ErrNotFound):
		err = herald.ErrNotFound
	default:
		s.circuit.failed(err)
		err = unavailable(err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func unavailable(err error) error {
	if errors.Is(err, herald.ErrUnavailable) || errors.Is(err, herald.ErrClosed) || errors.Is(err, herald.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", herald.ErrUnavailable, err)
}

// undecoded notes a row that makes no sense. It is skipped: it must not keep a
// session from its other messages.
func (s *Store) undecoded(table string, err error, key ...zap.Field) {
	s.corrupt.Add(1)
	s.log.Error("a row cannot be decoded and is skipped", append(key, zap.String("table", table), zap.Error(err))...)
}
