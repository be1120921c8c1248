package clustertest

import (
	"context"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/checker"
)

// Three nodes are one broker while one of them is killed, or stands still for
// longer than its lease, or Redis is killed and comes back empty: nothing
// acknowledged is lost, reordered or, at QoS 2, delivered twice, and no session is
// forgotten. The long form, with all faults, is "make soak".
func TestPromiseHolds(t *testing.T) {
	c := start(t, Options{})
	for _, fault := range []string{KillBroker, PauseBroker, KillRedis} {
		t.Run(fault, func(t *testing.T) {
			report, err := c.Check(context.Background(), checker.Config{
				For: 15 * time.Second, Rate: 400, Narrow: true, FaultEvery: 4 * time.Second,
				QoS1Publishers: 2, QoS2Publishers: 2, MixedPublishers: 1, QoS1Subscribers: 3, QoS2Subscribers: 3,
				Joiners: 1, Drain: 2 * time.Minute, Quiet: 20 * time.Second, Log: t.Logf,
			}, fault)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(report)
			if err := report.Err(); err != nil {
				t.Error(err)
			}
			if report.Faults[fault] == 0 || report.Drops == 0 {
				t.Errorf("nothing happened: %v", report)
			}
		})
	}
}

// A name that no fault has is refused with those there are.
func TestUnknownFault(t *testing.T) {
	for _, name := range FaultNames {
		if _, err := new(Cluster).Fault(name); err != nil && name != KillRedis && name != CutRedis && name != CutBoth {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f, err := new(Cluster).Fault("boredom"); err == nil {
		t.Errorf("boredom is %v", f)
	}
}
