package conformance

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// scenario is one case of the suite. It runs under each version for which it
// names statements and is named by the first of them.
type scenario struct {
	name     string
	v311, v5 string // statement numbers, space between them
	bad      bool   // sends what no client may; others must be served afterwards
	run      func(t *T)
}

func (s scenario) statements(v Version) []string {
	if v == V5 {
		return strings.Fields(s.v5)
	}
	return strings.Fields(s.v311)
}

// testName is what the case is called below TestConformance.
func (s scenario) testName(v Version) string {
	return v.String() + "/MQTT-" + s.statements(v)[0] + "/" + s.name
}

var suite = slices.Concat(
	dataCases, connectCases, connackCases, willCases, publishCases, propertyCases,
	retainedCases, qosCases, qosServerCases, subscribeCases, unsubscribeCases, sharedCases, topicCases, flowCases,
	aliasCases, keepaliveCases, disconnectCases, badCases, badConnectCases, websocketCases,
)

var (
	run     = strings.ToLower(rand.Text()[:6])
	counter atomic.Int64
	// everything is held by a case that subscribes to "#", read by one that wants nobody
	// to be subscribed.
	everything sync.RWMutex

	resultsMu sync.Mutex
	results   = Results{}
)

func TestConformance(t *testing.T) {
	for _, v := range []Version{V311, V5} {
		for _, s := range suite {
			if len(s.statements(v)) == 0 {
				continue
			}
			t.Run(s.testName(v), func(tt *testing.T) {
				tt.Parallel()
				t := &T{T: tt, v: v, prefix: fmt.Sprintf("%s%d", run, counter.Add(1))}
				defer func() {
					outcome := Passed
					switch {
					case tt.Skipped():
						outcome = Skipped
					case tt.Failed():
						outcome = Failed
					}
					resultsMu.Lock()
					defer resultsMu.Unlock()
					for _, n := range s.statements(v) {
						results.Add(v, n, s.testName(v), outcome)
					}
				}()
				s.run(t)
				if s.bad {
					t.stillServes()
				}
			})
		}
	}
}

// Every statement has a case or a reason, never both, and no case names a
// statement that does not exist.
func TestEveryStatementIsCovered(t *testing.T) {
	number := regexp.MustCompile(`^\d+\.\d+\.\d+-\d+$`)
	for _, v := range []Version{V311, V5} {
		covered := map[string]bool{}
		names := map[string]bool{}
		for _, s := range suite {
			if len(s.statements(v)) == 0 {
				continue
			}
			if names[s.testName(v)] {
				t.Errorf("two cases are called %s", s.testName(v))
			}
			names[s.testName(v)] = true
			for _, n := range s.statements(v) {
				covered[n] = true
			}
		}
		for _, st := range Statements(v) {
			if !number.MatchString(st.Number) {
				t.Errorf("%v: %q is no statement number", v, st.Number)
			}
			switch {
			case covered[st.Number] && st.Unreachable != "":
				t.Errorf("%v MQTT-%s has a case and a reason to have none", v, st.Number)
			case !covered[st.Number] && st.Unreachable == "":
				t.Errorf("%v MQTT-%s has neither a case nor a reason: %s", v, st.Number, st.Text)
			}
			delete(covered, st.Number)
		}
		for n := range covered {
			t.Errorf("%v MQTT-%s is no statement", v, n)
		}
	}
}
