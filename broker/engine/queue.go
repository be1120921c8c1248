package engine

import (
	"slices"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// queues counts what stands in the inboxes of durable sessions, if configuration
// bounds it; else it is empty and nobody asks it. A count includes what is in
// flight. After a restart a session is counted when it is first sent something.
type queues struct {
	on bool // fixed

	mu sync.Mutex
	m  map[herald.SessionID]*queueCount
}

// queueCount is one session's.
type queueCount struct {
	name     string // client id, "" if not known
	messages int
	bytes    int64
	known    bool // what stood there at start was added
	trimming bool
}

func (q *queues) init(l QueueLimits) {
	q.on = l.Messages > 0 || l.Bytes > 0
	q.m = make(map[herald.SessionID]*queueCount)
}

func (q *queues) getLocked(id herald.SessionID) *queueCount {
	c := q.m[id]
	if c == nil {
		c = new(queueCount)
		q.m[id] = c
	}
	return c
}

// settled takes out what a session is done with.
func (q *queues) settled(id herald.SessionID, n, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.getLocked(id)
	c.messages -= n
	c.bytes -= int64(bytes)
}

// begin notes a session, its client and whether its inbox is known to be empty.
func (q *queues) begin(id herald.SessionID, name string, fresh bool) {
	if !q.on {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.getLocked(id)
	c.name = name
	c.known = c.known || fresh
}

func (q *queues) forget(id herald.SessionID) {
	if !q.on {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.m, id)
}

// sessionLimit is the bound of what a session without an inbox lets wait.
func (l QueueLimits) sessionLimit() session.Limit {
	s := session.Limit{Counted: l.Messages > 0 || l.Bytes > 0, Messages: l.Messages, Bytes: int(l.Bytes)}
	switch l.Full {
	case "drop_new":
		s.Full = session.DropNew
	case "disconnect":
		s.Full = session.Disconnect
	}
	return s
}

// over tells whether a count passes the bound.
func (l QueueLimits) over(c *queueCount) bool {
	return l.Messages > 0 && c.messages > l.Messages || l.Bytes > 0 && c.bytes > l.Bytes
}

// enqueue counts messages that are to go into the inbox of h; false: the queue is
// full and they must not. Never called without bounds.
func (e *Engine) enqueue(h *handle, msgs []*herald.Message) bool {
	n, bytes := len(msgs), 0
	for _, m := range msgs {
		bytes += m.Size()
	}
	q := &e.queues
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.getLocked(h.id)
	if !c.known {
		c.known = true
		e.background(func() { e.countQueue(h.id) })
	}
	c.messages += n
	c.bytes += int64(bytes)
	if !e.cfg.Queue.over(c) {
		return true
	}
	live := h.live.Load()
	switch {
	case e.cfg.Queue.Full == "disconnect" && live != nil:
		e.worker(live).call(func(w *listen.Worker) { live.fail(wire.ReasonQuota, w) })
		return true
	case e.cfg.Queue.Full == "drop_oldest" || e.cfg.Queue.Full == "":
		if !c.trimming {
			c.trimming = true
			e.background(func() { e.trimQueue(h) })
		}
		return true
	}
	c.messages -= n
	c.bytes -= int64(bytes)
	e.stats.QueueFull.Add(int64(n))
	return false
}

// countQueue adds what stood in an inbox when the process started.
func (e *Engine) countQueue(id herald.SessionID) {
	win, err := e.store.Window(e.ctx, id)
	if err != nil {
		return
	}
	n, bytes := 0, 0
	e.eachEntry(id, win, e.closed(), func(en *persistence.Entry) bool {
		n++
		bytes += en.Message.Size()
		return true
	})
	e.queues.mu.Lock()
	defer e.queues.mu.Unlock()
	c := e.queues.getLocked(id)
	c.messages += n
	c.bytes += int64(bytes)
}

// eachEntry calls f for the entries of an inbox up to an ID that are not settled,
// until f returns false.
func (e *Engine) eachEntry(id herald.SessionID, win persistence.Window, upTo herald.ID, f func(*persistence.Entry) bool) {
	settled := make(map[herald.ID]bool, len(win.Above))
	for _, a := range win.Above {
		settled[a] = true
	}
	for _, s := range win.Sent {
		if s.Source == 0 && s.Step == persistence.Released {
			settled[s.ID] = true
		}
	}
	var page []persistence.Entry
	for at := win.Low; ; {
		var err error
		if page, err = e.store.Inbox(e.ctx, id, at, upTo, 512, pageBytes, page[:0]); err != nil || len(page) == 0 {
			return
		}
		for i := range page {
			if at = page[i].Message.ID; !settled[at] && !f(&page[i]) {
				return
			}
		}
	}
}

// trimQueue drops the oldest messages of a session until it is within its bound:
// in its memory if it is connected, else in its inbox.
func (e *Engine) trimQueue(h *handle) {
	q := &e.queues
	q.mu.Lock()
	c := q.getLocked(h.id)
	c.trimming = false
	n := 0
	if l := e.cfg.Queue; l.Messages > 0 {
		n = max(0, c.messages-l.Messages)
	}
	if l := e.cfg.Queue; l.Bytes > 0 && c.bytes > l.Bytes && c.messages > 0 {
		each := c.bytes / int64(c.messages)
		n = max(n, int((c.bytes-l.Bytes+each-1)/max(1, each)))
	}
	name := c.name
	q.mu.Unlock()
	if n == 0 {
		return
	}
	if live := h.live.Load(); live != nil {
		core := live.core
		e.worker(live).call(func(w *listen.Worker) {
			e.step(live, core, w, func(_ session.Env, fx *session.Effects) { core.DropOldest(n, fx) })
		})
		return
	}
	if name != "" {
		e.trimAtRest(h, name, n)
	}
}

// trimAtRest settles the n oldest entries of a session that nobody is connected
// to. What was sent before is left alone.
func (e *Engine) trimAtRest(h *handle, name string, n int) {
	unlock := e.claims.lock(name)
	defer unlock()
	e.clientsMu.RLock()
	busy := e.clients[name] != nil
	e.clientsMu.RUnlock()
	if busy {
		return // it is trimmed with the next message
	}
	win, err := e.store.Window(e.ctx, h.id)
	if err != nil {
		return
	}
	sent := make(map[herald.ID]bool)
	for _, s := range win.Sent {
		sent[s.ID] = s.Source == 0
	}
	mark := persistence.Mark{Session: h.id, Low: win.Low, Above: slices.Clone(win.Above)}
	dropped, bytes := 0, 0
	keep := maxID
	e.eachEntry(h.id, win, e.closed(), func(en *persistence.Entry) bool {
		if dropped == n || sent[en.Message.ID] {
			keep = min(keep, en.Message.ID)
			return dropped < n
		}
		dropped++
		bytes += en.Message.Size()
		mark.Above = append(mark.Above, en.Message.ID)
		return true
	})
	slices.Sort(mark.Above)
	if len(mark.Above) > 0 {
		mark.Low = max(mark.Low, min(keep-1, mark.Above[len(mark.Above)-1]))
	}
	mark.Above = slices.DeleteFunc(mark.Above, func(id herald.ID) bool { return id <= mark.Low })
	if dropped == 0 || e.commit(&persistence.Batch{Marks: []persistence.Mark{mark}}) != nil {
		return
	}
	e.stats.QueueFull.Add(int64(dropped))
	e.queues.settled(h.id, dropped, bytes)
}
