package conformance

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Outcome is what became of a test.
type Outcome string

// What can become of a test.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "FAILED"
	Skipped Outcome = "skipped"
)

// Result is a test and what became of it.
type Result struct {
	Test    string
	Outcome Outcome
}

// Results has the results by statement, keyed by version and number.
type Results map[Version]map[string][]Result

// Add notes the outcome of a test under one statement.
func (r Results) Add(v Version, number, test string, o Outcome) {
	if r[v] == nil {
		r[v] = map[string][]Result{}
	}
	r[v][number] = append(r[v][number], Result{test, o})
}

// Page is the page docs/conformance.md for these results. It is the same for
// the same results, whatever order they came in.
func Page(r Results) string {
	var b strings.Builder
	b.WriteString(`# Conformance

Every normative statement of MQTT 3.1.1 and MQTT 5.0, the tests that hold Herald
to it, and their last result. Written by ` + "`go generate ./internal/conformance`" + `;
do not edit. Texts are our own short words, the specifications' wording counts.
A test runs alone with
` + "`go test ./internal/conformance -run 'Conformance/TEST'`" + `.

`)
	b.WriteString("| specification | statements | tested, all passed | with a failed or skipped test | out of a test's reach |\n|---|---|---|---|---|\n")
	for _, v := range []Version{V311, V5} {
		var good, bad, out int
		for _, s := range Statements(v) {
			switch {
			case s.Unreachable != "":
				out++
			case allPassed(r[v][s.Number]):
				good++
			default:
				bad++
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", title(v), len(Statements(v)), good, bad, out)
	}
	for _, v := range []Version{V311, V5} {
		fmt.Fprintf(&b, "\n## %s\n\n| statement | what must hold | tests | result |\n|---|---|---|---|\n", title(v))
		for _, s := range Statements(v) {
			tests, result := tests(r[v][s.Number])
			if s.Unreachable != "" {
				tests, result = "none: "+s.Unreachable, "-"
			}
			fmt.Fprintf(&b, "| MQTT-%s | %s | %s | %s |\n", s.Number, s.Text, tests, result)
		}
	}
	return b.String()
}

func title(v Version) string {
	if v == V5 {
		return "MQTT 5.0"
	}
	return "MQTT 3.1.1"
}

func allPassed(rs []Result) bool {
	return len(rs) > 0 && !slices.ContainsFunc(rs, func(r Result) bool { return r.Outcome != Passed })
}

// tests lists the tests of one statement and sums their results up: one word
// when they agree, otherwise the names of those that did not pass.
func tests(rs []Result) (names, result string) {
	if len(rs) == 0 {
		return "", "not run"
	}
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b Result) int { return cmp.Compare(a.Test, b.Test) })
	var list, not []string
	for _, r := range rs {
		name := "`" + short(r.Test) + "`"
		list = append(list, name)
		if r.Outcome != Passed {
			not = append(not, string(r.Outcome)+": "+name)
		}
	}
	if len(not) == 0 {
		return strings.Join(list, "<br>"), string(Passed)
	}
	return strings.Join(list, "<br>"), strings.Join(not, "<br>")
}

// short takes the version off a test's name; the table has it in its title.
func short(test string) string {
	_, name, _ := strings.Cut(test, "/")
	return name
}
