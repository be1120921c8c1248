package simulation

import "fmt"

func (w *World) dump() {
	d := w.store.synced
	for id, win := range d.windows {
		w.logf("  window %d (%s): held %v sent %v low %d above %v", id, d.rows[id].Name, win.held, win.sent, win.low, win.above)
	}
	for id, in := range d.inboxes {
		for _, e := range in {
			w.logf("  inbox %d: %d %q", id, e.Message.ID, e.Message.Payload)
		}
	}
	_ = fmt.Sprint
}

func init() { dumpHook = (*World).dump }
