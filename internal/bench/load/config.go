//go:build linux

package load

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Limits of a Config.
const (
	// MinPayload is the least payload in bytes: magic and publisher,
	// sequence, time.
	MinPayload = 24
	// MaxPayload keeps a frame well inside one read buffer.
	MaxPayload = 64 << 10
	// MaxWindow keeps the packet identifiers of a window apart.
	MaxWindow = 32 << 10
)

// Config describes one run against one broker. Publisher i publishes to topic
// i mod Topics, subscriber j subscribes to topic j mod Topics.
type Config struct {
	Target   string // host:port of the broker, TCP
	From     string // host:port at which publishers connect; empty: Target
	Protocol byte   // 4 (MQTT 3.1.1, the default) or 5
	QoS      byte   // of publishes and subscriptions

	Publishers  int
	Subscribers int
	Topics      int // at most Publishers and at most Subscribers

	Payload int     // bytes per message, default 64
	Window  int     // messages outstanding per publisher, default 1000
	Rate    float64 // messages published per second by all publishers; 0: as fast as Window allows
	Durable bool    // sessions outlive their connection (clean session 0); removed after the run

	Warmup   time.Duration // before the measured interval
	Duration time.Duration // of the measured interval
	Count    int           // messages per publisher instead of Warmup and Duration; 0: by time
	Stall    time.Duration // without progress for this long the run ends, default 5 s

	Threads int    // event loops, default 1; a topic stays with one loop
	Prefix  string // of topics and client identifiers, default "bench"

	// Part, when set, says which of the two histograms of Result.Latency
	// takes a delivery: 0 or 1. It may change during the run.
	Part *atomic.Int32

	// Measure, when set, is called when the measured interval begins and
	// when it ends, from the goroutine that called Run.
	Measure func(begin bool)
}

func (c *Config) complete() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Publishers, 1)
	def(&c.Subscribers, 1)
	def(&c.Topics, 1)
	def(&c.Payload, 64)
	def(&c.Window, 1000)
	def(&c.Threads, 1)
	if c.From == "" {
		c.From = c.Target
	}
	if c.Protocol == 0 {
		c.Protocol = 4
	}
	if c.Stall == 0 {
		c.Stall = 5 * time.Second
	}
	if c.Prefix == "" {
		c.Prefix = "bench"
	}
	if c.Duration == 0 && c.Count == 0 {
		c.Duration = 5 * time.Second
	}
	switch {
	case c.Target == "":
		return errors.New("no target")
	case c.Protocol != 4 && c.Protocol != 5:
		return fmt.Errorf("protocol %d: 4 or 5", c.Protocol)
	case c.QoS > 2:
		return fmt.Errorf("QoS %d: 0, 1 or 2", c.QoS)
	case c.Publishers < 1 || c.Subscribers < 1 || c.Publishers > 1<<16 || c.Subscribers > 1<<16:
		return errors.New("publishers and subscribers: 1 to 65536")
	case c.Topics < 1 || c.Topics > c.Publishers || c.Topics > c.Subscribers:
		return errors.New("topics: at least one, at most one per publisher and per subscriber")
	case c.Payload < MinPayload || c.Payload > MaxPayload:
		return fmt.Errorf("payload %d: %d to %d bytes", c.Payload, MinPayload, MaxPayload)
	case c.Window < 1 || c.Window > MaxWindow:
		return fmt.Errorf("window %d: 1 to %d", c.Window, MaxWindow)
	case c.Rate < 0 || c.Duration < 0 || c.Warmup < 0 || c.Count < 0 || c.Stall < 0:
		return errors.New("rate, durations and count cannot be negative")
	case c.Threads < 1:
		return errors.New("threads: at least one")
	case len(c.Prefix) > 64:
		return errors.New("prefix: at most 64 bytes")
	}
	return nil
}

// Result is what a run saw. Counters without "Interval" cover the whole run,
// warm-up and drain included.
type Result struct {
	Published  uint64 // messages sent by all publishers
	Delivered  uint64 // distinct messages received, summed over subscribers
	Lost       uint64 // due to a subscriber and not received when the run ended
	Duplicates uint64 // received again (allowed at QoS 1 only)
	Reordered  uint64 // received after a later one of the same publisher
	WrongQoS   uint64 // received at another QoS than the subscription's
	Foreign    uint64 // received and not of this run
	BadAcks    uint64 // acknowledgements for nothing outstanding, or with an error code

	Interval          time.Duration // measured
	IntervalDelivered uint64        // delivered in it
	IntervalPublished uint64
	// Latency of the deliveries in the interval: the first, or by Config.Part.
	Latency [2]Histogram
}

// PerSecond is the rate of deliveries in the measured interval.
func (r *Result) PerSecond() float64 {
	if r.Interval <= 0 {
		return 0
	}
	return float64(r.IntervalDelivered) / r.Interval.Seconds()
}

// StallError ends a run in which no message and no acknowledgement moved for
// Config.Stall although some were outstanding.
type StallError struct {
	Lost    uint64 // deliveries missing
	Unacked uint64 // publishes whose handshake is not complete
}

func (e *StallError) Error() string {
	return fmt.Sprintf("stalled: %d lost, %d unacknowledged", e.Lost, e.Unacked)
}
