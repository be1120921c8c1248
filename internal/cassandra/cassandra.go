// Package cassandra runs Apache Cassandra as processes of their own, for tests
// and for developers: it speaks the CQL that ScyllaDB speaks, and its jars come
// from Maven Central, so a test of the store has a real server wherever there is
// a JDK 17 and Maven.
//
// HERALD_TEST_CQL=host:port has tests use a server that is there already.
package cassandra

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Options say how to run a cluster. The zero value is one node in a folder that
// goes with it.
type Options struct {
	// Nodes listen on 127.0.0.1, .2 and so on, at the same ports. Default 1, at
	// most 9; more than one needs an operating system that has all of
	// 127.0.0.0/8 (Linux does).
	Nodes int
	// Heap is Java's, in MiB for each node. Default 512.
	Heap int
	// Dir keeps data and logs. Empty is a folder that Stop removes.
	Dir string
	// Durable has nodes answer a write when it is on disk, as a test wants that
	// kills them.
	Durable bool
	// Password: clients have to log in (User, Password).
	Password bool
	// TLS: clients have to speak TLS and to show a certificate; Files has what they
	// need.
	TLS bool
	// Datacenter is the name of the one in which all nodes are. Default datacenter1.
	Datacenter string
	// Port is where CQL is spoken; 0 is a free one.
	Port int
	// Log is told what takes long; nil is nobody.
	Log func(format string, args ...any)
}

// User and Password log in where Options.Password asks for it.
const (
	User     = "cassandra"
	Password = "cassandra"
)

// Cluster is a running Cassandra, or a server that somebody gave.
type Cluster struct {
	opts  Options
	dir   string
	temp  bool
	given string // HERALD_TEST_CQL: not ours to kill
	port  int
	peers int // storage port
	jars  []string
	tls   *tls.Config // of clients; nil: none

	nodes []*node
}

// node is one process.
type node struct {
	host string
	dir  string
	mu   sync.Mutex // guards below
	pid  int
	gone chan struct{} // closed when the process has ended; nil if it was never started
}

// ErrGiven: the server is not ours to kill.
var ErrGiven = errors.New("cassandra: the server was given by HERALD_TEST_CQL")

// Launch starts a cluster and waits until every node answers. The caller stops
// it; should the caller die, the processes die with it (on Linux).
func Launch(ctx context.Context, opts Options) (_ *Cluster, err error) {
	if given := os.Getenv("HERALD_TEST_CQL"); given != "" && opts.Nodes <= 1 && !opts.Password && !opts.TLS && opts.Datacenter == "" {
		return fromAddress(given)
	}
	opts.Nodes = max(opts.Nodes, 1)
	if opts.Nodes > 9 {
		return nil, fmt.Errorf("cassandra: %d nodes, at most 9", opts.Nodes)
	}
	if opts.Heap == 0 {
		opts.Heap = 512
	}
	if opts.Log == nil {
		opts.Log = func(string, ...any) {}
	}
	c := &Cluster{opts: opts, dir: opts.Dir}
	if c.jars, err = jars(ctx, opts.Log); err != nil {
		return nil, err
	}
	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "cassandra"); err != nil {
			return nil, err
		}
		c.temp = true
	}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	hosts := make([]string, opts.Nodes)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("127.0.0.%d", i+1)
	}
	if c.port = opts.Port; c.port == 0 {
		if c.port, err = freePort(hosts); err != nil {
			return nil, err
		}
	}
	if c.peers, err = freePort(hosts); err != nil {
		return nil, err
	}
	if opts.TLS {
		if err := c.certify(hosts); err != nil {
			return nil, err
		}
	}
	for i, host := range hosts {
		n := &node{host: host, dir: filepath.Join(c.dir, "node"+strconv.Itoa(i+1))}
		if err := c.configure(n, i); err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, n)
	}
	// One after the other: nodes that join at the same moment refuse each other.
	for i := range c.nodes {
		if err := c.Restart(ctx, i); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func fromAddress(given string) (*Cluster, error) {
	host, port, err := net.SplitHostPort(given)
	if err != nil {
		return nil, fmt.Errorf("HERALD_TEST_CQL: %w", err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("HERALD_TEST_CQL: %w", err)
	}
	return &Cluster{given: given, port: n, nodes: []*node{{host: host}}}, nil
}

// Hosts are the addresses of the nodes.
func (c *Cluster) Hosts() []string {
	hosts := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		hosts[i] = n.host
	}
	return hosts
}

// Port is where the nodes speak CQL.
func (c *Cluster) Port() int { return c.port }

// Given tells whether the server is somebody else's.
func (c *Cluster) Given() bool { return c.given != "" }

// Kill ends a node with SIGKILL and waits until it is gone.
func (c *Cluster) Kill(i int) error {
	if c.Given() {
		return ErrGiven
	}
	return c.nodes[i].kill()
}

// Signal sends a node a signal: SIGSTOP makes one that hangs.
func (c *Cluster) Signal(i int, sig syscall.Signal) error {
	if c.Given() {
		return ErrGiven
	}
	n := c.nodes[i]
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid == 0 {
		return os.ErrProcessDone
	}
	return syscall.Kill(n.pid, sig)
}

// PIDs are the numbers of the nodes' processes that run; none if the server is
// somebody else's.
func (c *Cluster) PIDs() []int {
	if c.Given() {
		return nil
	}
	var pids []int
	for _, n := range c.nodes {
		n.mu.Lock()
		if n.pid != 0 {
			pids = append(pids, n.pid)
		}
		n.mu.Unlock()
	}
	return pids
}

// Restart starts a node that is not running and waits until it answers.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	if c.Given() {
		return ErrGiven
	}
	n := c.nodes[i]
	gone, err := c.start(n)
	if err != nil {
		return err
	}
	return c.await(ctx, n, gone)
}

// Stop ends all nodes and removes the folder if it was not given.
func (c *Cluster) Stop() {
	if c.Given() {
		return
	}
	for _, n := range c.nodes {
		_ = n.kill()
	}
	if c.temp {
		_ = os.RemoveAll(c.dir)
	}
}

func (n *node) kill() error {
	n.mu.Lock()
	pid, gone := n.pid, n.gone
	n.mu.Unlock()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-gone
	return nil
}

// start starts the process. Its output goes to a file.
func (c *Cluster) start(n *node) (<-chan struct{}, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid != 0 {
		return n.gone, nil
	}
	out, err := os.OpenFile(filepath.Join(n.dir, "output.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(javaPath(), c.arguments(n)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, n.dir
	cmd.Env = append(os.Environ(), "CASSANDRA_HOME="+n.dir)
	dieWithParent(cmd)
	started := make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		defer out.Close()
		// The process is told of the death of the thread that started it, so
		// that one has to live as long.
		release := lockThread()
		defer release()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()
		n.mu.Lock()
		n.pid = 0
		n.mu.Unlock()
		close(gone)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cassandra: %w (a JDK 17 is needed, as java in PATH or in JAVA_HOME)", err)
	}
	n.pid, n.gone = cmd.Process.Pid, gone
	return gone, nil
}

// tail is the end of what the node said.
func (n *node) tail() string {
	b, err := os.ReadFile(filepath.Join(n.dir, "output.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// freePort finds a port that is free on all hosts.
func freePort(hosts []string) (int, error) {
	var last error
	for range 50 {
		l, err := net.Listen("tcp", net.JoinHostPort(hosts[0], "0"))
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		open := []net.Listener{l}
		for _, host := range hosts[1:] {
			if l, last = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))); last != nil {
				break
			}
			open = append(open, l)
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == len(hosts) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("cassandra: no port is free on %s: %w", strings.Join(hosts, ", "), last)
}
