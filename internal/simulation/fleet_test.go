package simulation

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	fleets = flag.Int("fleets", fromEnv("FLEETS", defaultFleets), "how many schedules of a cluster to run, or $FLEETS")
	wills  = flag.Bool("wills", false, "clients have wills")
	groups = flag.Bool("groups", false, "clients share a subscription")
	outage = flag.Bool("outage", false, "all nodes may be gone at the same time")
)

func simulateFleet(t *testing.T, seed uint64, o FleetOptions) (log []string, err error) {
	defer func() {
		switch r := fmt.Sprint(recover()); {
		case r == "<nil>":
		case strings.Contains(r, "blocked goroutines remain"):
			// The schedule is over. An engine that is stopped with a process that died
			// leaves what waits for a commit of it; a process takes that with it.
		default:
			all := make([]byte, 1<<20)
			err = fmt.Errorf("panic: %v\n%s", r, all[:runtime.Stack(all, true)])
		}
	}()
	synctest.Test(t, func(*testing.T) { log, err = RunFleet(seed, o) })
	return log, err
}

// TestFleet: whatever node dies or stands still, and whatever is cut off, what was
// acknowledged arrives, in order, at QoS 2 once, and nobody has another's session.
func TestFleet(t *testing.T) {
	runFleets(t, FleetOptions{Steps: steps, Faults: true, Outage: *outage, Wills: *wills, Groups: *groups})
}

// TestFleetCalm: the same without faults.
func TestFleetCalm(t *testing.T) {
	runFleets(t, FleetOptions{Steps: steps, Wills: true, Groups: *groups})
}

func runFleets(t *testing.T, o FleetOptions) {
	oneAtATime(t)
	first, n := *fromSeed, uint64(*fleets)
	if *oneSeed != 0 {
		first, n = *oneSeed, 1
	}
	for seed := first; seed < first+n; seed++ {
		if log, err := simulateFleet(t, seed, o); err != nil {
			t.Fatalf("seed %d: %v\n  %s\nagain: go test ./internal/simulation -run '^%s$' -seed %d",
				seed, err, strings.Join(log, "\n  "), t.Name(), seed)
		}
	}
}

// TestFleetFindsBugs: the simulation finds what was broken by hand.
func TestFleetFindsBugs(t *testing.T) {
	if raceDetector {
		t.Skip("thousands of schedules, of which the race detector sees nothing that it has not seen")
	}
	oneAtATime(t)
	for _, b := range []struct {
		bug  string
		from uint64 // where the search begins: near where it ended
	}{{bugMarkPast, 1}, {bugWallClock, 500}, {bugSubackEarly, 30}, {bugIntentEarly, 900}} {
		t.Run(b.bug, func(t *testing.T) {
			for seed := b.from; seed < b.from+10000; seed++ {
				if _, err := simulateFleet(t, seed, FleetOptions{Steps: steps, Faults: true, Bug: b.bug}); err != nil {
					t.Logf("found by seed %d: %.200v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}
