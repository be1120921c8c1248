// Package persistence is the contract of a store: the only door to everything
// that must outlive a process. Two implementations pass the same suite
// (persistence/storetest): the embedded one (persistence/pebble) and, in a
// cluster, ScyllaDB.
package persistence

import (
	"context"

	"github.com/herald-mqtt/herald"
)

// Store keeps sessions, their queues (inboxes), subscriptions, packet-id
// windows, retained messages, history and wills.
//
// All methods may be called at the same time by any number of goroutines.
// Errors wrap [herald.ErrUnavailable], [herald.ErrCorrupt], [herald.ErrNotFound]
// or [herald.ErrClosed]. Memory that a method returns belongs to the caller and
// is not written again; memory handed in is not written by the store and, where
// the method says so, must not be changed by the caller either.
type Store interface {
	// Commit makes b durable. It returns quickly: it queues b and calls done
	// exactly once, from any goroutine and not before Commit could return, when
	// b survives the death of the process and of the machine (done(nil)) or did
	// not get that far (done(err), and then nothing of b may be acknowledged;
	// some of it may still be found later). Many batches share one fsync or one
	// round of writes. On one store, batches are applied and their done called
	// in the order of the Commit calls of one goroutine. done must not block
	// and may be nil. When done is called, every read sees b.
	//
	// Commit blocks only for back-pressure: when more than a bounded amount is
	// under way. b and all it points at must not be changed until done was
	// called; *herald.Message values and what they point at are kept for longer
	// and must never change.
	//
	// The embedded store applies a batch as a whole or not at all.
	Commit(b *Batch, done func(error))

	// Session returns the row of a client's session or of a shared group.
	Session(ctx context.Context, kind Kind, name string) (Session, error)
	// Subscriptions returns a session's subscriptions, by filter.
	Subscriptions(ctx context.Context, s herald.SessionID) ([]Subscription, error)
	// Window returns what was stored of a session's packet ids and marks. A
	// session without any gets an empty one.
	Window(ctx context.Context, s herald.SessionID) (Window, error)
	// Inbox appends to dst the entries of a session's queue with
	// after < ID ≤ upTo, by rising ID: at most limit entries, and no further
	// one once their messages weigh more than maxBytes (at least one, if there
	// is one). Settled and expired entries may be missing.
	Inbox(ctx context.Context, s herald.SessionID, after, upTo herald.ID, limit, maxBytes int, dst []Entry) ([]Entry, error)

	// ScanSessions calls f for every session row, in no particular order, until
	// f returns an error, which it returns.
	ScanSessions(ctx context.Context, f func(Session) error) error
	// ScanSubscriptions calls f for every subscription, those of one session
	// together, until f returns an error, which it returns. Used at start: it
	// must manage a million in a few seconds. Strings in the argument may be
	// kept.
	ScanSubscriptions(ctx context.Context, f func(herald.SessionID, Subscription) error) error
	// ExpiredSessions returns up to limit sessions whose Expires lies at or
	// before now (Unix milliseconds), earliest first.
	ExpiredSessions(ctx context.Context, now int64, limit int) ([]Session, error)
	// Wills returns up to limit wills whose Due lies at or before now, earliest
	// first; wills with Due 0 (the client is connected) only if connected.
	Wills(ctx context.Context, now int64, connected bool, limit int) ([]Will, error)

	// Retained returns the retained message of a topic. One that has expired
	// may be returned or be gone.
	Retained(ctx context.Context, topic string) (*herald.Message, error)
	// ScanRetained appends to dst up to limit retained messages, and no further
	// one once they weigh more than maxBytes (at least one, if there is one),
	// whose topics match filter and lie behind after in byte order ("" is the
	// beginning). more tells whether there may be others behind the last one.
	// It seeks: its cost grows with what matches, not with what is stored.
	ScanRetained(ctx context.Context, filter, after string, limit, maxBytes int, dst []*herald.Message) (msgs []*herald.Message, more bool, err error)
	// RetainedCount is the number of retained messages, for $SYS; it may lag.
	RetainedCount() int64

	// Health is nil while the store can commit, else the reason why not.
	Health() error
	// MaxID is the highest message or session ID that the store has seen, for
	// a clock that must not run behind it.
	MaxID() herald.ID
	// Close commits what is under way, and releases everything.
	Close() error
}

// RetainedReader is a [Store] that reads several retained messages at once for less
// than one after the other.
type RetainedReader interface {
	// RetainedOf returns what [Store.Retained] does for each topic, nil where there is
	// none.
	RetainedOf(ctx context.Context, topics []string) ([]*herald.Message, error)
}
