package listen

import "sync"

// workerIdle is how many ticks a worker waits for the next control frame before
// its goroutine ends. Its stack has grown to what mochi needs by then, so
// keeping it for the next one saves growing it again.
const workerIdle = 4

// workers runs mochi, one goroutine per control frame at a time.
type workerPool struct {
	max int

	mu      sync.Mutex
	running int
	closed  bool
	idle    []*idleWorker // the last one in has the warmest stack
	queue   []*Conn       // waits because max are running
}

type idleWorker struct {
	next  chan *Conn // nil: end
	since uint32
}

// submit lets a worker run mochi for c. It does not block.
func (l *Loop) submit(c *Conn) {
	p := &l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n := len(p.idle); {
	case n > 0:
		p.idle[n-1].next <- c // has room for one
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
	case p.running < p.max:
		p.running++
		l.own.Add(1)
		go l.work(c)
	default:
		p.queue = append(p.queue, c)
	}
}

// work runs mochi for c, then for others as they come.
func (l *Loop) work(c *Conn) {
	defer l.own.Done()
	p := &l.pool
	self := &idleWorker{next: make(chan *Conn, 1)}
	for c != nil {
		c.serve()
		p.mu.Lock()
		if len(p.queue) > 0 {
			c = p.queue[0]
			p.queue[0] = nil
			p.queue = p.queue[1:]
			p.mu.Unlock()
			continue
		}
		if p.closed {
			p.mu.Unlock()
			break
		}
		self.since = l.now.Load()
		p.idle = append(p.idle, self)
		p.mu.Unlock()
		c = <-self.next
	}
	p.mu.Lock()
	p.running--
	p.mu.Unlock()
}

// trim ends workers that have been idle for long; all of them when closing.
func (p *workerPool) trim(now uint32, closing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = p.closed || closing
	n := 0
	for n < len(p.idle) && (p.closed || now-p.idle[n].since >= workerIdle) {
		p.idle[n].next <- nil
		n++
	}
	if n > 0 {
		p.idle = append(p.idle[:0], p.idle[n:]...)
		clear(p.idle[len(p.idle):cap(p.idle)])
	}
}
