package wire

import (
	"bytes"
	"testing"
)

func TestSplit(t *testing.T) {
	long := frame(0x30, text("t"), bytes.Repeat([]byte{'x'}, 300))
	for _, c := range []struct {
		name string
		b    []byte
		max  int
		n    int
		want byte
	}{
		{"nothing", nil, 0, 0, 0},
		{"first byte", []byte{0x30}, 0, 0, 0},
		{"two bytes", []byte{0xc0, 0}, 0, 2, 0},
		{"incomplete", []byte{0x40, 2, 0}, 0, 0, 0},
		{"complete", []byte{0x40, 2, 0, 1}, 0, 4, 0},
		{"and more behind", []byte{0x40, 2, 0, 1, 0x40}, 0, 4, 0},
		{"long", long, 0, len(long), 0},
		{"long, incomplete", long[:len(long)-1], 0, 0, 0},
		{"remaining length incomplete", []byte{0x30, 0x80, 0x80, 0x80}, 0, 0, 0},
		{"at the bound", long, len(long), len(long), 0},
		{"past the bound", long, len(long) - 1, 0, 0x95},
		{"past the bound, header only", long[:3], len(long) - 1, 0, 0x95},
		{"past the bound, short", []byte{0x40, 2}, 3, 0, 0x95},
		{"MQTT-1.5.5 remaining length of five bytes", []byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, 0, 0, 0x81},
		{"remaining length of five bytes, cut", []byte{0x30, 0xff, 0xff, 0xff, 0xff}, 0, 0, 0x81},
		{"largest", []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, 0, 0, 0},
		{"largest, bounded", []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, 1 << 20, 0, 0x95},
		{"reserved type", []byte{0x00}, 0, 0, 0x82},
		{"reserved type, whole", []byte{0x0f, 0}, 0, 0, 0x82},
		{"MQTT-3.3.1-4 QoS 3", []byte{0x36}, 0, 0, 0x81},
		{"MQTT-3.3.1-2 DUP at QoS 0", []byte{0x38, 0}, 0, 0, 0x81},
		{"MQTT-2.1.3-1 PUBREL", []byte{0x60, 2}, 0, 0, 0x81},
		{"MQTT 3.1 gives the flags of CONNECT no meaning", []byte{0x14}, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := Split(c.b, c.max)
			if got := reason(t, err); n != c.n || got != c.want {
				t.Errorf("Split(% x, %d) = %d, %v, want %d, %#x", c.b, c.max, n, err, c.n, c.want)
			}
			if want := len(long); len(c.b) >= 3 && c.b[1] == long[1] && FrameLength(c.b) != want {
				t.Errorf("FrameLength = %d, want %d", FrameLength(c.b), want)
			}
		})
	}
}

// TestFlags: for every first byte, what Table 2-2 allows.
func TestFlags(t *testing.T) {
	for b := range 256 {
		typ, flags := byte(b>>4), b&15
		want := flags == 0
		switch typ {
		case 0:
			want = false
		case TypePublish:
			want = flags>>1&3 != 3 && (flags>>1&3 != 0 || flags&8 == 0)
		case TypePubrel, TypeSubscribe, TypeUnsubscribe:
			want = flags == 2
		case TypeConnect:
			want = true
		}
		_, err := Split([]byte{byte(b), 0}, 0)
		if (err == nil) != want {
			t.Errorf("first byte %#x: %v", b, err)
		}
		if IsData(byte(b)) != (typ >= TypePublish && typ <= TypePubcomp) || Type(byte(b)) != typ {
			t.Errorf("first byte %#x: IsData %v, Type %d", b, IsData(byte(b)), Type(byte(b)))
		}
	}
}

func TestUvarint(t *testing.T) {
	for _, n := range []uint32{0, 1, 127, 128, 16383, 16384, 2097151, 2097152, MaxRemaining} {
		b := AppendUvarint(nil, n)
		got, next, e := uvarint(append(b, 0xff), 0)
		if e != nil || got != n || next != len(b) || uvarintLen(int(n)) != len(b) {
			t.Errorf("%d: % x: %d, %d, %v", n, b, got, next, e)
		}
		for i := range b {
			if _, _, e := uvarint(b[:i], 0); e != errTruncated {
				t.Errorf("% x cut to %d: %v", b, i, e)
			}
		}
	}
	for _, b := range [][]byte{{0x80, 0}, {0xff, 0x80, 0}, {0x80, 0x80, 0x80, 0x80, 1}, {0xff, 0xff, 0xff, 0xff}} {
		if _, _, e := uvarint(b, 0); e != errVarint {
			t.Errorf("% x: %v", b, e)
		}
	}
}

// TestAllocations guards the paths that every packet takes.
func TestAllocations(t *testing.T) {
	pub3 := frame(0x32, text("some/topic/of/a/device"), u16(1), "payload")
	pub5 := frame(0x32, text("some/topic/of/a/device"), u16(1), 0, "payload")
	pubProps := frame(0x30, text("t"), props{propMessageExpiry, u32(1), propUser, text("k"), text("v")}, "payload")
	bad := frame(0x30, text("t/#"), 0, "payload")
	ack := frame(0x40, u16(1))
	ack5 := frame(0x40, u16(1), 0, props{propReasonString, text("r")})
	sub := frame(0x82, u16(1), 0, text("a/very/long/filter/that/does/not/fit/in/a/small/buffer/#"), 0,
		text("$share/group/a/very/long/filter/that/does/not/fit/in/a/small/buffer/#"), 0)
	var p Publish
	var a Ack
	s := Subscribe{Filters: make([]SubscribeFilter, 0, 4)}
	dst := make([]byte, 0, 4096)
	connack := &ConnackProperties{AssignedClientID: "id", ReceiveMaximum: 10, NoRetain: true}
	for name, f := range map[string]func(){
		"Split":             func() { _, _ = Split(pub3, 100) },
		"ParsePublish":      func() { _ = ParsePublish(pub3, v3, &p) },
		"ParsePublish 5":    func() { _ = ParsePublish(pub5, v5, &p) },
		"properties":        func() { _ = ParsePublish(pubProps, v5, &p); dst = p.AppendForward(dst[:0]) },
		"malformed":         func() { _ = ParsePublish(bad, v5, &p) },
		"ParseAck":          func() { _ = ParseAck(ack, v3, &a) },
		"ParseAck 5":        func() { _ = ParseAck(ack5, v5, &a) },
		"Check":             func() { _ = Check(sub, v5) },
		"ParseSubscribe":    func() { _ = ParseSubscribe(sub, v5, &s) },
		"AppendAck":         func() { dst = AppendAck(dst[:0], v5, TypePuback, 1, 0) },
		"AppendSuback":      func() { dst = AppendSuback(dst[:0], v5, 1, []byte{0, 1}) },
		"AppendDisconnect":  func() { dst = AppendDisconnect(dst[:0], v5, 0x8b, "shutting down", "") },
		"AppendConnack":     func() { dst = AppendConnack(dst[:0], v5, true, 0, connack) },
		"AppendConnack 3.1": func() { dst = AppendConnack(dst[:0], v3, true, 0, nil) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
