//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
)

// sessionsRow is the memory of durable sessions at rest, and the time after a
// kill. Peers make fewer sessions, from which their figure is extrapolated.
func sessionsRow() Row {
	return Row{
		Name: "sessions", Title: "1,000,000 durable sessions at rest, one subscription each", Unit: "MB", Lower: true, Once: true,
		Peers: []string{peer.Mosquitto}, run: runSessions,
		judge: func(h Outcome, _ map[string]Outcome) []Verdict {
			ready := h.Median.Extra["ready_s"]
			return []Verdict{
				verdict("≤ 700 MB", h.Median.Value, h.Median.Value <= 700),
				verdict("ready ≤ 15 s after kill -9", ready, ready <= 15),
			}
		},
	}
}

func runSessions(ctx context.Context, e *Env, b *peer.Broker) (Sample, error) {
	const full = 1000000
	n := e.count(full, 20000)
	if b.Name != peer.Herald {
		n = e.count(50000, 5000)
	}
	client := func(i int) string { return fmt.Sprintf("device-%d", i) }
	topic := func(i int) string { return fmt.Sprintf("devices/%d/in", i) }
	before, err := b.Resident()
	if err != nil {
		return Sample{}, err
	}
	start := time.Now()
	est := load.Establish{Target: b.Address, Leave: true, Spread: true, Parallel: 128, Timeout: time.Minute}
	err = est.Run(ctx, n, func(i int) load.Session {
		return load.Session{ClientID: client(i), Filter: topic(i), QoS: 1}
	}, func(m load.Made) {
		if m.Index > 0 && m.Index%100000 == 0 {
			e.Log("%s: %d sessions after %.0f s", b.Name, m.Index, time.Since(start).Seconds())
		}
	})
	if err != nil {
		return Sample{}, err
	}
	created := time.Since(start)
	after, err := settled(ctx, b)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{
		Value: mb(before) + mb(after-before)*float64(full)/float64(n),
		Extra: map[string]float64{
			"sessions": float64(n), "resident_mb": mb(after), "created_per_s": float64(n) / created.Seconds(),
		},
	}
	if b.Name != peer.Herald {
		return s, nil // nothing would be left after a kill
	}
	b.Kill()
	killed := time.Now()
	if err := b.Launch(); err != nil {
		return s, err
	}
	for {
		i := rand.IntN(n)
		err := load.Probe(ctx, b.Address, 4, client(i), topic(i), 10*time.Second)
		if err == nil {
			break
		}
		if errors.Is(err, load.ErrForgotten) || time.Since(killed) > 2*time.Minute || ctx.Err() != nil {
			return s, fmt.Errorf("after kill -9: %w", err)
		}
		select {
		case <-b.Exited():
			return s, fmt.Errorf("after kill -9: the broker ended: %s", b.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.Extra["ready_s"] = time.Since(killed).Seconds()
	restarted, err := settled(ctx, b)
	s.Extra["resident_after_restart_mb"] = mb(restarted)
	return s, err
}
