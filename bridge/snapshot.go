package bridge

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// snapshotChunk is the size of one part of a snapshot before compression.
const snapshotChunk = 1 << 20

// writeSnapshot puts all routes into Redis and says so in the stream.
func (r *routes) writeSnapshot() error {
	b := r.b
	if wait := askEvery - time.Since(r.madeAt); wait > 0 {
		pause(b.ctx, wait) // several may ask
	}
	r.mu.Lock()
	r.snapshot = false
	r.madeAt = time.Now()
	at := r.last
	all := make([][]byte, 0, len(r.own))
	for s := range r.own {
		all = append(all, []byte(s))
	}
	r.mu.Unlock()

	h := header{flags: flagSnapshot, from: b.opts.Self, first: uint64(at)}
	parts := 0
	ctx, cancel := context.WithTimeout(b.ctx, 10*b.opts.Timeout)
	defer cancel()
	_, err := b.cmd.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, b.keys.snapshot)
		for len(all) > 0 || parts == 0 {
			n, size := 0, 0
			for n < len(all) && (n == 0 || size+len(all[n]) <= snapshotChunk) {
				size += len(all[n]) + 2
				n++
			}
			data, _ := appendEntry(nil, nil, h, all[:n], b.opts.CompressOver)
			p.HSet(ctx, b.keys.snapshot, strconv.Itoa(parts), data)
			all = all[n:]
			parts++
		}
		p.HSet(ctx, b.keys.snapshot, "parts", parts)
		return nil
	})
	if err == nil {
		b.stats.snapshots.Add(1)
		_, err = r.append(h, nil)
	}
	r.mu.Lock()
	if err != nil {
		r.snapshot = true
	} else {
		r.sent = max(r.sent, at)
	}
	r.mu.Unlock()
	return err
}

// errNoSnapshot: it is not there, or not the one.
var errNoSnapshot = errors.New("no snapshot")

// readSnapshot gets all routes of a peer, as of the number returned.
func (r *routes) readSnapshot(p *peer, least uint64) (all []string, at uint64, err error) {
	b := r.b
	ctx, cancel := context.WithTimeout(b.ctx, 10*b.opts.Timeout)
	defer cancel()
	parts, err := b.cmd.HGetAll(ctx, snapshotKey(b.opts.Prefix, p.Node)).Result()
	if err != nil {
		return nil, 0, err
	}
	count, err := strconv.Atoi(parts["parts"])
	if err != nil || count != len(parts)-1 {
		return nil, 0, errNoSnapshot
	}
	var frames [][]byte
	for i := range count {
		h, some, err := decodeEntry([]byte(parts[strconv.Itoa(i)]), frames[:0], b.opts.MaxFrame+snapshotChunk)
		if err != nil || h.from != p.Peer || h.flags&flagSnapshot == 0 || h.first < least {
			return nil, 0, errNoSnapshot
		}
		at = h.first
		for _, s := range some {
			all = append(all, string(s))
		}
		frames = some
	}
	return all, at, nil
}
