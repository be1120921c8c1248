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
		Clock: 1 << 40, Closed: 1<<40 - 7, Owes: 5, Bridge: true, Address: "mqtt.example.org:1883", Leaving: true, Version: statusVersion,
		Looked:  map[uint16]uint64{0: 3, 7: 0, herald.MaxNode: 1 << 63},
		Met:     map[uint16]uint64{1: 1},
		Covered: map[uint16]herald.ID{2: 99, 5: 1},
	}
}

func TestStatusReturns(t *testing.T) {
	full := Status{Version: statusVersion, Looked: map[uint16]uint64{}, Met: map[uint16]uint64{}, Covered: map[uint16]herald.ID{}}
	for node := range uint16(herald.MaxNode + 1) {
		full.Looked[node], full.Met[node], full.Covered[node] = ^uint64(0), uint64(node), herald.ID(node)
	}
	full.Address = strings.Repeat("x", maxAddress)
	for _, s := range []Status{{Version: statusVersion}, {Version: statusVersion, Bridge: true}, someStatus(), full} {
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
	newer[0]++
	if _, err := decodeStatus(newer); !errors.Is(err, herald.ErrSchemaNewer) {
		t.Errorf("a newer version: %v", err)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add(Status{}.encode())
	f.Add(someStatus().encode())
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
