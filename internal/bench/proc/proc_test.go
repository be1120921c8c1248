//go:build linux

package proc

import (
	"os"
	"testing"
	"time"
)

func TestCPUGrowsWithWork(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	busy, err := Busy()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		after, err := CPU(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after >= before+50*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("ten seconds of work are not seen")
		}
	}
	if after, err := Busy(); err != nil || after < busy+20*time.Millisecond {
		t.Errorf("the machine worked from %v to %v, error %v", busy, after, err)
	}
}

func TestResident(t *testing.T) {
	before, err := Resident(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<20)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	after, err := Resident(os.Getpid())
	if err != nil || after < before+48<<20 {
		t.Errorf("64 MB more: %d to %d, error %v", before, after, err)
	}
	_ = block[0]
}

func TestNoSuchProcess(t *testing.T) {
	if _, err := CPU(-1); err == nil {
		t.Error("processor time of nothing")
	}
	if _, err := Resident(-1); err == nil {
		t.Error("memory of nothing")
	}
}
