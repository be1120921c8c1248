//go:build linux

package load

import (
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller is an epoll instance. Each descriptor is registered with a number
// that comes back with its events.
type poller struct {
	fd     int
	coarse bool // the kernel has no epoll_pwait2: waits are in whole milliseconds
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) close() { _ = unix.Close(p.fd) }

func (p *poller) add(fd int, events uint32, number int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(number)})
}

func (p *poller) modify(fd int, events uint32, number int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(number)})
}

// wait fills events and returns how many there are; none after timeout. An
// interrupted wait returns none.
func (p *poller) wait(events []unix.EpollEvent, timeout time.Duration) (int, error) {
	if !p.coarse {
		ts := unix.NsecToTimespec(int64(timeout))
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd), uintptr(unsafe.Pointer(&events[0])),
			uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			return 0, nil
		case unix.ENOSYS, unix.EPERM:
			p.coarse = true
		default:
			return 0, fmt.Errorf("epoll_pwait2: %w", errno)
		}
	}
	n, err := unix.EpollWait(p.fd, events, int(timeout.Milliseconds()))
	if err == unix.EINTR {
		return 0, nil
	}
	return max(n, 0), err
}

// resolve turns host:port into an address for connect, and tells whether it is
// on the loopback network.
func resolve(target string) (unix.Sockaddr, bool, error) {
	a, err := net.ResolveTCPAddr("tcp", target)
	if err != nil {
		return nil, false, fmt.Errorf("target %s: %w", target, err)
	}
	if v4 := a.IP.To4(); v4 != nil {
		return &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(v4)}, a.IP.IsLoopback(), nil
	}
	return &unix.SockaddrInet6{Port: a.Port, Addr: [16]byte(a.IP.To16())}, false, nil
}

// connectTo starts a non-blocking connection. source, when not zero, selects
// one of the loopback addresses 127.1.0.0/16 as the sender's: each has its own
// range of ports.
func connectTo(to unix.Sockaddr, source uint16) (int, error) {
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err == nil && source != 0 {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 1, byte(source >> 8), byte(source)}})
		}
	}
	if err == nil {
		if err = unix.Connect(fd, to); err == unix.EINPROGRESS {
			err = nil
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}
