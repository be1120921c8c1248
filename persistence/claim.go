package persistence

import "context"

// Claim tells who serves a session: the node that made the newest one. The zero
// Claim is none.
type Claim struct {
	Owner uint16
	Life  uint64 // of the owner: see [Member]; 0 without a cluster
	Epoch uint64
}

// Claimer is a store that several nodes share. A store that one process has for
// itself needs no claims: whoever has the store has its sessions.
type Claimer interface {
	// Claimed returns the newest claim of a session; none is no error.
	Claimed(ctx context.Context, kind Kind, name string) (Claim, error)
	// Claim replaces the claim old of a session by one of owner, in its life, with
	// the next epoch, if old is still what stands there, and returns what stands there
	// afterwards: of any number that try with the same old, on any nodes, one has
	// won. It survives the deletion of the session, so that epochs only rise.
	Claim(ctx context.Context, kind Kind, name string, old Claim, owner uint16, life uint64) (now Claim, won bool, err error)
}

// ClaimHinter is a Claimer that can tell sooner who has a claim, for whom to ask.
type ClaimHinter interface {
	// ClaimHint returns the claim of a session as Claimed does, or one from before. It
	// decides nothing: what is to be relied upon is asked of Claimed.
	ClaimHint(ctx context.Context, kind Kind, name string) (Claim, error)
}

// Unclaimer is a Claimer that forgets claims. Clients that come once and choose
// another id each time would leave one behind each.
type Unclaimer interface {
	// Unclaim removes a claim if it is still what stands there. Epochs of that name
	// begin anew, so it is for its owner, when nothing is left of the session.
	Unclaim(ctx context.Context, kind Kind, name string, old Claim) error
}
