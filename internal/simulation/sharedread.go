package simulation

import (
	"cmp"
	"context"
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// read calls f, which may wait, under the lock.
func (s *Shared) read(ctx context.Context, f func() error) error {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if err := s.wait(ctx); err != nil {
		return err
	}
	return f()
}

// readNow is read of what the engine may ask for with a mutex held: whoever
// waits for that is not at rest, for synctest, so this read takes no time.
func (s *Shared) readNow(ctx context.Context, f func() error) error {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	switch {
	case s.dead:
		return herald.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return f()
}

// follow keeps the clock above what was read: who takes a session over writes what is
// newer, however far apart the machines' clocks are.
func (s *Shared) follow(at place) {
	if p := s.db.parts[at]; p != nil && s.cluster {
		for _, c := range p.rows {
			if c.value != nil { // of a removal nobody learns
				s.stamp = max(s.stamp, c.ts)
			}
		}
	}
}

// Session implements [persistence.Store].
func (s *Shared) Session(ctx context.Context, kind persistence.Kind, name string) (row persistence.Session, err error) {
	read := s.read
	if kind == persistence.Group {
		read = s.readNow
	}
	err = read(ctx, func() error {
		s.follow(sessionPlace(kind, name))
		var ok bool
		if row, ok = s.db.oneLocked(sessionPlace(kind, name), column{}).(persistence.Session); !ok {
			return herald.ErrNotFound
		}
		return nil
	})
	return row, err
}

// Subscriptions implements [persistence.Store].
func (s *Shared) Subscriptions(ctx context.Context, id herald.SessionID) (subs []persistence.Subscription, err error) {
	err = s.read(ctx, func() error {
		s.follow(subscriptionsOf(id))
		for _, r := range s.db.rowsLocked(subscriptionsOf(id)) {
			subs = append(subs, r.value.(persistence.Subscription))
		}
		return nil
	})
	return subs, err
}

// Window implements [persistence.Store].
func (s *Shared) Window(ctx context.Context, id herald.SessionID) (win persistence.Window, err error) {
	err = s.readNow(ctx, func() error {
		s.follow(windowOf(id))
		for _, r := range s.db.rowsLocked(windowOf(id)) {
			switch v := r.value.(type) {
			case persistence.Mark:
				win.Low, win.Above = v.Low, slices.Clone(v.Above)
			case herald.ID:
				if v != 0 {
					win.Held = append(win.Held, persistence.Held{Session: id, PacketID: uint16(r.at.key), ID: v})
				}
			case persistence.Sent:
				if v.Step != persistence.Done {
					win.Sent = append(win.Sent, v)
				}
			}
		}
		return nil
	})
	slices.SortStableFunc(win.Sent, func(a, b persistence.Sent) int { return cmp.Compare(a.ID, b.ID) })
	return win, err
}

// Inbox implements [persistence.Store]. What was settled, and what stands there, is
// read side by side.
func (s *Shared) Inbox(ctx context.Context, id herald.SessionID, after, upTo herald.ID, limit, maxBytes int, dst []persistence.Entry) ([]persistence.Entry, error) {
	start := len(dst)
	err := s.read(ctx, func() error {
		if limit <= 0 || after >= upTo {
			return nil
		}
		f := s.flights[id]
		if f == nil {
			f = &inFlight{}
			s.flights[id] = f
		}
		f.readers++
		defer func() {
			f.readers--
			s.popLocked(id)
		}()
		from := f.first
		for from < f.first+len(f.jobs) && f.jobs[from-f.first].finished {
			from++
		}
		settled := map[int64]bool{}
		readSettled := func() {
			for _, r := range s.db.rowsLocked(windowOf(id)) {
				if r.at.slot == slotSettled {
					settled[r.at.key] = true
				}
			}
		}
		early := s.node%2 == 0 || s.stamp%2 == 0 // either may be read first
		if early {
			readSettled()
			if err := s.wait(ctx); err != nil {
				return err
			}
		}
		rows := s.db.rowsLocked(inboxOf(id))
		if !early {
			if err := s.wait(ctx); err != nil {
				return err
			}
			readSettled()
		}
		hidden := map[herald.ID]bool{}
		for i := max(0, from-f.first); i < len(f.jobs); i++ {
			for _, sp := range f.jobs[i].b.Spreads {
				if slices.ContainsFunc(sp.Targets, func(t persistence.Target) bool { return t.Session == id }) {
					for _, m := range sp.Messages {
						hidden[m.ID] = true
					}
				}
			}
		}
		weight := 0
		now := s.wall().UnixMilli()
		for _, r := range rows {
			mid := herald.ID(r.at.key)
			if mid <= after || mid > upTo || settled[r.at.key] || hidden[mid] {
				continue
			}
			if n := len(dst) - start; n >= limit || n > 0 && weight > maxBytes {
				break
			}
			e := r.value.(entry)
			if e.m == nil { // if it is not there, its batch was never done
				e.m, _ = s.db.oneLocked(place{table: tablePayload, a: r.at.key}, column{}).(*herald.Message)
			}
			if e.m == nil || e.m.Expires != 0 && e.m.Expires+60_000 <= now {
				continue
			}
			dst = append(dst, persistence.Entry{Message: e.m, QoS: e.qos, Retain: e.retain, Identifiers: slices.Clone(e.identifiers)})
			weight += e.m.Size()
		}
		return nil
	})
	if err != nil {
		dst = dst[:start]
	}
	return dst, err
}

// ScanSessions implements [persistence.Store].
func (s *Shared) ScanSessions(ctx context.Context, f func(persistence.Session) error) error {
	var rows []persistence.Session
	if err := s.read(ctx, func() error {
		for _, at := range s.db.placesLocked(tableSession) {
			if r, ok := s.db.oneLocked(at, column{}).(persistence.Session); ok {
				rows = append(rows, r)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := s.holdAfter("sessions"); err != nil {
		return err
	}
	for _, r := range rows {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// ScanSubscriptions implements [persistence.Store].
func (s *Shared) ScanSubscriptions(ctx context.Context, f func(herald.SessionID, persistence.Subscription) error) error {
	var ids []place
	if err := s.read(ctx, func() error {
		ids = s.db.placesLocked(tableSubscription)
		return nil
	}); err != nil {
		return err
	}
	if err := s.holdAfter("subscriptions"); err != nil {
		return err
	}
	for _, at := range ids {
		id := herald.SessionID(at.a)
		subs, err := s.Subscriptions(ctx, id)
		if err != nil {
			return err
		}
		for _, sub := range subs {
			if err := f(id, sub); err != nil {
				return err
			}
		}
	}
	return nil
}

// ExpiredSessions implements [persistence.Store]: it finds them by the time, and
// asks their rows.
func (s *Shared) ExpiredSessions(ctx context.Context, now int64, limit int) (all []persistence.Session, err error) {
	err = s.read(ctx, func() error {
		due := s.db.rowsLocked(place{table: tableExpiry})
		slices.SortStableFunc(due, func(a, b row) int { return cmp.Compare(a.at.key, b.at.key) })
		for _, d := range due {
			if d.at.key > now || len(all) == limit {
				break
			}
			r, ok := s.db.oneLocked(sessionPlace(persistence.Kind(d.at.slot), d.at.name), column{}).(persistence.Session)
			if ok && r.Expires == d.at.key {
				all = append(all, r)
				continue
			}
			s.send(&write{place: place{table: tableExpiry}, muts: []mutation{{at: d.at, ts: max(d.at.key*1000+1, s.next(1))}}})
		}
		return nil
	})
	return all, err
}

// Wills implements [persistence.Store].
func (s *Shared) Wills(ctx context.Context, now int64, connected bool, limit int) (wills []persistence.Will, err error) {
	err = s.read(ctx, func() error {
		for _, r := range s.db.rowsLocked(place{table: tableWill}) {
			if w := r.value.(persistence.Will); w.Due <= now && (w.Due != 0 || connected) {
				wills = append(wills, w)
			}
		}
		slices.SortStableFunc(wills, func(a, b persistence.Will) int { return cmp.Compare(a.Due, b.Due) })
		wills = wills[:min(limit, len(wills))]
		return nil
	})
	if err == nil {
		err = s.holdAfter("wills")
	}
	return wills, err
}

// Will implements [persistence.WillReader].
func (s *Shared) Will(ctx context.Context, id herald.SessionID) (w persistence.Will, err error) {
	err = s.read(ctx, func() error {
		var ok bool
		if w, ok = s.db.oneLocked(place{table: tableWill}, column{key: int64(id)}).(persistence.Will); !ok {
			return herald.ErrNotFound
		}
		return nil
	})
	return w, err
}

func (s *Shared) holdAfter(what string) error {
	s.db.mu.Lock()
	hold := s.hold
	s.db.mu.Unlock()
	if hold == nil {
		return nil
	}
	return hold(what)
}

// retained returns a topic's message, or nil.
func (s *Shared) retained(topic string) *herald.Message {
	m, _ := s.db.oneLocked(place{table: tableRetained, name: topic}, column{}).(*herald.Message)
	if m != nil && len(m.Payload) == 0 {
		return nil
	}
	return m
}

// Retained implements [persistence.Store].
func (s *Shared) Retained(ctx context.Context, topic string) (m *herald.Message, err error) {
	err = s.read(ctx, func() error {
		if m = s.retained(topic); m == nil {
			return herald.ErrNotFound
		}
		return nil
	})
	if hold := s.holdAfter("retained"); hold != nil {
		return nil, hold
	}
	return m, err
}

// ScanRetained implements [persistence.Store]: it finds topics in the index, and
// then their messages.
func (s *Shared) ScanRetained(ctx context.Context, filter, after string, limit, maxBytes int, dst []*herald.Message) (msgs []*herald.Message, more bool, err error) {
	msgs = dst
	err = s.read(ctx, func() error {
		var topics []string
		for _, r := range s.db.rowsLocked(place{table: tableIndex}) {
			if m := r.value.(*herald.Message); r.at.name > after && len(m.Payload) > 0 && herald.Matches(filter, r.at.name) {
				topics = append(topics, r.at.name)
			}
		}
		if !herald.Wildcard(filter) {
			if topics = nil; filter > after {
				topics = []string{filter}
			}
		}
		if err := s.wait(ctx); err != nil {
			return err
		}
		n, weight := 0, 0
		for _, t := range topics {
			m := s.retained(t)
			if m == nil {
				continue
			}
			if n >= limit || n > 0 && weight > maxBytes {
				more = true
				break
			}
			msgs = append(msgs, m)
			weight += m.Size()
			n++
		}
		return nil
	})
	return msgs, more, err
}

// RetainedCount implements [persistence.Store].
func (s *Shared) RetainedCount() int64 {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	n := int64(0)
	for _, r := range s.db.rowsLocked(place{table: tableIndex}) {
		if len(r.value.(*herald.Message).Payload) > 0 {
			n++
		}
	}
	return n
}

// describe logs what is stored of sessions.
func (s *Shared) describe(logf func(format string, args ...any)) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, at := range s.db.placesLocked(tableSession) {
		r, ok := s.db.oneLocked(at, column{}).(persistence.Session)
		if !ok {
			continue
		}
		logf("stored of %q (%d): %+v", r.Name, r.ID, r)
		for _, t := range []place{subscriptionsOf(r.ID), windowOf(r.ID)} {
			for _, x := range s.db.rowsLocked(t) {
				logf("  %+v: %+v", x.at, x.value)
			}
		}
		for _, x := range s.db.rowsLocked(inboxOf(r.ID)) {
			if m := x.value.(entry).m; m != nil {
				logf("  entry %d: %q", m.ID, m.Payload)
			} else {
				logf("  entry %d", x.at.key)
			}
		}
	}
	for _, r := range s.db.rowsLocked(place{table: tableWill}) {
		logf("will %+v", r.value)
	}
}
