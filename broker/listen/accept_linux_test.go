package listen

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Connections leave no descriptor behind, however they end.
func TestDescriptorsAreClosed(t *testing.T) {
	transports(t, func(t *testing.T, cfg Config) {
		before := openFiles(t)
		b := start(t, cfg, LoopConfig{}, nil, nil)
		for i := range 60 {
			c := b.connect()
			switch i % 4 {
			case 0:
				c.send([]byte{0xe0, 0})
				c.expectEnd()
			case 1:
				c.send([]byte{0, 0})
				c.expectEnd()
			case 2:
				b.loop.Each((*Conn).Shutdown)
			}
			_ = c.Close()
		}
		b.stop()
		require.Eventually(t, func() bool { return openFiles(t) <= before }, 5*time.Second, 10*time.Millisecond)
	})
}

// What the listening socket has, the connections have.
func TestSocketOptionsAreInherited(t *testing.T) {
	b := start(t, Config{}, LoopConfig{}, nil, nil)
	b.connect()
	b.loop.Each(func(c *Conn) {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		for _, o := range [][3]int{{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 120}} {
			v, err := unix.GetsockoptInt(c.out.fd, o[0], o[1])
			require.NoError(t, err)
			require.Equal(t, o[2], v)
		}
	})
}

// Out of descriptors: accepting stops, goes on when there are some again, and
// the connections that are open do not notice.
func TestOutOfDescriptors(t *testing.T) {
	b := start(t, Config{}, LoopConfig{}, nil, nil)
	c := b.connect()
	second, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	highest := second
	low := old
	low.Cur = uint64(highest + 1)
	var hoard []*os.File
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	restore := func() {
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
		for _, f := range hoard {
			_ = f.Close()
		}
		hoard = nil
	}
	defer restore()
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		hoard = append(hoard, f)
	}
	addr := unix.SockaddrInet4{Port: portOf(b.l.Address()), Addr: [4]byte{127, 0, 0, 1}}
	require.NoError(t, unix.Connect(second, &addr))
	_, err = unix.Write(second, connectFrame("c2", 4))
	require.NoError(t, err)
	for range 3 {
		c.send(pingreqFrame)
		c.expect(pingrespFrame)
	}
	require.EqualValues(t, 1, b.loop.Stats().Accepted)
	restore()
	got := make([]byte, 4)
	n, err := unix.Read(second, got)
	require.NoError(t, err)
	require.Equal(t, []byte{0x20, 2, 0, 0}, got[:n])
	_ = unix.Close(second)
}
