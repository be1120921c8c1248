package simulation

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	schedules = flag.Int("schedules", 300, "how many schedules to run")
	seedFlag  = flag.Uint64("seed", 0, "run this seed only")
)

// simulate runs one seed. A panic, and a goroutine that is left when all is
// over, which synctest panics about, are errors like any other.
func simulate(t *testing.T, seed uint64, o Options) (err error, log []string) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	synctest.Test(t, func(*testing.T) { err, log = Run(seed, o) })
	return err, log
}

func TestSchedules(t *testing.T) {
	// One goroutine at a time, so that a seed does the same again.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	first, n := uint64(1), uint64(*schedules)
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	for seed := first; seed < first+n; seed++ {
		if err, log := simulate(t, seed, Options{Steps: 300}); err != nil {
			t.Errorf("seed %d: %v\n  %s", seed, err, strings.Join(log, "\n  "))
			return
		}
	}
}
