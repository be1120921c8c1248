package bridge

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

var sample = header{
	flags: flagAnswer | flagGap, from: Peer{7, 3}, to: 9, link: 4, clock: 1 << 60,
	ackLink: 2, ack: 100, routeAck: 5, announced: 6, first: 1 << 40,
}

func TestEntriesComeBackAsTheyWere(t *testing.T) {
	large := bytes.Repeat([]byte("abcdefgh"), 10000)
	tests := map[string][][]byte{
		"none":         nil,
		"empty":        {{}},
		"small":        {[]byte("a"), {}, []byte("bc")},
		"compressible": {large, large},
	}
	for name, frames := range tests {
		t.Run(name, func(t *testing.T) {
			entry, _ := appendEntry([]byte("before"), nil, sample, frames, 1000)
			h, got, err := decodeEntry(entry[len("before"):], nil, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			want := sample
			want.count = len(frames)
			if name == "compressible" {
				want.flags |= flagCompressed
				if len(entry) > 20000 {
					t.Errorf("%d bytes after compression", len(entry))
				}
			}
			if h != want {
				t.Errorf("header %+v, want %+v", h, want)
			}
			if len(got) != len(frames) {
				t.Fatalf("%d frames, want %d", len(got), len(frames))
			}
			for i := range got {
				if !bytes.Equal(got[i], frames[i]) {
					t.Errorf("frame %d differs", i)
				}
			}
		})
	}
}

func TestDamagedEntriesAreRefused(t *testing.T) {
	entry, _ := appendEntry(nil, nil, sample, [][]byte{[]byte("one"), []byte("two")}, 0)
	for i := range entry {
		if _, _, err := decodeEntry(entry[:i], nil, 1<<20); err == nil {
			t.Errorf("cut at %d: no error", i)
		}
		bad := bytes.Clone(entry)
		bad[i] ^= 0x10
		if _, _, err := decodeEntry(bad, nil, 1<<20); err == nil {
			t.Errorf("byte %d changed: no error", i)
		}
	}
	newer := bytes.Clone(entry)
	newer[0] = entryVersion + 1
	if _, _, err := decodeEntry(newer, nil, 1<<20); !errors.Is(err, errVersion) {
		t.Errorf("a later version: %v", err)
	}
	packed, _ := appendEntry(nil, nil, sample, [][]byte{make([]byte, 1<<20)}, 1)
	if _, _, err := decodeEntry(packed, nil, 1<<19); !errors.Is(err, errTooLong) {
		t.Errorf("a bomb: %v", err)
	}
}

func TestChangesComeBackAsTheyWere(t *testing.T) {
	for _, c := range []Change{
		{},
		{Add: []string{"a", ""}, Remove: []string{"b"}, Events: [][]byte{[]byte("x"), {}}},
		{Add: []string{strings.Repeat("long", 1000)}},
	} {
		var got Change
		if err := decodeChange(appendChange(nil, c), &got); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%+v, %v; want %+v", got, err, c)
		}
	}
}

// FuzzDecodeEntry: nothing that stands in a stream makes the decoder panic or
// allocate without bound, and what it accepts it can write and read again.
func FuzzDecodeEntry(f *testing.F) {
	for _, over := range []int{0, 1} {
		entry, _ := appendEntry(nil, nil, sample, [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("two"), 100)}, over)
		f.Add(entry)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(data []byte) {
			h, frames, err := decodeEntry(data, nil, 1<<16)
			if err != nil {
				return
			}
			again, _ := appendEntry(nil, nil, h, frames, 0)
			h2, frames2, err := decodeEntry(again, nil, 1<<16)
			h.flags &^= flagCompressed
			if err != nil || h2 != h || len(frames2) != len(frames) {
				t.Fatalf("%+v became %+v, %v", h, h2, err)
			}
		}
		check(data)
		// Random bytes never have the right checksum: give them one.
		if len(data) >= entryFixed {
			check(seal(bytes.Clone(data)))
		}
	})
}

// FuzzDecodeChange is the same for announcements.
func FuzzDecodeChange(f *testing.F) {
	f.Add(appendChange(nil, Change{Add: []string{"a"}, Remove: []string{"b", "c"}, Events: [][]byte{[]byte("d")}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c, again Change
		if decodeChange(data, &c) != nil {
			return
		}
		if err := decodeChange(appendChange(nil, c), &again); err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
