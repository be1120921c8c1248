package broker

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/herald-mqtt/herald/persistence/pebble"
)

// register makes the node's numbers metrics. They are read when somebody asks;
// counting costs the path of a message nothing more than $SYS does. No label
// holds anything that a client chose.
func (b *Broker) register() {
	b.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{b: b},
	)
}

type collector struct{ b *Broker }

// Describe implements prometheus.Collector; an unchecked one.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	one := func(kind prometheus.ValueType, name, help string, v float64) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("herald_"+name, help, nil, nil), kind, v)
	}
	count := func(name, help string, v int64) { one(prometheus.CounterValue, name, help, float64(v)) }
	gauge := func(name, help string, v int64) { one(prometheus.GaugeValue, name, help, float64(v)) }

	s := c.b.engine.Stats()
	byQoS := prometheus.NewDesc("herald_messages_received_total", "Messages that clients published.", []string{"qos"}, nil)
	for q := range s.ReceivedByQoS {
		out <- prometheus.MustNewConstMetric(byQoS, prometheus.CounterValue, float64(s.ReceivedByQoS[q].Load()), string(rune('0'+q)))
	}
	count("messages_sent_total", "PUBLISH packets sent to clients.", s.Sent.Load())
	dropped := prometheus.NewDesc("herald_messages_dropped_total", "Messages that were not delivered.", []string{"reason"}, nil)
	for reason, v := range map[string]int64{
		"slow_qos0": s.DroppedQoS0.Load(), "expired": s.Expired.Load(), "too_large": s.TooLarge.Load(), "queue_full": s.QueueFull.Load(),
	} {
		out <- prometheus.MustNewConstMetric(dropped, prometheus.CounterValue, float64(v), reason)
	}
	count("commits_total", "Batches handed to the store.", s.Commits.Load())
	count("commit_errors_total", "Batches that the store did not take.", s.CommitErrors.Load())
	count("qos2_duplicates_total", "QoS 2 PUBLISH packets that were sent again and not delivered again.", s.Duplicates.Load())
	count("takeovers_total", "Connections that another one of the same client replaced.", s.TakeOvers.Load())
	count("wills_total", "Wills published.", s.Wills.Load())
	if c.b.cluster != nil {
		count("bad_frames_total", "Frames and announcements of other nodes that could not be decoded.", s.BadFrames.Load())
		count("forwarded_total", "Messages that other nodes have sent.", s.Forwarded.Load())
		count("sent_elsewhere_total", "Clients that were told to go to another node.", c.b.drain.sent.Load())
	}
	count("protocol_errors_total", "Connections closed because of what they sent.", s.Rejected.Load())
	count("subscriptions_refused_total", "Filters refused because their client had too many.", s.OverSubscribed.Load())
	count("banned_total", "CONNECT packets refused because of a ban.", s.Banned.Load())
	count("ban_disconnects_total", "Connections ended because of a ban.", s.BanEnded.Load())
	count("bans_unreadable_total", "Bans that could not be decoded, each time that they were read.", s.BansUnreadable.Load())
	count("ban_read_errors_total", "Readings of the list of bans that failed.", s.BanReadErrors.Load())
	g := c.b.engine.Gauges()
	gauge("clients", "Clients connected.", int64(g.Clients))
	gauge("sessions", "Sessions with subscriptions, or connected.", int64(g.Sessions))
	gauge("subscriptions", "Subscriptions.", int64(g.Subscriptions))
	gauge("filters", "Topic filters subscribed to.", int64(g.Filters))
	gauge("bans", "Bans in force.", int64(g.Bans))
	gauge("retained_messages", "Retained messages.", c.b.store.RetainedCount())

	l := c.b.loop.Stats()
	gauge("connections", "Open connections.", l.Connections)
	count("connections_accepted_total", "Connections accepted.", l.Accepted)
	count("connections_refused_total", "Connections over a listener's bound.", l.Refused)
	count("received_bytes_total", "Bytes read from clients.", l.BytesIn)
	count("sent_bytes_total", "Bytes written to clients.", l.BytesOut)
	count("reads_total", "Read system calls.", l.Reads)
	count("writes_total", "Write system calls.", l.Writes)
	gauge("pending_output_bytes", "Bytes that wait to be written to clients.", l.Pending)
	count("slow_connections_total", "Connections ended because too much waited to be written on all of them.", l.Slow)
	count("panics_total", "Panics that ended one connection.", l.Panics+s.Panics.Load())

	if p, ok := c.b.store.(*pebble.Store); ok {
		c.store(p.Stats(), out, count, gauge)
	}
}

func (c *collector) store(s pebble.Stats, out chan<- prometheus.Metric, count, gauge func(string, string, int64)) {
	count("store_groups_total", "Records written to the journal, one fsync each.", s.Groups)
	count("store_journal_bytes_total", "Bytes written to the journal.", s.JournalBytes)
	gauge("store_tail_entries", "Queue entries in memory.", s.TailEntries)
	count("store_spilled_total", "Queue entries written to the database.", s.Spilled)
	gauge("store_bytes", "Bytes on disk.", int64(s.DatabaseBytes))
	gauge("store_segments", "Sealed journal segments.", s.Segments)
	buckets := make(map[float64]uint64)
	var n uint64
	for i, k := range s.SyncHistogram {
		if n += uint64(k); i >= 4 && i <= 24 {
			buckets[math.Ldexp(1e-6, i)] = n
		}
	}
	desc := prometheus.NewDesc("herald_store_sync_seconds", "Time to write and sync one journal record.", nil, nil)
	out <- prometheus.MustNewConstHistogram(desc, n, s.SyncTotal.Seconds(), buckets)
}
