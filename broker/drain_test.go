package broker

import (
	"testing"
	"time"

	"go.uber.org/zap"
)

// A node counts as cut off when it alone, for three seconds without a break, does not
// reach Redis; and as well off as the others again after two.
func TestCutOff(t *testing.T) {
	const reach, away, alike = 'r', 'a', 'o' // it reaches Redis; it alone does not; nobody does
	for _, test := range []struct {
		name, seconds string // what is so in each half second
		want          string // c: it is cut off then
	}{
		{"always there", "rrrrrrrrrr", ".........."},
		{"alone", "raaaaaaaaa", ".......ccc"},
		{"a short break", "raaaaaaraaaaaaaa", "..............cc"},
		{"redis is away for all", "oooooooooo", ".........."},
		{"the others find out later", "aaaaoooooooooo", ".............."},
		{"the others are sooner back", "oooooaaaar", ".........."},
		{"back", "aaaaaaarrrrrr", "......ccccc.."},
		{"not for long enough", "aaaaaaarrrarrrrr", "......ccccccccc."},
		{"then it is away for all", "aaaaaaaooooo", "......ccccc."},
	} {
		var c cutoff
		now, got := time.Now(), ""
		for _, s := range test.seconds {
			c.see(now, s == reach, s != alike)
			now = now.Add(time.Second / 2)
			if c.cut {
				got += "c"
			} else {
				got += "."
			}
		}
		if got != test.want {
			t.Errorf("%s: %s: got %s, want %s", test.name, test.seconds, got, test.want)
		}
	}
	var c cutoff
	c.see(time.Unix(100, 0), false, true)
	if alone := c.see(time.Unix(104, 0), false, true); alone != 4*time.Second {
		t.Errorf("alone for %v, want 4s", alone)
	}
}

// What is asked for has to make sense.
func TestDrainRefuses(t *testing.T) {
	b := &Broker{log: zap.NewNop()}
	b.drain = newDrain(b)
	for _, rate := range []int{-1, maxDrainRate + 1} {
		if err := b.Drain(rate); err == nil {
			t.Errorf("rate %d: %v", rate, err)
		}
	}
	if b.drain.why() != "" {
		t.Errorf("refused, and draining: %s", b.drain.why())
	}
}
