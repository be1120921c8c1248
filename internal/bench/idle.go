//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
)

// idleRow is the memory of connections that do nothing.
func idleRow() Row {
	return Row{
		Name: "idle", Title: "resident memory per idle TCP connection at 15,000", Unit: "KB", Lower: true, Once: true, run: runIdle,
		judge: func(h Outcome, _ map[string]Outcome) []Verdict {
			return []Verdict{verdict("≤ 10 KB", h.Median.Value, h.Median.Value <= 10)}
		},
	}
}

func runIdle(ctx context.Context, e *Env, b *peer.Broker) (Sample, error) {
	n := e.count(15000, 2000)
	before, err := b.Resident()
	if err != nil {
		return Sample{}, err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	est := load.Establish{Target: b.Address, Spread: true}
	err = est.Run(ctx, n, func(i int) load.Session {
		return load.Session{ClientID: fmt.Sprintf("idle-%d", i), Clean: true}
	}, func(m load.Made) { fds = append(fds, m.FD) })
	if err != nil {
		return Sample{}, err
	}
	after, err := settled(ctx, b)
	if err != nil {
		return Sample{}, err
	}
	for _, fd := range fds {
		if closed(fd) {
			return Sample{}, errors.New("the broker closed idle connections")
		}
	}
	return Sample{
		Value: float64(after-before) / float64(n) / 1024,
		Extra: map[string]float64{"connections": float64(n), "before_mb": mb(before), "after_mb": mb(after)},
	}, nil
}

func closed(fd int) bool {
	var one [1]byte
	n, _, err := unix.Recvfrom(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil || err == unix.ECONNRESET
}

// settled waits until the resident memory does not fall any more, at least 5 s
// and at most 20 s, and returns it.
func settled(ctx context.Context, b *peer.Broker) (int64, error) {
	wait(ctx, 5*time.Second)
	last := int64(math.MaxInt64)
	for range 5 {
		r, err := b.Resident()
		if err != nil {
			return 0, err
		}
		if float64(r) > 0.99*float64(last) {
			return r, nil
		}
		last = r
		wait(ctx, 3*time.Second)
	}
	return last, nil
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// wait lets time pass that is part of a measurement.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
