package checker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain also plays the processes of process_test.go.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		play(role)
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if heraldDir != "" {
			os.RemoveAll(heraldDir)
		}
		os.Exit(code)
	}))
}

// quick is a run short enough to be one of many.
func quick(b *toy) Config {
	return Config{
		Addrs: []string{b.addr}, For: 600 * time.Millisecond, Rate: 3000,
		DropEvery: 200 * time.Millisecond, PublisherDropEvery: 200 * time.Millisecond,
		Drain: 10 * time.Second, Quiet: time.Second, Log: b.t.Logf,
	}
}

func mustRun(t *testing.T, cfg Config) *Report {
	t.Helper()
	report, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
	return report
}

// restart is the toy's fault: all connections break, the sessions stay.
type restart struct{ b *toy }

func (r restart) String() string { return "restart" }

func (r restart) Inject(ctx context.Context, rng *rand.Rand) error {
	r.b.shut()
	wait(ctx, 50*time.Millisecond)
	r.b.open()
	return nil
}

// A broker that keeps its promise comes out clean, whatever the clients do.
func TestCorrectBroker(t *testing.T) {
	t.Parallel()
	b := newToy(t, toyFault{})
	cfg := quick(b)
	cfg.For, cfg.Rate, cfg.Drain = 3*time.Second, 1000, 30*time.Second
	cfg.QoS1Publishers, cfg.QoS2Publishers, cfg.MixedPublishers, cfg.Both = 2, 2, 2, 2
	cfg.QoS1Subscribers, cfg.QoS2Subscribers, cfg.Joiners = 8, 8, 4
	cfg.Faults, cfg.FaultEvery = []Fault{restart{b}}, 500*time.Millisecond
	report := mustRun(t, cfg)
	if err := report.Err(); err != nil {
		t.Fatal(err)
	}
	if report.Drops == 0 || report.Resent == 0 || report.Repeats == 0 || report.Faults["restart"] == 0 {
		t.Errorf("the run was too quiet to show anything: %v", report)
	}
	if report.Arrived != report.Expected {
		t.Errorf("arrived %d of %d", report.Arrived, report.Expected)
	}
}

// Nothing but the clients breaks a connection: each once, when everything has arrived.
// What is not acknowledged by then comes once more, so Repeats are no fault here;
// Needless, which Err looks at, would be.
func TestCorrectBrokerUndisturbed(t *testing.T) {
	t.Parallel()
	b := newToy(t, toyFault{})
	cfg := quick(b)
	cfg.DropEvery, cfg.PublisherDropEvery = -1, -1
	cfg.Members = 3
	report := mustRun(t, cfg)
	if err := report.Err(); err != nil {
		t.Fatal(err)
	}
	if report.Closed != 0 || report.Resent != 0 || report.GroupDisorder != 0 {
		t.Errorf("something was sent twice or closed: %v", report)
	}
}

func TestCorrectBrokerGroup(t *testing.T) {
	t.Parallel()
	b := newToy(t, toyFault{})
	cfg := quick(b)
	cfg.Members = 3
	if err := mustRun(t, cfg).Err(); err != nil {
		t.Fatal(err)
	}
}

// Each way of breaking the promise is found, and nothing else is blamed that
// does not follow from it.
func TestFindsFaults(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault toyFault
		found func(r *Report) *Finding
		count int // exactly; 0: at least one
		calm  bool
	}{
		{"loses one message", toyFault{lose: 777}, func(r *Report) *Finding { return &r.Lost }, 1, false},
		{"loses one message, nobody reconnects", toyFault{lose: 777}, func(r *Report) *Finding { return &r.Lost }, 1, true},
		{"loses the first message", toyFault{lose: 1}, func(r *Report) *Finding { return &r.Lost }, 1, false},
		{"loses what was in flight", toyFault{forgetSent: true}, func(r *Report) *Finding { return &r.Lost }, 0, false},
		{"reorders one message", toyFault{reorder: 777}, func(r *Report) *Finding { return &r.Reordered }, 1, true},
		{"reorders what was in flight", toyFault{shuffleSent: true}, func(r *Report) *Finding { return &r.Reordered }, 0, false},
		{"duplicates one message at QoS 2", toyFault{duplicate2: 333}, func(r *Report) *Finding { return &r.Duplicated }, 1, false},
		{"takes a QoS 2 publish twice", toyFault{forgetHeld: true}, func(r *Report) *Finding { return &r.Duplicated }, 0, false},
		{"repeats one message at QoS 1 for no reason", toyFault{duplicate1: 777}, func(r *Report) *Finding { return &r.Needless }, 1, true},
		{"forgets a session", toyFault{forget: 5}, func(r *Report) *Finding { return &r.Forgotten }, 1, false},
		{"corrupts one message", toyFault{corrupt: 777}, func(r *Report) *Finding { return &r.Corrupted }, 0, false},
		{"delivers what nobody published", toyFault{phantom: 777}, func(r *Report) *Finding { return &r.Phantom }, 0, false},
		{"delivers what does not match", toyFault{misroute: 777}, func(r *Report) *Finding { return &r.Phantom }, 0, true},
		{"never answers one publish", toyFault{swallowAck: 300}, func(r *Report) *Finding { return &r.Unanswered }, 1, true},
		{"acknowledges out of order", toyFault{lateAck: true}, func(r *Report) *Finding { return &r.Protocol }, 0, true},
		{"ignores the receive maximum", toyFault{greedy: true}, func(r *Report) *Finding { return &r.Protocol }, 0, false},
		{"delivers at a lower QoS", toyFault{lowerQoS: true}, func(r *Report) *Finding { return &r.Protocol }, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := quick(newToy(t, test.fault))
			if test.fault.shuffleSent {
				cfg.Topics, cfg.For = 1, time.Second // more of one stream in flight
			}
			if test.calm {
				cfg.DropEvery, cfg.PublisherDropEvery = -1, -1
			}
			report := mustRun(t, cfg)
			found := test.found(report)
			if found.Count == 0 || test.count > 0 && found.Count != test.count {
				t.Fatalf("found %d, want %d; %v", found.Count, test.count, report.Err())
			}
			if report.Err() == nil {
				t.Fatal("Err says that all is well")
			}
			t.Log(found.Examples[0])
		})
	}
}

// A run in which nothing happened proves nothing.
func TestEmptyRunIsAnError(t *testing.T) {
	if (&Report{}).Err() == nil {
		t.Error("no error")
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a", false}, {"a", "a/b", false}, {"a/+", "a/b", true},
		{"a/+", "a/b/c", false}, {"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true},
		{"a/#", "b", false}, {"+/b", "a/b", true}, {"+", "", true}, {"a/+", "a/", true}, {"a/+/c", "a//c", true},
		{"a/+/#", "a", false},
	} {
		if got := matches(test.filter, test.topic); got != test.want {
			t.Errorf("matches(%q, %q) = %t", test.filter, test.topic, got)
		}
	}
}

func TestPayload(t *testing.T) {
	for _, size := range []int{0, payloadMin, 64, 1000} {
		want := label{publisher: 3, topic: 2, seq: 1<<40 + 7, run: 99}
		b := appendPayload(nil, want, size)
		if len(b) != max(size, payloadMin) {
			t.Errorf("%d bytes, want %d", len(b), size)
		}
		got, err := parsePayload(b)
		if err != nil || got != want {
			t.Errorf("%v, %v", got, err)
		}
		for i := range b {
			b[i] ^= 1
			if _, err := parsePayload(b); err == nil {
				t.Errorf("size %d: byte %d changed and not noticed", size, i)
			}
			b[i] ^= 1
		}
	}
}

func ExampleRun() {
	_, err := Run(context.Background(), Config{})
	fmt.Println(err)
	// Output: checker: no broker address
}

// A client that was refused goes elsewhere; one that has just been served may
// come back.
func TestClientGoesElsewhere(t *testing.T) {
	c := &client{cfg: &Config{Addrs: []string{"a", "b", "c"}}, rng: rand.New(rand.NewPCG(1, 2))}
	seen := make(map[string]int)
	for range 300 {
		seen[c.choose()]++
	}
	if len(seen) != 3 {
		t.Errorf("of three addresses these were taken: %v", seen)
	}
	c.avoid = "b"
	clear(seen)
	for range 300 {
		seen[c.choose()]++
	}
	if len(seen) != 2 || seen["b"] != 0 || seen["a"] < 60 || seen["c"] < 60 {
		t.Errorf("after b has refused: %v", seen)
	}
	c.cfg.Addrs = []string{"b"}
	if got := c.choose(); got != "b" {
		t.Errorf("the only address is not tried again, but %q", got)
	}
}
