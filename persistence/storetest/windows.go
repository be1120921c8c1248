package storetest

import (
	"sort"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

func (h *harness) window(s herald.SessionID) persistence.Window {
	h.Helper()
	w, err := h.store.Window(ctx, s)
	h.noError("window", err)
	sort.Slice(w.Held, func(i, j int) bool { return w.Held[i].PacketID < w.Held[j].PacketID })
	return w
}

var windowTests = []test{
	{"a session without any has an empty window", func(h *harness) {
		h.equal("window", h.window(h.session()), persistence.Window{})
	}},
	{"held packet ids stay until they are released", func(h *harness) {
		s := h.session()
		a, b, c := newID(), newID(), newID()
		h.commit(&persistence.Batch{Held: []persistence.Held{{Session: s, PacketID: 65535, ID: a}, {Session: s, PacketID: 1, ID: b}, {Session: s + 1, PacketID: 1, ID: c}}})
		h.twice(func() {
			h.equal("held", h.window(s).Held, []persistence.Held{{Session: s, PacketID: 1, ID: b}, {Session: s, PacketID: 65535, ID: a}})
		})
		h.commit(&persistence.Batch{Held: []persistence.Held{{Session: s, PacketID: 1, ID: 0}, {Session: s, PacketID: 65535, ID: c}, {Session: s, PacketID: 9, ID: 0}}})
		h.twice(func() {
			h.equal("held", h.window(s).Held, []persistence.Held{{Session: s, PacketID: 65535, ID: c}})
		})
	}},
	{"steps of sent messages come by ID", func(h *harness) {
		s := h.session()
		a, b, c := newID(), newID(), newID()
		h.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: s, PacketID: 1, ID: c, Step: persistence.Published}, {Session: s, PacketID: 2, ID: a, Step: persistence.Published}, {Session: s, PacketID: 3, ID: b, Step: persistence.Published}}})
		h.commit(&persistence.Batch{Sent: []persistence.Sent{{Session: s, PacketID: 2, ID: a, Step: persistence.Released}, {Session: s, PacketID: 1, ID: c, Step: persistence.Done}}})
		h.twice(func() {
			h.equal("sent", h.window(s).Sent, []persistence.Sent{{Session: s, PacketID: 2, ID: a, Step: persistence.Released}, {Session: s, PacketID: 3, ID: b, Step: persistence.Published}})
		})
	}},
	{"within a batch the later step counts", func(h *harness) {
		s := h.session()
		a := newID()
		h.commit(&persistence.Batch{
			Held: []persistence.Held{{Session: s, PacketID: 1, ID: a}, {Session: s, PacketID: 1, ID: 0}, {Session: s, PacketID: 2, ID: 0}, {Session: s, PacketID: 2, ID: a}},
			Sent: []persistence.Sent{{Session: s, PacketID: 1, ID: a, Step: persistence.Published}, {Session: s, PacketID: 1, ID: a, Step: persistence.Released}, {Session: s, PacketID: 2, ID: a, Step: persistence.Published}, {Session: s, PacketID: 2, ID: a, Step: persistence.Done}}})
		h.twice(func() {
			h.equal("window", h.window(s), persistence.Window{Held: []persistence.Held{{Session: s, PacketID: 2, ID: a}}, Sent: []persistence.Sent{{Session: s, PacketID: 1, ID: a, Step: persistence.Released}}})
		})
	}},
	{"a later mark replaces an earlier one", func(h *harness) {
		s := h.session()
		h.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: s, Low: 5, Above: []herald.ID{7, 1 << 60}}}})
		h.twice(func() { h.equal("mark", h.window(s), persistence.Window{Low: 5, Above: []herald.ID{7, 1 << 60}}) })
		h.commit(&persistence.Batch{Marks: []persistence.Mark{{Session: s, Low: 8}}})
		h.twice(func() { h.equal("mark", h.window(s), persistence.Window{Low: 8}) })
	}},
}
