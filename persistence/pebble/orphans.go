package pebble

import (
	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
)

// sweepOrphans removes what belongs to sessions that have no row (a mark that
// was saved after its session was deleted, say), and payload rows without a
// pointer (the process died between the two); and what has ended long ago.
func (k *keeper) sweepOrphans() error {
	s := k.s
	limit := herald.SessionID(herald.IDAt(s.opts.Now().Add(-orphanAge).UnixMilli()))
	snap := s.db.NewSnapshot()
	defer snap.Close()
	for _, kind := range []byte{kSubscription, kWindow, kInbox} {
		gone, err := k.withoutSession(snap, kind, limit)
		if err != nil {
			return err
		}
		for _, session := range gone {
			prefix := key1(nil, kind, uint64(session))
			if kind == kInbox {
				err = k.removeEntries(prefix, after(prefix))
			} else {
				err = s.db.DeleteRange(prefix, after(prefix), crdb.NoSync)
			}
			if err != nil {
				return err
			}
		}
	}
	if err := k.loosePayloads(snap); err != nil {
		return err
	}
	if err := k.sweepPayloads(); err != nil {
		return err
	}
	if err := k.sweepGone(); err != nil {
		return err
	}
	return k.sweepBans()
}

// maxOrphans bounds what one run looks for; the next one finds the rest.
const maxOrphans = 100_000

// withoutSession finds sessions made before limit that have keys of the given
// kind and no row. Both run by rising session, so it is one merge.
func (k *keeper) withoutSession(snap *crdb.Snapshot, kind byte, limit herald.SessionID) ([]herald.SessionID, error) {
	rows, err := k.s.iterate(snap, []byte{kSessionID}, nil)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	things, err := k.s.iterate(snap, []byte{kind}, nil)
	if err != nil {
		return nil, err
	}
	defer things.Close()
	var gone []herald.SessionID
	have := rows.First()
	for ok := things.First(); ok && len(gone) < maxOrphans; {
		session := u64At(things.Key(), 1)
		for have && u64At(rows.Key(), 1) < session {
			have = rows.Next()
		}
		if !have || u64At(rows.Key(), 1) != session {
			if herald.SessionID(session) >= limit {
				break
			}
			gone = append(gone, herald.SessionID(session))
		}
		if session == ^uint64(0) {
			break
		}
		ok = things.SeekGE(key1(nil, kind, session+1))
	}
	if err := rows.Error(); err != nil {
		return nil, err
	}
	return gone, things.Error()
}

func (k *keeper) loosePayloads(snap *crdb.Snapshot) error {
	payloads, err := k.s.iterate(snap, []byte{kPayload}, nil)
	if err != nil {
		return err
	}
	defer payloads.Close()
	pointers, err := k.s.iterate(snap, []byte{kPointer}, nil)
	if err != nil {
		return err
	}
	defer pointers.Close()
	for ok := payloads.First(); ok; ok = payloads.Next() {
		id := u64At(payloads.Key(), 1)
		if !pointers.SeekGE(key1(nil, kPointer, id)) || u64At(pointers.Key(), 1) != id {
			k.unpointed(herald.ID(id))
		}
	}
	if err := pointers.Error(); err != nil {
		return err
	}
	return payloads.Error()
}
