package pebble

import (
	"context"
	"errors"
	"fmt"
	"strings"

	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
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
	first := literal(filter)
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
		matches, next := seek(f, topic)
		switch {
		case matches:
			if n >= limit || weight > maxBytes {
				return dst, true, nil
			}
			v, err := it.ValueAndErr()
			if err != nil {
				return dst, false, err
			}
			m, err := decodeMessage(v)
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

// literal is what every topic that matches filter begins with; the parent level
// of a "#" has no "/" at its end.
func literal(filter string) string {
	at := strings.IndexAny(filter, "+#")
	if at < 0 {
		return filter
	}
	if filter[at] == '#' && at > 0 {
		at--
	}
	return filter[:at]
}

// seek tells whether topic matches the filter's levels f and, if not, the
// smallest string behind topic at which a topic that does could stand; "" if
// there can be none. It is what makes a scan skip subtrees.
func seek(f []string, topic string) (matches bool, next string) {
	if topic[0] == '$' && (f[0] == "+" || f[0] == "#") {
		return false, "%" // the byte behind '$' [MQTT-4.7.2-1]
	}
	at := 0    // where the level begins in topic
	plus := -1 // where the last level that a "+" took ends, if more follows it
	for i, want := range f {
		if want == "#" {
			return true, ""
		}
		level, _, deeper := strings.Cut(topic[at:], "/")
		end := at + len(level)
		switch {
		case want != "+" && want != level:
			if next = within(f[i:], topic, topic[:at]); next != "" {
				return false, next
			}
			return false, sibling(topic, plus)
		case !deeper && i == len(f)-1, !deeper && f[i+1] == "#":
			return true, ""
		case !deeper && want == "+":
			// Too short. What matches may stand below it, but "a!/x" stands
			// between "a" and "a/x".
			return false, topic + "\x00"
		case !deeper:
			return false, topic + "/" + literal(strings.Join(f[i+1:], "/"))
		}
		if want == "+" {
			plus = end
		}
		at = end + 1
	}
	return false, sibling(topic, plus) // too deep
}

// within is the smallest string behind topic under prefix at which a topic that
// matches f, which begins with a literal level, could stand; "" if none can.
func within(f []string, topic, prefix string) string {
	exact := prefix + f[0]
	if (len(f) == 1 || f[1] == "#") && exact > topic {
		return exact
	}
	if len(f) == 1 {
		return ""
	}
	below := exact + "/"
	if f[1] != "#" {
		below += literal(strings.Join(f[1:], "/"))
	}
	if below > topic {
		return below
	}
	return ""
}

// sibling is the smallest string behind everything below topic[:plus].
func sibling(topic string, plus int) string {
	if plus < 0 {
		return ""
	}
	return topic[:plus] + "0" // the byte behind '/'
}
