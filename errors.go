package herald

import "errors"

// What can go wrong, for errors.Is. Packages wrap these once, with the
// operation and its subject.
var (
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable: the store cannot be reached or cannot write now; it may
	// later. Nothing is acknowledged on it.
	ErrUnavailable = errors.New("store unavailable")
	// ErrCorrupt: what the store holds does not make sense.
	ErrCorrupt = errors.New("data corrupt")
	// ErrSchemaNewer: the data was written by a newer release.
	ErrSchemaNewer = errors.New("schema newer than the program")
	// ErrClosed: the part was closed.
	ErrClosed = errors.New("closed")
	// ErrInUse: somebody else has the data folder, address or name.
	ErrInUse = errors.New("in use")
)
