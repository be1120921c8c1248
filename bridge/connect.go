package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// ErrURL: the Redis URL cannot be understood. Its text never shows a password.
var ErrURL = errors.New("malformed Redis URL")

// quiet keeps go-redis from writing lines of its own to stderr: what it reports
// comes back as errors, which are counted and logged here.
var quiet = sync.OnceFunc(logging.Disable)

// parseURL understands
//
//	redis://[user:password@]host[:port][,host[:port]]...[/db][?master=NAME][&cluster=true]
//
// and rediss:// for TLS. With master, the hosts are Sentinels; several hosts
// without it, or cluster=true, are a Redis Cluster.
func parseURL(raw string) (*redis.UniversalOptions, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || scheme != "redis" && scheme != "rediss" {
		return nil, fmt.Errorf("%w: it starts with neither redis:// nor rediss://", ErrURL)
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, path, _ := strings.Cut(rest, "/")
	o := &redis.UniversalOptions{}
	if at := strings.LastIndexByte(hosts, '@'); at >= 0 {
		user, password, _ := strings.Cut(hosts[:at], ":")
		var err, err2 error
		o.Username, err = url.PathUnescape(user)
		o.Password, err2 = url.PathUnescape(password)
		if err != nil || err2 != nil {
			return nil, fmt.Errorf("%w: bad escape in user or password", ErrURL)
		}
		hosts = hosts[at+1:]
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("%w: bad query", ErrURL)
	}
	for key, v := range values {
		switch key {
		case "master":
			o.MasterName = v[0]
		case "cluster":
			if o.IsClusterMode, err = strconv.ParseBool(v[0]); err != nil {
				return nil, fmt.Errorf("%w: cluster is true or false", ErrURL)
			}
		case "sentinel_username":
			o.SentinelUsername = v[0]
		case "sentinel_password":
			o.SentinelPassword = v[0]
		default:
			return nil, fmt.Errorf("%w: unknown parameter %q", ErrURL, key)
		}
	}
	port := "6379"
	if o.MasterName != "" {
		port = "26379"
	}
	for host := range strings.SplitSeq(hosts, ",") {
		addr, err := address(host, port)
		if err != nil {
			return nil, err
		}
		o.Addrs = append(o.Addrs, addr)
	}
	if path != "" {
		if o.DB, err = strconv.Atoi(path); err != nil || o.DB < 0 {
			return nil, fmt.Errorf("%w: %q is no database number", ErrURL, path)
		}
	}
	cluster := o.MasterName == "" && (len(o.Addrs) > 1 || o.IsClusterMode)
	if cluster && o.DB != 0 {
		return nil, fmt.Errorf("%w: a Redis Cluster has database 0 only", ErrURL)
	}
	if o.MasterName != "" && o.IsClusterMode {
		return nil, fmt.Errorf("%w: either master (Sentinel) or cluster", ErrURL)
	}
	if scheme == "rediss" {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return o, nil
}

func address(host, port string) (string, error) {
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%w: %q is no port", ErrURL, port)
	}
	if host == "" || strings.ContainsAny(host, " \t/[]") {
		return "", fmt.Errorf("%w: %q is no host", ErrURL, host)
	}
	return net.JoinHostPort(host, port), nil
}

// dial makes a client that never tries again by itself: what may have happened
// is decided here, and everything sent is safe to send again.
func dial(o *redis.UniversalOptions, timeout time.Duration, tlsConfig *tls.Config) redis.UniversalClient {
	quiet()
	c := *o
	c.Protocol = 2
	c.DisableIdentity = true
	c.MaxRetries = -1
	c.DialTimeout = timeout
	c.DialerRetries = 1
	c.ReadTimeout = timeout
	c.WriteTimeout = timeout
	c.ContextTimeoutEnabled = true
	c.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if c.TLSConfig != nil && tlsConfig != nil {
		c.TLSConfig = tlsConfig
	}
	return redis.NewUniversalClient(&c)
}

// Reach tells whether Redis answers, for who is not to begin anything before it does.
// The error is one line with the address, and never shows a password.
func Reach(ctx context.Context, rawURL string) error {
	parsed, err := parseURL(rawURL)
	if err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	c := dial(parsed, time.Second, nil)
	err = c.Ping(ctx).Err()
	if refused := redis.Error(nil); errors.As(err, &refused) && !loading(err) {
		err = nil // it answers; Open says what is wrong
	}
	_ = c.Close() // nothing was written
	if err != nil {
		return fmt.Errorf("bridge: redis %s: %w", parsed.Addrs[0], err)
	}
	return nil
}

// identity names the processes that serve the keys: a restart or a failover
// changes it. It is empty where Redis does not tell.
func identity(ctx context.Context, c redis.UniversalClient, keys ...string) (string, error) {
	var ids []string
	for _, key := range keys {
		one := c
		if cluster, ok := c.(*redis.ClusterClient); ok {
			master, err := cluster.MasterForKey(ctx, key)
			if err != nil {
				return "", err
			}
			one = master
		}
		info, err := one.Info(ctx, "server").Result()
		if refused := redis.Error(nil); errors.As(err, &refused) && !loading(err) {
			return "", nil // a service that hides INFO
		}
		if err != nil {
			return "", err
		}
		if _, rest, ok := strings.Cut(info, "run_id:"); ok {
			id, _, _ := strings.Cut(rest, "\r\n")
			ids = append(ids, id)
		}
		if one == c {
			break
		}
	}
	return strings.Join(ids, " "), nil
}

// loading: Redis is up, and reads its data from disk.
func loading(err error) bool { return redis.HasErrorPrefix(err, "LOADING") }
