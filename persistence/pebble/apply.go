package pebble

import (
	"encoding/binary"

	crdb "github.com/cockroachdb/pebble/v2"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// applier turns batches into changes of tails and of Pebble: those of the
// running store, and those of the journal at start. A group's changes of Pebble
// are one Pebble batch that also says up to where the journal was applied, so
// what Pebble has after a crash is the result of whole groups, and only the
// groups behind that are applied again.
type applier struct {
	s     *Store
	batch *crdb.Batch
	key   []byte // scratch
	val   []byte // scratch
	dirty bool   // the batch holds something

	// Rows that this group wrote and may read again; nil: deleted. Others are
	// written blindly.
	rows map[string][]byte

	retained      int64 // change of the number of retained messages
	retainedDirty bool
}

func (a *applier) init(s *Store) {
	a.s = s
	a.batch = s.db.NewBatch()
	a.rows = make(map[string][]byte)
}

// apply applies b, committed in segment seg. rows is false for what Pebble has
// already.
func (a *applier) apply(b *persistence.Batch, seg uint64, rows bool) error {
	s := a.s
	for i := range b.Spreads {
		sp := &b.Spreads[i]
		s.tails.spread(sp, seg)
		for _, m := range sp.Messages {
			s.sawID(uint64(m.ID))
		}
	}
	for _, t := range b.Sent {
		if t.Step == persistence.Released {
			s.tails.settle(inboxOf(t), t.ID)
		}
	}
	for i := range b.Marks {
		s.tails.mark(&b.Marks[i])
		if s.spilled.Load() {
			s.keeper.settled(b.Marks[i].Session, false)
		}
	}
	for i := range b.Delete {
		s.tails.drop(b.Delete[i].ID)
		if s.spilled.Load() {
			s.keeper.settled(b.Delete[i].ID, true)
		}
	}
	for i := range b.Sessions {
		s.sawID(uint64(b.Sessions[i].ID))
	}
	for _, m := range b.Retain {
		s.sawID(uint64(m.ID))
	}
	if !rows {
		return nil
	}
	return a.applyRows(b)
}

func (a *applier) applyRows(b *persistence.Batch) error {
	for _, m := range b.Retain {
		if err := a.retain(m); err != nil {
			return err
		}
	}
	for _, h := range b.Held {
		a.key = packetKey(a.key[:0], h.Session, partHeld, h.PacketID)
		if h.ID == 0 {
			a.delete(a.key)
			continue
		}
		a.val = binary.BigEndian.AppendUint64(append(a.val[:0], record.V1), uint64(h.ID))
		a.set(a.key, a.val)
	}
	for _, t := range b.Sent {
		if err := a.sent(t); err != nil {
			return err
		}
	}
	for i := range b.Marks {
		m := &b.Marks[i]
		a.key = windowKey(a.key[:0], m.Session, partMark)
		a.val = record.AppendMark(append(a.val[:0], record.V1), m.Low, m.Above)
		a.set(a.key, a.val)
	}
	for i := range b.Sessions {
		if err := a.session(&b.Sessions[i]); err != nil {
			return err
		}
	}
	for i := range b.Subscribe {
		sub := &b.Subscribe[i]
		a.key = subscriptionKey(a.key[:0], sub.Session, sub.Filter)
		a.val = record.AppendSubscription(a.val[:0], &sub.Subscription)
		a.set(a.key, a.val)
	}
	for _, f := range b.Unsubscribe {
		a.key = subscriptionKey(a.key[:0], f.Session, f.Filter)
		a.delete(a.key)
	}
	for i := range b.Wills {
		if err := a.will(&b.Wills[i]); err != nil {
			return err
		}
	}
	for _, session := range b.WillsGone {
		if err := a.willGone(session); err != nil {
			return err
		}
	}
	for i := range b.Delete {
		if err := a.deleteSession(&b.Delete[i]); err != nil {
			return err
		}
	}
	for i := range b.Bans {
		a.ban(&b.Bans[i])
	}
	return nil
}

// end commits the group's changes of Pebble.
func (a *applier) end(at position) error {
	if !a.dirty {
		return nil
	}
	if err := a.batch.Set(metaApplied, at.encode(), nil); err != nil {
		return err
	}
	return a.flush()
}

// flush commits what has gathered, so that it can be read.
func (a *applier) flush() error {
	if !a.dirty {
		return nil
	}
	if a.retainedDirty {
		n := a.s.retained.Add(a.retained)
		a.retained, a.retainedDirty = 0, false
		if err := a.batch.Set(metaRetained, binary.BigEndian.AppendUint64(nil, uint64(n)), nil); err != nil {
			return err
		}
	}
	if err := a.batch.Commit(crdb.NoSync); err != nil {
		return err
	}
	a.batch.Reset()
	a.dirty = false
	clear(a.rows)
	return nil
}

// set and delete only fail when memory does, or a programmer.
func (a *applier) set(key, val []byte) {
	a.dirty = true
	if err := a.batch.Set(key, val, nil); err != nil {
		panic(err)
	}
}

func (a *applier) delete(key []byte) {
	a.dirty = true
	if err := a.batch.Delete(key, nil); err != nil {
		panic(err)
	}
}

// row reads a row as this group has it.
func (a *applier) row(key []byte) ([]byte, bool, error) {
	if v, ok := a.rows[string(key)]; ok {
		return v, v != nil, nil
	}
	return a.s.get(key)
}

func (a *applier) setRow(key, val []byte) {
	a.rows[string(key)] = append(make([]byte, 0, len(val)), val...)
	a.set(key, val)
}

func (a *applier) deleteRow(key []byte) {
	a.rows[string(key)] = nil
	a.delete(key)
}

// session writes a row and keeps its two indexes.
func (a *applier) session(row *persistence.Session) error {
	a.key = sessionKey(a.key[:0], row.Kind, row.Name)
	if err := a.unindexSession(row); err != nil {
		return err
	}
	a.val = record.AppendSession(a.val[:0], row)
	a.setRow(a.key, a.val)
	name := append([]byte{byte(row.Kind)}, row.Name...)
	a.set(key1(nil, kSessionID, uint64(row.ID)), name)
	if row.Expires != 0 {
		a.set(key2(nil, kExpiry, uint64(row.Expires), uint64(row.ID)), name)
	}
	return nil
}

// unindexSession takes the row at a.key out of the indexes as far as next does
// not stand in the same places.
func (a *applier) unindexSession(next *persistence.Session) error {
	v, ok, err := a.row(a.key)
	if err != nil || !ok {
		return err
	}
	d := record.Decoder{B: v}
	old := d.Session()
	if d.Err != nil {
		return d.Err
	}
	if next == nil || old.ID != next.ID {
		a.delete(key1(nil, kSessionID, uint64(old.ID)))
	}
	if old.Expires != 0 && (next == nil || old.ID != next.ID || old.Expires != next.Expires) {
		a.delete(key2(nil, kExpiry, uint64(old.Expires), uint64(old.ID)))
	}
	return nil
}

// fewRows is the number of rows up to which they are deleted one by one: many
// range tombstones make everything else slow.
const fewRows = 32

func (a *applier) deleteSession(row *persistence.Session) error {
	a.key = sessionKey(a.key[:0], row.Kind, row.Name)
	v, ok, err := a.row(a.key)
	if err != nil {
		return err
	}
	if ok {
		d := record.Decoder{B: v}
		old := d.Session()
		if d.Err != nil {
			return d.Err
		}
		if old.ID == row.ID {
			if err := a.unindexSession(nil); err != nil {
				return err
			}
			a.deleteRow(a.key)
		}
	}
	// What else is the session's may stand in this very group.
	if err := a.flush(); err != nil {
		return err
	}
	for _, kind := range []byte{kSubscription, kWindow} {
		if err := a.deletePrefix(key1(nil, kind, uint64(row.ID))); err != nil {
			return err
		}
	}
	return nil
}

// deletePrefix deletes all keys that begin with prefix and are committed.
func (a *applier) deletePrefix(prefix []byte) error {
	it, err := a.s.iterate(a.s.db, prefix, nil)
	if err != nil {
		return err
	}
	n := 0
	for ok := it.First(); ok && n < fewRows; ok = it.Next() {
		a.delete(it.Key())
		n++
	}
	if err := it.Close(); err != nil {
		return err
	}
	if n < fewRows {
		return nil
	}
	a.dirty = true
	return a.batch.DeleteRange(prefix, after(prefix), nil)
}

// sent writes a step of a delivery. Released settles the entry: from then
// on only the window speaks of it, so that it can neither be sent again nor be
// forgotten, whenever the session's next mark is saved.
func (a *applier) sent(t persistence.Sent) error {
	a.key = packetKey(a.key[:0], t.Session, partSent, t.PacketID)
	if t.Step == persistence.Done {
		a.delete(a.key)
		return nil
	}
	a.val = binary.BigEndian.AppendUint64(append(a.val[:0], record.V1), uint64(t.ID))
	a.val = append(a.val, byte(t.Step))
	a.val = binary.BigEndian.AppendUint64(a.val, uint64(t.Source))
	a.set(a.key, a.val)
	if t.Step != persistence.Released || !a.s.spilled.Load() {
		return nil
	}
	return a.unspill(inboxOf(t), t.ID)
}

// inboxOf is the session in whose inbox the entry stands.
func inboxOf(t persistence.Sent) herald.SessionID {
	if t.Source != 0 {
		return t.Source
	}
	return t.Session
}

// unspill deletes one entry from Pebble, if it is there.
func (a *applier) unspill(session herald.SessionID, id herald.ID) error {
	a.key = key2(a.key[:0], kInbox, uint64(session), uint64(id))
	v, ok, err := a.s.get(a.key)
	if err != nil || !ok {
		return err
	}
	a.delete(a.key)
	if record.IsPointer(v) {
		a.delete(key2(nil, kPointer, uint64(id), uint64(session)))
		a.s.keeper.unpointed(id)
	}
	return nil
}

func (a *applier) will(w *persistence.Will) error {
	if err := a.willGone(w.Session); err != nil {
		return err
	}
	a.val = record.AppendWill(a.val[:0], w)
	a.setRow(key1(nil, kWill, uint64(w.Session)), a.val)
	a.set(key2(nil, kWillDue, uint64(w.Due), uint64(w.Session)), nil)
	return nil
}

func (a *applier) willGone(session herald.SessionID) error {
	key := key1(nil, kWill, uint64(session))
	v, ok, err := a.row(key)
	if err != nil || !ok {
		return err
	}
	d := record.Decoder{B: v}
	old := d.Will()
	if d.Err != nil {
		return d.Err
	}
	a.deleteRow(key)
	a.delete(key2(nil, kWillDue, uint64(old.Due), uint64(session)))
	return nil
}

// retain keeps the newest message of a topic. A removal is remembered, so that
// a message that was published before it and comes after it stays away.
func (a *applier) retain(m *herald.Message) error {
	gone := topicKey(nil, kRetainedGone, m.Topic)
	if v, ok, err := a.row(gone); err != nil {
		return err
	} else if ok && len(v) == 8 && u64At(v, 0) >= uint64(m.ID) {
		return nil
	}
	a.key = topicKey(a.key[:0], kRetained, m.Topic)
	v, there, err := a.row(a.key)
	if err != nil {
		return err
	}
	if there {
		old, err := record.DecodeMessage(v)
		if err != nil {
			return err
		}
		if old.ID > m.ID {
			return nil
		}
		if old.Expires != 0 && old.Expires != m.Expires {
			a.delete(retainExpiryKey(old.Expires, m.Topic))
		}
	}
	switch {
	case len(m.Payload) == 0:
		a.setRow(gone, binary.BigEndian.AppendUint64(nil, uint64(m.ID)))
		if there {
			a.deleteRow(a.key)
			a.count(-1)
		}
		return nil
	case !there:
		a.count(1)
	}
	a.val = record.AppendMessage(append(a.val[:0], record.V1), m, nil)
	a.setRow(a.key, a.val)
	if m.Expires != 0 {
		a.set(retainExpiryKey(m.Expires, m.Topic), nil)
	}
	return nil
}

func (a *applier) count(n int64) {
	a.retained += n
	a.retainedDirty = true
}
