package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	crdb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
)

// pebbleFormat is fixed so that an update of the library does not change what
// is on disk by itself.
const pebbleFormat = crdb.FormatTableFormatV6

func (s *Store) pebbleOptions() *crdb.Options {
	o := &crdb.Options{
		FS:                          strictFS{s.opts.FS, s},
		CacheSize:                   s.opts.CacheBytes,
		MemTableSize:                uint64(s.opts.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                512,
		DisableWAL:                  true,
		FormatMajorVersion:          pebbleFormat,
		FlushDelayDeleteRange:       s.opts.SweepInterval,
		Logger:                      dbLogger{s},
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
	}
	o.Experimental.FileCacheShards = 1
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	o.EventListener = s.listener()
	return o
}

// openPebble opens the database on a goroutine of its own, because Pebble ends
// the goroutine on which a fatal error happens; see dbLogger.
func (s *Store) openPebble(dir string) error {
	err := s.guarded(func() (err error) {
		s.db, err = crdb.Open(dir, s.pebbleOptions())
		return err
	})
	if err != nil {
		s.db = nil
	}
	return err
}

// closePebble flushes and closes the database. After a fatal error that cannot
// be done: it holds locks that nobody will give back.
func (s *Store) closePebble() error {
	if err := s.health.fatal(); err != nil {
		return err
	}
	return s.guarded(func() error {
		// What is in the journal need not be flushed. It makes the next start
		// shorter, so its failure is no failure.
		if err := s.flush(); err != nil {
			s.log.Warn("flush at close failed; the next start reads the journal", zap.Error(err))
		}
		if err := s.health.fatal(); err != nil {
			return err
		}
		return s.db.Close()
	})
}

// guarded runs f on a goroutine of its own and waits for its end or a fatal
// error, whichever comes first.
func (s *Store) guarded(f func() error) error {
	done := make(chan error, 1)
	go func() {
		ended := false
		defer func() {
			if r := recover(); r != nil {
				s.die(fmt.Sprint(r))
			}
			if !ended {
				done <- s.health.fatal()
			}
		}()
		err := f()
		ended = true
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-s.health.died:
		return s.health.fatal()
	}
}

// flush makes everything that was applied durable in Pebble. While Pebble cannot write
// its tables it fails: Pebble tries again for ever, and what waited for that would
// wait with it, be it only for the store to be closed. One at a time.
func (s *Store) flush() error {
	for {
		stuck, err := s.health.flushing()
		if err != nil {
			return err
		}
		last := s.flushed == nil
		if last {
			if s.flushed, err = s.db.AsyncFlush(); err != nil {
				return err
			}
		} // else an earlier one goes on, before what was applied since
		select {
		case <-s.flushed:
			if s.flushed = nil; last {
				return nil
			}
		case <-stuck:
		case <-s.health.died:
			return s.health.fatal()
		}
	}
}

// dbLogger takes Pebble's log. Pebble calls Fatalf where it cannot go on, as
// when its manifest cannot be written, and expects that it does not return. The
// goroutine ends there, the store stops for good, and says so; the journal has
// everything, so a restart loses nothing.
type dbLogger struct{ s *Store }

func (l dbLogger) Infof(string, ...any) {}

func (l dbLogger) Errorf(format string, args ...any) {
	l.s.log.Warn("pebble", zap.String("message", fmt.Sprintf(format, args...)))
}

func (l dbLogger) Fatalf(format string, args ...any) { l.s.stopHere(fmt.Sprintf(format, args...)) }

// die records that the database is of no use any more.
func (s *Store) die(why string) {
	s.health.die(fmt.Errorf("%w: database stopped, restart needed: %s", herald.ErrUnavailable, why))
	s.log.Error("database stopped, restart needed", zap.String("why", why))
}

// get reads a key into memory of its own.
func (s *Store) get(key []byte) (value []byte, ok bool, err error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, crdb.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	value = append(make([]byte, 0, len(v)), v...)
	return value, true, closer.Close()
}

// number reads a key that holds one, 0 if it is not there.
func (s *Store) number(key []byte) (uint64, error) {
	v, ok, err := s.get(key)
	if err != nil || !ok {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("%w: %q is not a number", herald.ErrCorrupt, key)
	}
	return binary.BigEndian.Uint64(v), nil
}

// iterate returns an iterator over the keys that begin with prefix, from on.
func (s *Store) iterate(r crdb.Reader, prefix, from []byte) (*crdb.Iterator, error) {
	if len(from) == 0 {
		from = prefix
	}
	return r.NewIter(&crdb.IterOptions{LowerBound: from, UpperBound: after(prefix)})
}

// readable gives an error of Pebble or of the file system one of the sentinels
// of the contract.
func readable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, herald.ErrCorrupt), errors.Is(err, herald.ErrUnavailable), errors.Is(err, herald.ErrClosed),
		errors.Is(err, herald.ErrNotFound), errors.Is(err, herald.ErrInUse), errors.Is(err, herald.ErrSchemaNewer):
		return err
	case crdb.IsCorruptionError(err):
		return fmt.Errorf("%w: %w", herald.ErrCorrupt, err)
	case errors.Is(err, crdb.ErrClosed):
		return fmt.Errorf("%w: %w", herald.ErrClosed, err)
	case strings.Contains(err.Error(), "unknown format major version"):
		return fmt.Errorf("%w: %w", herald.ErrSchemaNewer, err)
	}
	return fmt.Errorf("%w: %w", herald.ErrUnavailable, err)
}
