package wire

import (
	"testing"

	"github.com/herald-mqtt/herald"
)

func BenchmarkSplit(b *testing.B) {
	f := frame(0x30, text("bench/0/topic"), make([]byte, 64))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := Split(f, 1<<20); n == 0 || err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParsePublish(b *testing.B) {
	payload := make([]byte, 64)
	for _, c := range []struct {
		name  string
		v     herald.Version
		frame []byte
		prev  string
	}{
		{"v3", v3, frame(0x32, text("bench/0/topic"), u16(1), payload), ""},
		{"v3/same", v3, frame(0x32, text("bench/0/topic"), u16(1), payload), "bench/0/topic"},
		{"v3/topic=3", v3, frame(0x30, text("a/b"), payload), ""},
		{"v3/topic=64", v3, frame(0x30, text("0123456789abcdef/0123456789abcdef/0123456789abcdef/0123456789abc"), payload), ""},
		{"v3/topic=utf8", v3, frame(0x30, text("maison/étage/2/température"), payload), ""},
		{"v5", v5, frame(0x32, text("bench/0/topic"), u16(1), 0, payload), ""},
		{"v5/properties", v5, frame(0x32, text("bench/0/topic"), u16(1),
			props{propMessageExpiry, u32(9), propUser, text("key"), text("value")}, payload), ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			prev := []byte(c.prev)
			var p Publish
			b.ReportAllocs()
			for b.Loop() {
				if err := ParsePublishSame(c.frame, c.v, prev, &p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParseAck(b *testing.B) {
	for name, f := range map[string][]byte{"short": frame(0x40, u16(1)), "reason": frame(0x40, u16(1), 0x10)} {
		b.Run(name, func(b *testing.B) {
			var a Ack
			b.ReportAllocs()
			for b.Loop() {
				if err := ParseAck(f, v5, &a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendAck(b *testing.B) {
	dst := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendAck(dst[:0], v5, TypePuback, 7, 0)
	}
}

func BenchmarkCheckSubscribe(b *testing.B) {
	f := frame(0x82, u16(1), 0, text("devices/0123456789/+/commands/#"), 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(f, v5); err != nil {
			b.Fatal(err)
		}
	}
}
