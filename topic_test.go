package herald_test

import (
	"strings"
	"testing"

	"github.com/herald-mqtt/herald"
)

func TestValidTopic(t *testing.T) { // [MQTT-3.3.2-2], [MQTT-4.7.3-1], [MQTT-4.7.3-2]
	long := strings.Repeat("x", herald.MaxTopic)
	for topic, want := range map[string]bool{
		"a": true, "/": true, "a//b": true, "$SYS/x": true, " ": true, "ä/ö": true, long: true,
		"": false, "a/+": false, "#": false, "a#": false, "a\x00b": false, "\xff": false, long + "x": false,
		strings.Repeat("/", herald.MaxLevels-1): true, strings.Repeat("/", herald.MaxLevels): false,
	} {
		if got := herald.ValidTopic(topic); got != want {
			t.Errorf("ValidTopic(%.20q…) = %t", topic, got)
		}
	}
}

func TestValidFilter(t *testing.T) { // [MQTT-4.7.1-1], [MQTT-4.7.1-2]
	for filter, want := range map[string]bool{
		"a": true, "#": true, "+": true, "/#": true, "a/#": true, "+/+/#": true, "a/+/b": true, "//": true,
		"": false, "a#": false, "#/a": false, "a/#/b": false, "a+": false, "+a/b": false, "a/b+/c": false, "\x00": false, "\xc3": false,
		strings.Repeat("/", herald.MaxLevels): false,
	} {
		if got := herald.ValidFilter(filter); got != want {
			t.Errorf("ValidFilter(%.20q) = %t", filter, got)
		}
	}
}

func TestSplitShare(t *testing.T) { // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
	for s, want := range map[string]struct {
		group, filter string
		shared, ok    bool
	}{
		"a/b":           {"", "a/b", false, true},
		"$share/g/a/+":  {"g", "a/+", true, true},
		"$share/g//a":   {"g", "/a", true, true},
		"$share/g/":     {"g", "", true, false},
		"$share/g":      {"", "", true, false},
		"$share//a":     {"", "a", true, false},
		"$share/g+/a":   {"g+", "a", true, false},
		"$share/g/a#":   {"g", "a#", true, false},
		"$share":        {"", "$share", false, false},
		"$shared/g/a/#": {"", "$shared/g/a/#", false, true},
	} {
		group, filter, shared, ok := herald.SplitShare(s)
		if shared != want.shared || ok != want.ok || ok && (group != want.group || filter != want.filter) {
			t.Errorf("SplitShare(%q) = %q, %q, %t, %t", s, group, filter, shared, ok)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a", false}, {"a", "a/b", false}, {"a/b", "A/b", false}, // [MQTT-4.7.3-4]
		{"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false}, {"#", "a/b", true}, {"#", "/", true},
		{"a/b/#", "a", false}, {"a/+/#", "a", false}, {"a/+/#", "a/b", true},
		{"+", "a", true}, {"+", "/a", false}, {"+/+", "/a", true}, {"/+", "/a", true}, {"a/+", "a", false}, {"a/+", "a/", true},
		{"+/b/+", "a/b/c", true}, {"+/b/+", "a/c/c", false},
		{"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true}, {"$SYS/+", "$SYS/x", true}, // [MQTT-4.7.2-1]
		{"a/#", "a/$x", true}, {"+/+", "a/$x", true},
	} {
		if got := herald.Matches(c.filter, c.topic); got != c.want {
			t.Errorf("Matches(%q, %q) = %t", c.filter, c.topic, got)
		}
	}
}
