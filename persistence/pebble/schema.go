package pebble

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	crdb "github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence/record"
)

// migration brings Pebble's keys from version From to From+1. The journal needs
// none: it holds batches, and is read after the migration. It may be run again
// if the process dies within it.
type migration struct {
	from uint32
	run  func(db *crdb.DB) error
}

// migrations of this release, by rising version. The schema that it writes is
// one above the last.
var migrations []migration

// firstSchema is the oldest schema.
const firstSchema = 1

// checkSchema brings the schema up to date and returns whose journal goes with
// the database. A new database gets both.
func (s *Store) checkSchema(steps []migration) (id storeID, err error) {
	current := uint32(firstSchema)
	if n := len(steps); n > 0 {
		current = steps[n-1].from + 1
	}
	v, ok, err := s.get(metaSchema)
	if err != nil {
		return id, err
	}
	if !ok {
		if _, err := rand.Read(id[:]); err != nil {
			return id, err
		}
		if err := s.db.Set(metaStore, id[:], crdb.NoSync); err != nil {
			return id, err
		}
		return id, s.setSchema(current)
	}
	if len(v) != 4 {
		return id, fmt.Errorf("%w: schema version is not a number", herald.ErrCorrupt)
	}
	have := binary.BigEndian.Uint32(v)
	if have > current {
		return id, fmt.Errorf("%w: data has schema %d, this release knows up to %d", herald.ErrSchemaNewer, have, current)
	}
	for _, step := range steps {
		if step.from < have {
			continue
		}
		s.log.Info("migrating the schema", zap.Uint32("from", step.from), zap.Uint32("to", step.from+1))
		if err := step.run(s.db); err != nil {
			return id, fmt.Errorf("migrate schema %d: %w", step.from, err)
		}
		if err := s.setSchema(step.from + 1); err != nil {
			return id, err
		}
	}
	if v, ok, err = s.get(metaStore); err != nil {
		return id, err
	}
	if !ok || len(v) != len(id) {
		return id, fmt.Errorf("%w: store has no identity", herald.ErrCorrupt)
	}
	return storeID(v), nil
}

// setSchema makes the schema version, and all before it, durable.
func (s *Store) setSchema(version uint32) error {
	if err := s.db.Set(metaSchema, binary.BigEndian.AppendUint32(nil, version), crdb.NoSync); err != nil {
		return err
	}
	return s.guarded(s.flush)
}

// recover reads the journal into tails and Pebble.
func (s *Store) recover() error {
	low, err := s.number(metaLow)
	if err != nil {
		return err
	}
	maxID, err := s.number(metaMaxID)
	if err != nil {
		return err
	}
	s.sawID(maxID)
	n, err := s.number(metaRetained)
	if err != nil {
		return err
	}
	s.retained.Store(int64(n))
	var applied position
	if v, ok, err := s.get(metaApplied); err != nil {
		return err
	} else if ok && len(v) == 16 {
		applied = position{seg: u64At(v, 0), off: int64(u64At(v, 8))}
	}
	s.journal.nextSeq = max(low, 1)
	it, err := s.iterate(s.db, []byte{kInbox}, nil)
	if err != nil {
		return err
	}
	s.spilled.Store(it.First())
	if err := it.Close(); err != nil {
		return err
	}
	return s.journal.recover(low, func(seg uint64, off int64, body []byte) error {
		at := position{seg: seg, off: off}
		d := record.Decoder{B: body}
		for len(d.B) > 0 && d.Err == nil {
			if b := d.Batch(); d.Err == nil {
				if err := s.apply.apply(b, seg, at.after(applied)); err != nil {
					return err
				}
			}
		}
		if d.Err != nil {
			return d.Err
		}
		return s.apply.end(at)
	})
}
