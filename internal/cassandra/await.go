package cassandra

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// await waits until the node answers CQL, and lets clients in.
func (c *Cluster) await(ctx context.Context, n *node, gone <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	address := net.JoinHostPort(n.host, strconv.Itoa(c.port))
	for {
		err := c.speaksCQL(address)
		if err == nil {
			return nil
		}
		select {
		case <-gone:
			return fmt.Errorf("cassandra: node %s ended:\n%s", n.host, n.tail())
		case <-ctx.Done():
			return fmt.Errorf("cassandra: node %s does not answer: %w\n%s", n.host, err, n.tail())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Frames of CQL's native protocol, version 4: version, flags, stream (2), opcode,
// length (4).
const (
	opStartup      = 0x01
	opAuthenticate = 0x03
	opOptions      = 0x05
	opSupported    = 0x06
	opAuthResponse = 0x0f
	opAuthSuccess  = 0x10
)

// speaksCQL sends OPTIONS and expects SUPPORTED; where clients log in, it does, too:
// the first user is made a moment after the server has begun to listen.
func (c *Cluster) speaksCQL(address string) error {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if c.tls != nil {
		conn = tls.Client(conn, c.tls)
	}
	if op, err := ask(conn, opOptions, nil); err != nil || op != opSupported || !c.opts.Password {
		return expect(op, err, opSupported)
	}
	version := []byte("\x00\x01\x00\x0bCQL_VERSION\x00\x053.0.0")
	if op, err := ask(conn, opStartup, version); err != nil || op != opAuthenticate {
		return expect(op, err, opAuthenticate)
	}
	login := "\x00" + User + "\x00" + Password
	op, err := ask(conn, opAuthResponse, append(binary.BigEndian.AppendUint32(nil, uint32(len(login))), login...))
	return expect(op, err, opAuthSuccess)
}

func expect(op byte, err error, want byte) error {
	if err == nil && op != want {
		err = fmt.Errorf("cassandra: answered with opcode %#x, want %#x", op, want)
	}
	return err
}

// ask sends a frame and returns the opcode of the answer.
func ask(conn net.Conn, op byte, body []byte) (byte, error) {
	frame := binary.BigEndian.AppendUint32([]byte{4, 0, 0, 0, op}, uint32(len(body)))
	if _, err := conn.Write(append(frame, body...)); err != nil {
		return 0, err
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(conn, head); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(head[5:])
	if n > 1<<20 {
		return 0, errors.New("cassandra: this is not CQL")
	}
	_, err := io.CopyN(io.Discard, conn, int64(n))
	return head[4], err
}
