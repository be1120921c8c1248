package membership

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/herald-mqtt/herald"
)

func someStatus() Status {
	return Status{
		Clock: 1 << 40, Closed: 1<<40 - 7, Owes: 5, Bridge: true, Address: "mqtt.example.org:1883", Leaving: true, Version: 1,
		Looked:  map[uint16]uint64{0: 3, 7: 0, herald.MaxNode: 1 << 63},
		Met:     map[uint16]uint64{1: 1},
		Covered: map[uint16]herald.ID{2: 99, 5: 1},
	}
}

// wanting is a status of a version that asks for sessions. The one of before cannot tell
// that one is to end.
func wanting(version uint8) Status {
	s := Status{Version: version, Wanted: []Want{{Node: 7, Name: "a"}, {Node: herald.MaxNode, Name: ""}}}
	if version > 1 {
		s.Wanted = append(s.Wanted, Want{Node: 0, Name: "b", Ends: true}, Want{Node: herald.MaxNode, Name: "c", Expires: true})
	}
	return s
}

// What a release of the version before has written is read; what that can read is written
// for it.
func TestStatusOfTheVersionBefore(t *testing.T) {
	s := wanting(1)
	before := s.encode()
	if before[0] != 1 {
		t.Errorf("written as version %d, although nothing of it needs that", before[0])
	}
	s.Wanted[0].Node = wantEnds
	if got, err := decodeStatus(s.encode()); err != nil || len(got.Wanted) != 1 {
		t.Errorf("a node that does not exist is asked: %+v, %v", got, err)
	}
	before[0] = 2
	if _, err := decodeStatus(before); !errors.Is(err, herald.ErrCorrupt) {
		t.Errorf("version 2 without a reason: %v", err)
	}
}

func TestStatusReturns(t *testing.T) {
	full := Status{Version: 1, Looked: map[uint16]uint64{}, Met: map[uint16]uint64{}, Covered: map[uint16]herald.ID{}}
	for node := range uint16(herald.MaxNode + 1) {
		full.Looked[node], full.Met[node], full.Covered[node] = ^uint64(0), uint64(node), herald.ID(node)
	}
	full.Address = strings.Repeat("x", maxAddress)
	for _, s := range []Status{{Version: 1}, {Version: 1, Bridge: true}, someStatus(), full, wanting(1), wanting(2)} {
		b := s.encode()
		got, err := decodeStatus(b)
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v became %+v, %v", s, got, err)
		}
		if len(b) > maxStatus {
			t.Errorf("%d bytes, the bound is %d", len(b), maxStatus)
		}
		for n := 0; n < len(b); n += 1 + len(b)/1000 {
			if _, err := decodeStatus(b[:n]); err == nil {
				t.Fatalf("the first %d bytes of %d are a status too", n, len(b))
			}
		}
		if _, err := decodeStatus(append(bytes.Clone(b), 0)); !errors.Is(err, herald.ErrCorrupt) {
			t.Errorf("with a byte more: %v", err)
		}
	}
	newer := someStatus().encode()
	newer[0] = statusVersion + 1
	if _, err := decodeStatus(newer); !errors.Is(err, herald.ErrSchemaNewer) {
		t.Errorf("a newer version: %v", err)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add(Status{}.encode())
	f.Add(someStatus().encode())
	f.Add(wanting(1).encode())
	f.Add(wanting(2).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeStatus(b)
		if err != nil {
			if !errors.Is(err, herald.ErrCorrupt) && !errors.Is(err, herald.ErrSchemaNewer) {
				t.Fatal(err)
			}
			return
		}
		if again := s.encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
