package engine

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/herald-mqtt/herald"
)

// A frame made straight from a read is the one that its messages would make.
func TestFrameOfARead(t *testing.T) {
	r := random{rand.New(rand.NewPCG(1, 2))}
	const topic, now = "a/b", 1_700_000_000_000
	for range 2000 {
		c := &client{h: &handle{id: r.session()}}
		in := &intake{n: 1 + r.IntN(4), flags: byte(0x30 | r.IntN(2)), at: []uint32{0}}
		for range in.n {
			in.frames = append(in.frames, r.bytes(9)...) // type, length, topic
			props, payload := r.bytes(12), r.bytes(200)
			p := part{props: uint32(len(props)), payload: uint32(len(payload))}
			switch r.IntN(4) {
			case 0: // an alias, or an expiry, was cut out
				p.cut, p.forward = true, r.bytes(5)
				if len(p.forward) == 0 {
					p.forward = nil
				}
			case 1:
				p.cut, p.hasExpiry, p.expiry = true, true, r.Uint32()
			}
			in.frames = append(append(in.frames, props...), payload...)
			in.parts, in.at = append(in.parts, p), append(in.at, uint32(len(in.frames)))
		}
		in.frames = append(in.frames, r.bytes(30)...) // the next packet
		msgs, _ := in.messages(c, topic, now)
		want := appendPublish(nil, msgs, c.h.id, toAll)
		got := in.appendPublish(nil, topic, c.h.id, now)
		if !bytes.Equal(got, want) {
			t.Fatalf("%x\nwant %x", got, want)
		}
		if cap(got) > 2*len(got)+256 {
			t.Fatalf("%d bytes take %d", len(got), cap(got))
		}
		if f, err := decodeFrame(got); err != nil || len(f.messages) != in.n || f.from != c.h.id || f.whom != toAll {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	// What is made is one allocation, whatever the number of messages.
	in := &intake{n: 100, flags: 0x30, at: []uint32{0}}
	for i := range in.n {
		in.frames = append(in.frames, make([]byte, 70)...)
		in.parts, in.at = append(in.parts, part{payload: 64}), append(in.at, uint32(70*(i+1)))
	}
	if n := testing.AllocsPerRun(100, func() { in.appendPublish(nil, topic, herald.SessionID(1), now) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
