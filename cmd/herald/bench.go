//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/herald-mqtt/herald/internal/bench"
	"github.com/herald-mqtt/herald/internal/bench/load"
)

// benchFlags is the command line of herald bench.
type benchFlags struct {
	target, scenario string
	pid              int
	qos              uint8
	v5               bool
	config           load.Config

	all, list bool
	json      string
	options   bench.Options
}

func newBenchCommand() *cobra.Command {
	b := &benchFlags{}
	cmd := &cobra.Command{
		Use:   "bench (--target HOST:PORT [--scenario NAME] | --all | --list)",
		Short: "Measure a broker, or Herald beside its peers",
		Long: `Bench puts load on a broker that is running (--target) and prints deliveries per
second and latency: a named scenario (--list), or one of your own. It is a closed
loop: a publisher has at most --window messages outstanding until subscribers have
received them, so a broker gains nothing by dropping.

With --all it starts Herald and the peers that it finds (mosquitto, nats-server,
rumqttd) in turn and prints the table of figures; "make bench" installs the peers
first.`,
		Example: "  herald bench --target 127.0.0.1:1883 --scenario qos1-4-4\n" +
			"  herald bench --target 127.0.0.1:1883 --qos 1 --publishers 10 --subscribers 10 --topics 10 --rate 1000\n" +
			"  herald bench --all --rows qos0-4-4,qos1-4-4 --short",
		Args: exactly(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			switch {
			case b.list:
				return b.printList(cmd.OutOrStdout())
			case b.all && b.target != "":
				return usage("bench: either --all or --target")
			case b.all:
				return b.table(ctx, cmd)
			case b.target != "":
				return b.one(ctx, cmd)
			}
			return usage("bench: wants --target, --all or --list")
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&b.target, "target", "", "measure the broker at `HOST:PORT`")
	f.StringVar(&b.scenario, "scenario", "", "`NAME` of a scenario; the flags below change it")
	f.Uint8Var(&b.qos, "qos", 0, "QoS of publishes and subscriptions")
	f.IntVar(&b.config.Publishers, "publishers", 1, "how many publish")
	f.IntVar(&b.config.Subscribers, "subscribers", 1, "how many subscribe")
	f.IntVar(&b.config.Topics, "topics", 1, "publisher i and subscriber i use topic i modulo this")
	f.IntVar(&b.config.Payload, "payload", 64, "bytes per message, from 24")
	f.IntVar(&b.config.Window, "window", 1000, "messages outstanding per publisher")
	f.Float64Var(&b.config.Rate, "rate", 0, "messages per second in all; 0: as fast as the window allows")
	f.BoolVar(&b.config.Durable, "durable", false, "sessions that outlive their connection")
	f.BoolVar(&b.v5, "mqtt5", false, "MQTT 5 instead of 3.1.1")
	f.DurationVar(&b.config.Warmup, "warmup", 0, "before the measured interval")
	f.DurationVar(&b.config.Duration, "duration", 0, "of the measured interval (default 5s)")
	f.IntVar(&b.config.Count, "count", 0, "messages per publisher, instead of warmup and duration")
	f.DurationVar(&b.config.Stall, "stall", 0, "give up after this long without progress (default 5s)")
	f.IntVar(&b.config.Threads, "threads", 1, "threads of the load generator")
	f.IntVar(&b.pid, "pid", 0, "process of the broker, to tell its CPU per message")
	f.BoolVar(&b.all, "all", false, "run the table: Herald and its peers")
	f.StringSliceVar(&b.options.Rows, "rows", nil, "only these rows of the table")
	f.StringSliceVar(&b.options.Peers, "peers", nil, "only these peers")
	f.IntVar(&b.options.Rounds, "rounds", 3, "rounds of each row; the medians count")
	f.BoolVar(&b.options.Short, "short", false, "less of everything, for a look")
	f.StringVar(&b.options.Herald, "herald", "", "Herald's `PROGRAM` (default: this one)")
	f.StringVar(&b.options.Dir, "dir", filepath.Join(".cache", "bench"), "`FOLDER` for the brokers' data while they run")
	f.StringVar(&b.options.Cache, "cache", filepath.Join(".cache", "peers"), "`FOLDER` with bin/nats-server and bin/rumqttd")
	f.BoolVar(&b.list, "list", false, "list scenarios and rows")
	f.StringVar(&b.json, "json", "", "also write the outcome to `FILE` as JSON")
	return cmd
}

func (b *benchFlags) printList(w io.Writer) error {
	for _, r := range bench.Rows() {
		kind := "scenario, row"
		if _, ok := r.Load(); !ok {
			kind = "row"
		}
		if _, err := fmt.Fprintf(w, "%-18s %-14s %s\n", r.Name, kind, r.Title); err != nil {
			return err
		}
	}
	return nil
}

// one measures the broker at --target.
func (b *benchFlags) one(ctx context.Context, cmd *cobra.Command) error {
	c, err := b.load(cmd)
	if err != nil {
		return err
	}
	sample, result, err := bench.Measure(ctx, c, b.pid)
	if result != nil {
		if printErr := bench.PrintSample(cmd.OutOrStdout(), sample, result); printErr != nil {
			return printErr
		}
		if jsonErr := writeJSON(b.json, sample); jsonErr != nil {
			return jsonErr
		}
	}
	return err
}

// load is the scenario with what flags were given on top.
func (b *benchFlags) load(cmd *cobra.Command) (load.Config, error) {
	c := b.config
	if b.scenario != "" {
		rows, err := bench.Select([]string{b.scenario})
		if err != nil {
			return c, usage("bench: %v", err)
		}
		preset, ok := rows[0].Load()
		if !ok {
			return c, usage("bench: %s is a row of --all, not a scenario", b.scenario)
		}
		c = overlay(cmd, preset, b.config)
	}
	if b.scenario == "" || cmd.Flags().Changed("qos") {
		c.QoS = b.qos
	}
	if b.v5 {
		c.Protocol = 5
	}
	c.Target = b.target
	return c, nil
}

// overlay puts the flags that were given on top of a preset.
func overlay(cmd *cobra.Command, preset, given load.Config) load.Config {
	for name, set := range map[string]func(){
		"publishers":  func() { preset.Publishers = given.Publishers },
		"subscribers": func() { preset.Subscribers = given.Subscribers },
		"topics":      func() { preset.Topics = given.Topics },
		"payload":     func() { preset.Payload = given.Payload },
		"window":      func() { preset.Window = given.Window },
		"rate":        func() { preset.Rate = given.Rate },
		"durable":     func() { preset.Durable = given.Durable },
		"warmup":      func() { preset.Warmup = given.Warmup },
		"duration":    func() { preset.Duration = given.Duration },
		"count":       func() { preset.Count = given.Count },
		"stall":       func() { preset.Stall = given.Stall },
		"threads":     func() { preset.Threads = given.Threads },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	return preset
}

// table runs --all.
func (b *benchFlags) table(ctx context.Context, cmd *cobra.Command) error {
	out, errs := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if _, err := bench.Select(b.options.Rows); err != nil {
		return usage("bench: %v", err)
	}
	if b.options.Herald == "" {
		own, err := os.Executable()
		if err != nil {
			return err
		}
		b.options.Herald = own
	}
	var printErr error
	b.options.Progress = func(line string) { fmt.Fprintln(errs, line) }
	b.options.Done = func(r bench.RowReport) { printErr = errors.Join(printErr, r.Print(out)) }
	report, err := bench.Run(ctx, b.options)
	if report == nil {
		return err
	}
	printErr = errors.Join(printErr, report.Print(out), writeJSON(b.json, report))
	if err == nil {
		err = printErr
	}
	if failed := report.HeraldFailed(); err == nil && len(failed) > 0 {
		err = fmt.Errorf("bench: Herald failed in %s", strings.Join(failed, ", "))
	}
	return err
}

func writeJSON(file string, v any) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
