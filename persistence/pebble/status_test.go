package pebble

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/herald-mqtt/herald"
)

func TestSchemaVersion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	check := func(want uint32) {
		t.Helper()
		have, now, err := SchemaVersion(dir)
		if err != nil || have != want || now < firstSchema {
			t.Errorf("got %d, %d, %v; want %d", have, now, err, want)
		}
	}
	check(0)
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := SchemaVersion(dir); !errors.Is(err, herald.ErrInUse) {
		t.Errorf("while it is open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, now, _ := SchemaVersion(dir)
	check(now)
	if s, err = Open(dir, Options{}); err != nil {
		t.Fatalf("after the look: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
