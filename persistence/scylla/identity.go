package scylla

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocql/gocql"
)

// identityPatience is how long a store that does not answer is asked again: nodes that
// start together with their database ask when it is busiest.
const identityPatience = 30 * time.Second

// Identity implements [persistence.Cluster]. Who asks first draws it.
func (s *Store) Identity(ctx context.Context) (id string, err error) {
	if err := s.enter(ctx); err != nil {
		return "", fmt.Errorf("read identity: %w", err)
	}
	defer s.leave()
	drawn, err := gocql.RandomUUID()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, identityPatience)
	defer cancel()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		if id, err = s.identity(ctx, drawn.String()); err == nil {
			return id, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(pause):
		}
	}
}

// identity reads it, or makes drawn it if there is none. It may be repeated after
// any failure: what was drawn stays the same.
func (s *Store) identity(ctx context.Context, drawn string) (id string, err error) {
	table := s.opts.Keyspace + ".herald_schema"
	read := func() error {
		return s.cql.Session.Query("SELECT holder FROM " + table + " WHERE name = 'identity'").WithContext(ctx).
			Consistency(gocql.Consistency(gocql.LocalSerial)).Scan(&id)
	}
	switch err := read(); {
	case err == nil:
		return id, nil
	case !errors.Is(err, gocql.ErrNotFound):
		return "", s.failed(ctx, "read identity", err)
	}
	insert := s.cql.Session.Query("INSERT INTO "+table+" (name, holder) VALUES ('identity', ?) IF NOT EXISTS", drawn).WithContext(ctx)
	if _, err := insert.Idempotent(false).RetryPolicy(nil).MapScanCAS(map[string]any{}); err != nil {
		return "", s.failed(ctx, "draw identity", err)
	}
	if err := read(); err != nil {
		return "", s.failed(ctx, "read identity", err)
	}
	return id, nil
}
