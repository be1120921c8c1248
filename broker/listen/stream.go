package listen

import (
	"crypto/tls"
	"net"
)

type stream struct {
	remote net.Addr
	tls    *tls.ConnectionState
}

func (s *stream) wake()         {}
func (s *stream) abort()        {}
func (s *stream) startFlusher() {}

func (l *Listener) acceptStreams() {}
