package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
)

// SchemaVersion tells which schema the data in dir has, 0 if there is none yet,
// and which one this release writes. It changes nothing. Errors wrap
// [herald.ErrInUse] while somebody has the store open, or [herald.ErrCorrupt].
func SchemaVersion(dir string) (have, want uint32, err error) {
	want = firstSchema
	if n := len(migrations); n > 0 {
		want = migrations[n-1].from + 1
	}
	have, err = schemaOf(filepath.Join(dir, "db"))
	if err != nil {
		err = fmt.Errorf("read store %s: %w", dir, err)
	}
	return have, want, err
}

func schemaOf(dir string) (have uint32, err error) {
	if entries, err := os.ReadDir(dir); errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	db, err := crdb.Open(dir, &crdb.Options{ReadOnly: true, ErrorIfNotExists: true, FormatMajorVersion: pebbleFormat, Logger: silent{}})
	switch {
	case err != nil && (errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "lock held by current process")):
		return 0, herald.ErrInUse
	case err != nil:
		return 0, readable(err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	v, closer, err := db.Get(metaSchema)
	if errors.Is(err, crdb.ErrNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, readable(err)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	if len(v) != 4 {
		return 0, fmt.Errorf("%w: schema version is not a number", herald.ErrCorrupt)
	}
	return binary.BigEndian.Uint32(v), nil
}

// silent is for a look that ends in an error of its own.
type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}
