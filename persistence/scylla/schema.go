package scylla

import (
	"context"
	"crypto/sha1" //nolint:gosec // names a table, protects nothing
	_ "embed"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/gocql/gocql"
	"github.com/scylladb/gocqlx/v2"

	"github.com/herald-mqtt/herald"
)

// schemaCQL makes the tables of version 1, schema2CQL those that version 2 adds.
var (
	//go:embed schema.cql
	schemaCQL string
	//go:embed schema2.cql
	schema2CQL string
)

// SchemaVersion is the version of the schema that this program reads and writes.
const SchemaVersion = 2

// migrations are the steps from one version to the next; step i leads to version
// i+1.
var migrations = []func(s gocqlx.Session, keyspace string) error{tables(schemaCQL), tables(schema2CQL)}

var keyspaceName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,47}$`)

// Status tells which schema there is.
type Status struct {
	Version int // 0: none
	Newest  int // of this program
}

// ApplySchema creates the keyspace and the tables, or migrates them. Several
// programs may do so at once. Errors wrap herald.ErrUnavailable or
// herald.ErrSchemaNewer.
func ApplySchema(ctx context.Context, o Options) (Status, error) {
	o = o.withDefaults()
	st := Status{Newest: SchemaVersion}
	if !keyspaceName.MatchString(o.Keyspace) {
		return st, fmt.Errorf("store.scylla.keyspace: %q is not a name of a keyspace", o.Keyspace)
	}
	o.Timeout = max(o.Timeout, 30*time.Second) // changing a schema takes its time
	s, err := o.connect("")
	if err != nil {
		return st, err
	}
	defer s.Close()
	if err := createKeyspace(ctx, s, &o); err != nil {
		return st, fmt.Errorf("%w: create keyspace %s: %w", herald.ErrUnavailable, o.Keyspace, err)
	}
	return applyTo(ctx, s, o.Keyspace)
}

func applyTo(ctx context.Context, s gocqlx.Session, keyspace string) (st Status, err error) {
	st.Newest = SchemaVersion
	// The table with the version is what programs that start at once meet in. It
	// has an ID that all of them give it, else each would make its own.
	lock := fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s.herald_schema (name text PRIMARY KEY, version int, holder text) WITH id = %s`,
		keyspace, nameUUID(keyspace+".herald_schema"))
	if err := execSchema(ctx, s, lock); err != nil {
		return st, fmt.Errorf("%w: create table herald_schema: %w", herald.ErrUnavailable, err)
	}
	unlock, err := lockSchema(ctx, s, keyspace)
	if err != nil {
		return st, err
	}
	defer unlock()
	if st.Version, err = schemaVersion(ctx, s, keyspace); err != nil {
		return st, err
	}
	if st.Version > SchemaVersion {
		return st, newer(st)
	}
	for st.Version < SchemaVersion {
		if err := migrations[st.Version](s, keyspace); err != nil {
			return st, fmt.Errorf("%w: schema version %d: %w", herald.ErrUnavailable, st.Version+1, err)
		}
		if err := s.Query(fmt.Sprintf("UPDATE %s.herald_schema SET version = ? WHERE name = 'schema' IF EXISTS", keyspace), nil).
			Bind(st.Version + 1).WithContext(ctx).Idempotent(false).Exec(); err != nil {
			return st, fmt.Errorf("%w: schema version: %w", herald.ErrUnavailable, err)
		}
		st.Version++
	}
	return st, nil
}

// SchemaStatus tells which schema a database has.
func SchemaStatus(ctx context.Context, o Options) (Status, error) {
	o = o.withDefaults()
	st := Status{Newest: SchemaVersion}
	s, err := o.connect("")
	if err != nil {
		return st, err
	}
	defer s.Close()
	st.Version, err = schemaVersion(ctx, s, o.Keyspace)
	return st, err
}

func newer(st Status) error {
	return fmt.Errorf("%w: version %d, this program knows up to %d", herald.ErrSchemaNewer, st.Version, st.Newest)
}

// schemaVersion is 0 if there is nothing.
func schemaVersion(ctx context.Context, s gocqlx.Session, keyspace string) (int, error) {
	var version int
	err := s.Query(fmt.Sprintf("SELECT version FROM %s.herald_schema WHERE name = 'schema'", keyspace), nil).
		WithContext(ctx).Consistency(gocql.Consistency(gocql.LocalSerial)).Scan(&version)
	var invalid gocql.RequestError
	switch {
	case err == nil:
		return version, nil
	case errors.Is(err, gocql.ErrNotFound):
		return 0, nil
	case errors.As(err, &invalid) && invalid.Code() == gocql.ErrCodeInvalid:
		return 0, nil // no keyspace, or no table
	}
	return 0, fmt.Errorf("%w: read schema version: %w", herald.ErrUnavailable, err)
}

// lockSchema waits until nobody else migrates. A lock whose holder died ends
// after two minutes.
func lockSchema(ctx context.Context, s gocqlx.Session, keyspace string) (func(), error) {
	host, _ := os.Hostname()
	me := fmt.Sprintf("%s/%d/%d", host, os.Getpid(), time.Now().UnixNano())
	table := keyspace + ".herald_schema"
	// The row is there from the first attempt on, so that version and holder are
	// columns of one row that only lightweight transactions write.
	create := fmt.Sprintf("INSERT INTO %s (name, version) VALUES ('schema', 0) IF NOT EXISTS", table)
	take := fmt.Sprintf("UPDATE %s USING TTL 120 SET holder = ? WHERE name = 'schema' IF holder = null", table)
	give := fmt.Sprintf("UPDATE %s SET holder = null WHERE name = 'schema' IF holder = ?", table)
	var last error
	for {
		_, last = s.Query(create, nil).WithContext(ctx).Idempotent(false).MapScanCAS(map[string]any{})
		if last == nil {
			var ok bool
			if ok, last = s.Query(take, nil).Bind(me).WithContext(ctx).Idempotent(false).MapScanCAS(map[string]any{}); last == nil && ok {
				return func() {
					_, _ = s.Query(give, nil).Bind(me).Idempotent(false).MapScanCAS(map[string]any{})
				}, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: waiting for another program to migrate the schema: %w", herald.ErrUnavailable, errors.Join(ctx.Err(), last))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func createKeyspace(ctx context.Context, s gocqlx.Session, o *Options) error {
	var n int
	err := s.Query("SELECT COUNT(*) FROM system_schema.keyspaces WHERE keyspace_name = ?", nil).
		Bind(strings.ToLower(o.Keyspace)).WithContext(ctx).Consistency(gocql.One).Scan(&n)
	if err == nil && n > 0 {
		return nil
	}
	replication := o.Replication
	if len(replication) == 0 {
		dc := o.Datacenter
		if dc == "" {
			if err := s.Query("SELECT data_center FROM system.local", nil).WithContext(ctx).Consistency(gocql.One).Scan(&dc); err != nil {
				return err
			}
		}
		replication = map[string]int{dc: o.ReplicationFactor}
	}
	var factors []string
	for dc, n := range replication {
		factors = append(factors, fmt.Sprintf(", '%s': %d", strings.ReplaceAll(dc, "'", "''"), n))
	}
	sort.Strings(factors)
	create := fmt.Sprintf("CREATE KEYSPACE IF NOT EXISTS %s WITH replication = {'class': 'NetworkTopologyStrategy'%s}",
		o.Keyspace, strings.Join(factors, ""))
	if isScylla(s) {
		// Tables that lie in tablets have no lightweight transactions. A server that
		// knows no tablets refuses to hear of them.
		if err := execSchema(ctx, s, create+" AND tablets = {'enabled': false}"); err == nil {
			return nil
		}
	}
	return execSchema(ctx, s, create)
}

// tables is the migration that makes those of cql.
func tables(cql string) func(s gocqlx.Session, keyspace string) error {
	return func(s gocqlx.Session, keyspace string) error {
		scylla := isScylla(s)
		for _, stmt := range statements(cql, keyspace, scylla) {
			if err := execSchema(context.Background(), s, stmt); err != nil {
				return err
			}
		}
		return s.AwaitSchemaAgreement(context.Background())
	}
}

var comment = regexp.MustCompile(`(?m)^--.*$`)

// statements are those of a file.
func statements(cql, keyspace string, scylla bool) []string {
	var all []string
	for _, stmt := range strings.Split(comment.ReplaceAllString(cql, ""), ";") {
		if stmt = strings.TrimSpace(stmt); stmt == "" {
			continue
		}
		stmt = strings.ReplaceAll(stmt, "{keyspace}", keyspace)
		if scylla && !strings.Contains(stmt, "gc_grace_seconds") {
			// ScyllaDB can keep a tombstone until it was repaired, so that nothing
			// deleted comes back, however late the repair.
			stmt += " AND tombstone_gc = {'mode': 'repair'}"
		}
		all = append(all, stmt)
	}
	return all
}

// isScylla tells whether the server is ScyllaDB and not Cassandra.
func isScylla(s gocqlx.Session) bool {
	var n int
	err := s.Query("SELECT COUNT(*) FROM system_schema.tables WHERE keyspace_name = 'system_schema' AND table_name = 'scylla_tables'", nil).
		Consistency(gocql.One).Scan(&n)
	return err == nil && n > 0
}

// execSchema changes the schema; it is tried again while servers disagree.
func execSchema(ctx context.Context, s gocqlx.Session, stmt string) (err error) {
	for range 10 {
		if err = s.Query(stmt, nil).WithContext(ctx).Exec(); err == nil {
			return s.AwaitSchemaAgreement(ctx)
		}
		var r gocql.RequestError
		if errors.As(err, &r) && r.Code() == gocql.ErrCodeAlreadyExists {
			return nil
		}
		if errors.As(err, &r) && (r.Code() == gocql.ErrCodeSyntax || r.Code() == gocql.ErrCodeUnauthorized) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
	return err
}

// nameUUID is a version 5 UUID.
func nameUUID(name string) string {
	h := sha1.Sum([]byte("herald:" + strings.ToLower(name)))
	h[6] = h[6]&0x0f | 0x50
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// String is what herald schema status prints.
func (s Status) String() string {
	if s.Version == 0 {
		return "no schema; the newest is version " + strconv.Itoa(s.Newest)
	}
	return "version " + strconv.Itoa(s.Version) + " of " + strconv.Itoa(s.Newest)
}
