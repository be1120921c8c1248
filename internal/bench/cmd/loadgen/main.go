//go:build linux

// Command loadgen runs one load against one broker that is already running.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/proc"
)

func main() {
	var c load.Config
	flag.StringVar(&c.Target, "target", "127.0.0.1:1883", "broker")
	qos := flag.Int("qos", 0, "QoS")
	v5 := flag.Bool("5", false, "MQTT 5")
	flag.IntVar(&c.Publishers, "pubs", 4, "publishers")
	flag.IntVar(&c.Subscribers, "subs", 4, "subscribers")
	flag.IntVar(&c.Topics, "topics", 4, "topics")
	flag.IntVar(&c.Payload, "payload", 64, "bytes")
	flag.IntVar(&c.Window, "window", 1000, "outstanding per publisher")
	flag.Float64Var(&c.Rate, "rate", 0, "messages per second, 0: closed loop")
	flag.BoolVar(&c.Durable, "durable", false, "durable sessions")
	flag.DurationVar(&c.Warmup, "warmup", time.Second, "")
	flag.DurationVar(&c.Duration, "duration", 5*time.Second, "")
	flag.IntVar(&c.Count, "count", 0, "messages per publisher")
	flag.IntVar(&c.Threads, "threads", 1, "event loops")
	pid := flag.Int("pid", 0, "broker process, for CPU")
	flag.Parse()
	c.QoS = byte(*qos)
	if *v5 {
		c.Protocol = 5
	}
	var own, broker [2]time.Duration
	c.Measure = func(begin bool) {
		i := 1
		if begin {
			i = 0
		}
		own[i], _ = proc.CPU(os.Getpid())
		if *pid != 0 {
			broker[i], _ = proc.CPU(*pid)
		}
	}
	r, err := load.Run(context.Background(), c)
	if r != nil {
		n := float64(max(r.IntervalDelivered, 1))
		fmt.Printf("%.0f msg/s  generator %.2f cores  broker %.2f cores %.2f us/msg  p50 %v p99 %v max %v  lost %d dup %d reordered %d badacks %d wrongqos %d foreign %d\n",
			r.PerSecond(), (own[1]-own[0]).Seconds()/r.Interval.Seconds(),
			(broker[1]-broker[0]).Seconds()/r.Interval.Seconds(), (broker[1]-broker[0]).Seconds()*1e6/n,
			r.Latency.Quantile(.5), r.Latency.Quantile(.99), r.Latency.Max(), r.Lost, r.Duplicates, r.Reordered, r.BadAcks, r.WrongQoS, r.Foreign)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
