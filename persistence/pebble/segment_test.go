package pebble

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// resum gives a segment's header, changed by a test, a valid sum.
func resum(head []byte) {
	binary.BigEndian.PutUint32(head[segHeader-4:], crc32.Checksum(head[:segHeader-4], castagnoli))
}

func TestRecordsOfAnEarlierUseAreNotValid(t *testing.T) {
	rec := append(make([]byte, recHeader), "body"...)
	sealRecord(rec, recBatches, 5, 8192)
	data := append(make([]byte, 8192), rec...)
	if _, body, _ := recordAt(data, 5, 8192); string(body) != "body" {
		t.Fatal("a valid record is not read")
	}
	if _, body, _ := recordAt(data, 6, 8192); body != nil {
		t.Fatal("a record of another segment is read")
	}
	moved := append(make([]byte, 4096), rec...)
	if _, body, _ := recordAt(moved, 5, 4096); body != nil {
		t.Fatal("a record of another place is read")
	}
}
