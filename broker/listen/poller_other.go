//go:build !linux

package listen

import (
	"errors"
	"syscall"
	"time"
)

// poller exists on Linux only: elsewhere every connection is a stream.
type poller struct{ count counters }

func (l *Loop) newPollers() error { return nil }
func (l *Loop) closePollers()     {}

func (p *poller) run()       {}
func (p *poller) stop()      {}
func (p *poller) post(*Conn) {}

func listenOptions(_, _ string, _ syscall.RawConn) error { return nil }

func (l *Listener) accept() { l.acceptStreams() }

func sysWrite(int, []byte) (int, error) { return 0, errors.ErrUnsupported }
func sysShutdown(int)                   {}
func sysShutdownWrite(int)              {}
func sysHungUp(int) bool                { return false }
func wouldBlock(error) bool             { return false }

type balancer struct{}

func newBalancer(*Loop) *balancer { return &balancer{} }

func (*balancer) look(time.Time, bool) {}
