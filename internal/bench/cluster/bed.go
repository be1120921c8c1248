//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald/internal/bench"
	"github.com/herald-mqtt/herald/internal/bench/load"
	"github.com/herald-mqtt/herald/internal/bench/peer"
	"github.com/herald-mqtt/herald/internal/clustertest"
)

// bed is what the figures are measured on. The cluster stays up all the time, idle
// while the mosquittos have their turn; those are started for each run.
type bed struct {
	cluster   *clustertest.Cluster
	mosquitto peer.Peer
	dir       string
	options   options
	reports   []report
	again     int // runs that a node's lost lease ended
}

// measure runs the rounds of a figure. Where latencies are asked for, rounds in which
// other programs take part of the processors are run again, within reason, and the
// least disturbed ones count: the others tell how long a process waits for its turn.
func (b *bed) measure(ctx context.Context, f figure) report {
	r := report{Name: f.name, Title: f.title, Unit: f.unit, ways: f.ways}
	rounds, most := b.options.rounds, b.options.rounds
	if f.load.Rate > 0 {
		most = patience * rounds
	}
	var all []map[way]turn
	quiet := 0
	for n := range most {
		if ctx.Err() != nil || quiet >= rounds {
			break
		}
		round := make(map[way]turn)
		for _, w := range f.ways {
			s, err := b.once(ctx, &f, w)
			round[w] = turn{s, err}
			if err != nil {
				say("%s %d %s: %v", f.name, n+1, w, err)
			} else {
				say("%s %d %s: %s", f.name, n+1, w, bench.Describe(s, f.unit))
			}
		}
		all = append(all, round)
		if disturbed(round) < disturbance {
			quiet++
		}
	}
	if len(all) > rounds {
		r.note("%d rounds of %d count, those that other programs disturbed least", rounds, len(all))
	}
	r.Outcomes = outcomes(all, rounds)
	f.judge(&r)
	return r
}

// turn is what came of one run of one way.
type turn struct {
	sample bench.Sample
	err    error
}

const (
	// disturbance is how much of a processor others may have in a quiet round.
	disturbance = 0.25
	// patience is how many rounds are run at most for each that counts.
	patience = 4
)

// disturbed tells what other programs took of the processors in a round; a run that
// failed is as bad as can be.
func disturbed(round map[way]turn) (most float64) {
	for _, r := range round {
		if r.err != nil {
			return math.Inf(1)
		}
		most = max(most, r.sample.Extra["other_cores"])
	}
	return most
}

// outcomes sums up those n rounds that were disturbed least.
func outcomes(all []map[way]turn, n int) map[way]bench.Outcome {
	slices.SortStableFunc(all, func(a, b map[way]turn) int { return cmp.Compare(disturbed(a), disturbed(b)) })
	sums := make(map[way]bench.Outcome)
	for _, round := range all[:min(n, len(all))] {
		for w, r := range round {
			o := sums[w]
			o.Broker = string(w)
			if r.err != nil {
				o.Errors = append(o.Errors, r.err.Error())
			} else {
				o.Samples = append(o.Samples, r.sample)
			}
			sums[w] = o
		}
	}
	for w, o := range sums {
		o.Summarize()
		sums[w] = o
	}
	return sums
}

// once is one run of one round.
func (b *bed) once(ctx context.Context, f *figure, w way) (s bench.Sample, err error) {
	c := f.config(b.options.short)
	var pids []int
	var helpers map[string][]int
	switch w {
	case bridged:
		from, to, err := b.mosquitto.StartBridged(ctx, b.dir)
		if err != nil {
			return s, err
		}
		defer to.Stop()
		defer from.Stop()
		c.From, c.Target = from.Address, to.Address
		pids = []int{from.PID(), to.PID()}
	default:
		nodes := b.cluster.Nodes
		c.From, c.Target = nodes[0].Addr, nodes[1].Addr
		if w == within {
			c.Target = c.From
		}
		pids = []int{nodes[0].PID(), nodes[1].PID()}
		helpers = map[string][]int{"redis": {b.cluster.Redis.PID()}, "cassandra": b.cluster.Store.PIDs()}
	}
	var profiles errgroup.Group
	if b.options.profile != "" && w != bridged {
		b.profile(ctx, &profiles, f.name+"-"+strings.ReplaceAll(string(w), " ", "-"), c.Warmup+c.Duration)
	}
	var result *load.Result
	for range patience {
		if w != bridged {
			if err := b.cluster.Await(ctx); err != nil {
				return s, err
			}
		}
		// A node that gets no processor for longer than its lease closes everything
		// and refuses clients until it has begun a new life: that is no figure. (If
		// it has died, the next Await says so.) Whatever is lost or late is one.
		s, result, err = bench.MeasureAll(ctx, c, pids, helpers)
		if w == bridged || err == nil || result != nil && !errors.Is(err, load.ErrClosed) {
			break
		}
		b.again++
		say("%s %s: begun again: %v", f.name, w, err)
	}
	if perr := profiles.Wait(); perr != nil {
		say("profile: %v", perr)
	}
	if err != nil {
		return s, err
	}
	return s, f.value(&s, result)
}

// profile has both nodes write down where their time goes.
func (b *bed) profile(ctx context.Context, all *errgroup.Group, name string, d time.Duration) {
	for _, n := range b.cluster.Nodes {
		all.Go(func() error {
			url := "http://" + n.Admin() + "/debug/pprof/profile?seconds=" + strconv.Itoa(max(1, int(d.Seconds())))
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", url, resp.Status)
			}
			file, err := os.Create(filepath.Join(b.options.profile, name+"-"+n.Name+".pprof"))
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = io.Copy(file, resp.Body)
			return err
		})
	}
}

// print writes one figure.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s  [%s]\n", r.Title, r.Name)
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\t%s\tCPU µs/msg\tcores: brokers\tRedis\tdatabase\tgenerator\tothers\t\n", r.Unit)
	for _, way := range r.ways {
		o := r.Outcomes[way]
		if !o.OK {
			fmt.Fprintf(tw, "%s\t-\t-\t-\t-\t-\t-\t-\t\n", way)
			continue
		}
		x := o.Median.Extra
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", way, bench.Number(o.Median.Value), bench.Number(o.Median.CPU),
			x["broker_cores"], x["redis_cores"], x["cassandra_cores"], x["generator_cores"], x["other_cores"])
	}
	_ = tw.Flush() // to the terminal
	for _, way := range r.ways {
		for _, e := range r.Outcomes[way].Errors {
			fmt.Fprintf(w, "  %s: %s\n", way, e)
		}
	}
	for _, v := range r.Verdicts {
		fmt.Fprintf(w, "  %s\n", v)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
}

// summary writes the figures, a line each: met, MISSED, not measured, or only printed.
func (b *bed) summary(w io.Writer) {
	fmt.Fprintf(w, "\n%s; %d database servers; medians of %d rounds; CPU of all brokers together in µs per delivered message\n",
		b.mosquitto.Version, b.options.databases, b.options.rounds)
	if b.again > 0 {
		fmt.Fprintf(w, "%d runs were begun again: a node had lost its lease\n", b.again)
	}
	for i := range b.reports {
		r := &b.reports[i]
		for _, v := range r.Verdicts {
			fmt.Fprintf(w, "%s: %s\n", r.Name, v)
		}
		if len(r.Verdicts) == 0 {
			fmt.Fprintf(w, "%s: %s\n", r.Name, strings.Join(r.Notes, "; "))
		}
	}
}
