package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/herald-mqtt/herald"
)

// maxInterval is the longest interval that MQTT can express: 2^32-2 seconds,
// since 2^32-1 is "never".
const maxInterval = (math.MaxUint32 - 1) * time.Second

// Validate says what is wrong with c, if anything: an *Error that names the
// key. Files that c names must be there and usable.
func (c *Config) Validate() error {
	for _, section := range []func() *Error{
		c.checkNode, c.checkListeners, c.checkAdmin, c.checkStore, c.checkMQTT,
		c.checkQueue, c.checkLimits, c.checkShared, c.checkLater, c.checkLog,
	} {
		if err := section(); err != nil {
			return err
		}
	}
	return nil
}

func refuse(key, format string, args ...any) *Error {
	return &Error{Key: key, Reason: fmt.Sprintf(format, args...)}
}

func first(errs ...*Error) *Error {
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

func between(key string, v, low, high int) *Error {
	if v < low || v > high {
		if high == math.MaxInt {
			return refuse(key, "must be at least %d, not %d", low, v)
		}
		return refuse(key, "must be %d to %d, not %d", low, high, v)
	}
	return nil
}

func atLeast(key string, v, low, high time.Duration) *Error {
	if v < low || v > high {
		return refuse(key, "must be %s to %s, not %s", formatDuration(low), formatDuration(high), formatDuration(v))
	}
	return nil
}

func wholeSeconds(key string, v, high time.Duration) *Error {
	if v%time.Second != 0 {
		return refuse(key, "must be whole seconds, not %s", v)
	}
	return atLeast(key, v, 0, high)
}

func oneOf(key, v string, allowed ...string) *Error {
	for _, a := range allowed {
		if v == a {
			return nil
		}
	}
	return refuse(key, "must be one of %s, not %q", strings.Join(allowed, ", "), v)
}

func (c *Config) checkNode() *Error {
	n := c.Node
	if len(n.Name) > 255 || !utf8.ValidString(n.Name) || strings.ContainsFunc(n.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return refuse("node.name", "must be up to 255 characters of UTF-8 without spaces or control characters")
	}
	if n.Data == "" {
		return refuse("node.data", "must name a folder")
	}
	if info, err := os.Stat(n.Data); err == nil && !info.IsDir() {
		return refuse("node.data", "%s is not a folder", n.Data)
	}
	return atLeast("node.stop_timeout", n.StopTimeout, time.Second, time.Hour)
}

func (c *Config) checkListeners() *Error {
	if len(c.Listeners) == 0 {
		return refuse("listeners", "needs at least one")
	}
	seen := map[string]int{}
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listeners[%d]", i)
		if err := l.check(key); err != nil {
			return err
		}
		place := l.Address
		if l.Protocol == Unix {
			place = "unix:" + l.Path
		} else if strings.HasSuffix(place, ":0") {
			continue
		}
		if j, taken := seen[place]; taken {
			return refuse(key+".address", "%s is already listeners[%d]", place, j)
		}
		seen[place] = i
	}
	return nil
}

func (l *Listener) check(key string) *Error {
	if l.Protocol == "" {
		return refuse(key+".protocol", "is missing: one of tcp, tls, ws, wss, unix")
	}
	secure, web := l.Protocol == TLS || l.Protocol == WSS, l.Protocol == WS || l.Protocol == WSS
	if err := first(
		oneOf(key+".protocol", l.Protocol, TCP, TLS, WS, WSS, Unix),
		between(key+".max_connections", l.MaxConnections, 0, math.MaxInt),
	); err != nil {
		return err
	}
	if l.Protocol == Unix {
		if l.Address != "" {
			return refuse(key+".address", "is not for unix, which has a path")
		}
		// 104 is what the smallest sockaddr_un holds, with its end.
		if l.Path == "" || len(l.Path) > 103 {
			return refuse(key+".path", "must name the socket in 1 to 103 bytes")
		}
	} else if err := address(key+".address", l.Address); err != nil {
		return err
	}
	if web && l.Path != "" && !strings.HasPrefix(l.Path, "/") {
		return refuse(key+".path", "must start with /, not %q", l.Path)
	}
	if !web && l.Protocol != Unix && l.Path != "" {
		return refuse(key+".path", "is only for ws, wss and unix")
	}
	if l.Mount != "" { // whoever counts on it to keep clients apart must not be let down
		return refuse(key+".mount", "not available in this release")
	}
	return l.checkTLS(key, secure)
}

func (l *Listener) checkTLS(key string, secure bool) *Error {
	if !secure {
		for name, v := range map[string]string{".cert": l.Cert, ".key": l.Key, ".client_ca": l.ClientCA} {
			if v != "" {
				return refuse(key+name, "is only for tls and wss")
			}
		}
		return nil
	}
	if l.Cert == "" || l.Key == "" {
		return refuse(key+".cert", "%s needs cert and key", l.Protocol)
	}
	for name, f := range map[string]string{".cert": l.Cert, ".key": l.Key} {
		if err := readable(f); err != nil {
			return refuse(key+name, "%s: %v", f, err)
		}
	}
	if _, err := tls.LoadX509KeyPair(l.Cert, l.Key); err != nil {
		return refuse(key+".cert", "%v", err)
	}
	if l.ClientCA == "" {
		return nil
	}
	if err := readable(l.ClientCA); err != nil {
		return refuse(key+".client_ca", "%s: %v", l.ClientCA, err)
	}
	pem, err := os.ReadFile(l.ClientCA)
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return refuse(key+".client_ca", "%s holds no certificate in PEM", l.ClientCA)
	}
	return nil
}

// readable tells why a file cannot be read, without repeating its name.
func readable(name string) error {
	if err := checkSize(name); err != nil {
		return reason(err)
	}
	f, err := os.Open(name)
	if err != nil {
		return reason(err)
	}
	return f.Close()
}

func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func address(key, a string) *Error {
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		return refuse(key, "must be host:port, not %q", a)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return refuse(key, "port must be 0 to 65535, not %q", port)
	}
	return nil
}

func (c *Config) checkAdmin() *Error {
	a := c.Admin.Address
	if a == "" {
		return nil
	}
	if err := address("admin.address", a); err != nil {
		return err
	}
	for i, l := range c.Listeners {
		if l.Address == a && !strings.HasSuffix(a, ":0") {
			return refuse("admin.address", "%s is already listeners[%d]", a, i)
		}
	}
	return nil
}

var keyspace = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,47}$`)

func (c *Config) checkStore() *Error {
	s := c.Store.Scylla
	if err := first(
		oneOf("store.engine", c.Store.Engine, Pebble, Scylla),
		between("store.scylla.port", s.Port, 1, 65535),
		between("store.scylla.replication", s.Replication, 1, 9),
	); err != nil {
		return err
	}
	names := make(map[string]bool)
	for i, d := range s.Datacenters {
		key := fmt.Sprintf("store.scylla.datacenters[%d]", i)
		if d.Name == "" || names[d.Name] {
			return refuse(key+".name", "must be there, and differ from the others'")
		}
		names[d.Name] = true
		if err := between(key+".replication", d.Replication, 1, 9); err != nil {
			return err
		}
	}
	if len(names) > 0 && !names[s.Datacenter] {
		return refuse("store.scylla.datacenter", "must be one of store.scylla.datacenters: a quorum is sought there")
	}
	if c.Store.Engine == Scylla {
		if len(s.Hosts) == 0 {
			return refuse("store.engine", "scylla wants store.scylla.hosts")
		}
		if !keyspace.MatchString(s.Keyspace) {
			return refuse("store.scylla.keyspace", "must be 1 to 48 letters, digits and underscores, a letter first, not %q", s.Keyspace)
		}
		if s.TLS.Cert != "" && s.TLS.Key == "" {
			return refuse("store.scylla.tls.cert", "wants key, too")
		}
		if s.TLS.Key != "" && s.TLS.Cert == "" {
			return refuse("store.scylla.tls.key", "wants cert, too")
		}
	}
	return c.checkCluster()
}

func (c *Config) checkCluster() *Error {
	k := &c.Cluster
	if k.Lease < time.Second || k.Lease > time.Minute {
		return refuse("cluster.lease", "must be 1s to 1m, not %s", k.Lease)
	}
	if k.MaxSkew < 0 || k.MaxSkew > 5*time.Minute {
		return refuse("cluster.max_skew", "must be 0 to 5m, not %s", k.MaxSkew)
	}
	if len(k.Address) > 255 {
		return refuse("cluster.address", "has more than 255 bytes")
	}
	if c.Bridge.Redis == "" {
		return nil
	}
	if c.Store.Engine != Scylla {
		return refuse("bridge.redis", "a cluster needs the shared store (store.engine scylla)")
	}
	if c.Bridge.Prefix == "" || len(c.Bridge.Prefix) > 100 {
		return refuse("bridge.prefix", "must have 1 to 100 bytes")
	}
	if c.Queue.MaxMessages > 0 || c.Queue.MaxBytes > 0 {
		return refuse("queue", "bounds are not available in a cluster in this release")
	}
	return nil
}

func (c *Config) checkMQTT() *Error {
	m := c.MQTT
	// 268,435,460 is the largest packet of the protocol: 256 MiB - 1 behind
	// five bytes of fixed header.
	if m.MaxPacketSize < 64 || m.MaxPacketSize > 268_435_460 {
		return refuse("mqtt.max_packet_size", "must be 64 bytes to 256MiB, not %s", m.MaxPacketSize)
	}
	return first(
		between("mqtt.receive_maximum", m.ReceiveMaximum, 1, 65535),
		wholeSeconds("mqtt.max_keepalive", m.MaxKeepalive, 65535*time.Second),
		wholeSeconds("mqtt.session_expiry_max", m.SessionExpiryMax, maxInterval),
		wholeSeconds("mqtt.session_expiry_v3", m.SessionExpiryV3, maxInterval),
		between("mqtt.max_qos", m.MaxQoS, 0, 2),
		between("mqtt.topic_alias_maximum", m.TopicAliasMaximum, 0, 65535),
		atLeast("mqtt.connect_timeout", m.ConnectTimeout, 100*time.Millisecond, time.Hour),
		between("mqtt.max_clients", m.MaxClients, 0, math.MaxInt),
		wholeSeconds("mqtt.sys_interval", m.SysInterval, 24*time.Hour),
	)
}

func (c *Config) checkLimits() *Error {
	if n := c.Limits.PendingOutput; n != 0 && n < 1<<20 {
		return refuse("limits.pending_output", "must be 0 or at least 1MiB, not %s", n)
	}
	return between("limits.subscriptions", c.Limits.Subscriptions, 0, math.MaxInt)
}

func (c *Config) checkQueue() *Error {
	if c.Queue.MaxBytes < 0 {
		return refuse("queue.max_bytes", "must be at least 0")
	}
	return first(
		between("queue.max_messages", c.Queue.MaxMessages, 0, math.MaxInt),
		oneOf("queue.full", c.Queue.Full, DropOldest, DropNew, Disconnect),
		between("inbox.inline_up_to", c.Inbox.InlineUpTo, 1, math.MaxInt),
		between("inbox.background_above", c.Inbox.BackgroundAbove, 1, math.MaxInt),
	)
}

func (c *Config) checkShared() *Error {
	for i, d := range c.Shared.Durable {
		group, filter, both := strings.Cut(d, "/")
		if !both {
			filter = "#"
		}
		if _, _, _, ok := herald.SplitShare(herald.SharePrefix + group + "/" + filter); !ok {
			return refuse(fmt.Sprintf("shared.durable[%d]", i), "must be {group} or {group}/{filter}, not %q", d)
		}
	}
	return first(
		atLeast("shared.expiry", c.Shared.Expiry, time.Second, maxInterval),
		between("bans.max", c.Bans.Max, 1, 1_000_000),
		oneOf("shared.strategy", c.Shared.Strategy, RoundRobin, LeastInflight, Sticky, Hash),
	)
}

// checkLater refuses what is recognised and not yet built, so that nobody
// believes in a protection or a record that is not there.
func (c *Config) checkLater() *Error {
	switch {
	case len(c.History.Topics) > 0:
		return refuse("history.topics", "not available in this release")
	case len(c.Auth) > 0:
		return refuse("auth", "not available in this release")
	}
	return first(
		between("history.retained.keep", c.History.Retained.Keep, 0, math.MaxInt),
		atLeast("history.retained.for", c.History.Retained.For, 0, maxInterval),
	)
}

func (c *Config) checkLog() *Error {
	return first(
		oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error"),
		oneOf("log.format", c.Log.Format, "console", "json"),
	)
}
