package listen

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on non-blocking descriptors are made without telling Go's scheduler:
// they cannot wait, and telling it costs more than most of them take.

func sysRead(fd int, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e == 0 {
			return int(n), nil
		}
		if e != unix.EINTR {
			return -1, e
		}
	}
}

// sysWrite uses send(2) for MSG_NOSIGNAL: a peer that is gone is an error, not a
// signal.
func sysWrite(fd int, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
		if e == 0 {
			return int(n), nil
		}
		if e != unix.EINTR {
			return -1, e
		}
	}
}

func sysEpollWait(ep int, events []unix.EpollEvent, block bool) int {
	at, max := uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events))
	var n uintptr
	var e unix.Errno
	if block {
		n, _, e = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), at, max, ^uintptr(0), 0, 0)
	} else {
		n, _, e = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), at, max, 0, 0, 0)
	}
	if e != 0 {
		return 0 // EINTR
	}
	return int(n)
}

func sysWake(fd int) {
	one := uint64(1)
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
}

func sysShutdown(fd int)      { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }
func sysShutdownWrite(fd int) { _ = unix.Shutdown(fd, unix.SHUT_WR) }

// sysHungUp tells whether the peer has closed its side of a connection. It does not
// wait.
func sysHungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

func wouldBlock(err error) bool { return errors.Is(err, unix.EAGAIN) }
