package checker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// Fault is a harm that comes over the brokers, or what they rest on, again and
// again during a run.
type Fault interface {
	// String names the fault in reports.
	String() string
	// Inject does the harm and returns when it is undone and the system can
	// work again: what was killed runs, what was cut is joined. It undoes it
	// also when ctx ends. An error ends the run. rng decides what is random;
	// it is not to be kept.
	Inject(ctx context.Context, rng *rand.Rand) error
}

// Kill kills one of Processes with SIGKILL and starts it again after Down.
type Kill struct {
	Processes []*Process
	Down      time.Duration
}

// String implements Fault.
func (k Kill) String() string { return "SIGKILL" }

// Inject implements Fault.
func (k Kill) Inject(ctx context.Context, rng *rand.Rand) error {
	p := k.Processes[rng.IntN(len(k.Processes))]
	if err := p.Kill(); err != nil {
		return err
	}
	wait(ctx, k.Down)
	return p.Start(context.WithoutCancel(ctx))
}

// Pause stops one of Processes with SIGSTOP for a time, then lets it go on.
type Pause struct {
	Processes []*Process
	For       time.Duration
}

// String implements Fault.
func (p Pause) String() string { return fmt.Sprintf("SIGSTOP for %v", p.For) }

// Inject implements Fault.
func (p Pause) Inject(ctx context.Context, rng *rand.Rand) error {
	process := p.Processes[rng.IntN(len(p.Processes))]
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("checker: pause: %w", err)
	}
	wait(ctx, p.For)
	if err := process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("checker: continue: %w", err)
	}
	return nil
}

// wait waits for d, or less if ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
