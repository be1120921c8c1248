//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Session is a connection for Establish to make.
type Session struct {
	ClientID string
	Clean    bool   // clean session (MQTT 5: clean start, no expiry)
	Filter   string // subscribed to when not empty
	QoS      byte   // of the subscription
}

// Made is a connection that Establish has made.
type Made struct {
	Index   int
	FD      int    // non-blocking; the callee's, unless Establish.Leave is set
	Present bool   // session present
	Rest    []byte // what the broker sent behind; valid during the call
	// ReceiveMaximum is how many QoS 1 and 2 messages the broker takes
	// unacknowledged [MQTT-3.3.4-7]; 65,535 if it does not say.
	ReceiveMaximum int
}

// Establish makes many connections: CONNECT, and SUBSCRIBE where a session has
// a filter, each acknowledged before the next step.
type Establish struct {
	Target   string
	Protocol byte          // 4 (default) or 5
	Parallel int           // connections being made at a time, default 64
	Timeout  time.Duration // for each connection, default 20 s
	// Leave ends each connection with DISCONNECT once it is made, and waits
	// for the broker to close it.
	Leave bool
	// Spread uses many addresses of the loopback network as the clients', so
	// that ports do not run out. Ignored for other targets.
	Spread bool
}

type step byte

const (
	stepFree step = iota
	stepConnect
	stepConnack
	stepSuback
	stepLeave
)

// slot is one connection on its way.
type slot struct {
	step     step
	fd       int
	index    int
	present  bool
	receive  int // maximum
	session  Session
	in       []byte
	deadline time.Time
}

type establisher struct {
	Establish
	poller  *poller
	to      unix.Sockaddr
	local   bool
	slots   []slot
	session func(int) Session
	opened  func(Made)
	buf     []byte
	out     []byte
	done    int
}

// Run makes n connections. session says what the i-th is; opened, when not
// nil, is called for each that is made. Both are called from the goroutine of
// Run. On an error, connections that were not handed over are closed.
func (e Establish) Run(ctx context.Context, n int, session func(int) Session, opened func(Made)) error {
	if e.Protocol == 0 {
		e.Protocol = 4
	}
	if e.Parallel <= 0 {
		e.Parallel = 64
	}
	if e.Timeout <= 0 {
		e.Timeout = 20 * time.Second
	}
	if opened == nil {
		opened = func(Made) {}
	}
	to, local, err := resolve(e.Target)
	if err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	r := &establisher{
		Establish: e, poller: p, to: to, local: local, session: session, opened: opened,
		slots: make([]slot, min(e.Parallel, max(n, 1))), buf: make([]byte, 64<<10),
	}
	defer func() {
		for i := range r.slots {
			if r.slots[i].step != stepFree {
				_ = unix.Close(r.slots[i].fd)
			}
		}
	}()
	return r.run(ctx, n)
}

func (r *establisher) run(ctx context.Context, n int) error {
	next := 0
	for i := range r.slots {
		if next < n {
			if err := r.start(i, next); err != nil {
				return err
			}
			next++
		}
	}
	events := make([]unix.EpollEvent, len(r.slots))
	checked := time.Now()
	for r.done < n {
		count, err := r.poller.wait(events, 100*time.Millisecond)
		if err != nil {
			return err
		}
		for _, ev := range events[:count] {
			s := &r.slots[ev.Fd]
			if err := r.advance(s, int(ev.Fd)); err != nil {
				return fmt.Errorf("connection %d of %d: %w", s.index+1, n, err)
			}
			if s.step == stepFree && next < n {
				if err := r.start(int(ev.Fd), next); err != nil {
					return err
				}
				next++
			}
		}
		if now := time.Now(); now.Sub(checked) > 100*time.Millisecond {
			checked = now
			if err := ctx.Err(); err != nil {
				return err
			}
			for i := range r.slots {
				if s := &r.slots[i]; s.step != stepFree && now.After(s.deadline) {
					return fmt.Errorf("connection %d of %d: no answer from %s after %v (step %d)", s.index+1, n, r.Target, r.Timeout, s.step)
				}
			}
		}
	}
	return nil
}

func (r *establisher) start(number, index int) error {
	source := uint16(0)
	if r.Spread && r.local {
		source = uint16(index%250 + 1)
	}
	fd, err := connectTo(r.to, source)
	if err != nil {
		return fmt.Errorf("connection %d: %w", index+1, err)
	}
	s := &r.slots[number]
	*s = slot{step: stepConnect, fd: fd, index: index, in: s.in[:0], session: r.session(index), deadline: time.Now().Add(r.Timeout)}
	return r.poller.add(fd, unix.EPOLLOUT, number)
}

// advance handles an event of one connection.
func (r *establisher) advance(s *slot, number int) error {
	if s.step == stepConnect {
		code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			return fmt.Errorf("connect %s: %w", r.Target, err)
		}
		s.step = stepConnack
		if err := r.poller.modify(s.fd, unix.EPOLLIN, number); err != nil {
			return err
		}
		r.out = appendConnect(r.out[:0], r.Protocol, s.session.ClientID, s.session.Clean)
		return r.write(s)
	}
	n, err := unix.Read(s.fd, r.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil
	case s.step == stepLeave && (n == 0 || err != nil):
		r.finish(s)
		return nil
	case err != nil:
		return fmt.Errorf("read: %w", err)
	case n == 0:
		return errors.New("closed by the broker")
	}
	if s.step == stepLeave {
		return nil
	}
	s.in = append(s.in, r.buf[:n]...)
	return r.parse(s)
}

func (r *establisher) parse(s *slot) error {
	for at := 0; ; {
		body, size, err := nextFrame(s.in[at:])
		if err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
		frame := s.in[at : at+size]
		switch {
		case s.step == stepConnack:
			if frame[0] != typeConnack || size < body+2 {
				return fmt.Errorf("%w: first byte %#x instead of CONNACK", errMalformed, frame[0])
			}
			if code := frame[body+1]; code != 0 {
				return fmt.Errorf("refused with code %#x", code)
			}
			s.present = frame[body]&1 == 1
			s.receive = 1<<16 - 1
			if r.Protocol == 5 {
				if s.receive, err = receiveMaximum(frame[body+2:]); err != nil {
					return err
				}
			}
			s.in = append(s.in[:0], s.in[size:]...)
			if s.session.Filter == "" {
				return r.made(s)
			}
			s.step = stepSuback
			r.out = appendSubscribe(r.out[:0], r.Protocol, 1, s.session.Filter, s.session.QoS)
			if err := r.write(s); err != nil {
				return err
			}
		case frame[0] == typeSuback:
			if code := frame[size-1]; code != s.session.QoS {
				return fmt.Errorf("SUBACK with code %#x", code)
			}
			s.in = append(s.in[:at], s.in[at+size:]...)
			return r.made(s)
		default: // a message may overtake its SUBACK [MQTT-3.8.4-2]
			at += size
		}
	}
}

func (r *establisher) made(s *slot) error {
	m := Made{Index: s.index, FD: s.fd, Present: s.present, Rest: s.in, ReceiveMaximum: s.receive}
	if r.Leave {
		r.opened(m)
		s.step = stepLeave
		r.out = append(r.out[:0], typeDisconnect, 0)
		return r.write(s)
	}
	if err := unix.EpollCtl(r.poller.fd, unix.EPOLL_CTL_DEL, s.fd, nil); err != nil {
		return err
	}
	s.step = stepFree
	r.done++
	r.opened(m)
	return nil
}

func (r *establisher) finish(s *slot) {
	_ = unix.Close(s.fd) // takes it out of the poller
	s.step = stepFree
	r.done++
}

// write sends r.out, which is far smaller than any socket buffer.
func (r *establisher) write(s *slot) error {
	n, err := unix.Write(s.fd, r.out)
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if n != len(r.out) {
		return errors.New("write: the socket buffer is full")
	}
	return nil
}
