//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/herald-mqtt/herald/internal/bench/peer"
)

// Options say what of the table to run and where.
type Options struct {
	Herald string   // program; empty: found like a peer
	Rows   []string // names; empty: all
	Peers  []string // names; empty: all that are found
	Rounds int      // default 3
	Short  bool     // less of everything, for a look
	// Dir takes the brokers' data and logs while they run. It should be on
	// the disk that Herald would use.
	Dir string
	// Cache is where install-peers.sh has put peers.
	Cache string
	// Progress is told what goes on, a line at a time; may be nil.
	Progress func(line string)
	// Done is told each row when it is finished; may be nil.
	Done func(RowReport)
}

// Report is the outcome of a table.
type Report struct {
	Started    time.Time   `json:"started"`
	Processors int         `json:"processors"`
	System     string      `json:"system"`
	Short      bool        `json:"short"`
	Rounds     int         `json:"rounds"`
	Brokers    []peer.Peer `json:"brokers"`
	Missing    []string    `json:"missing,omitempty"` // peers that were not found
	Rows       []RowReport `json:"rows"`
}

// RowReport is one row of it.
type RowReport struct {
	Name     string    `json:"name"`
	Title    string    `json:"title"`
	Unit     string    `json:"unit"`
	Lower    bool      `json:"lower_is_better"`
	Outcomes []Outcome `json:"outcomes"` // Herald first
	Best     string    `json:"best_peer,omitempty"`
	// Ratio is Herald's value by the best peer's, CPURatio likewise; 0 if
	// one of them has none.
	Ratio    float64   `json:"ratio"`
	CPURatio float64   `json:"cpu_ratio,omitempty"`
	Verdicts []Verdict `json:"verdicts"`
}

// Select returns the rows with these names, all if there are none.
func Select(names []string) ([]Row, error) {
	all := Rows()
	if len(names) == 0 {
		return all, nil
	}
	var rows []Row
	for _, name := range names {
		i := slices.IndexFunc(all, func(r Row) bool { return r.Name == name })
		if i < 0 {
			var known []string
			for _, r := range all {
				known = append(known, r.Name)
			}
			return nil, fmt.Errorf("no row %q; there are %v", name, known)
		}
		rows = append(rows, all[i])
	}
	return rows, nil
}

// Run runs the table. A broker that fails in a row has an error there; Run
// itself fails only when nothing could be measured, or with the context's
// error, then with what was done until then.
func Run(ctx context.Context, o Options) (*Report, error) {
	rows, err := Select(o.Rows)
	if err != nil {
		return nil, err
	}
	if o.Rounds <= 0 {
		o.Rounds = 3
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	r := &Report{Started: time.Now(), Processors: runtime.NumCPU(), System: system(), Short: o.Short, Rounds: o.Rounds}
	if err := r.find(o); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	env := &Env{Short: o.Short, Log: func(format string, args ...any) { o.Progress("  " + fmt.Sprintf(format, args...)) }}
	for _, row := range rows {
		report := r.row(ctx, row, env, o)
		if err := ctx.Err(); err != nil {
			return r, err
		}
		r.Rows = append(r.Rows, report)
		if o.Done != nil {
			o.Done(report)
		}
	}
	return r, nil
}

// find looks for Herald and its peers. Herald must be there.
func (r *Report) find(o Options) error {
	names := o.Peers
	if len(names) == 0 {
		names = []string{peer.Mosquitto, peer.NATS, peer.Rumqttd}
	}
	h, err := peer.Find(peer.Herald, o.Herald, "bin")
	if err != nil {
		return err
	}
	r.Brokers = append(r.Brokers, h)
	for _, name := range names {
		p, err := peer.Find(name, "", filepath.Join(o.Cache, "bin"))
		if err != nil {
			r.Missing = append(r.Missing, name)
			o.Progress(err.Error())
			continue
		}
		r.Brokers = append(r.Brokers, p)
	}
	return nil
}

func (r *Report) row(ctx context.Context, row Row, env *Env, o Options) RowReport {
	rounds := o.Rounds
	if row.Once {
		rounds = 1
	}
	report := RowReport{Name: row.Name, Title: row.Title, Unit: row.Unit, Lower: row.Lower}
	var brokers []peer.Peer
	for _, p := range r.Brokers {
		if p.Name == peer.Herald || row.Peers == nil || slices.Contains(row.Peers, p.Name) {
			brokers = append(brokers, p)
			report.Outcomes = append(report.Outcomes, Outcome{Broker: p.Name, Version: p.Version})
		}
	}
	for round := range rounds {
		for i, p := range brokers {
			if ctx.Err() != nil {
				return report
			}
			s, err := once(ctx, row, env, p, o.Dir)
			line := fmt.Sprintf("%s %d/%d %s: ", row.Name, round+1, rounds, p.Name)
			if err != nil {
				report.Outcomes[i].Errors = append(report.Outcomes[i].Errors, err.Error())
				o.Progress(line + err.Error())
				continue
			}
			report.Outcomes[i].Samples = append(report.Outcomes[i].Samples, s)
			o.Progress(line + Describe(s, row.Unit))
		}
	}
	report.conclude(row)
	return report
}

// once starts a broker, measures it and stops it.
func once(ctx context.Context, row Row, env *Env, p peer.Peer, dir string) (Sample, error) {
	b, err := p.Start(ctx, dir)
	if err != nil {
		return Sample{}, err
	}
	defer b.Stop()
	s, err := row.run(ctx, env, b)
	if err != nil {
		select {
		case <-b.Exited():
			err = fmt.Errorf("%w; the broker ended: %s", err, b.LogTail())
		default:
		}
	}
	return s, err
}

func (r *RowReport) conclude(row Row) {
	peers := map[string]Outcome{}
	var herald Outcome
	for i := range r.Outcomes {
		r.Outcomes[i].Summarize()
		if o := r.Outcomes[i]; o.Broker == peer.Herald {
			herald = o
		} else {
			peers[o.Broker] = o
		}
	}
	if b := best(peers, row.Lower); b != nil {
		r.Best = b.Broker
		if herald.OK {
			r.Ratio, r.CPURatio = ratio(herald.Median.Value, b.Median.Value), ratio(herald.Median.CPU, b.Median.CPU)
		}
	}
	r.Verdicts = row.judge(herald, peers)
	if !herald.OK {
		for i := range r.Verdicts {
			r.Verdicts[i].Got, r.Verdicts[i].Met = nil, false
		}
	}
}

func system() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return fmt.Sprintf("%s %s %s", runtime.GOOS, string(b[:max(0, len(b)-1)]), runtime.GOARCH)
}
