package bridge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// Why something may be lost, for errors.Is on what [Handler.Lost] gets.
var (
	// ErrEmptied: Redis was emptied or replaced by another.
	ErrEmptied = errors.New("redis was emptied or replaced")
	// ErrRestarted: another process answers, after a restart or a failover; its
	// newest writes may be gone.
	ErrRestarted = errors.New("redis restarted or failed over")
	// ErrRolledBack: this node's stream ends before what was read from it.
	ErrRolledBack = errors.New("the stream went back")
)

// fail reports a command that did not succeed. Whoever calls it then waits with
// waitUp, behind which nothing is sent before check has looked.
func (b *Bridge) fail(err error) {
	if b.ctx.Err() != nil {
		return
	}
	b.mu.Lock()
	if b.available.Load() {
		b.available.Store(false)
		b.down, b.held = time.Now(), false
		b.stats.outages.Add(1)
		b.log.Warn("redis is away", zap.Error(err))
	}
	b.why = err
	b.mu.Unlock()
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// restore says that Redis is there.
func (b *Bridge) restore() {
	b.mu.Lock()
	if b.available.Load() {
		b.mu.Unlock()
		return
	}
	b.log.Info("redis is back", zap.Duration("after", time.Since(b.down)))
	b.why, b.held = nil, false
	b.available.Store(true)
	close(b.up)
	b.up = make(chan struct{})
	b.mu.Unlock()
	b.wakeAll()
}

// first checks a Redis that nobody has used yet.
func (b *Bridge) first(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*b.opts.Timeout)
	defer cancel()
	// Unknown without streams, a syntax error before 6.2, and a type error if
	// something else has the name.
	for _, key := range []string{b.keys.in, b.keys.routes} {
		if err := b.cmd.XTrimMinID(ctx, key, "0-0").Err(); err != nil {
			return b.unfit(key, err)
		}
	}
	if b.marker, err = b.mark(ctx); err != nil {
		return b.unfit(b.keys.cluster, err)
	}
	if b.process, err = identity(ctx, b.cmd, b.keys.cluster, b.keys.in, b.keys.routes); err != nil {
		return err
	}
	last, err := b.last(ctx, b.keys.routes)
	b.routes.position = last
	return err
}

// unfit tells a Redis that cannot serve from one that cannot be reached.
func (b *Bridge) unfit(key string, err error) error {
	switch refused := redis.Error(nil); {
	case errors.Is(err, ErrForeign), !errors.As(err, &refused), loading(err):
		return err
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return fmt.Errorf("%w: key %s is in use for something else", ErrUnfit, key)
	case strings.Contains(err.Error(), "unknown command") || strings.Contains(err.Error(), "syntax"):
		return fmt.Errorf("%w: streams of Redis 6.2 or later are needed: %w", ErrUnfit, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
}

// mark reads the marker, sets it if there is none, and checks whose prefix this
// is. It writes, so that a Redis which cannot is found out.
func (b *Bridge) mark(ctx context.Context) (string, error) {
	var all *redis.MapStringStringCmd
	_, err := b.cmd.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSetNX(ctx, b.keys.cluster, "id", b.opts.Cluster)
		p.HSetNX(ctx, b.keys.cluster, "marker", rand.Text())
		all = p.HGetAll(ctx, b.keys.cluster)
		return nil
	})
	if err != nil {
		return "", err
	}
	m := all.Val()
	if m["id"] != b.opts.Cluster {
		return "", fmt.Errorf("%w: prefix %q is used by cluster %.64q, this is %.64q",
			ErrForeign, b.opts.Prefix, m["id"], b.opts.Cluster)
	}
	return m["marker"], nil
}

// last is the highest ID that a stream has given out; "0-0" if there is none.
func (b *Bridge) last(ctx context.Context, key string) (streamID, error) {
	info, err := b.cmd.XInfoStream(ctx, key).Result()
	if redis.HasErrorPrefix(err, "no such key") {
		return streamID{}, nil
	}
	if err != nil {
		return streamID{}, err
	}
	id, ok := parseID(info.LastGeneratedID)
	if !ok {
		return streamID{}, fmt.Errorf("%w: stream ID %.64q", ErrUnfit, info.LastGeneratedID)
	}
	return id, nil
}

// watch looks at Redis now and then, and at once when something failed.
func (b *Bridge) watch() {
	timer := time.NewTimer(checkEvery)
	defer timer.Stop()
	backoff := backoffFirst
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-b.kick:
			if !b.available.Load() && backoff > backoffFirst {
				continue // the timer is running for this
			}
		case <-timer.C:
		}
		if err := b.check(); err == nil {
			backoff = backoffFirst
			timer.Reset(checkEvery)
		} else if b.ctx.Err() == nil {
			b.fail(err)
			timer.Reset(backoff)
			backoff = min(2*backoff, backoffLast)
		}
	}
}

// check looks whether Redis is there, ours and whole. If it is there again, but
// something may be lost, everybody starts anew before it counts as available.
func (b *Bridge) check() error {
	ctx, cancel := context.WithTimeout(b.ctx, b.opts.Timeout/2)
	defer cancel()
	read := b.in.position()
	marker, err := b.mark(ctx)
	if err != nil {
		return err
	}
	process, err := identity(ctx, b.cmd, b.keys.cluster, b.keys.in, b.keys.routes)
	if err != nil {
		return err
	}
	var lost error
	switch {
	case marker != b.marker:
		lost = ErrEmptied
	case process != b.process, process == "" && !b.available.Load():
		lost = ErrRestarted
	case read != streamID{}:
		last, err := b.last(ctx, b.keys.in)
		if err != nil {
			return err
		}
		if last.less(read) {
			lost = ErrRolledBack
		}
	}
	if lost != nil {
		b.marker, b.process = marker, process
		b.lose(lost)
	}
	b.restore()
	return nil
}

// lose makes everybody start anew: the readers at the beginning of their
// streams, the links with all that is not acknowledged, the announcements with
// all that is not applied. All of it is safe to see twice.
func (b *Bridge) lose(reason error) {
	b.log.Warn("redis may have lost what it acknowledged", zap.Error(reason))
	b.stats.losses.Add(1)
	b.generation.Add(1)
	b.in.reset()
	b.routes.resync()
	for _, p := range b.allPeers() {
		p.link.rewind(0)
		p.link.say(flagAnswer | flagGap)
	}
	b.opts.Handler.Lost(reason)
}

// keep does what is due from time to time.
func (b *Bridge) keep() {
	tick := time.NewTicker(ackDelay)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case now := <-tick.C:
			b.mu.Lock()
			away := !b.available.Load()
			hold := away && now.Sub(b.down) >= b.opts.Patience
			if hold && !b.held {
				b.held = true
				b.log.Warn("redis stays away: frames are given back", zap.Error(b.why))
			}
			b.mu.Unlock()
			b.expireGuests(now)
			for _, p := range b.allPeers() {
				if hold {
					p.link.hold()
				}
				if !away {
					p.tick(now)
				}
			}
		}
	}
}
