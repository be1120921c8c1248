package listen

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// resident is the memory that the kernel has given to this process.
func resident(t testing.TB) int {
	b, err := os.ReadFile("/proc/self/smaps_rollup")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	t.Fatal("no Rss in smaps_rollup")
	return 0
}

func openFiles(t testing.TB) int {
	e, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(e)
}

// rawConnect opens a connection without a Go object behind it, so that a test
// that counts memory counts the broker's side only.
func rawConnect(t testing.TB, addr string, send []byte, answer int) int {
	a, err := net.ResolveTCPAddr("tcp", addr)
	require.NoError(t, err)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Connect(fd, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}))
	_, err = unix.Write(fd, send)
	require.NoError(t, err)
	b := make([]byte, answer)
	if answer > 0 {
		n, err := unix.Read(fd, b)
		require.NoError(t, err)
		require.Equal(t, answer, n)
	}
	return fd
}

// An idle connection has no goroutine and no buffer: with mochi attached it
// stays below 2 KB, measured at 700 bytes of heap and no stack.
func TestIdleConnectionMemory(t *testing.T) {
	const n = 3000
	b := start(t, Config{}, LoopConfig{}, nil, nil)
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	open := func(n int) {
		for range n {
			fds = append(fds, rawConnect(t, b.l.Address(), connectFrame(fmt.Sprintf("client-%d", len(fds)), 4), 4))
		}
	}
	settle := func() (rss, heap, stack int) {
		require.Eventually(t, func() bool { return b.loop.workersRunning() == 0 }, 10*time.Second, 20*time.Millisecond)
		runtime.GC()
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return resident(t), int(m.HeapAlloc), int(m.StackInuse)
	}
	open(100)
	rss0, heap0, stack0 := settle()
	routines := runtime.NumGoroutine()
	open(n)
	rss1, heap1, stack1 := settle()
	t.Logf("per idle connection: rss %d heap %d stack %d", (rss1-rss0)/n, (heap1-heap0)/n, (stack1-stack0)/n)
	require.InDelta(t, routines, runtime.NumGoroutine(), 4)
	require.Less(t, (heap1-heap0+stack1-stack0)/n, 2048)
	require.EqualValues(t, n+100, b.loop.Stats().Connections)
}

// A message costs no allocation here.
func TestNoAllocationPerMessage(t *testing.T) {
	b := start(t, Config{}, LoopConfig{}, nil, nil)
	fd := rawConnect(t, b.l.Address(), connectFrame("c", 4), 4)
	defer unix.Close(fd)
	out := bytes.Repeat(publishFrame("a/b", "payload"), 50)
	in := make([]byte, len(out))
	round := func() {
		for range 20 {
			if _, err := unix.Write(fd, out); err != nil {
				t.Error(err)
			}
			for n := 0; n < len(out); {
				k, err := unix.Read(fd, in)
				if err != nil || k == 0 {
					t.Error(k, err)
					return
				}
				n += k
			}
		}
	}
	round()
	require.Less(t, testing.AllocsPerRun(50, round), 30.0, "for 1,000 messages")
}
