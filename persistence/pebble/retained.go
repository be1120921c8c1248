package pebble

import (
	"context"
	"errors"
	"fmt"
	"strings"

	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence/record"
)

// ScanRetained implements [persistence.Store].
func (s *Store) ScanRetained(ctx context.Context, filter, behind string, limit, maxBytes int, dst []*herald.Message) (msgs []*herald.Message, more bool, err error) {
	if limit <= 0 {
		return dst, false, nil
	}
	if !herald.Wildcard(filter) {
		if filter <= behind {
			return dst, false, nil
		}
		m, err := s.Retained(ctx, filter)
		if errors.Is(err, herald.ErrNotFound) {
			return dst, false, nil
		}
		if err != nil {
			return dst, false, err
		}
		return append(dst, m), false, nil
	}
	if err := s.enter(ctx); err != nil {
		return dst, false, fmt.Errorf("scan retained: %w", err)
	}
	defer s.leave()
	start := len(dst)
	dst, more, err = s.scanRetained(ctx, filter, behind, limit, maxBytes, dst)
	if err != nil {
		return dst[:start], false, fmt.Errorf("scan retained: %w", readable(err))
	}
	return dst, more, nil
}

func (s *Store) scanRetained(ctx context.Context, filter, behind string, limit, maxBytes int, dst []*herald.Message) ([]*herald.Message, bool, error) {
	first := record.Literal(filter)
	if behind != "" {
		first = max(first, behind+"\x00")
	}
	it, err := s.db.NewIter(&crdb.IterOptions{LowerBound: topicKey(nil, kRetained, first), UpperBound: []byte{kRetained + 1}})
	if err != nil {
		return dst, false, err
	}
	defer it.Close()
	f := strings.Split(filter, "/")
	n, weight, steps := 0, 0, 0
	ok := it.First()
	for ok {
		if steps++; steps%1024 == 0 && ctx.Err() != nil {
			return dst, false, ctx.Err()
		}
		topic := string(it.Key()[1:])
		matches, next := record.Seek(f, topic)
		switch {
		case matches:
			if n >= limit || weight > maxBytes {
				return dst, true, nil
			}
			v, err := it.ValueAndErr()
			if err != nil {
				return dst, false, err
			}
			m, err := record.DecodeMessage(v)
			if err != nil {
				return dst, false, err
			}
			dst = append(dst, m)
			weight += m.Size()
			n++
			ok = it.Next()
		case next == "":
			return dst, false, it.Error()
		default:
			ok = it.SeekGE(topicKey(nil, kRetained, next))
		}
	}
	return dst, false, it.Error()
}
