//go:build linux

package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/herald-mqtt/herald/internal/bench/load"
)

// Number prints a figure with three digits that count, thousands apart.
func Number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0:
		return "-" + Number(-v)
	case v < 1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Describe is a sample on one line.
func Describe(s Sample, unit string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", Number(s.Value), unit)
	if s.CPU > 0 {
		fmt.Fprintf(&b, ", CPU %s µs/msg", Number(s.CPU))
	}
	for _, k := range slices.Sorted(maps.Keys(s.Extra)) {
		fmt.Fprintf(&b, ", %s %s", k, Number(s.Extra[k]))
	}
	return b.String()
}

// Print writes one row: each broker with value, CPU and ratio to the best
// peer, then the goals.
func (r RowReport) Print(w io.Writer) error {
	fmt.Fprintf(w, "\n%s  [%s]\n", r.Title, r.Name)
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\t%s\tCPU µs/msg\t× best peer\t\n", r.Unit)
	bestValue := 0.0
	for _, o := range r.Outcomes {
		if o.Broker == r.Best {
			bestValue = o.Median.Value
		}
	}
	for _, o := range r.Outcomes {
		if !o.OK {
			fmt.Fprintf(tw, "%s\t-\t-\t-\t\n", o.Broker)
			continue
		}
		cpu, by := "-", "-"
		if o.Median.CPU > 0 {
			cpu = Number(o.Median.CPU)
		}
		if bestValue > 0 {
			by = strconv.FormatFloat(o.Median.Value/bestValue, 'f', 2, 64)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t\n", o.Broker, Number(o.Median.Value), cpu, by)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, o := range r.Outcomes {
		for _, e := range slices.Compact(slices.Clone(o.Errors)) {
			fmt.Fprintf(w, "  %s: %s\n", o.Broker, e)
		}
		if busy := o.Median.Extra["other_cores"]; o.OK && busy > 0.1 {
			fmt.Fprintf(w, "  %s: other programs took %.2f processors meanwhile\n", o.Broker, busy)
		}
	}
	for _, v := range r.Verdicts {
		if _, err := fmt.Fprintf(w, "  %s\n", v); err != nil {
			return err
		}
	}
	return nil
}

// String is a verdict in words.
func (v Verdict) String() string {
	switch {
	case v.Got == nil:
		return "not measured: " + v.Goal
	case v.Met:
		return fmt.Sprintf("met %s: %s", v.Goal, Number(*v.Got))
	}
	return fmt.Sprintf("MISSED %s: %s", v.Goal, Number(*v.Got))
}

// Print writes the summary: one line per row.
func (r *Report) Print(w io.Writer) error {
	fmt.Fprintf(w, "\n%d processors, %s; medians of %d rounds; CPU in µs per delivered message\n", r.Processors, r.System, r.Rounds)
	for _, b := range r.Brokers {
		fmt.Fprintf(w, "  %s: %s\n", b.Name, b.Version)
	}
	if len(r.Missing) > 0 {
		fmt.Fprintf(w, "  not found: %s\n", strings.Join(r.Missing, ", "))
	}
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "row\tunit\tHerald\tbest peer\t\tratio\tCPU\tits CPU\tgoals")
	for _, row := range r.Rows {
		var herald, peer Outcome
		for i, o := range row.Outcomes {
			if i == 0 {
				herald = o
			}
			if o.Broker == row.Best {
				peer = o
			}
		}
		var goals []string
		for _, v := range row.Verdicts {
			goals = append(goals, v.String())
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, row.Unit,
			shown(herald, herald.Median.Value), shown(peer, peer.Median.Value), row.Best,
			Number(row.Ratio), shown(herald, herald.Median.CPU), shown(peer, peer.Median.CPU), strings.Join(goals, "; "))
	}
	return tw.Flush()
}

func shown(o Outcome, v float64) string {
	if !o.OK || v == 0 {
		return "-"
	}
	return Number(v)
}

// PrintSample writes the outcome of one run against one broker.
func PrintSample(w io.Writer, s Sample, r *load.Result) error {
	_, err := fmt.Fprintf(w, `delivered    %s msg/s (%d in %.2f s; published %d)
latency      p50 %v  p99 %v  max %v
faults       lost %d  duplicates %d  reordered %d  wrong QoS %d  foreign %d  bad acknowledgements %d
generator    %.2f processors
`, Number(s.Value), r.IntervalDelivered, r.Interval.Seconds(), r.IntervalPublished,
		r.Latency[0].Quantile(0.5), r.Latency[0].Quantile(0.99), r.Latency[0].Max(),
		r.Lost, r.Duplicates, r.Reordered, r.WrongQoS, r.Foreign, r.BadAcks, s.Extra["generator_cores"])
	if err == nil && s.CPU > 0 {
		_, err = fmt.Fprintf(w, "broker       %.2f processors, %s µs per message\n", s.Extra["broker_cores"], Number(s.CPU))
	}
	return err
}

// HeraldFailed are the rows in which a round of Herald ended with an error.
func (r *Report) HeraldFailed() []string {
	var names []string
	for _, row := range r.Rows {
		if len(row.Outcomes) > 0 && !row.Outcomes[0].OK {
			names = append(names, row.Name)
		}
	}
	return names
}
