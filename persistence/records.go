package persistence

import "github.com/herald-mqtt/herald"

// Batch is what one commit makes durable. The zero Batch is empty. Within one
// batch the fields are applied in the order in which they stand here, except
// that a session that is both put and deleted ends up deleted.
type Batch struct {
	// Spreads are entries for inboxes.
	Spreads []Spread
	// Retain sets the retained message of each message's topic, or removes it
	// if the payload is empty. The newest ID wins, whatever the order.
	Retain []*herald.Message
	// Held are packet ids of QoS 2 PUBLISHes that were accepted from clients.
	Held []Held
	// Sent are packet ids of PUBLISHes that go to clients.
	Sent []Sent
	// Marks settle entries of inboxes.
	Marks []Mark
	// Sessions are rows to write, whole.
	Sessions []Session
	// Subscribe and Unsubscribe change subscriptions.
	Subscribe   []SubscriptionOf
	Unsubscribe []FilterOf
	// Wills are rows to write; WillsGone, the sessions whose will goes.
	Wills     []Will
	WillsGone []herald.SessionID
	// Delete removes sessions with everything that is theirs: row,
	// subscriptions, window, inbox (not the will). The row is removed only if
	// it still carries this SessionID.
	Delete []Session
	// Bans are changes of the list of bans. Only the embedded store takes them in a
	// batch, from itself: see [Banner].
	Bans []BanChange
	// Lazy: the batch may wait for the fsync of a later one, a fraction of a
	// second at most. It is applied, and done is called, in its order all the
	// same.
	Lazy bool
}

// Empty tells whether there is nothing in b.
func (b *Batch) Empty() bool {
	return len(b.Spreads) == 0 && len(b.Retain) == 0 && len(b.Held) == 0 && len(b.Sent) == 0 &&
		len(b.Marks) == 0 && len(b.Sessions) == 0 && len(b.Subscribe) == 0 && len(b.Unsubscribe) == 0 &&
		len(b.Wills) == 0 && len(b.WillsGone) == 0 && len(b.Delete) == 0 &&
		len(b.Bans) == 0
}

// Spread puts every one of Messages into the inbox of every one of Targets. An
// entry is idempotent: the same (session, ID) again changes nothing. Entries of
// a session that has no row, and entries whose message has expired, may go
// missing: so a session's row is put before, or with, the first thing that is
// its own.
type Spread struct {
	Messages []*herald.Message
	Targets  []Target
}

// Target is a session that a message is due for, and how it is to be sent.
type Target struct {
	Session herald.SessionID
	// QoS is the most that the subscription grants; what is sent has the lower
	// of this and the message's.
	QoS byte
	// Retain: the RETAIN flag to send is the message's (retain as published) or
	// set because the message is sent as a retained one.
	Retain bool
	// Identifiers are the subscription identifiers that go with it.
	Identifiers []uint32
}

// Entry is one message due for a session.
type Entry struct {
	Message     *herald.Message
	QoS         byte // what to send it with
	Retain      bool // the RETAIN flag to send
	Identifiers []uint32
}

// Held tells that a client's QoS 2 PUBLISH with PacketID was accepted under ID
// and has not been released; ID 0 tells that it was released.
type Held struct {
	Session  herald.SessionID
	PacketID uint16
	ID       herald.ID
}

// Step of a delivery to a client.
type Step byte

// The steps of a delivery.
const (
	// Done: PUBACK or PUBCOMP came, the packet id is free.
	Done Step = iota
	// Published: PUBLISH may have been sent.
	Published
	// Released: PUBREC came, PUBREL may have been sent. It settles the entry
	// in its inbox, like a mark does for that one ID: when PUBCOMP has come and
	// the step is gone, too, an older mark must not bring the entry back.
	Released
)

// Sent tells how far the delivery of a message to a client has come: written
// before each step at QoS 2, and when the client goes away at QoS 1. At most
// one per (Session, PacketID): a later one replaces an earlier one.
type Sent struct {
	Session  herald.SessionID
	PacketID uint16
	ID       herald.ID
	// Source is the session or group in whose inbox the entry stands; 0 is
	// Session itself.
	Source herald.SessionID
	Step   Step
}

// Mark settles entries of a session's inbox: all with an ID at or below Low,
// and those in Above (rising, all over Low). A later mark replaces an earlier
// one. Settled entries are removed when it suits the store.
type Mark struct {
	Session herald.SessionID
	Low     herald.ID
	Above   []herald.ID
}

// Window is what a session's packet ids and marks were when last stored.
type Window struct {
	Held  []Held
	Sent  []Sent // Published and Released only, by rising ID
	Low   herald.ID
	Above []herald.ID
}

// Kind tells whose session a row is.
type Kind byte

// The kinds of session row.
const (
	// Client: Name is the client identifier.
	Client Kind = iota
	// Group: Name is "{group}/{filter}" of a shared subscription with a queue.
	Group
	// Wills is for claims only: who has the wills of a life in its care that is over.
	// Name is "{node}/{life}".
	Wills
)

// Session is the row of a session.
type Session struct {
	ID   herald.SessionID
	Kind Kind
	Name string
	// Version is the protocol level of the newest connection.
	Version herald.Version
	// Epoch rises with each connection.
	Epoch uint64
	// ExpiryInterval is in seconds; 4,294,967,295 is never.
	ExpiryInterval uint32
	// Expires is when the session ends if nobody comes (Unix milliseconds);
	// 0 while the client is connected, or never.
	Expires int64
	// Connected and Disconnected are when that last happened (Unix
	// milliseconds); Disconnected is 0 while the client is connected.
	Connected    int64
	Disconnected int64
	// Node and Life tell who serves the session, or did last, in a cluster.
	Node uint16
	Life uint64
}

// Subscription is one subscription of a session.
type Subscription struct {
	// Filter as the client sent it, with $share if it is shared.
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
	Identifier        uint32 // 0: none
	// Retained messages that are still to be sent for it: those behind
	// RetainedAfter, published before RetainedUpTo; RetainedUpTo 0: none.
	RetainedAfter string
	RetainedUpTo  herald.ID
}

// SubscriptionOf is a subscription with its session.
type SubscriptionOf struct {
	Session herald.SessionID
	Subscription
}

// FilterOf names a subscription.
type FilterOf struct {
	Session herald.SessionID
	Filter  string
}

// Will is a will of a client, connected or gone.
type Will struct {
	Session herald.SessionID
	Client  string
	// Message is what to publish; its ID is given when that is done.
	Message herald.Message
	// Delay is the will delay interval, in seconds.
	Delay uint32
	// Due is when to publish it (Unix milliseconds); 0 while the client is
	// connected.
	Due int64
	// Node and Life tell who has it in its care, in a cluster.
	Node uint16
	Life uint64
}
