package scylla

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// plan says what of a batch is written when. Within a batch every item has a
// timestamp of its own, in the order in which a batch is applied, so what comes
// later in it wins like what comes later at all.
func (s *Store) plan(j *job) error {
	b := j.batch
	if len(b.Bans) > 0 {
		return errBans
	}
	ts := s.clock.take(stampsOf(b))
	p := &plan{s: s, ts: ts, now: s.opts.Now().UnixMilli()}
	if err := p.rows(b); err != nil {
		return err
	}
	j.after = p.after
	j.until = p.ts + int64(len(b.Delete))
	if len(p.first) > 0 {
		j.steps = append(j.steps, step{writes: p.first})
	}
	j.steps = append(j.steps, step{writes: p.writes})
	if needsIntent(b) {
		j.whole = ts
		for i := range j.steps {
			j.steps[i].must = true
		}
		j.steps = append(j.steps, s.ends(b.Delete, p.deleteAt)...)
	}
	for i := range j.steps {
		for k := range j.steps[i].writes {
			j.size += j.steps[i].writes[k].size
		}
	}
	return nil
}

// needsIntent tells whether a batch needs an intent: were only a part of it there after a
// crash, a QoS 2 publish would come twice or not at all, so would a will, and of what
// a new subscription is owed a retained message could be missing.
func needsIntent(b *persistence.Batch) bool {
	publishes := len(b.Spreads) > 0 || len(b.Retain) > 0
	return len(b.Delete) > 0 || publishes && (accepts(b) || len(b.WillsGone) > 0) || len(b.Spreads) > 0 && len(b.Subscribe) > 0
}

// accepts tells whether a batch takes a QoS 2 PUBLISH in.
func accepts(b *persistence.Batch) bool {
	for _, h := range b.Held {
		if h.ID != 0 {
			return true
		}
	}
	return false
}

// stampsOf is how many timestamps a batch takes.
func stampsOf(b *persistence.Batch) int {
	return len(b.Held) + len(b.Sent) + len(b.Marks) + len(b.Sessions) + len(b.Subscribe) + len(b.Unsubscribe) +
		len(b.Wills) + len(b.WillsGone) + len(b.Delete) + 1
}

// plan collects the rows of a batch.
type plan struct {
	s        *Store
	ts       int64 // of the next item
	now      int64
	first    []write // has to be in before the rest is written
	writes   []write
	after    []func(error)
	deleteAt int64 // of the first session that is deleted
}

func (p *plan) stamp() int64 {
	p.ts++
	return p.ts - 1
}

// add adds a row.
func (p *plan) add(st *statement, at part, size int, args ...any) {
	p.writes = append(p.writes, write{stmt: st, part: at, args: args, size: size + 64})
}

func (p *plan) rows(b *persistence.Batch) error {
	for i := range b.Spreads {
		if err := p.spread(&b.Spreads[i]); err != nil {
			return err
		}
	}
	for _, m := range b.Retain {
		if err := p.retain(m); err != nil {
			return err
		}
	}
	for _, h := range b.Held {
		p.s.sawID(uint64(h.ID))
		var row []byte
		if h.ID != 0 {
			row = binary.BigEndian.AppendUint64([]byte{record.V1}, uint64(h.ID))
		}
		p.window(h.Session, slotHeld, int64(h.PacketID), row, p.stamp())
	}
	for i := range b.Sent {
		p.sent(&b.Sent[i])
	}
	for i := range b.Marks {
		p.mark(&b.Marks[i])
	}
	for i := range b.Sessions {
		p.session(&b.Sessions[i])
	}
	for i := range b.Subscribe {
		sub := &b.Subscribe[i]
		row := record.AppendSubscription(nil, &sub.Subscription)
		p.add(putSubscription, part{partSubscription, int64(sub.Session), 0}, len(sub.Filter)+len(row),
			int64(sub.Session), []byte(sub.Filter), row, int32(0), p.stamp())
	}
	for _, f := range b.Unsubscribe {
		p.add(delSubscription, part{partSubscription, int64(f.Session), 0}, len(f.Filter), p.stamp(), int64(f.Session), []byte(f.Filter))
	}
	for i := range b.Wills {
		w := &b.Wills[i]
		if w.Message.Size() > maxMessage {
			return errTooLarge
		}
		row := record.AppendWill(nil, w)
		shard := willShard(w.Session)
		p.add(putWill, part{partWill, int64(shard), 0}, len(row), shard, int64(w.Session), row, int32(0), p.stamp())
	}
	for _, id := range b.WillsGone {
		shard := willShard(id)
		p.add(delWill, part{partWill, int64(shard), 0}, 0, p.stamp(), shard, int64(id))
	}
	p.deleteAt = p.ts
	return nil
}

func (p *plan) window(s herald.SessionID, slot int8, key int64, row []byte, ts int64) {
	if row == nil {
		row = []byte{} // null would be a tombstone
	}
	p.add(putWindow, part{partWindow, int64(s), 0}, len(row), int64(s), slot, key, row, int32(0), ts)
}

// sent writes the step of a delivery. A step that is released settles its entry,
// in the window of whose inbox it is: if that is not the session's own, first.
func (p *plan) sent(t *persistence.Sent) {
	p.s.sawID(uint64(t.ID))
	ts := p.stamp()
	var row []byte
	if t.Step != persistence.Done {
		row = binary.BigEndian.AppendUint64([]byte{record.V1}, uint64(t.ID))
		row = binary.BigEndian.AppendUint64(append(row, byte(t.Step)), uint64(t.Source))
	}
	if t.Step == persistence.Released {
		owner := t.Session
		if t.Source != 0 {
			owner = t.Source
		}
		p.s.states.get(owner).settles()
		settled := write{stmt: putWindow, part: part{partWindow, int64(owner), 0}, size: 64,
			args: []any{int64(owner), slotSettled, int64(t.ID), []byte{}, int32(0), ts}}
		if t.Source != 0 {
			p.first = append(p.first, settled)
		} else {
			p.writes = append(p.writes, settled)
		}
	}
	p.window(t.Session, slotSent, int64(t.PacketID), row, ts)
}

func (p *plan) mark(m *persistence.Mark) {
	ts := p.stamp()
	row := record.AppendMark([]byte{record.V1}, m.Low, m.Above)
	p.window(m.Session, slotMark, 0, row, ts)
	st := p.s.states.get(m.Session)
	if st.mayForget() {
		p.add(delSettled, part{partWindow, int64(m.Session), 0}, 0, ts, int64(m.Session), slotSettled, clampID(m.Low))
	}
	if st.behind(m.Session, m.Low, p.s.opts.SplitAfter) {
		p.after = append(p.after, func(err error) {
			if err == nil {
				p.s.sweeps.add(m.Session, m.Low)
			}
		})
	}
}

func (p *plan) session(row *persistence.Session) {
	s := p.s
	s.sawID(uint64(row.ID))
	key := sessionKey(row.Kind, row.Name)
	b := record.AppendSession(nil, row)
	p.add(putSession, part{}, len(key)+len(b), key, b, int32(0), p.stamp())
	s.putting.begin(string(key), row.ID)
	id := row.ID
	p.after = append(p.after, func(error) { s.putting.end(string(key), id) })
	if row.Expires != 0 {
		p.expiry(key, row.Expires)
	}
}

// sessionKey is the key of a session's row. A name may be longer than a key.
func sessionKey(kind persistence.Kind, name string) []byte {
	if len(name) > 1024 {
		h := sha256.Sum256([]byte(name))
		return append([]byte{0x80 | byte(kind)}, h[:]...)
	}
	return append([]byte{byte(kind)}, name...)
}

// spread writes entries of inboxes, and the payload of a wide publish once.
func (p *plan) spread(sp *persistence.Spread) error {
	s := p.s
	wide := len(sp.Targets) > s.opts.InlineUpTo
	var targets []byte
	if wide {
		targets = targetsRow(sp.Targets)
	}
	for _, m := range sp.Messages {
		if m.Size() > maxMessage {
			return errTooLarge
		}
		s.sawID(uint64(m.ID))
		ttl, live := timeToLive(m.Expires, p.now)
		if !live {
			continue
		}
		ts := idStamp(m.ID)
		if wide {
			// Before what points at it: a reader may see the pointer as soon as it is
			// there.
			p.first = append(p.first, s.payloadRows(m, targets, ttl)...)
		}
		var row []byte
		for i := range sp.Targets {
			t := &sp.Targets[i]
			if i == 0 || !sameHow(t, &sp.Targets[i-1]) {
				row = record.AppendEntry(make([]byte, 0, entrySize(m, wide)), m, t.QoS, t.Retain, t.Identifiers, wide)
			}
			bucket := p.bucket(t.Session, m.ID)
			p.add(putInbox, part{partInbox, int64(t.Session), bucket}, len(row), int64(t.Session), bucket, int64(m.ID), row, ttl, ts)
		}
	}
	return nil
}

func entrySize(m *herald.Message, wide bool) int {
	if wide {
		return 16
	}
	return m.Size()
}

func sameHow(a, b *persistence.Target) bool {
	return a.QoS == b.QoS && a.Retain == b.Retain && len(a.Identifiers) == 0 && len(b.Identifiers) == 0
}

// timeToLive is that of a row whose message expires; live is false if it has.
func timeToLive(expires, now int64) (ttl int32, live bool) {
	const most = 20 * 365 * 24 * 3600 // the database takes no longer one
	if expires == 0 || expires-now > most*1000 {
		return 0, true
	}
	if expires <= now {
		return 0, false
	}
	return int32((expires-now)/1000 + 60), true
}

func clampID(id herald.ID) int64 { return int64(min(id, 1<<63-1)) }
