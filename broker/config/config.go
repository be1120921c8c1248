// Package config is what a node is told: every key with its type, its default
// and what it may hold, read from defaults, file, environment and command line,
// each of which wins over the one before.
//
// To add a key: a field with its koanf tag here, its value in [Default], its
// rule in validate.go, and its lines in configs/herald.yaml, which a test
// compares with this package.
package config

import (
	"os"
	"time"
)

// Config is everything that a node can be told. A value from [Load] is
// complete and valid; one built by hand is checked by [Config.Validate]. It is
// read by many goroutines and written by none.
//
// Fields tagged reload take effect on SIGHUP, the others at the next start.
// Fields tagged secret are masked by [Config.Print].
type Config struct {
	Node      Node           `koanf:"node"`
	Listeners []Listener     `koanf:"listeners"`
	Admin     Admin          `koanf:"admin"`
	Store     Store          `koanf:"store"`
	Bridge    Bridge         `koanf:"bridge"`
	Cluster   Cluster        `koanf:"cluster"`
	MQTT      MQTT           `koanf:"mqtt"`
	Queue     Queue          `koanf:"queue"`
	Inbox     Inbox          `koanf:"inbox"`
	Shared    Shared         `koanf:"shared"`
	Bans      Bans           `koanf:"bans"`
	History   History        `koanf:"history"`
	Auth      map[string]any `koanf:"auth"`
	Limits    Limits         `koanf:"limits"`
	Log       Log            `koanf:"log"`
}

// Node is this process.
type Node struct {
	// Name is unique in a cluster. Load fills in the host name if it is empty.
	Name string `koanf:"name"`
	// Data is the folder of the embedded store, made if it is not there.
	Data string `koanf:"data"`
	// StopTimeout is how long a graceful stop may take.
	StopTimeout time.Duration `koanf:"stop_timeout"`
}

// The protocols of a listener.
const (
	TCP  = "tcp"
	TLS  = "tls"
	WS   = "ws"
	WSS  = "wss"
	Unix = "unix"
)

// Listener is one place where clients connect.
type Listener struct {
	// Protocol is TCP, TLS, WS, WSS or Unix.
	Protocol string `koanf:"protocol"`
	// Address is host:port. An empty host is every interface; port 0 takes a
	// free one. Not for Unix.
	Address string `koanf:"address"`
	// Path is the path of the URL for WS and WSS (Load fills in /mqtt), and
	// the socket's file for Unix.
	Path string `koanf:"path"`
	// Cert and Key are PEM files of TLS and WSS: chain and private key. On SIGHUP
	// they and ClientCA are read again, where they were at the start.
	Cert string `koanf:"cert"`
	Key  string `koanf:"key"`
	// ClientCA is a PEM file. If it is set, a client must show a certificate
	// signed by one of these authorities.
	ClientCA string `koanf:"client_ca"`
	// ProxyProtocol: every connection starts with a PROXY protocol header, v1
	// or v2, and what it says is the client's address.
	ProxyProtocol bool `koanf:"proxy_protocol"`
	// Mount is put before every topic and filter of the clients that connect
	// here, and taken off again on the way back. Not available in this release.
	Mount string `koanf:"mount"`
	// MaxConnections bounds the connections of this listener; 0 is no bound.
	MaxConnections int `koanf:"max_connections"`
}

// Admin is the HTTP endpoint for operators.
type Admin struct {
	// Address is host:port; empty turns the endpoint off.
	Address string `koanf:"address"`
	// Pprof serves the Go profiler under /debug/pprof.
	Pprof bool `koanf:"pprof"`
}

// The store engines.
const (
	Pebble = "pebble"
	Scylla = "scylla"
)

// Store is where data is kept.
type Store struct {
	Engine string      `koanf:"engine"`
	Scylla ScyllaStore `koanf:"scylla"`
}

// ScyllaStore is the shared store: ScyllaDB, or what speaks its CQL.
type ScyllaStore struct {
	// Hosts are some of the servers; they know the others.
	Hosts []string `koanf:"hosts"`
	Port  int      `koanf:"port"`
	// Keyspace holds the tables; herald schema apply makes it.
	Keyspace string `koanf:"keyspace"`
	// Datacenter is where a quorum is sought; empty is that of the servers.
	Datacenter string `koanf:"datacenter"`
	// Replication is how many copies a new keyspace keeps in the datacenter.
	Replication int `koanf:"replication"`
	// Datacenters, if there are any, replace Replication: a new keyspace keeps copies
	// in each.
	Datacenters []ScyllaDatacenter `koanf:"datacenters"`
	Username    string             `koanf:"username"`
	Password    string             `koanf:"password" secret:"true"`
	TLS         ScyllaTLS          `koanf:"tls"`
}

// ScyllaDatacenter is one of several in which the shared store keeps copies.
type ScyllaDatacenter struct {
	Name        string `koanf:"name"`
	Replication int    `koanf:"replication"`
}

// ScyllaTLS encrypts the connections to the shared store, if anything of it is
// set.
type ScyllaTLS struct {
	// CA is a PEM file of those who sign the servers' certificates; empty: those
	// that the system knows.
	CA string `koanf:"ca"`
	// Cert and Key are PEM files of this node.
	Cert string `koanf:"cert"`
	Key  string `koanf:"key"`
	// ServerName is what the servers' certificates are for, if not their address.
	ServerName string `koanf:"server_name"`
	// Insecure: the servers' certificates are not checked.
	Insecure bool `koanf:"insecure"`
}

// Bridge connects the nodes of a cluster.
type Bridge struct {
	// Redis is a redis:// or rediss:// URL; empty is a single node.
	Redis  string `koanf:"redis" secret:"url"`
	Prefix string `koanf:"prefix"`
}

// Cluster is about being one of several nodes: those that share a store, if
// bridge.redis is set.
type Cluster struct {
	// Lease is how long a node may be silent before the others declare it dead. The
	// same on all nodes; 1 s to 1 min.
	Lease time.Duration `koanf:"lease"`
	// MaxSkew is how far a node's clock may be ahead of the others'.
	MaxSkew time.Duration `koanf:"max_skew"`
	// Address is what clients of other nodes are told as server reference when those
	// stop; empty: nothing.
	Address string `koanf:"address"`
}

// MQTT is what the protocol leaves to the server.
type MQTT struct {
	// MaxPacketSize bounds what a client may send, in bytes, header included.
	MaxPacketSize Bytes `koanf:"max_packet_size"`
	// ReceiveMaximum is how many QoS 1 and 2 publishes of one client may be
	// under way at a time, 1 to 65535.
	ReceiveMaximum int `koanf:"receive_maximum"`
	// MaxKeepalive bounds the keep alive of clients, whole seconds; 0 is no
	// bound. MQTT 5 clients that ask for more, or for none, are told it.
	MaxKeepalive time.Duration `koanf:"max_keepalive"`
	// SessionExpiryMax bounds the session expiry interval of MQTT 5 clients,
	// whole seconds; 0 is no bound.
	SessionExpiryMax time.Duration `koanf:"session_expiry_max"`
	// SessionExpiryV3 is the session expiry interval of 3.1.1 clients with
	// clean session 0, whole seconds; 0 is never.
	SessionExpiryV3 time.Duration `koanf:"session_expiry_v3"`
	// MaxQoS is the highest QoS granted: 0, 1 or 2.
	MaxQoS int `koanf:"max_qos"`
	// TopicAliasMaximum is how many topic aliases a client may use towards the
	// server, and the most that the server uses towards a client; 0 is none.
	TopicAliasMaximum int `koanf:"topic_alias_maximum"`
	// ConnectTimeout: a connection whose CONNECT is not complete by then is
	// closed.
	ConnectTimeout time.Duration `koanf:"connect_timeout"`
	// MaxClients bounds the connections of the node; 0 is no bound.
	MaxClients int `koanf:"max_clients"`
	// SysInterval is how often the $SYS tree is published; 0 is never.
	SysInterval time.Duration `koanf:"sys_interval"`
}

// What a full queue does.
const (
	DropOldest = "drop_oldest"
	DropNew    = "drop_new"
	Disconnect = "disconnect"
)

// Queue bounds what waits for one session.
type Queue struct {
	// MaxMessages and MaxBytes are per session; 0 is no bound.
	MaxMessages int   `koanf:"max_messages"`
	MaxBytes    Bytes `koanf:"max_bytes"`
	// Full is DropOldest, DropNew or Disconnect.
	Full string `koanf:"full"`
}

// Inbox is how a publish is laid down in the store.
type Inbox struct {
	// InlineUpTo: for up to so many sessions the payload stands in each entry,
	// for more it is stored once.
	InlineUpTo int `koanf:"inline_up_to"`
	// BackgroundAbove: for more durable sessions than this a publish is spread
	// after it was acknowledged.
	BackgroundAbove int `koanf:"background_above"`
}

// How the next member of a shared group is chosen.
const (
	RoundRobin    = "round_robin"
	LeastInflight = "least_inflight"
	Sticky        = "sticky"
	Hash          = "hash" // by publisher
)

// Shared is about shared subscriptions.
type Shared struct {
	// Durable names groups that have a queue even without a durable member:
	// "{group}", with any filter, or "{group}/{filter}".
	Durable []string `koanf:"durable"`
	// Expiry is how long a group without members keeps its queue.
	Expiry time.Duration `koanf:"expiry"`
	// Strategy is RoundRobin, LeastInflight, Sticky or Hash.
	Strategy string `koanf:"strategy"`
}

// Bans is about who may not connect.
type Bans struct {
	// Max is how many bans there may be: all of them are in the memory of every node,
	// 1.5 KiB each at most.
	Max int `koanf:"max"`
}

// History is about messages kept by topic. Not available in this release.
type History struct {
	// Topics are the filters of what is recorded.
	Topics   []any           `koanf:"topics"`
	Retained RetainedHistory `koanf:"retained"`
}

// RetainedHistory is how much of a retained message's past is kept.
type RetainedHistory struct {
	Keep int           `koanf:"keep"`
	For  time.Duration `koanf:"for"`
}

// Limits bound what clients can take of the node.
type Limits struct {
	// Subscriptions of one client; 0 is no bound. A filter that is one too many is
	// refused.
	Subscriptions int `koanf:"subscriptions"`
	// PendingOutput is how many bytes may wait to be written to all clients together; 0
	// is a quarter of the memory. When there are more, the connections on which the
	// most waits are ended.
	PendingOutput Bytes `koanf:"pending_output"`
}

// Log is about the log on standard error.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `koanf:"level" reload:"true"`
	// Format is console or json.
	Format string `koanf:"format"`
}

// Default is what is in force when nothing is said. The caller owns it.
func Default() Config {
	return Config{
		Node: Node{Data: "./data", StopTimeout: 10 * time.Second},
		Listeners: []Listener{
			{Protocol: TCP, Address: "127.0.0.1:1883"},
			{Protocol: WS, Address: "127.0.0.1:8083", Path: "/mqtt"},
		},
		Admin: Admin{Address: "127.0.0.1:8080"},
		Store: Store{
			Engine: Pebble,
			Scylla: ScyllaStore{Hosts: []string{}, Port: 9042, Keyspace: "herald", Replication: 3, Datacenters: []ScyllaDatacenter{}},
		},
		Bridge:  Bridge{Prefix: "herald"},
		Cluster: Cluster{Lease: 5 * time.Second, MaxSkew: 10 * time.Second},
		MQTT: MQTT{
			MaxPacketSize: 1 << 20, ReceiveMaximum: 1024, MaxQoS: 2, TopicAliasMaximum: 64,
			ConnectTimeout: 10 * time.Second, SysInterval: 10 * time.Second,
		},
		Queue:   Queue{Full: DropOldest},
		Inbox:   Inbox{InlineUpTo: 16, BackgroundAbove: 1000},
		Shared:  Shared{Durable: []string{}, Expiry: 24 * time.Hour, Strategy: RoundRobin},
		Bans:    Bans{Max: 100_000},
		History: History{Topics: []any{}, Retained: RetainedHistory{Keep: 100, For: 720 * time.Hour}},
		Auth:    map[string]any{},
		Limits:  Limits{Subscriptions: 100_000},
		Log:     Log{Level: "info", Format: "console"},
	}
}

// fill puts in what depends on the machine or on other keys.
func (c *Config) fill() {
	if c.Node.Name == "" {
		if name, err := os.Hostname(); err == nil {
			c.Node.Name = name
		}
	}
	for i := range c.Listeners {
		if l := &c.Listeners[i]; (l.Protocol == WS || l.Protocol == WSS) && l.Path == "" {
			l.Path = "/mqtt"
		}
	}
}
