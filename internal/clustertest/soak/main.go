// Command soak runs the delivery checker against a cluster that it starts, under
// one fault after the other, and prints a table of what came out. Its exit status
// is 1 if the promise was broken, 2 if the command line is wrong, 3 if a run could
// not be carried out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/herald-mqtt/herald/internal/checker"
	"github.com/herald-mqtt/herald/internal/clustertest"
)

// options are what the command line says beyond the checker's own Config.
type options struct {
	box               clustertest.Options
	faults, dir, json string
	keep              bool
	atLeast           float64
}

// result is one line of the table.
type result struct {
	Fault  string          `json:"fault"`
	Report *checker.Report `json:"report,omitempty"`
	Failed string          `json:"failed,omitempty"`
}

func main() {
	cfg := checker.Config{
		QoS1Publishers: 3, QoS2Publishers: 3, MixedPublishers: 2, QoS1Subscribers: 4, QoS2Subscribers: 4,
		Log: func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
	}
	o := options{box: clustertest.Options{Log: cfg.Log}}
	flag.StringVar(&o.faults, "faults", strings.Join(clustertest.FaultNames, ","), "faults, separated by commas; with + between: these together, one at a time at random")
	flag.DurationVar(&cfg.For, "for", time.Minute, "how long to publish under each fault")
	flag.DurationVar(&cfg.FaultEvery, "every", 5*time.Second, "mean time between one fault's end and the next")
	flag.Float64Var(&cfg.Rate, "rate", 2500, "publishes per second of all publishers together; 0: as fast as they can")
	flag.Float64Var(&o.atLeast, "at-least", 0, "acknowledged publishes per second below which a run without a fault has failed")
	flag.Uint64Var(&cfg.Seed, "seed", 0, "seed of what is random; 0: another one each time")
	flag.IntVar(&o.box.Brokers, "brokers", 3, "brokers")
	flag.IntVar(&cfg.Topics, "topics", 4, "topics")
	flag.BoolVar(&cfg.Narrow, "narrow", true, "each subscriber takes only some topics; false: most take all")
	flag.IntVar(&cfg.Window, "window", 64, "publishes in flight per publisher")
	flag.IntVar(&cfg.Both, "both", 0, "sessions that publish and subscribe")
	flag.IntVar(&cfg.Members, "members", 0, "members of a shared group")
	flag.IntVar(&cfg.Joiners, "joiners", 0, "subscribers that join while publishing goes on")
	flag.DurationVar(&cfg.DropEvery, "drop-every", time.Second, "mean time until a subscriber breaks its connection; negative: never")
	flag.DurationVar(&cfg.Drain, "drain", 3*time.Minute, "how long to wait at most until everything has arrived")
	flag.DurationVar(&cfg.Quiet, "quiet", 20*time.Second, "how long nothing may arrive before waiting ends")
	flag.StringVar(&o.box.Binary, "binary", "", "herald binary; empty: build it")
	flag.StringVar(&o.dir, "dir", "", "folder for configuration, data and logs; empty: a temporary one")
	flag.BoolVar(&o.keep, "keep", false, "keep a temporary folder")
	flag.StringVar(&o.json, "json", "", "file for the reports as JSON")
	flag.Parse()
	faults := strings.Split(o.faults, ",")
	for _, name := range faults {
		if err := known(name); err != nil || flag.NArg() > 0 {
			fmt.Fprintln(os.Stderr, "soak:", errors.Join(err, unexpected(flag.Args())))
			os.Exit(2)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results, err := soak(ctx, cfg, &o, faults)
	failed := table(results)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(3)
	}
	if failed {
		fmt.Println("FAILED")
		os.Exit(1)
	}
	fmt.Println("PASSED")
}

func known(faults string) error {
	for _, name := range strings.Split(faults, "+") {
		if _, err := new(clustertest.Cluster).Fault(name); err != nil && !errors.Is(err, clustertest.ErrNoRedis) {
			return err
		}
	}
	return nil
}

func unexpected(args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("unexpected argument %q", args[0])
}

// soak runs the checker once for each fault, each time with a new cluster.
func soak(ctx context.Context, cfg checker.Config, o *options, faults []string) (results []result, err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "herald-soak-"); err != nil {
			return nil, err
		}
		if !o.keep {
			defer os.RemoveAll(o.dir)
		}
	}
	if o.box.Binary == "" {
		if o.box.Binary, err = clustertest.Binary(ctx, o.dir); err != nil {
			return nil, err
		}
	}
	for _, fault := range faults {
		if ctx.Err() != nil {
			break
		}
		report, err := under(ctx, cfg, o, fault)
		r := result{Fault: fault, Report: report}
		if report != nil {
			fmt.Printf("%s: %v\n", fault, report)
			err = errors.Join(err, report.Err())
			if fault == clustertest.NoFault && report.Rate < o.atLeast {
				err = errors.Join(err, fmt.Errorf("%.0f publishes/s, %.0f are asked", report.Rate, o.atLeast))
			}
		}
		if err != nil {
			r.Failed = err.Error()
			fmt.Printf("%s: FAILED: %v\n", fault, err)
		}
		if results = append(results, r); report == nil {
			return results, err
		}
	}
	if o.json == "" {
		return results, nil
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return results, err
	}
	return results, os.WriteFile(o.json, append(text, '\n'), 0o644)
}

// under runs the checker under one fault, or several joined by +. No report: it
// could not be carried out.
func under(ctx context.Context, cfg checker.Config, o *options, fault string) (*checker.Report, error) {
	box := o.box
	box.Dir = filepath.Join(o.dir, fault)
	if err := os.MkdirAll(box.Dir, 0o700); err != nil {
		return nil, err
	}
	names := strings.Split(fault, "+")
	for _, name := range names {
		clustertest.Needs(name, &box)
	}
	fmt.Printf("%s: starting %d brokers; logs in %s\n", fault, box.Brokers, box.Dir)
	c, err := clustertest.Launch(ctx, box)
	if err != nil {
		return nil, err
	}
	report, err := c.Check(ctx, cfg, names...)
	return report, errors.Join(err, c.Stop())
}

// table prints the results and tells whether one of them is bad.
func table(results []result) (failed bool) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\tfaults\tacknowledged/s\tlost\treordered\tforgotten\tduplicates at QoS 2\tlongest pause\t")
	for _, r := range results {
		failed = failed || r.Failed != ""
		if r.Report == nil {
			fmt.Fprintf(w, "%s\tnot carried out\t\t\t\t\t\t\t\n", r.Fault)
			continue
		}
		n := 0
		for _, times := range r.Report.Faults {
			n += times
		}
		verdict := ""
		if r.Failed != "" {
			verdict = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%d\t%d\t%d\t%d\t%.1f s\t%s\n", r.Fault, n, r.Report.Rate, r.Report.Lost.Count,
			r.Report.Reordered.Count, r.Report.Forgotten.Count, r.Report.Duplicated.Count,
			time.Duration(r.Report.LongestPause).Seconds(), verdict)
	}
	_ = w.Flush() // to the terminal
	return failed
}
