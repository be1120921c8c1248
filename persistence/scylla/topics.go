package scylla

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence/record"
)

// ScanRetained implements [persistence.Store].
func (s *Store) ScanRetained(ctx context.Context, filter, behind string, limit, maxBytes int, dst []*herald.Message) (msgs []*herald.Message, more bool, err error) {
	if err := s.enter(ctx); err != nil {
		return dst, false, fmt.Errorf("scan retained: %w", err)
	}
	defer s.leave()
	if limit <= 0 {
		return dst, false, nil
	}
	if !herald.Wildcard(filter) {
		if filter <= behind {
			return dst, false, nil
		}
		m, err := s.retained(ctx, filter)
		if err != nil {
			return dst, false, s.failed(ctx, "scan retained", err)
		}
		if m != nil {
			dst = append(dst, m)
		}
		return dst, false, nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	start := len(dst)
	dst, more, err = s.scanTopics(ctx, filter, behind, limit, maxBytes, dst)
	if err != nil {
		return dst[:start], false, s.failed(ctx, "scan retained", err)
	}
	return dst, more, nil
}

// scanTopics finds topics in the index and fetches their messages, a few at a time.
func (s *Store) scanTopics(ctx context.Context, filter, behind string, limit, maxBytes int, dst []*herald.Message) ([]*herald.Message, bool, error) {
	first := record.Literal(filter)
	if behind != "" {
		first = max(first, behind+"\x00")
	}
	scan := &topicScan{s: s, ctx: ctx, levels: strings.Split(filter, "/"), at: first}
	n, weight := 0, 0
	for {
		topics, err := scan.next(min(limit-n+1, 64))
		if err != nil || len(topics) == 0 {
			return dst, false, err
		}
		found := make([]*herald.Message, len(topics))
		wait, wctx := errgroup.WithContext(ctx)
		wait.SetLimit(32)
		for i, topic := range topics {
			wait.Go(func() (err error) { found[i], err = s.retained(wctx, topic); return err })
		}
		if err := wait.Wait(); err != nil {
			return dst, false, err
		}
		for _, m := range found {
			if m == nil {
				continue // removed meanwhile
			}
			if n >= limit || n > 0 && weight > maxBytes {
				return dst, true, nil
			}
			dst = append(dst, m)
			weight += m.Size()
			n++
		}
	}
}

// topicScan goes through the index in byte order and leaves out what cannot match.
type topicScan struct {
	s      *Store
	ctx    context.Context
	levels []string
	at     string // nothing before it is of interest
	shards [indexShards]topicShard
	ended  bool
}

// topicShard is a page of one shard.
type topicShard struct {
	topics []string // ascending, not before topicScan.at
	last   string   // the page's last, whether it is a removal or not
	read   bool     // there was a page
	end    bool     // nothing behind it
	size   int
}

// next returns the next topics that match, at most n; none: that was all.
func (t *topicScan) next(n int) ([]string, error) {
	var topics []string
	for len(topics) < n && !t.ended {
		if err := t.fill(); err != nil {
			return nil, err
		}
		least := -1
		for i := range t.shards {
			if sh := &t.shards[i]; len(sh.topics) > 0 && (least < 0 || sh.topics[0] < t.shards[least].topics[0]) {
				least = i
			}
		}
		if least < 0 {
			t.ended = true
			break
		}
		topic := t.shards[least].topics[0]
		matches, skip := record.Seek(t.levels, topic)
		switch {
		case matches:
			topics = append(topics, topic)
			t.at = topic + "\x00"
			t.shards[least].topics = t.shards[least].topics[1:]
		case skip == "":
			t.ended = true
		default:
			t.at = skip
			for i := range t.shards {
				sh := &t.shards[i]
				for len(sh.topics) > 0 && sh.topics[0] < skip {
					sh.topics = sh.topics[1:]
				}
			}
		}
	}
	return topics, nil
}

// fill reads a page of every shard that has run out of topics.
func (t *topicScan) fill() error {
	wait, ctx := errgroup.WithContext(t.ctx)
	for i := range t.shards {
		sh := &t.shards[i]
		if len(sh.topics) > 0 || sh.end {
			continue
		}
		wait.Go(func() error { return t.page(ctx, int16(i), sh) })
	}
	return wait.Wait()
}

// page reads on until there is a topic or the shard's end.
func (t *topicScan) page(ctx context.Context, shard int16, sh *topicShard) error {
	for len(sh.topics) == 0 && !sh.end {
		from := t.at
		if sh.read && sh.last >= from {
			// It goes on where the last page ended: more at once.
			from = sh.last + "\x00"
			sh.size = min(sh.size*4, 1024)
		} else {
			sh.size = 16
		}
		rows := t.s.rows(ctx, getIndex, sh.size, shard, []byte(from))
		var topic, state []byte
		n := 0
		sh.topics = nil
		for n < sh.size && rows.next(&topic, &state) {
			n++
			sh.last = string(topic)
			_, ok, err := live(state)
			if err != nil {
				t.s.undecoded("retained_index", err, zap.ByteString("topic", topic))
			}
			if ok {
				sh.topics = append(sh.topics, sh.last)
			}
		}
		rows.close()
		if rows.err != nil {
			return rows.err
		}
		sh.read, sh.end = true, n < sh.size
	}
	return nil
}

// count is the number of retained messages, as it was counted last.
type count struct {
	mu     sync.Mutex // guards below
	n      int64
	next   time.Time // when to count again
	taking bool
}

// RetainedCount implements [persistence.Store]. Counting reads the whole index; so
// the longer it took, the rarer it is done, and what takes long is done in the
// background.
func (s *Store) RetainedCount() int64 {
	c := &s.count
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taking || time.Now().Before(c.next) {
		return c.n
	}
	c.taking = true
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		start := time.Now()
		n, err := s.countRetained()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taking = false
		if err == nil {
			c.n = n
		}
		if s.opts.CountEvery > 0 {
			c.next = time.Now().Add(max(s.opts.CountEvery, 50*time.Since(start)))
		}
	}()
	patience := 50 * time.Millisecond
	if s.opts.CountEvery < 0 {
		patience = s.opts.GiveUp
	}
	select {
	case <-done:
	case <-time.After(patience):
	}
	c.mu.Lock()
	return c.n
}

func (s *Store) countRetained() (int64, error) {
	if err := s.enter(s.ctx); err != nil {
		return 0, err
	}
	defer s.leave()
	var counts [indexShards]int64
	wait, ctx := errgroup.WithContext(s.ctx)
	wait.SetLimit(4)
	for i := range counts {
		wait.Go(func() error {
			rows := s.rows(ctx, getIndex, 2000, int16(i), []byte{})
			var topic, state []byte
			for rows.next(&topic, &state) {
				if _, ok, err := live(state); err == nil && ok {
					counts[i]++
				}
			}
			return rows.err
		})
	}
	if err := wait.Wait(); err != nil {
		return 0, err
	}
	n := int64(0)
	for _, v := range counts {
		n += v
	}
	return n, nil
}
