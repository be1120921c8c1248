package record

import "strings"

// Literal is what every topic that matches filter begins with, and so where a walk
// begins; the parent level of a "#" has no "/" at its end.
func Literal(filter string) string {
	at := strings.IndexAny(filter, "+#")
	if at < 0 {
		return filter
	}
	if filter[at] == '#' && at > 0 {
		at--
	}
	return filter[:at]
}

// Seek tells whether topic, which is not empty, matches the filter's levels f and,
// if not, the smallest string behind topic, byte by byte, at which a topic that
// does could stand; "" if there can be none. It is what makes a walk over sorted
// topics skip subtrees.
func Seek(f []string, topic string) (matches bool, next string) {
	if topic[0] == '$' && (f[0] == "+" || f[0] == "#") {
		return false, "%" // the byte behind '$' [MQTT-4.7.2-1]
	}
	at := 0    // where the level begins in topic
	plus := -1 // where the last level that a "+" took ends, if more follows it
	for i, want := range f {
		if want == "#" {
			return true, ""
		}
		level, _, deeper := strings.Cut(topic[at:], "/")
		end := at + len(level)
		switch {
		case want != "+" && want != level:
			if next = within(f[i:], topic, topic[:at]); next != "" {
				return false, next
			}
			return false, sibling(topic, plus)
		case !deeper && i == len(f)-1, !deeper && f[i+1] == "#":
			return true, ""
		case !deeper && want == "+":
			// Too short. What matches may stand below it, but "a!/x" stands
			// between "a" and "a/x".
			return false, topic + "\x00"
		case !deeper:
			return false, topic + "/" + Literal(strings.Join(f[i+1:], "/"))
		}
		if want == "+" {
			plus = end
		}
		at = end + 1
	}
	return false, sibling(topic, plus) // too deep
}

// within is the smallest string behind topic under prefix at which a topic that
// matches f, which begins with a literal level, could stand; "" if none can.
func within(f []string, topic, prefix string) string {
	exact := prefix + f[0]
	if (len(f) == 1 || f[1] == "#") && exact > topic {
		return exact
	}
	if len(f) == 1 {
		return ""
	}
	below := exact + "/"
	if f[1] != "#" {
		below += Literal(strings.Join(f[1:], "/"))
	}
	if below > topic {
		return below
	}
	return ""
}

// sibling is the smallest string behind everything below topic[:plus].
func sibling(topic string, plus int) string {
	if plus < 0 {
		return ""
	}
	return topic[:plus] + "0" // the byte behind '/'
}
