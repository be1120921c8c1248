package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/herald-mqtt/herald/internal/cassandra"
	"github.com/herald-mqtt/herald/internal/checker"
)

// Options say what is in the box. Zero values mean what the comments say.
type Options struct {
	// Brokers (3); 1 is a node without a bridge.
	Brokers int
	// Databases are the servers of a Cassandra of this cluster's own (1), unless
	// Store is one that runs already; that is not stopped.
	Databases int
	Store     *cassandra.Cluster
	// Binary of herald; empty: see the function Binary.
	Binary string
	// Dir keeps configuration, data and logs; empty is a folder that Stop removes.
	Dir string
	// Extra is YAML that is appended to each broker's configuration.
	Extra string
	// Env is added to each broker's environment.
	Env []string
	// Ahead shifts brokers' clocks, by number.
	Ahead map[int]time.Duration
	// MQTT and Admin are the brokers' ports; nil: free ones.
	MQTT, Admin []int
	// CQL is the database's port; 0 is a free one.
	CQL int
	// Direct leaves the links out: nothing stands between a broker and what it
	// talks to, and nothing can be cut. For figures.
	Direct bool
	// Log is told what takes long; nil is nobody.
	Log func(format string, args ...any)
}

// Cluster is what runs. Its methods are for one goroutine, unless they say
// otherwise.
type Cluster struct {
	Nodes []*Node
	// Redis comes back empty when it is started again; nil without a bridge.
	Redis *checker.Process
	Store *cassandra.Cluster

	opts     Options
	dir      string
	temp     bool
	ownStore bool
	redis    string // host:port
	keyspace string
	logs     []io.Closer
}

// Node is one broker.
type Node struct {
	*checker.Process
	Name string
	// ToRedis and ToStore are its ways, one to each server; nil if there is
	// nothing to cut.
	ToRedis *Link
	ToStore []*Link

	admin string
	log   string // file
}

// Launch starts all of it and returns when every broker is ready. The caller
// stops it; should the caller die, the processes die with it (on Linux).
func Launch(ctx context.Context, opts Options) (_ *Cluster, err error) {
	if opts.Brokers <= 0 {
		opts.Brokers = 3
	}
	if opts.Log == nil {
		opts.Log = func(string, ...any) {}
	}
	c := &Cluster{opts: opts, dir: opts.Dir, keyspace: fmt.Sprintf("herald_%x", rand.Uint64())}
	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "herald-cluster-"); err != nil {
			return nil, fmt.Errorf("clustertest: %w", err)
		}
		c.temp = true
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if c.opts.Binary == "" {
		if c.opts.Binary, err = Binary(ctx, c.dir); err != nil {
			return nil, err
		}
	}
	if err := c.startServers(ctx); err != nil {
		return nil, err
	}
	for i := range c.opts.Brokers {
		if err := c.addNode(i); err != nil {
			return nil, err
		}
	}
	if out, err := c.herald(ctx, c.Nodes[0], "schema", "apply"); err != nil {
		return nil, fmt.Errorf("clustertest: schema apply: %w\n%s", err, out)
	}
	var all errgroup.Group
	for _, n := range c.Nodes {
		all.Go(func() error { return n.Start(ctx) })
	}
	return c, all.Wait()
}

// Binary builds herald into dir, unless HERALD_TEST_BINARY names one that is
// there already, and returns its path.
func Binary(ctx context.Context, dir string) (string, error) {
	if given := os.Getenv("HERALD_TEST_BINARY"); given != "" {
		return given, nil
	}
	return checker.Build(ctx, dir)
}

// startServers starts what the brokers rest on.
func (c *Cluster) startServers(ctx context.Context) (err error) {
	if c.Store = c.opts.Store; c.Store == nil {
		// Who kills a database wants what it has answered to be on its disk.
		c.Store, err = cassandra.Launch(ctx, cassandra.Options{
			Nodes: c.opts.Databases, Port: c.opts.CQL, Dir: filepath.Join(c.dir, "cassandra"),
			Durable: c.opts.Databases > 1, Log: c.opts.Log,
		})
		if err != nil {
			return err
		}
		c.ownStore = true
	}
	if c.opts.Brokers == 1 {
		return nil
	}
	if c.Redis, c.redis, err = newRedis(filepath.Join(c.dir, "redis")); err != nil {
		return err
	}
	return c.Redis.Start(ctx)
}

// addNode prepares a broker and its links.
func (c *Cluster) addNode(i int) error {
	name := "node-" + strconv.Itoa(i+1)
	dir := filepath.Join(c.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("clustertest: %w", err)
	}
	n := &Node{Name: name, log: filepath.Join(dir, "node.log")}
	c.Nodes = append(c.Nodes, n)
	ports, err := checker.FreePorts(3)
	if err != nil {
		return err
	}
	if i < len(c.opts.MQTT) {
		ports[0] = c.opts.MQTT[i]
	}
	if i < len(c.opts.Admin) {
		ports[1] = c.opts.Admin[i]
	}
	store, err := c.linkStore(n, ports[2])
	if err != nil {
		return err
	}
	redis, err := c.linkRedis(n)
	if err != nil {
		return err
	}
	mqtt := fmt.Sprintf("127.0.0.1:%d", ports[0])
	n.admin = fmt.Sprintf("127.0.0.1:%d", ports[1])
	var b strings.Builder
	fmt.Fprintf(&b, "node: {name: %s, data: %q}\n", name, filepath.Join(dir, "data"))
	fmt.Fprintf(&b, "listeners:\n  - {protocol: tcp, address: %q}\n", mqtt)
	fmt.Fprintf(&b, "admin: {address: %q}\n", n.admin)
	fmt.Fprintf(&b, "cluster: {address: %q}\n", mqtt)
	fmt.Fprintf(&b, "store:\n  engine: scylla\n  scylla: {hosts: [%s], port: %d, keyspace: %s, replication: %d}\n",
		strings.Join(c.Store.Hosts(), ", "), store, c.keyspace, min(len(c.Store.Hosts()), 3))
	if redis != "" {
		fmt.Fprintf(&b, "bridge: {redis: %q, prefix: %s}\n", "redis://"+redis, c.keyspace)
	}
	b.WriteString(c.opts.Extra)
	config := filepath.Join(dir, "herald.yaml")
	if err := os.WriteFile(config, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("clustertest: %w", err)
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("clustertest: %w", err)
	}
	c.logs = append(c.logs, log)
	n.Process = &checker.Process{
		Path: c.opts.Binary, Args: []string{"serve", "--config", config}, Dir: dir,
		Addr: mqtt, URL: "http://" + n.admin + "/readyz", Log: log,
	}
	n.Env = append(n.Env, c.opts.Env...)
	if ahead := c.opts.Ahead[i]; ahead != 0 {
		n.Env = append(n.Env, "HERALD_TEST_CLOCK_AHEAD="+ahead.String())
	}
	return nil
}

// linkStore opens a broker's ways to the database and returns the port to which
// it has to connect, on the servers' own addresses: a driver that asks a server
// for the others takes that port for all of them.
func (c *Cluster) linkStore(n *Node, port int) (int, error) {
	if c.opts.Direct || c.Store.Given() {
		return c.Store.Port(), nil
	}
	for _, host := range c.Store.Hosts() {
		l := &Link{target: net.JoinHostPort(host, strconv.Itoa(c.Store.Port())), oneLayout: true}
		if err := l.open(net.JoinHostPort(host, strconv.Itoa(port))); err != nil {
			return 0, err
		}
		n.ToStore = append(n.ToStore, l)
	}
	return port, nil
}

func (c *Cluster) linkRedis(n *Node) (addr string, err error) {
	if c.Redis == nil || c.opts.Direct {
		return c.redis, nil
	}
	n.ToRedis, err = NewLink("127.0.0.1:0", c.redis)
	if err != nil {
		return "", err
	}
	return n.ToRedis.Addr, nil
}

// herald runs a command of the binary with a broker's configuration.
func (c *Cluster) herald(ctx context.Context, n *Node, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, n.Path, append(args, "--config", n.Args[len(n.Args)-1])...)
	cmd.Env = append(checker.Environ(), n.Env...)
	return cmd.CombinedOutput()
}

// Addrs are the brokers' MQTT addresses.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = n.Addr
	}
	return addrs
}

// Prefix is what the brokers put before their keys in Redis.
func (c *Cluster) Prefix() string { return c.keyspace }

// Processes are the brokers.
func (c *Cluster) Processes() []*checker.Process {
	all := make([]*checker.Process, len(c.Nodes))
	for i, n := range c.Nodes {
		all[i] = n.Process
	}
	return all
}

// Heal mends all links and lets every broker go on.
func (c *Cluster) Heal() {
	for _, n := range c.Nodes {
		for _, l := range n.links() {
			l.Set(Healed)
		}
		if n.Process != nil {
			_ = n.Signal(syscall.SIGCONT) // one that does not run needs none
		}
	}
}

// Await returns when every broker is ready.
func (c *Cluster) Await(ctx context.Context) error {
	var all errgroup.Group
	for _, n := range c.Nodes {
		all.Go(func() error { return n.Await(ctx) })
	}
	return all.Wait()
}

// Stop ends everything, the brokers gracefully, and removes what is not to be
// kept. A broker that does not end in time is an error.
func (c *Cluster) Stop() error {
	c.Heal()
	var all errgroup.Group
	for _, n := range c.Nodes {
		if n.Process != nil {
			all.Go(n.Process.Stop)
		}
	}
	err := all.Wait()
	for _, n := range c.Nodes {
		for _, l := range n.links() {
			l.Close()
		}
	}
	if c.Redis != nil {
		err = errors.Join(err, c.Redis.Kill())
	}
	if c.ownStore {
		c.Store.Stop()
	}
	for _, l := range c.logs {
		err = errors.Join(err, l.Close())
	}
	if c.temp {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

// links are all of a node's.
func (n *Node) links() []*Link {
	links := n.ToStore
	if n.ToRedis != nil {
		links = append(links[:len(links):len(links)], n.ToRedis)
	}
	return links
}
