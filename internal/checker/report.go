package checker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxExamples bounds the examples kept of each kind of fault.
const maxExamples = 5

// Finding counts one kind of fault and keeps the first few examples.
type Finding struct {
	Count    int      `json:"count"`
	Examples []string `json:"examples,omitempty"`
}

func (f *Finding) add(format string, args ...any) {
	f.Count++
	if len(f.Examples) < maxExamples {
		f.Examples = append(f.Examples, fmt.Sprintf(format, args...))
	}
}

// Seconds is a duration that JSON shows as a number of seconds.
type Seconds time.Duration

// MarshalJSON writes seconds.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(s).Seconds())
}

// Report is the outcome of a run; the package comment defines the verdicts.
type Report struct {
	Seed uint64 `json:"seed"`
	// Published counts publishes that were begun, Acknowledged those with
	// PUBACK or PUBREC, Refused those answered with a reason of 0x80 or more.
	Published    int `json:"published"`
	Acknowledged int `json:"acknowledged"`
	Refused      int `json:"refused"`
	// Expected counts acknowledged publishes times the audiences they were
	// due to, Arrived the first arrivals among them.
	Expected int `json:"expected"`
	Arrived  int `json:"arrived"`
	// Repeats counts explained repeats at QoS 1; GroupDisorder first arrivals
	// out of order at one member of a shared group. Neither is a fault.
	Repeats       int `json:"repeats"`
	GroupDisorder int `json:"group_disorder"`
	// Resent counts PUBLISH and PUBREL that publishers sent again.
	Resent int `json:"resent"`
	// Drops counts connections that clients broke on purpose, Closed those
	// that ended otherwise, Connects the CONNACKs with reason 0.
	Drops    int `json:"drops"`
	Closed   int `json:"closed"`
	Connects int `json:"connects"`
	// Reasons counts what brokers said in CONNACK and DISCONNECT, if not 0.
	Reasons map[string]int `json:"reasons,omitempty"`
	Faults  map[string]int `json:"faults,omitempty"`
	// LongestPause is the longest time without any acknowledgement while
	// publishing.
	LongestPause Seconds `json:"longest_pause_seconds"`
	// Rate is acknowledged publishes per second of Publishing.
	Rate       float64 `json:"rate"`
	Publishing Seconds `json:"publishing_seconds"`
	Drain      Seconds `json:"drain_seconds"`
	// DrainCut is whether the drain ended by its bound while messages were
	// still arriving: what is lost may only be late.
	DrainCut bool `json:"drain_cut"`

	Lost       Finding `json:"lost"`
	Reordered  Finding `json:"reordered"`
	Duplicated Finding `json:"duplicated"`
	Forgotten  Finding `json:"forgotten"`
	Phantom    Finding `json:"phantom"`
	Corrupted  Finding `json:"corrupted"`
	Needless   Finding `json:"needless"`
	Unanswered Finding `json:"unanswered"`
	Protocol   Finding `json:"protocol"`
	Crashes    Finding `json:"crashes"`
}

type namedFinding struct {
	name string
	Finding
}

func (r *Report) findings() []namedFinding {
	return []namedFinding{
		{"lost", r.Lost}, {"reordered", r.Reordered}, {"duplicated at QoS 2", r.Duplicated},
		{"sessions forgotten", r.Forgotten}, {"phantom", r.Phantom}, {"corrupted", r.Corrupted},
		{"needless repeats", r.Needless}, {"unanswered", r.Unanswered},
		{"protocol", r.Protocol}, {"crashes", r.Crashes},
	}
}

// Err is nil if the promise held and something was tested: at least one
// publish was acknowledged and one arrival expected.
func (r *Report) Err() error {
	var parts []string
	for _, f := range r.findings() {
		if f.Count == 0 {
			continue
		}
		part := fmt.Sprintf("%d %s", f.Count, f.name)
		for _, example := range f.Examples {
			part += "\n    " + example
		}
		parts = append(parts, part)
	}
	if r.Acknowledged == 0 || r.Expected == 0 {
		parts = append(parts, fmt.Sprintf("nothing tested: %d acknowledged, %d arrivals expected", r.Acknowledged, r.Expected))
	}
	if r.DrainCut {
		parts = append(parts, fmt.Sprintf("messages were still arriving when the drain was cut off after %.1f s", time.Duration(r.Drain).Seconds()))
	}
	if len(parts) == 0 {
		return nil
	}
	return fmt.Errorf("checker: seed %d: %s", r.Seed, strings.Join(parts, "\n  "))
}

// String is the report in a few lines, without examples.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: published %d, acknowledged %d, refused %d, resent %d; expected %d, arrived %d, repeats %d\n",
		r.Seed, r.Published, r.Acknowledged, r.Refused, r.Resent, r.Expected, r.Arrived, r.Repeats)
	fmt.Fprintf(&b, "connects %d, drops %d, closed %d; publishing %.1f s at %.0f/s, longest pause %.2f s, drain %.1f s\n",
		r.Connects, r.Drops, r.Closed, time.Duration(r.Publishing).Seconds(), r.Rate,
		time.Duration(r.LongestPause).Seconds(), time.Duration(r.Drain).Seconds())
	counts := func(title string, m map[string]int) {
		if len(m) == 0 {
			return
		}
		var parts []string
		for name, n := range m {
			parts = append(parts, fmt.Sprintf("%s %d", name, n))
		}
		slices.Sort(parts)
		fmt.Fprintf(&b, "%s: %s\n", title, strings.Join(parts, ", "))
	}
	counts("faults", r.Faults)
	counts("reasons", r.Reasons)
	var parts []string
	for _, f := range r.findings() {
		parts = append(parts, fmt.Sprintf("%s %d", f.name, f.Count))
	}
	b.WriteString(strings.Join(parts, ", "))
	return b.String()
}
