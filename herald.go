// Package herald holds the nouns of the broker: a message and its ID, a
// session's identity, checked topics and filters, and the errors that every
// part understands. It imports the standard library only and knows nothing of
// sockets, stores or clusters.
package herald

// SessionID identifies one session, or the queue of one shared group, for as
// long as it lives. It is made from an [ID] when the session begins and never
// used again: a client that starts clean gets a new SessionID, so whatever is
// left of the old one (queue, packet ids) can never be mistaken for its own.
// 0 is no session.
type SessionID uint64

// Version is an MQTT protocol level as it stands in CONNECT.
type Version byte

// The protocol levels that Herald speaks. MQTT 3.1 (level 3) is served as 3.1.1.
const (
	V31  Version = 3
	V311 Version = 4
	V5   Version = 5
)
