package scenario

import "testing"

// A client is kicked at whichever node it is connected; its session stays.
func TestKickAnywhere(t *testing.T) {
	name := names(t)
	for node, from := range map[int]int{A: A, B: C} {
		c := connect(t, node, name("c"))
		ctl(t, from, "kick", name("c"))
		c.disconnected(0x98)
		returns(t, node, name("c")).wantPresent(true).leave()
	}
}
