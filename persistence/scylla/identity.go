package scylla

import (
	"context"
	"fmt"

	"github.com/gocql/gocql"
)

// Identity implements [persistence.Cluster]. Who asks first draws it.
func (s *Store) Identity(ctx context.Context) (string, error) {
	if err := s.enter(ctx); err != nil {
		return "", fmt.Errorf("read identity: %w", err)
	}
	defer s.leave()
	drawn, err := gocql.RandomUUID()
	if err != nil {
		return "", err
	}
	table := s.opts.Keyspace + ".herald_schema"
	insert := s.cql.Session.Query("INSERT INTO "+table+" (name, holder) VALUES ('identity', ?) IF NOT EXISTS", drawn.String()).WithContext(ctx)
	if _, err := insert.Idempotent(false).RetryPolicy(nil).MapScanCAS(map[string]any{}); err != nil {
		return "", s.failed(ctx, "draw identity", err)
	}
	var id string
	err = s.cql.Session.Query("SELECT holder FROM " + table + " WHERE name = 'identity'").WithContext(ctx).
		Consistency(gocql.Consistency(gocql.LocalSerial)).Scan(&id)
	if err != nil {
		return "", s.failed(ctx, "read identity", err)
	}
	return id, nil
}
