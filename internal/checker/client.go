package checker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

var (
	errProtocol = errors.New("protocol error")
	errRefused  = errors.New("connection refused by the broker")
	errDropped  = errors.New("dropped on purpose")
)

// Time limits of the clients.
const (
	dialTimeout = 2 * time.Second
	// A connection on which nothing comes for so long, although PINGREQ is
	// sent three times within, is given up.
	silence   = 6 * time.Second
	keepAlive = 30 // seconds
	// sessionExpiry outlasts any run.
	sessionExpiry = 7 * 24 * 3600 // seconds
)

// client is one MQTT client with a durable session. It publishes, subscribes
// or both, and connects again until it is stopped.
type client struct {
	// Fixed.
	ledger    *ledger
	cfg       *Config
	name      string // in reports
	id        string
	version   byte
	dropEvery time.Duration // mean; 0: never
	calm      *gate         // shut while drops are allowed
	publish   *gate         // open while new publishes are wanted
	ready     chan struct{} // closed when connected and subscribed for the first time
	wake      chan struct{} // of the writer, capacity 1

	// Owned by the goroutine of loop and, while a connection lasts, by its writer.
	rng     *rand.Rand
	scratch []byte
	avoid   string // the address that has just failed
	// Owned by the reader.
	readRng *rand.Rand

	mu          sync.Mutex // guards below
	attempts    int        // CONNECTs sent
	connects    uint32     // CONNACKs received, the number of the present connection
	established bool       // a CONNACK has been received: the session must exist
	bounce      bool       // drop the connection once, now
	stopping    bool       // DISCONNECT
	readyOnce   bool
	online      bool      // between CONNACK and the end of the connection
	last        time.Time // of the last packet other than PINGRESP
	out         outbound
	in          inbound
}

// gate is open or shut; it is shut at first.
type gate struct {
	once sync.Once
	ch   chan struct{}
}

func newGate() *gate  { return &gate{ch: make(chan struct{})} }
func (g *gate) open() { g.once.Do(func() { close(g.ch) }) }
func (g *gate) isOpen() bool {
	select {
	case <-g.ch:
		return true
	default:
		return false
	}
}

func (c *client) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// loop keeps the client connected until ctx ends or stop is called.
func (c *client) loop(ctx context.Context) {
	pause := 10 * time.Millisecond
	for ctx.Err() == nil && !c.stopped() {
		conn, r, err := c.connect(ctx)
		if err == nil {
			pause = 10 * time.Millisecond
			c.serve(ctx, conn, r)
			continue
		}
		// Not back at once: a broker that is being restarted has nothing to say.
		select {
		case <-ctx.Done():
		case <-time.After(pause + time.Duration(c.rng.Int64N(int64(pause)))):
		}
		pause = min(2*pause, 300*time.Millisecond)
	}
}

func (c *client) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

// stop ends the connection with DISCONNECT, and loop.
func (c *client) stop() {
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	c.nudge()
}

// drop makes the client break its connection and come back.
func (c *client) drop() {
	c.mu.Lock()
	c.bounce = true
	c.mu.Unlock()
	c.nudge()
}

// connect opens a connection to one of the brokers up to its CONNACK, and
// resumes the session.
func (c *client) connect(ctx context.Context) (net.Conn, *bufio.Reader, error) {
	addr := c.choose()
	c.avoid = addr
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r, err := c.handshake(conn, addr)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	c.avoid = ""
	return conn, r, nil
}

// choose takes one of the brokers, another one than has just failed.
func (c *client) choose() string {
	addrs := c.cfg.Addrs
	n := c.rng.IntN(len(addrs))
	if addrs[n] == c.avoid && len(addrs) > 1 {
		n = (n + 1 + c.rng.IntN(len(addrs)-1)) % len(addrs)
	}
	return addrs[n]
}

func (c *client) handshake(conn net.Conn, addr string) (*bufio.Reader, error) {
	c.mu.Lock()
	first := !c.established
	c.attempts++
	c.mu.Unlock()
	_ = conn.SetDeadline(time.Now().Add(c.cfg.ConnackTimeout))
	_, err := conn.Write(appendConnect(nil, connectOptions{
		version: c.version, clientID: c.id, username: c.cfg.Username, password: c.cfg.Password,
		keepAlive: keepAlive, sessionExpiry: sessionExpiry,
		receiveMaximum: uint16(c.in.limit), aliasMaximum: c.in.aliasMax,
	}))
	if err != nil {
		return nil, err
	}
	if !first && c.dropEvery > 0 && !c.calm.isOpen() && c.rng.IntN(20) == 0 {
		c.ledger.tally(func(r *Report) { r.Drops++ })
		return nil, errDropped // without having seen CONNACK
	}
	r := bufio.NewReaderSize(conn, 16<<10)
	var buf []byte
	f, err := readFrame(r, &buf)
	if err != nil {
		return nil, err
	}
	info, err := parseConnack(f, c.version)
	if err != nil {
		c.ledger.protocol("%s got a bad CONNACK from %s: %v", c.name, addr, err)
		return nil, err
	}
	if info.reason != 0 {
		c.ledger.reason(fmt.Sprintf("CONNACK %#02x (version %d)", info.reason, c.version))
		return nil, errRefused
	}
	c.resume(info, addr)
	return r, conn.SetDeadline(time.Time{})
}

// resume takes up or forgets the session, as CONNACK says.
func (c *client) resume(info connackInfo, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connects++
	c.ledger.tally(func(r *Report) { r.Connects++ })
	if !info.present {
		if c.established {
			at, n := c.ledger.now(), c.connects
			fault := c.ledger.faultBefore(at)
			c.ledger.tally(func(r *Report) {
				r.Forgotten.add("%s (MQTT %d) on its connection %d at %v by %s; %s", c.name, c.version, n, at, addr, fault)
			})
		}
		c.out.forget()
		c.in.forget()
	} else if c.attempts == 1 {
		c.ledger.protocol("%s: session present 1 on the first connection", c.name)
	}
	c.established, c.online, c.bounce, c.last = true, true, false, time.Now()
	c.out.reconnected(info)
	c.in.reconnected()
	if c.in.aud != nil {
		c.in.aud.connected()
	} else {
		c.becomeReady()
	}
}

func (c *client) becomeReady() {
	if !c.readyOnce {
		c.readyOnce = true
		close(c.ready)
	}
}

// serve works on a connection until it ends.
func (c *client) serve(ctx context.Context, conn net.Conn, r *bufio.Reader) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		c.read(ctx, conn, r)
	}()
	err := c.write(ctx, conn)
	conn.Close()
	cancel()
	<-done
	c.mu.Lock()
	c.online = false
	stopped := c.stopping
	c.mu.Unlock()
	c.ledger.tally(func(r *Report) {
		switch {
		case errors.Is(err, errDropped):
			r.Drops++
		case !stopped:
			r.Closed++
		}
	})
}

// write sends what is due until the connection ends, and breaks it at random.
func (c *client) write(ctx context.Context, conn net.Conn) error {
	now := time.Now()
	ping := now.Add(silence / 3)
	var drop time.Time
	if c.dropEvery > 0 {
		drop = now.Add(time.Duration(c.rng.ExpFloat64() * float64(c.dropEvery)))
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.wake:
		case <-timer.C:
		}
		now = time.Now()
		var next time.Time
		var bounce, stopping bool
		buf, next, bounce, stopping = c.gather(buf[:0], now)
		if !now.Before(ping) {
			buf = append(buf, typePingreq<<4, 0)
			ping = now.Add(silence / 3)
		}
		if bounce || !drop.IsZero() && !now.Before(drop) && !c.calm.isOpen() {
			return c.breakOff(conn, buf)
		}
		if stopping {
			buf = append(buf, typeDisconnect<<4, 0)
		}
		if len(buf) > 0 {
			_ = conn.SetWriteDeadline(now.Add(silence))
			if _, err := conn.Write(buf); err != nil || stopping {
				return err
			}
		}
		until := ping
		if !drop.IsZero() && drop.Before(until) && drop.After(now) {
			until = drop
		}
		if !next.IsZero() && next.Before(until) {
			until = next
		}
		timer.Reset(max(0, time.Until(until)))
	}
}

// gather collects what is due now; next is when there may be more.
func (c *client) gather(b []byte, now time.Time) (_ []byte, next time.Time, bounce, stopping bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in.aud != nil && !c.in.subscribed && c.in.pendingID == 0 {
		b = c.in.subscribe(b, c)
	}
	b, acksDue := c.in.gather(b, now)
	b, next = c.out.gather(b, c, now, c.publish.isOpen() && !c.calm.isOpen())
	if next.IsZero() || !acksDue.IsZero() && acksDue.Before(next) {
		next = acksDue
	}
	return b, next, c.bounce, c.stopping
}

// breakOff sends a part of b, often ending within a packet, and breaks the
// connection with FIN or RST.
func (c *client) breakOff(conn net.Conn, b []byte) error {
	if len(b) > 0 {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(b[:c.rng.IntN(len(b)+1)]) // whatever of it arrives
	} else if c.rng.IntN(2) == 0 {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write([]byte{typePingreq << 4}) // half a packet
	}
	if tcp, ok := conn.(*net.TCPConn); ok && c.rng.IntN(2) == 0 {
		_ = tcp.SetLinger(0)
	}
	return errDropped
}

// deadlineReader gives a connection up when nothing comes for too long.
type deadlineReader struct{ net.Conn }

func (d deadlineReader) Read(p []byte) (int, error) {
	_ = d.SetReadDeadline(time.Now().Add(silence))
	return d.Conn.Read(p)
}

// read takes what comes until the connection ends.
func (c *client) read(ctx context.Context, conn net.Conn, r *bufio.Reader) {
	// What the handshake has buffered already comes first.
	if n := r.Buffered(); n > 0 {
		begun, _ := r.Peek(n)
		r = bufio.NewReaderSize(&prefixed{rest: begun, r: deadlineReader{conn}}, 16<<10)
	} else {
		r = bufio.NewReaderSize(deadlineReader{conn}, 16<<10)
	}
	var buf []byte
	for {
		f, err := readFrame(r, &buf)
		if err != nil {
			if errors.Is(err, errMalformed) {
				c.ledger.protocol("%s: %v", c.name, err)
			}
			return
		}
		if err := c.take(f); err != nil {
			return
		}
		if c.in.stallEach > 0 && !c.calm.isOpen() && c.readRng.IntN(c.in.stallEach) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(c.readRng.Int64N(int64(c.in.stall)))):
			}
		}
	}
}

// prefixed reads rest, then r.
type prefixed struct {
	rest []byte
	r    deadlineReader
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.r.Read(b)
}

// take handles one packet; an error ends the connection.
func (c *client) take(f frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.nudge()
	if f.kind != typePingresp {
		c.last = time.Now()
	}
	switch f.kind {
	case typePublish:
		p, err := parsePublish(f, c.version)
		if err != nil {
			c.ledger.protocol("%s: %v", c.name, err)
			return err
		}
		if c.in.aud == nil {
			c.ledger.protocol("%s got a PUBLISH on %s without a subscription", c.name, p.topic)
			return errProtocol
		}
		return c.in.published(c, p)
	case typePuback, typePubrec, typePubcomp, typePubrel:
		id, reason, err := parseAck(f, c.version)
		if err != nil {
			c.ledger.protocol("%s: %v", c.name, err)
			return err
		}
		if f.kind == typePubrel {
			c.in.released(c, id)
		} else if c.out.answered(c, f.kind, id, reason) {
			c.out.releases = append(c.out.releases, id)
		}
	case typeSuback:
		return c.subscribed(f)
	case typePingresp:
	case typeDisconnect:
		reason := byte(0)
		if len(f.body) > 0 {
			reason = f.body[0]
		}
		c.ledger.reason(fmt.Sprintf("DISCONNECT %#02x", reason))
		if reason == 0x81 || reason == 0x82 || reason == 0x93 || reason == 0x94 || reason == 0x95 {
			c.ledger.protocol("%s was disconnected with %#02x", c.name, reason)
		}
		return errProtocol
	default:
		c.ledger.protocol("%s got packet type %d", c.name, f.kind)
		return errProtocol
	}
	return nil
}

// subscribed takes SUBACK.
func (c *client) subscribed(f frame) error {
	b := f.body
	if len(b) < 2 || c.in.pendingID == 0 || uint16(b[0])<<8|uint16(b[1]) != c.in.pendingID {
		c.ledger.protocol("%s got a SUBACK that it did not ask for", c.name)
		return errProtocol
	}
	codes := b[2:]
	if c.version == v5 {
		rest, err := parseProperties(codes, func(byte, int) {})
		if err != nil {
			c.ledger.protocol("%s: %v", c.name, err)
			return err
		}
		codes = rest
	}
	if len(codes) != len(c.in.filters) {
		c.ledger.protocol("%s got %d SUBACK codes for %d filters [MQTT-3.8.4-6]", c.name, len(codes), len(c.in.filters))
		return errProtocol
	}
	for i, code := range codes {
		if code != c.in.filters[i].qos {
			c.ledger.protocol("%s was granted %#02x for QoS %d on %s", c.name, code, c.in.filters[i].qos, c.in.filters[i].filter)
			c.ledger.reason(fmt.Sprintf("SUBACK %#02x", code))
			return errProtocol
		}
	}
	c.in.subscribeDone(c)
	c.becomeReady()
	return nil
}
