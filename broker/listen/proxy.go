package listen

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// maxProxyHeader bounds a version 2 header, whose length field allows 64 KiB; a
// few addresses and what TLS terminators add take some hundred bytes.
const maxProxyHeader = 4 << 10

// maxProxyV1 is the longest line of version 1.
const maxProxyV1 = 107

var errProxyHeader = errors.New("no PROXY protocol header")

// takeProxy reads the PROXY header that b must begin with. ok is false if the
// connection was ended; n is 0 while the header is not complete.
func (c *Conn) takeProxy(b []byte) (n int, ok bool) {
	n, err := proxyLength(b)
	if n == 0 && err == nil {
		return 0, true
	}
	var h *proxyproto.Header
	if err == nil {
		h, err = proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b[:n]), maxProxyHeader))
	}
	if err != nil {
		c.loop.log.Debug("no PROXY header", "listener", c.lis.cfg.ID, "remote", c.RemoteAddr().String(), "error", err)
		c.Shutdown()
		return 0, false
	}
	c.awaitProxy = false
	if a, is := h.SourceAddr.(*net.TCPAddr); is && h.Command.IsProxy() {
		ap := a.AddrPort()
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		c.via.Store(&ap)
	}
	return n, true
}

// proxyLength is the length of the header at the start of b, 0 if b does not
// hold all of it.
func proxyLength(b []byte) (int, error) {
	if k := min(len(b), len(proxyproto.SIGV2)); bytes.Equal(b[:k], proxyproto.SIGV2[:k]) {
		if len(b) < 16 {
			return 0, nil
		}
		n := 16 + int(b[14])<<8 + int(b[15])
		switch {
		case n > maxProxyHeader:
			return 0, errProxyHeader
		case n > len(b):
			return 0, nil
		}
		return n, nil
	}
	if k := min(len(b), len(proxyproto.SIGV1)); bytes.Equal(b[:k], proxyproto.SIGV1[:k]) {
		if i := bytes.IndexByte(b[:min(len(b), maxProxyV1)], '\n'); i >= 0 {
			return i + 1, nil
		}
		if len(b) < maxProxyV1 {
			return 0, nil
		}
	}
	return 0, errProxyHeader
}
