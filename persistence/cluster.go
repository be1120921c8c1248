package persistence

import (
	"context"

	"github.com/herald-mqtt/herald"
)

// Cluster is a store that several nodes have at the same time. Membership stands
// in it, so that nothing rests on what carries messages between them.
//
// A node is in one life at a time: (Node, Life). What a node that was declared
// dead still has in flight may arrive later. It was never acknowledged; the store
// sees to it that it does no harm: see Fence, Finish and Seal.
type Cluster interface {
	Store
	Claimer

	// Identity is what makes this store different from every other: it is drawn when
	// its schema is made.
	Identity(ctx context.Context) (string, error)
	// Join begins a life of the node called name and returns its row, Live: the
	// number that the name had before, or a free one, with the next Life. It waits
	// for nobody: [herald.ErrInUse] if the row of that name is Live or Dead; whoever
	// is certain that it is nobody's calls Bury and Finish, and again.
	// From then on the store uses the node's number (message IDs, intents).
	Join(ctx context.Context, name string, status []byte) (Member, error)
	// Succeed is Join for the name of m, a life that is Dead, for which the caller has
	// called Finish: the next life takes its number over at once, and what else m had
	// begun is for it to finish; its status says so. [herald.ErrInUse] if the row is
	// not m's any more, or m is not Dead.
	Succeed(ctx context.Context, m Member, status []byte) (Member, error)
	// Beat renews the row of a life: status is replaced and Beat rises by one, if
	// the row is Live, of this life, and has m.Beat. ok false: it is not, and never
	// will be again; an error tells nothing, and the same Beat may be tried again.
	// (Then Beat may rise by more than one: by what the earlier attempts did, too.)
	// The store learns from ok false, and from Members, that its own life is over.
	Beat(ctx context.Context, m Member, status []byte) (now Member, ok bool, err error)
	// Members returns all rows, as of now: whatever a Beat, Bury or Change before
	// this call brought about is seen.
	Members(ctx context.Context) ([]Member, error)
	// Change sets the state of a life from one to another, if it has that and, for
	// Live, m.Beat still: Live to Dead by a survivor, Live to Left by itself, Dead to
	// Finished by whoever has finished what it had begun. It returns whether the row
	// has the wanted state now. For one (row, from) one call wins, and an attempt
	// without an answer is cleared up before it returns.
	Change(ctx context.Context, m Member, from, to MemberState) (ok bool, err error)

	// Fence has every commit ask valid, after its timestamps were taken and its
	// intent stands, before its rows are written: a node whose lease has run out
	// writes nothing. Such a commit fails with [herald.ErrUnavailable]; except that
	// one whose intent may stand waits, until valid says yes again or the store knows
	// that its life is over. valid must be cheap, and must not say yes when another may
	// have buried the life.
	Fence(valid func() bool)
	// Finish carries out what a life that is Dead had begun and not ended (intents).
	// Several may do so at the same time. [herald.ErrInUse] if the life is Live; nil if
	// it is over already. No life can be changed to Finished before.
	Finish(ctx context.Context, m Member) error
	// Seal makes whatever an earlier owner of a session may still have in flight for
	// its window without effect. To be called by who has claimed the session from a
	// life that is Finished, before it reads the window.
	Seal(ctx context.Context, s herald.SessionID) error
	// Observe tells the store of an ID that another node has made: what is written
	// from then on is not older than it, however far apart the two clocks are. What
	// that node has written can be newer than its IDs, by the seconds that a store keeps
	// in hand for a node that dies; so who takes a session over reads its row, window
	// and subscriptions first, after the other has written the row for the last time:
	// from then on what it writes of that session is newer.
	Observe(id herald.ID)
}

// WillReader is a Cluster that reads one will, for who has it in his care and not its
// session.
type WillReader interface {
	// Will returns the will of a session; [herald.ErrNotFound] if there is none.
	Will(ctx context.Context, s herald.SessionID) (Will, error)
}

// MemberState tells what became of a life.
type MemberState byte

// The states of a life.
const (
	// Live: it renews its row.
	Live MemberState = iota + 1
	// Dead: its lease has run out. What it had begun is being finished.
	Dead
	// Finished: it is dead, and nothing of it is left to be finished.
	Finished
	// Left: it has gone by itself, with nothing left to be finished.
	Left
)

// Member is the row of a node.
type Member struct {
	Node  uint16 // 0 to herald.MaxNode
	Life  uint64 // from 1; rises each time that the number is taken
	Name  string
	State MemberState
	Beat  uint64
	// Status is what the node says of itself.
	Status []byte
}
