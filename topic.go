package herald

import (
	"strings"
	"unicode/utf8"
)

// MaxTopic bounds topic names and filters, in bytes [MQTT-4.7.3-3].
const MaxTopic = 65535

// MaxLevels bounds the levels of a topic name or filter. MQTT has no such
// bound; without one, a client could make every match arbitrarily deep. It is
// mosquitto's: 200 separators.
const MaxLevels = 201

// SharePrefix begins the filter of a shared subscription.
const SharePrefix = "$share/"

// ValidTopic tells whether s may be published to: 1 to 65,535 bytes of UTF-8
// without U+0000 and wildcards [MQTT-3.3.2-2], [MQTT-4.7.3-1], [MQTT-4.7.3-2],
// and at most [MaxLevels] levels.
func ValidTopic(s string) bool {
	return s != "" && len(s) <= MaxTopic && utf8.ValidString(s) &&
		!strings.ContainsAny(s, "\x00+#") && strings.Count(s, "/") < MaxLevels
}

// ValidFilter tells whether s may be subscribed to, without regard to $share:
// "#" only as the whole last level [MQTT-4.7.1-1], "+" only as a whole level
// [MQTT-4.7.1-2].
func ValidFilter(s string) bool {
	if s == "" || len(s) > MaxTopic || !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 ||
		strings.Count(s, "/") >= MaxLevels {
		return false
	}
	for rest, more := s, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "+" || (level == "#" && !more) {
			continue
		}
		if strings.ContainsAny(level, "+#") {
			return false
		}
	}
	return true
}

// SplitShare takes "$share/{group}/{filter}" apart. shared tells whether s
// begins like one; ok, whether it is a valid one: a group of at least one
// character without "/", "+" or "#" [MQTT-4.8.2-1], and a valid filter behind
// it [MQTT-4.8.2-2]. For any other s, group is empty and filter is s.
func SplitShare(s string) (group, filter string, shared, ok bool) {
	rest, shared := strings.CutPrefix(s, SharePrefix)
	if !shared {
		return "", s, false, ValidFilter(s) && s != "$share"
	}
	group, filter, found := strings.Cut(rest, "/")
	ok = found && group != "" && !strings.ContainsAny(group, "+#") && ValidFilter(filter)
	return group, filter, true, ok
}

// Wildcard tells whether a valid filter holds a wildcard.
func Wildcard(filter string) bool { return strings.ContainsAny(filter, "+#") }

// Matches tells whether a valid topic name matches a valid filter. "#" takes
// its parent level in too [MQTT-4.7.1-2]; a filter that begins with a wildcard
// does not match a topic that begins with "$" [MQTT-4.7.2-1]. It is the plain
// meaning of the specification, for tests and for rare checks; routing uses an
// index.
func Matches(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !tmore {
			return !fmore || frest == "#"
		}
		if !fmore {
			return false
		}
		filter, topic = frest, trest
	}
}
