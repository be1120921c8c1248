//go:build linux

// Command cluster measures what it costs a message to cross from one node of a
// cluster to another. It starts three Cassandra servers, Redis and two nodes, and
// beside them two mosquittos joined by mosquitto's own bridge; runs the same load
// through all of them, interleaved; and says of each figure whether it is met. The
// CPU of two brokers is that of both. Package bench says how it is measured.
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
	"syscall"

	"github.com/herald-mqtt/herald/internal/bench"
	"github.com/herald-mqtt/herald/internal/bench/peer"
	"github.com/herald-mqtt/herald/internal/clustertest"
)

// options are the command line.
type options struct {
	rows, binary, dir, json, profile string
	databases, rounds                int
	short                            bool
}

func main() {
	var o options
	flag.StringVar(&o.rows, "rows", "", "figures, separated by commas; empty: all")
	flag.StringVar(&o.binary, "binary", "", "herald binary; empty: it is built")
	flag.StringVar(&o.dir, "dir", "", "folder for data and logs; empty: one that is removed at the end")
	flag.StringVar(&o.json, "json", "", "also write the outcome to this file")
	flag.StringVar(&o.profile, "profile", "", "folder for CPU profiles of both nodes, one each per figure")
	flag.IntVar(&o.databases, "databases", 3, "Cassandra servers, 1 or 3")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each figure; the medians count")
	flag.BoolVar(&o.short, "short", false, "shorter runs, for a look")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "cluster: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	figures, err := selectFigures(o.rows)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, figures); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// run starts everything, measures, prints and stops everything.
func run(ctx context.Context, o options, figures []figure) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "herald-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	} else if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	for _, dir := range []string{o.dir, o.profile} {
		if dir != "" {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
	}
	mosquitto, err := peer.Find(peer.Mosquitto, "")
	if err != nil {
		return err
	}
	box := clustertest.Options{
		Brokers: 2, Databases: o.databases, Binary: o.binary, Dir: filepath.Join(o.dir, "cluster"), Direct: true,
		Extra: "log: {level: error}\n", Log: say,
	}
	if o.profile != "" {
		box.Env = []string{"HERALD_ADMIN__PPROF=true"}
	}
	if err := os.MkdirAll(box.Dir, 0o700); err != nil {
		return err
	}
	say("starting %d database servers, Redis and two nodes", o.databases)
	c, err := clustertest.Launch(ctx, box)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	b := &bed{cluster: c, mosquitto: mosquitto, dir: filepath.Join(o.dir, "peers"), options: o}
	for _, f := range figures {
		report := b.measure(ctx, f)
		if err := ctx.Err(); err != nil {
			return err
		}
		b.reports = append(b.reports, report)
		report.print(os.Stdout)
	}
	b.summary(os.Stdout)
	if err := b.write(o.json); err != nil {
		return err
	}
	for _, r := range b.reports {
		for _, v := range r.Verdicts {
			if v.Got == nil {
				err = errors.Join(err, fmt.Errorf("%s was not measured", r.Name))
			}
		}
	}
	return err
}

func (b *bed) write(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(b.reports, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// say tells what goes on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// way is where a message goes, from one broker to one.
type way string

const (
	across  way = "two nodes"
	within  way = "one node"
	bridged way = "two mosquittos"
)

// report is what came of a figure.
type report struct {
	Name     string                `json:"name"`
	Title    string                `json:"title"`
	Unit     string                `json:"unit"`
	Outcomes map[way]bench.Outcome `json:"outcomes"`
	Verdicts []bench.Verdict       `json:"verdicts"`
	Notes    []string              `json:"notes,omitempty"`

	ways []way
}
