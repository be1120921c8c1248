package listen

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func listenOptions(_, _ string, raw syscall.RawConn) error {
	var err error
	set := func(fd uintptr) {
		for _, o := range [][3]int{
			{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			// A client with keep alive 0 that vanishes is found by these.
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 120},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 20},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
		} {
			if e := unix.SetsockoptInt(int(fd), o[0], o[1], o[2]); e != nil && err == nil {
				err = e
			}
		}
	}
	if e := raw.Control(set); e != nil {
		return e
	}
	return err
}

// accept runs until the listener is closed.
func (l *Listener) accept() {
	polled := l.cfg.Protocol == TCP || l.cfg.Protocol == Unix
	if !polled {
		l.acceptStreams()
		return
	}
	// A net.Listener lends nobody its descriptor to wait on; a file does.
	file, err := l.net.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		l.loop.log.Error("cannot accept", "listener", l.cfg.ID, "error", err)
		return
	}
	defer file.Close()
	stop := make(chan struct{})
	defer close(stop)
	l.serving.Go(func() {
		select {
		case <-l.closing:
			_ = file.SetReadDeadline(time.Unix(1, 0)) // wakes the wait below
		case <-stop:
		}
	})
	raw, err := file.SyscallConn()
	if err != nil {
		l.loop.log.Error("cannot accept", "listener", l.cfg.ID, "error", err)
		return
	}
	var wait time.Duration
	for {
		var fd int
		var sa unix.Sockaddr
		var failed error
		// Go's poller waits for the listener; the connection never enters it.
		err := raw.Read(func(lfd uintptr) bool {
			fd, sa, failed = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return failed != unix.EAGAIN
		})
		if err != nil {
			return // closed
		}
		switch failed {
		case nil:
			wait = 0
			l.adopt(fd, sa)
		case unix.EINTR, unix.ECONNABORTED:
		default: // out of descriptors, of memory: it will pass
			if !l.backOff(failed, &wait) {
				return
			}
		}
	}
}

func (l *Listener) adopt(fd int, sa unix.Sockaddr) {
	if !l.admit() {
		_ = unix.Close(fd)
		return
	}
	loop := l.loop
	p := loop.pollers[loop.next.Add(1)%loop.active.Load()]
	c := &Conn{loop: loop, lis: l, since: loop.now.Load(), awaitProxy: l.cfg.ProxyProtocol}
	c.poll.Store(p)
	c.out.fd = fd
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		c.peer = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr).Unmap()
		if a.ZoneId != 0 {
			if ifi, err := net.InterfaceByIndex(int(a.ZoneId)); err == nil {
				ip = ip.WithZone(ifi.Name)
			}
		}
		c.peer = netip.AddrPortFrom(ip, uint16(a.Port))
	}
	c.heard.Store(c.since)
	loop.begin(c)
	if err := p.watch(c, fd); err != nil {
		loop.log.Warn("cannot watch a connection, closing it", "listener", l.cfg.ID, "error", err)
		c.Shutdown() // posts it: the poller tears it down
	}
}
