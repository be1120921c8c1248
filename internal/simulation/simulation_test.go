package simulation

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	schedules = flag.Int("schedules", fromEnv("SCHEDULES", defaultSchedules), "how many schedules to run, or $SCHEDULES")
	fromSeed  = flag.Uint64("from", 1, "the first seed")
	oneSeed   = flag.Uint64("seed", 0, "run this seed only")
)

func fromEnv(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

const steps = 300

// simulate runs one seed. A panic, and a goroutine that is left when all is
// over, which synctest panics about, are errors like any other.
func simulate(t *testing.T, seed uint64, o Options) (log []string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	synctest.Test(t, func(*testing.T) { log, err = Run(seed, o) })
	return log, err
}

// oneAtATime lets one goroutine run at a time, so that a seed does the same
// again (but for the order of maps).
func oneAtATime(t *testing.T) {
	n := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(n) })
}

func mustPass(t *testing.T, seed uint64, o Options) {
	t.Helper()
	o.Steps = steps
	if log, err := simulate(t, seed, o); err != nil {
		t.Fatalf("seed %d: %v\n  %s\nagain: go test ./internal/simulation -run '^%s$' -seed %d",
			seed, err, strings.Join(log, "\n  "), t.Name(), seed)
	}
}

// TestSchedules: whatever moment the process dies, what was acknowledged
// arrives, in order, at QoS 2 once.
func TestSchedules(t *testing.T) {
	runSchedules(t, Options{})
}

// TestSharedSchedules: the same on a store whose batches are not atomic.
func TestSharedSchedules(t *testing.T) {
	runSchedules(t, Options{Shared: true})
}

func runSchedules(t *testing.T, o Options) {
	oneAtATime(t)
	first, n := *fromSeed, uint64(*schedules)
	if *oneSeed != 0 {
		first, n = *oneSeed, 1
	}
	for seed := first; seed < first+n; seed++ {
		mustPass(t, seed, o)
	}
}

// TestSeeds runs seeds that have found something. They are those of the
// generator as it is: who changes it, changes what they do.
func TestSeeds(t *testing.T) {
	oneAtATime(t)
	for _, s := range []struct {
		seed  uint64
		found string
	}{
		{seed: 11192, found: "a retained message that waits in a spilled session holds its mark at an old ID"},
		{seed: 15960, found: "an entry that came late holds the mark and waits behind the bound that only the mark lifts"},
		{seed: 23742, found: "what is to be sent again waits behind that bound"},
	} {
		t.Run(s.found, func(t *testing.T) { mustPass(t, s.seed, Options{}) })
	}
}
