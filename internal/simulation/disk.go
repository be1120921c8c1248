package simulation

import (
	"cmp"
	"maps"
	"slices"
	"sort"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// disk is the data of a store: batches are applied to it, and read from it. It
// is not safe for concurrent use.
type disk struct {
	// lazy: settled entries of an inbox stay readable, as the contract allows;
	// else they go at once.
	lazy bool

	rows     map[herald.SessionID]persistence.Session
	subs     map[herald.SessionID]map[string]persistence.Subscription
	windows  map[herald.SessionID]*window
	inboxes  map[herald.SessionID][]persistence.Entry // rising
	retained map[string]*herald.Message
	// removed is the newest ID that removed a topic's retained message.
	removed map[string]herald.ID
	wills   map[herald.SessionID]persistence.Will
	maxID   herald.ID
}

type window struct {
	held  map[uint16]herald.ID
	sent  map[uint16]persistence.Sent
	low   herald.ID
	above []herald.ID
}

func newDisk(lazy bool) *disk {
	return &disk{
		lazy: lazy, rows: map[herald.SessionID]persistence.Session{},
		subs:    map[herald.SessionID]map[string]persistence.Subscription{},
		windows: map[herald.SessionID]*window{}, inboxes: map[herald.SessionID][]persistence.Entry{},
		retained: map[string]*herald.Message{}, removed: map[string]herald.ID{},
		wills: map[herald.SessionID]persistence.Will{},
	}
}

func (d *disk) clone() *disk {
	c := *d
	c.rows, c.retained, c.removed, c.wills = maps.Clone(d.rows), maps.Clone(d.retained), maps.Clone(d.removed), maps.Clone(d.wills)
	c.subs = make(map[herald.SessionID]map[string]persistence.Subscription, len(d.subs))
	for id, s := range d.subs {
		c.subs[id] = maps.Clone(s)
	}
	c.windows = make(map[herald.SessionID]*window, len(d.windows))
	for id, w := range d.windows {
		c.windows[id] = &window{held: maps.Clone(w.held), sent: maps.Clone(w.sent), low: w.low, above: slices.Clone(w.above)}
	}
	c.inboxes = make(map[herald.SessionID][]persistence.Entry, len(d.inboxes))
	for id, in := range d.inboxes {
		c.inboxes[id] = slices.Clone(in)
	}
	return &c
}

func (d *disk) window(id herald.SessionID) *window {
	w := d.windows[id]
	if w == nil {
		w = &window{held: map[uint16]herald.ID{}, sent: map[uint16]persistence.Sent{}}
		d.windows[id] = w
	}
	return w
}

func (d *disk) saw(id herald.ID) { d.maxID = max(d.maxID, id) }

// apply carries a batch out, in the order in which its fields stand.
func (d *disk) apply(b *persistence.Batch) {
	// A session's row may come with the first thing that is its own.
	fresh := map[herald.SessionID]bool{}
	for _, s := range b.Sessions {
		fresh[s.ID] = true
	}
	for _, sp := range b.Spreads {
		for _, t := range sp.Targets {
			if _, ok := d.rows[t.Session]; !ok && !fresh[t.Session] {
				continue
			}
			for _, m := range sp.Messages {
				d.put(t, m)
			}
		}
	}
	for _, m := range b.Retain {
		d.saw(m.ID)
		if m.ID <= d.removed[m.Topic] || d.retained[m.Topic] != nil && m.ID <= d.retained[m.Topic].ID {
			continue
		}
		if len(m.Payload) == 0 {
			delete(d.retained, m.Topic)
			d.removed[m.Topic] = m.ID
		} else {
			d.retained[m.Topic] = m
		}
	}
	for _, h := range b.Held {
		d.saw(h.ID)
		if w := d.window(h.Session); h.ID == 0 {
			delete(w.held, h.PacketID)
		} else {
			w.held[h.PacketID] = h.ID
		}
	}
	for _, s := range b.Sent {
		w := d.window(s.Session)
		switch s.Step {
		case persistence.Done:
			delete(w.sent, s.PacketID)
		case persistence.Released:
			d.remove(cmp.Or(s.Source, s.Session), s.ID)
			fallthrough
		default:
			w.sent[s.PacketID] = s
		}
	}
	for _, m := range b.Marks {
		w := d.window(m.Session)
		w.low, w.above = m.Low, slices.Clone(m.Above)
		if !d.lazy {
			d.inboxes[m.Session] = slices.DeleteFunc(d.inboxes[m.Session], func(e persistence.Entry) bool { return w.settled(e.Message.ID) })
		}
	}
	for _, s := range b.Sessions {
		d.saw(herald.ID(s.ID))
		maps.DeleteFunc(d.rows, func(_ herald.SessionID, r persistence.Session) bool { return r.Kind == s.Kind && r.Name == s.Name })
		d.rows[s.ID] = s
	}
	for _, s := range b.Subscribe {
		if d.subs[s.Session] == nil {
			d.subs[s.Session] = map[string]persistence.Subscription{}
		}
		d.subs[s.Session][s.Filter] = s.Subscription
	}
	for _, f := range b.Unsubscribe {
		delete(d.subs[f.Session], f.Filter)
	}
	for _, w := range b.Wills {
		d.wills[w.Session] = w
	}
	for _, id := range b.WillsGone {
		delete(d.wills, id)
	}
	for _, s := range b.Delete {
		delete(d.rows, s.ID)
		delete(d.subs, s.ID)
		delete(d.windows, s.ID)
		delete(d.inboxes, s.ID)
	}
}

func (w *window) settled(id herald.ID) bool { return id <= w.low || slices.Contains(w.above, id) }

func (d *disk) put(t persistence.Target, m *herald.Message) {
	d.saw(m.ID)
	in := d.inboxes[t.Session]
	i := sort.Search(len(in), func(i int) bool { return in[i].Message.ID >= m.ID })
	if i < len(in) && in[i].Message.ID == m.ID || !d.lazy && d.windows[t.Session] != nil && d.windows[t.Session].settled(m.ID) {
		return
	}
	d.inboxes[t.Session] = slices.Insert(in, i, persistence.Entry{Message: m, QoS: min(t.QoS, m.QoS), Retain: t.Retain, Identifiers: slices.Clone(t.Identifiers)})
}

func (d *disk) remove(session herald.SessionID, id herald.ID) {
	d.inboxes[session] = slices.DeleteFunc(d.inboxes[session], func(e persistence.Entry) bool { return e.Message.ID == id })
}
