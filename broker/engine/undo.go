package engine

import (
	"errors"
	"time"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// A CONNECT that fails when its commit has begun. The session's row, or its will, may
// stand in the store as those of a client that is connected: such a session would never
// expire. So it is put away, however long that takes, or when it is given to another
// node, or until its client comes.

// undoing notes that a session is still to be put away, or, if its client is connected,
// that none is.
func (e *Engine) undoing(name string, row persistence.Session, connected bool) {
	o := &e.owners
	o.mu.Lock()
	_, begun := o.undone[name]
	if connected {
		delete(o.undone, name)
	} else {
		o.undone[name] = row
	}
	o.mu.Unlock()
	if connected || begun {
		return
	}
	e.jobs.run(func() {
		for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
			select {
			case <-e.life.Done():
				return
			case <-time.After(wait):
			}
			unlock := e.claims.lock(name)
			err := e.undo(name)
			unlock()
			if err == nil {
				return
			}
		}
	})
}

// undo puts a session away whose client could not be connected, if there is one of that
// name. The name's lock is held.
func (e *Engine) undo(name string) error {
	o := &e.owners
	o.mu.Lock()
	row, ok := o.undone[name]
	o.mu.Unlock()
	if !ok {
		return nil
	}
	var b persistence.Batch
	now, err := e.store.Session(e.life, persistence.Client, name)
	switch {
	case errors.Is(err, herald.ErrNotFound): // it may turn up
		b.Delete = []persistence.Session{row}
		b.WillsGone = []herald.SessionID{row.ID}
	case err != nil:
		return err
	case now.ID != row.ID: // another one has taken its place
	default:
		b.Sessions = []persistence.Session{disconnected(row, e.now())}
		if will := e.wills.take(row.ID); will != nil { // the one before, which is as it was
			b.Wills = []persistence.Will{*will}
			defer e.wills.add(will)
		} else {
			b.WillsGone = []herald.SessionID{row.ID}
		}
	}
	if !b.Empty() {
		if err := e.commit(&b); err != nil {
			return err
		}
	}
	o.mu.Lock()
	delete(o.undone, name)
	o.mu.Unlock()
	return nil
}
