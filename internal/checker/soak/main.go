// Command soak runs the delivery checker for a long time against a Herald
// node that it builds, starts, kills with SIGKILL and starts again, or against
// brokers that run already. It prints the seed, a line every ten seconds, and
// a report; the exit status is 1 if the promise was broken, 2 if the command
// line is wrong, 3 if the run could not be carried out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/herald-mqtt/herald/internal/checker"
)

// options are what the command line says beyond the checker's own Config.
type options struct {
	binary, addrs, dir, extra, report string
	killEvery, down                   time.Duration
	keep                              bool
}

func main() {
	var cfg checker.Config
	var o options
	flag.DurationVar(&cfg.For, "for", 10*time.Minute, "how long to publish")
	flag.DurationVar(&o.killEvery, "kill-every", 4*time.Second, "mean time between SIGKILLs; 0: none")
	flag.DurationVar(&o.down, "down", 0, "how long a killed node stays away")
	flag.Float64Var(&cfg.Rate, "rate", 2000, "publishes per second of all publishers together; 0: as fast as they can")
	flag.Uint64Var(&cfg.Seed, "seed", 0, "seed of what is random; 0: another one each time")
	flag.IntVar(&cfg.QoS1Publishers, "pub1", 2, "publishers at QoS 1")
	flag.IntVar(&cfg.QoS2Publishers, "pub2", 2, "publishers at QoS 2")
	flag.IntVar(&cfg.MixedPublishers, "pubmix", 2, "publishers at both")
	flag.IntVar(&cfg.QoS1Subscribers, "sub1", 4, "subscribers at QoS 1")
	flag.IntVar(&cfg.QoS2Subscribers, "sub2", 4, "subscribers at QoS 2")
	flag.IntVar(&cfg.Both, "both", 2, "sessions that publish and subscribe")
	flag.IntVar(&cfg.Members, "members", 0, "members of a shared group")
	flag.IntVar(&cfg.Joiners, "joiners", 2, "subscribers that join while publishing goes on")
	flag.IntVar(&cfg.Topics, "topics", 4, "topics")
	flag.IntVar(&cfg.Window, "window", 64, "publishes in flight per publisher")
	flag.IntVar(&cfg.Size, "size", 64, "bytes of a payload")
	flag.DurationVar(&cfg.DropEvery, "drop-every", time.Second, "mean time until a subscriber breaks its connection; negative: never")
	flag.DurationVar(&cfg.PublisherDropEvery, "publisher-drop-every", 5*time.Second, "the same for publishers")
	flag.DurationVar(&cfg.Drain, "drain", 5*time.Minute, "how long to wait at most until everything has arrived")
	flag.DurationVar(&cfg.Quiet, "quiet", 10*time.Second, "how long nothing may arrive before waiting ends")
	flag.StringVar(&o.binary, "binary", "", "herald binary; empty: build it")
	flag.StringVar(&o.addrs, "addrs", "", "MQTT addresses of brokers that run already, separated by commas; nothing is started or killed")
	flag.StringVar(&o.dir, "dir", "", "folder for configuration and data; empty: a temporary one")
	flag.BoolVar(&o.keep, "keep", false, "keep a temporary folder")
	flag.StringVar(&o.extra, "config", "", "file with YAML that is appended to the node's configuration")
	flag.StringVar(&o.report, "json", "", "file for the report as JSON")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "soak: unexpected argument", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg.Log = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	report, err := soak(ctx, cfg, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(3)
	}
	fmt.Println(report)
	if err := report.Err(); err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
	fmt.Println("PASSED")
}

// soak starts what is to be started and runs the checker.
func soak(ctx context.Context, cfg checker.Config, o options) (report *checker.Report, err error) {
	if o.addrs != "" {
		cfg.Addrs = strings.Split(o.addrs, ",")
	} else {
		node, done, err := start(ctx, &o)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, done()) }()
		cfg.Addrs, cfg.Processes = []string{node.Addr}, []*checker.Process{node}
		if o.killEvery > 0 {
			cfg.Faults = []checker.Fault{checker.Kill{Processes: cfg.Processes, Down: o.down}}
			cfg.FaultEvery = o.killEvery
		}
	}
	report, err = checker.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if o.report != "" {
		text, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(o.report, append(text, '\n'), 0o644); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// start builds and starts a node; done stops it and removes what it left.
func start(ctx context.Context, o *options) (node *checker.Process, done func() error, err error) {
	clean := func() error { return nil }
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "herald-soak-"); err != nil {
			return nil, nil, err
		}
		if !o.keep {
			clean = func() error { return os.RemoveAll(o.dir) }
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clean())
		}
	}()
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return nil, nil, err
	}
	if o.binary == "" {
		if o.binary, err = checker.Build(ctx, o.dir); err != nil {
			return nil, nil, err
		}
	}
	extra := ""
	if o.extra != "" {
		text, err := os.ReadFile(o.extra)
		if err != nil {
			return nil, nil, err
		}
		extra = string(text)
	}
	log, err := os.Create(filepath.Join(o.dir, "node.log"))
	if err != nil {
		return nil, nil, err
	}
	node, err = checker.Herald(o.binary, o.dir, extra, io.Writer(log))
	if err == nil {
		err = node.Start(ctx)
	}
	if err != nil {
		log.Close()
		return nil, nil, err
	}
	fmt.Printf("soak: node on %s, data and log in %s\n", node.Addr, o.dir)
	return node, func() error { return errors.Join(node.Stop(), log.Close(), clean()) }, nil
}
