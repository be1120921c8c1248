package listen

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
)

// outgoing is the writing side of a connection.
type outgoing struct {
	pending atomic.Int64 // bytes appended and not yet taken by the kernel

	mu      sync.Mutex
	fd      int     // -1 once closed, or if there is none
	buf     *buffer // appended; nil if there is nothing
	head    *buffer // being written, or what the kernel did not take of it
	at      int     // how much of head the kernel has taken
	hint    int     // size of the last write: the next buffer's
	dirty   bool    // stands in the dirty list of a worker
	writing bool    // somebody is in write(2), or a flusher runs
	blocked bool    // the kernel took less than all: waits for EPOLLOUT
	retry   bool    // EPOLLOUT came while somebody was writing
	over    bool    // half of the bound was reached
	closing bool    // nothing may be appended; shut down when all is written
	shut    bool    // that has been done
	broken  bool    // the peer takes nothing any more
}

// Worker is one goroutine's list of connections to which it has appended. It
// must not be used by two goroutines at once.
type Worker struct {
	// Scratch belongs to the engine.
	Scratch any

	dirty []*Conn
	count *counters // nil: the loop's shared ones
	// queued were appended since the last Flush, to connections of loop.
	queued int64
	loop   *Loop
}

// NewWorker returns a Worker for a goroutine that writes to connections and is
// not called by this package: a commit's completion, a timer.
func NewWorker() *Worker { return &Worker{} }

var workers = sync.Pool{New: func() any { return NewWorker() }}

// Begin locks the outgoing buffer and returns it, to be appended to. The caller
// must call End soon, with the same slice grown by whole packets, and must not
// call anything of c between. It works on a closed connection, too: what is
// appended goes nowhere.
func (c *Conn) Begin() []byte {
	c.out.mu.Lock()
	if c.out.buf == nil {
		c.out.buf = getBuffer(c.out.hint)
	}
	return c.out.buf.b
}

// End stores what Begin returned and the caller appended to, unlocks it, and
// puts c on w's list, to be written by the next w.Flush (or by the Flush of
// another worker on whose list it stands already). It ends the connection if
// the peer makes the broker answer and does not read the answers.
func (c *Conn) End(w *Worker, b []byte) {
	some, added := c.endLocked(b)
	if some && !c.out.dirty {
		c.out.dirty = true
		w.dirty = append(w.dirty, c)
	}
	c.out.mu.Unlock()
	if added > 0 {
		w.queue(c.loop, added)
	}
	c.mayAnswer()
}

// queue counts bytes that were appended, with the next Flush, or now if there may be
// none.
func (w *Worker) queue(l *Loop, n int) {
	if w.loop != l {
		w.settle()
		w.loop = l
	}
	w.queued += int64(n)
	if len(w.dirty) == 0 {
		w.settle()
	}
}

func (w *Worker) settle() {
	if w.queued != 0 {
		w.counts(w.loop).queued.Add(w.queued)
		w.queued = 0
	}
}

// endLocked reports whether there is something to write, and how much more.
func (c *Conn) endLocked(b []byte) (some bool, added int) {
	o := &c.out
	added = len(b) - len(o.buf.b)
	if o.closing || o.broken {
		b, added = b[:len(b)-added], 0
	}
	o.buf.b = b
	if len(b) == 0 {
		putBuffer(o.buf)
		o.buf = nil
		return false, 0
	}
	if added > 0 && o.pending.Add(int64(added)) >= c.loop.cfg.WriteBound/2 {
		o.over = true
	}
	return true, added
}

// dropLocked counts out what waits and will not be written.
func (c *Conn) dropLocked() {
	if left := c.out.pending.Swap(0); left != 0 {
		c.loop.shared.queued.Add(-left)
	}
}

// Room is how many bytes may be appended until the bound; negative when it is
// exceeded. It is not enforced: the engine stops when there is none left, or not
// enough, and waits for [Handler.Drained]. A connection on which far more waits,
// twice the bound and two packets of the greatest size, is shut down.
func (c *Conn) Room() int { return int(c.loop.cfg.WriteBound - c.out.pending.Load()) }

// Flush writes everything that was appended by this worker: one write per
// connection, which does not block.
func (w *Worker) Flush() {
	w.settle()
	for i := 0; i < len(w.dirty); i++ { // Drained may add to it
		c := w.dirty[i]
		if c == nil {
			continue // an earlier Flush ended in a panic here
		}
		w.dirty[i] = nil
		c.flush(w, true)
	}
	w.dirty = w.dirty[:0]
}

// flush writes what is pending. listed: c came from a dirty list.
func (c *Conn) flush(w *Worker, listed bool) {
	o := &c.out
	o.mu.Lock()
	if listed {
		o.dirty = false
	}
	if o.writing || o.blocked || o.broken || o.fd < 0 && c.stream == nil {
		o.mu.Unlock()
		return
	}
	if c.stream != nil {
		if o.buf != nil || o.closing && !o.shut {
			o.writing = true
			c.stream.startFlusher()
		}
		o.mu.Unlock()
		return
	}
	drained := c.writeLocked(w)
	o.mu.Unlock()
	if drained {
		c.loop.handler.Drained(c, w)
	}
}

// writeLocked writes until nothing is left or the kernel takes no more. The lock
// is not held during write(2): others append meanwhile, and what they append is
// written here too, so that they need not wait. It reports whether
// [Handler.Drained] is due.
func (c *Conn) writeLocked(w *Worker) (drained bool) {
	o := &c.out
	n := w.counts(c.loop)
	o.writing = true
	for {
		if o.head == nil {
			if o.buf == nil {
				break
			}
			o.head, o.at, o.buf = o.buf, 0, nil
			o.learn(len(o.head.b))
		}
		o.retry = false
		fd, b := o.fd, o.head.b[o.at:]
		o.mu.Unlock()
		wrote, err := sysWrite(fd, b)
		n.writes.Add(1)
		if wrote > 0 {
			n.bytesOut.Add(int64(wrote))
			c.lis.bytesOut.Add(int64(wrote))
		}
		o.mu.Lock()
		if wrote > 0 {
			o.at += wrote
			if left := o.pending.Add(int64(-wrote)); o.over && left < c.loop.cfg.WriteBound/4 {
				o.over, drained = false, true
			}
		}
		if wrote == len(b) {
			putBuffer(o.head)
			o.head = nil
			continue
		}
		if err != nil && !wouldBlock(err) {
			drained = c.breakLocked() || drained
			break
		}
		if !o.retry { // else EPOLLOUT has come meanwhile
			o.blocked = true
			break
		}
	}
	o.writing = false
	if o.fd >= 0 && c.dead.Load() {
		// The owner found us writing and left the closing to us, or will come.
		c.post()
	}
	if o.closing && !o.shut && o.head == nil && o.buf == nil {
		c.finishLocked()
	}
	return drained
}

// breakLocked gives up the writing side: the peer takes nothing any more. The
// reading side goes on, because what the peer sent before it went away counts (a
// DISCONNECT, which keeps its will from being sent, may be among it); it will
// meet the end by itself.
func (c *Conn) breakLocked() (drained bool) {
	o := &c.out
	o.broken = true
	if o.buf != nil && !o.writing {
		putBuffer(o.buf)
	}
	o.buf, o.head = nil, nil
	o.blocked = false
	c.dropLocked()
	drained, o.over = o.over, false
	return drained
}

// writable is called when the kernel has room again.
func (c *Conn) writable(w *Worker) {
	o := &c.out
	o.mu.Lock()
	switch {
	case o.writing:
		o.retry = true
	case o.blocked:
		o.blocked = false
		if drained := c.writeLocked(w); drained {
			o.mu.Unlock()
			c.loop.handler.Drained(c, w)
			return
		}
	}
	o.mu.Unlock()
}

// learn chooses the size of the next buffer: what the last write took; after
// one that was far greater, by halves.
func (o *outgoing) learn(n int) { o.hint = min(max(n, o.hint/2), 64<<10) }

var errClosed = net.ErrClosed

// errSlow: a client makes the broker answer and does not read the answers.
var errSlow = errors.New("client does not read")

// mayAnswer ends a connection on which more waits than messages alone can bring
// there: the engine heeds the bound with them, so what exceeds it is answers.
func (c *Conn) mayAnswer() bool {
	if c.out.pending.Load() > c.loop.unread {
		c.Shutdown()
		return false
	}
	return true
}

// Write is mochi's: it appends and flushes at once.
func (c *Conn) Write(p []byte) (int, error) {
	w := workers.Get().(*Worker)
	defer workers.Put(w)
	if !c.mayAnswer() {
		return 0, errSlow
	}
	if c.stopped.Load() && c.dead.Load() {
		return 0, errClosed
	}
	c.End(w, append(c.Begin(), p...))
	w.Flush()
	return len(p), nil
}

func (w *Worker) counts(l *Loop) *counters {
	if w.count != nil {
		return w.count
	}
	return &l.shared
}
