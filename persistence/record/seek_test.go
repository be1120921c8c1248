package record

import (
	"slices"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
)

// walk is how a store uses Seek.
func walk(t interface{ Fatalf(string, ...any) }, topics []string, filter string) (found []string, steps int) {
	f := strings.Split(filter, "/")
	for at := Literal(filter); ; {
		i := sort.SearchStrings(topics, at)
		if i == len(topics) {
			return found, steps
		}
		steps++
		matches, next := Seek(f, topics[i])
		switch {
		case matches:
			found = append(found, topics[i])
			at = topics[i] + "\x00"
		case next == "":
			return found, steps
		case next <= topics[i]:
			t.Fatalf("%q: from %q back to %q", filter, topics[i], next)
		default:
			at = next
		}
	}
}

// A walk goes forward and finds what the rule finds [MQTT-4.7.1-2]
// [MQTT-4.7.1-3] [MQTT-4.7.2-1], whatever stands between: '!' and '%' sort before
// '/', '0' behind it.
func TestWalkFindsWhatMatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.SampledFrom([]string{"a", "a!", "a0", "", "$", "%"})
		levels := rapid.SliceOfN(level, 1, 3)
		topics := make([]string, 0, 60)
		for range 60 {
			if topic := strings.Join(levels.Draw(t, "topic"), "/"); topic != "" {
				topics = append(topics, topic)
			}
		}
		slices.Sort(topics)
		topics = slices.Compact(topics)
		f := rapid.SliceOfN(rapid.OneOf(level, rapid.Just("+")), 0, 3).Draw(t, "filter")
		if len(f) == 0 || rapid.Bool().Draw(t, "deep") {
			f = append(f, "#")
		}
		filter := strings.Join(f, "/")
		if !herald.ValidFilter(filter) {
			return
		}
		var want []string
		for _, topic := range topics {
			if herald.Matches(filter, topic) {
				want = append(want, topic)
			}
		}
		if got, _ := walk(t, topics, filter); !slices.Equal(got, want) {
			t.Fatalf("%q in %q:\n got %q\nwant %q", filter, topics, got, want)
		}
	})
}

// What makes the difference between one retained message and 100,000.
func TestWalkSkipsSubtrees(t *testing.T) {
	var topics []string
	for _, building := range []string{"a", "b", "c"} {
		for _, what := range []string{"lamp", "meter", "valve"} {
			for i := range 1000 {
				topics = append(topics, building+"/"+what+"/"+strings.Repeat("x", i%10)+string(rune('a'+i%26)))
			}
		}
		topics = append(topics, building+"/status")
	}
	slices.Sort(topics)
	topics = slices.Compact(topics)
	for filter, most := range map[string]int{"+/status": 12, "a/status": 2, "b/#": 1_000, "+/nothing": 12, "a/+": 9} {
		found, steps := walk(t, topics, filter)
		if steps > most+len(found) {
			t.Errorf("%q: %d steps for %d of %d topics", filter, steps, len(found), len(topics))
		}
	}
}
