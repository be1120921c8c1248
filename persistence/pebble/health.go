package pebble

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	crdb "github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
)

// healthState says whether the store can commit, and why not.
type healthState struct {
	died chan struct{} // closed by die

	mu     sync.Mutex    // guards below; a leaf
	dead   error         // the database is gone; nothing can be read either
	failed error         // the journal cannot be trusted; until restart
	full   error         // no space; until there is
	flush  error         // Pebble cannot write its tables; until it can
	stuck  chan struct{} // closed while flush is set
}

func (h *healthState) init() { h.died, h.stuck = make(chan struct{}), make(chan struct{}) }

// die records a fatal error of the database.
func (h *healthState) die(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead == nil {
		h.dead = err
		close(h.died)
	}
}

// fail stops all commits until the store is opened again.
func (h *healthState) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed == nil {
		h.failed = err
	}
}

func (h *healthState) setFull(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = err
}

func (h *healthState) isFull() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.full != nil
}

func (h *healthState) setFlush(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil && h.flush == nil:
		close(h.stuck)
	case err == nil && h.flush != nil:
		h.stuck = make(chan struct{})
	}
	h.flush = err
}

// flushing is why Pebble cannot write its tables now, or nil, and what is closed as
// soon as it cannot.
func (h *healthState) flushing() (stuck <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stuck, h.flush
}

// fatal is why nothing can be read, or nil.
func (h *healthState) fatal() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead
}

// reason is why nothing can be committed, or nil.
func (h *healthState) reason() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range []error{h.dead, h.failed, h.full, h.flush} {
		if err != nil {
			return err
		}
	}
	return nil
}

// noSpace tells whether err means that the disk, or the quota, is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// listener hears what happens in Pebble's background.
func (s *Store) listener() *crdb.EventListener {
	return &crdb.EventListener{
		BackgroundError: func(err error) {
			s.stats.backgroundErrors.Add(1)
			if noSpace(err) {
				s.health.setFull(fmt.Errorf("%w: disk full: %w", herald.ErrUnavailable, err))
			}
			// Pebble tries again at once, and for ever.
			time.Sleep(20 * time.Millisecond)
		},
		FlushEnd: func(info crdb.FlushInfo) {
			// A memtable without anything in it makes no table, and Pebble calls
			// that an error.
			if info.Err == nil || strings.HasSuffix(info.Err.Error(), "empty table") {
				s.health.setFlush(nil)
				return
			}
			s.health.setFlush(fmt.Errorf("%w: database cannot write: %w", herald.ErrUnavailable, info.Err))
			s.log.Warn("database cannot write", zap.Error(info.Err))
		},
		CompactionEnd: func(info crdb.CompactionInfo) {
			if info.Err != nil && !errors.Is(info.Err, crdb.ErrCancelledCompaction) {
				s.log.Warn("compaction failed", zap.Error(info.Err))
			}
		},
	}
}
