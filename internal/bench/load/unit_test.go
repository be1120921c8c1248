//go:build linux

package load

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	var all []int64
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		v := int64(rng.ExpFloat64() * 1e6)
		all = append(all, v)
		h.Add(v)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999} {
		want := float64(all[int(q*10000)-1])
		got := float64(h.Quantile(q))
		if got < want*0.98 || got > want*1.04+2 {
			t.Errorf("quantile %v: %v, exactly %v", q, got, want)
		}
	}
	if h.Quantile(1) != time.Duration(all[len(all)-1]) || h.Max() != h.Quantile(1) {
		t.Error("the maximum is not exact")
	}
	for v := uint64(0); v < 1<<20; v += 37 {
		if s := slotOf(v); upper(s) < v || s > 0 && upper(s-1) >= v {
			t.Fatalf("%d is in slot %d that ends at %d", v, s, upper(s))
		}
	}
	h.Add(-5)
	h.Add(1 << 62) // stays inside the array
}

func TestOrder(t *testing.T) {
	var o order
	for _, seq := range []uint64{0, 1, 4, 2, 2, 5, 4, 7} {
		o.add(seq)
	}
	if o.received != 6 || o.reordered != 1 || o.duplicates != 2 || o.next != 8 || len(o.missing) != 2 {
		t.Errorf("%+v", o)
	}
}

func TestNextFrame(t *testing.T) {
	long := appendUvarint([]byte{typePublish}, 300)
	for _, c := range []struct {
		name       string
		data       []byte
		body, size int
		bad        bool
	}{
		{"nothing", nil, 0, 0, false},
		{"one byte", []byte{typePuback}, 0, 0, false},
		{"cut off", []byte{typePuback, 2, 0}, 2, 0, false},
		{"complete", []byte{typePuback, 2, 0, 1}, 2, 4, false},
		{"more behind", []byte{typePuback, 2, 0, 1, 9, 9}, 2, 4, false},
		{"length cut off", long[:2], 0, 0, false},
		{"long", append(long, make([]byte, 300)...), 3, 303, false},
		{"length too long", []byte{typePublish, 0xff, 0xff, 0xff, 0xff, 1}, 0, 0, true},
	} {
		body, size, err := nextFrame(c.data)
		if size != c.size || (size > 0 && body != c.body) || (err != nil) != c.bad {
			t.Errorf("%s: body %d size %d error %v", c.name, body, size, err)
		}
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte{typePublish | 2, 5, 0, 1, 't', 0, 1}, byte(4))
	f.Add([]byte{typePublish | 2, 6, 0, 1, 't', 0, 1, 0}, byte(5))
	f.Fuzz(func(t *testing.T, data []byte, protocol byte) {
		c := Config{Target: "none", QoS: 2}
		_ = c.complete()
		c.Protocol = protocol
		fl := &flow{topic: "t"}
		p := newPublisher(&c, fl, 0)
		l := &loop{config: &c}
		_, _ = l.receive(newSubscriber(&c, fl), data, false)
		_, _ = l.acknowledged(p, data)
	})
}

func TestEstablish(t *testing.T) {
	b := newFakeBroker(t, nil)
	made := 0
	est := Establish{Target: b.addr(), Leave: true, Spread: true, Parallel: 8}
	err := est.Run(t.Context(), 300, func(int) Session {
		return Session{ClientID: "c", Filter: "f", QoS: 1}
	}, func(m Made) {
		made++
		if m.Present || len(m.Rest) > 0 {
			t.Error("a session or a message out of nothing")
		}
	})
	if err != nil || made != 300 {
		t.Errorf("%d made, error %v", made, err)
	}
}

func TestReceiveMaximum(t *testing.T) {
	for _, c := range []struct {
		name string
		data []byte
		want int
		bad  bool
	}{
		{"none", []byte{0}, 65535, false},
		{"alone", []byte{3, 0x21, 0, 20}, 20, false},
		{"behind others", []byte{17, 0x27, 0, 1, 0, 0, 0x26, 0, 1, 'a', 0, 1, 'b', 0x25, 1, 0x21, 1, 0}, 256, false},
		{"zero", []byte{3, 0x21, 0, 0}, 0, true},
		{"cut off", []byte{2, 0x21, 0}, 0, true},
		{"unknown", []byte{1, 0x7f}, 0, true},
		{"length cut off", []byte{9, 0x21}, 0, true},
		{"string cut off", []byte{4, 0x12, 0, 9, 'a'}, 0, true},
	} {
		got, err := receiveMaximum(c.data)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: %d, error %v", c.name, got, err)
		}
	}
}
