//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// client is a connection for a single conversation: blocking, for one
// goroutine.
type client struct {
	fd  int
	in  []byte // received, not handled yet
	buf []byte
	out []byte
}

// dial connects; s is one session without a filter.
func dial(ctx context.Context, target string, protocol byte, s Session) (c *client, present bool, err error) {
	est := Establish{Target: target, Protocol: protocol, Timeout: 5 * time.Second}
	err = est.Run(ctx, 1, func(int) Session { return s }, func(m Made) {
		c, present = &client{fd: m.FD, in: append([]byte(nil), m.Rest...), buf: make([]byte, readSize)}, m.Present
	})
	if err != nil {
		return nil, false, err
	}
	if err := unix.SetNonblock(c.fd, false); err != nil {
		c.close()
		return nil, false, err
	}
	return c, present, nil
}

func (c *client) close() {
	_, _ = unix.Write(c.fd, []byte{typeDisconnect, 0})
	_ = unix.Close(c.fd)
}

func (c *client) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

var errTimeout = errors.New("nothing received in time")

// read hands each complete frame to handle, after reading once if there is
// none. handle may append answers to c.out, which are sent at the end. After
// timeout without a byte the error is errTimeout.
func (c *client) read(timeout time.Duration, handle func(first byte, body []byte) error) error {
	if _, size, _ := nextFrame(c.in); size == 0 {
		tv := unix.NsecToTimeval(max(int64(timeout), int64(time.Millisecond)))
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case err == unix.EAGAIN:
			return errTimeout
		case err == unix.EINTR:
			return nil
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0:
			return errors.New("closed by the broker")
		}
		c.in = append(c.in, c.buf[:n]...)
	}
	at := 0
	c.out = c.out[:0]
	for {
		body, size, err := nextFrame(c.in[at:])
		if err != nil {
			return err
		}
		if size == 0 {
			break
		}
		if err := handle(c.in[at], c.in[at+body:at+size]); err != nil {
			return err
		}
		at += size
	}
	c.in = append(c.in[:0], c.in[at:]...)
	return c.write(c.out)
}
