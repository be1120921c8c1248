package persistence

import "context"

// BanKind tells what a ban goes by.
type BanKind byte

// The kinds of ban.
const (
	// BanClient: Who is a client identifier.
	BanClient BanKind = iota + 1
	// BanUsername: Who is the user name of a CONNECT.
	BanUsername
	// BanAddress: Who is a network, as netip.Prefix writes it.
	BanAddress
)

// BanKey names a ban: there is at most one of each.
type BanKey struct {
	Kind BanKind
	Who  string
}

// Ban keeps clients from connecting.
type Ban struct {
	BanKey
	// Reason and By, who made it, are for people.
	Reason, By string
	// Since is when it was made, Until when it ends (Unix milliseconds; 0: never).
	Since, Until int64
}

// BanChange puts a ban in the place of that with its key, or, if Gone, removes that.
type BanChange struct {
	Ban
	Gone bool
}

// BanNews is what has become of the list of bans since some version of it.
type BanNews struct {
	// Version is the one that the list has with Changes; it may have more already. 0:
	// there never was a ban.
	Version uint64
	// Whole: Changes are all bans that there are, and none is Gone. Else they are what
	// has changed, in that order.
	Whole   bool
	Changes []BanChange
	// Unreadable are rows that could not be decoded. They were logged, and are missing.
	Unreadable int
}

// Banner is a store that keeps a list of bans. All that have the store have the same
// list, and it outlives them. A ban that has ended may be missing.
type Banner interface {
	// ChangeBan makes a change durable and returns the version of the list with it: one
	// more than that without it. After an error it may be in the list or not.
	ChangeBan(ctx context.Context, c BanChange) (version uint64, err error)
	// BanNews returns what was changed since the version since, which an earlier call
	// of this process has returned; 0, or when that is no longer known: all bans. It
	// sees all changes that ChangeBan has returned of, on any node. It is cheap when
	// nothing has changed.
	BanNews(ctx context.Context, since uint64) (BanNews, error)
}
