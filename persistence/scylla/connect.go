package scylla

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/gocql/gocql"
	"github.com/scylladb/gocqlx/v2"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
)

// cluster makes the driver's configuration; keyspace may be empty.
func (o *Options) cluster(keyspace string) *gocql.ClusterConfig {
	c := gocql.NewCluster(o.Hosts...)
	c.Port = o.Port
	c.Keyspace = keyspace
	c.Consistency = gocql.LocalQuorum
	c.SerialConsistency = gocql.LocalSerial
	c.Timeout = o.Timeout
	c.WriteTimeout = o.Timeout
	c.ConnectTimeout = o.ConnectTimeout
	c.NumConns = o.Connections
	c.DefaultIdempotence = true // every statement that is not a claim carries its timestamp
	c.DefaultTimestamp = false
	c.ReconnectInterval = time.Second
	c.ReconnectionPolicy = &gocql.ConstantReconnectionPolicy{MaxRetries: 2, Interval: 500 * time.Millisecond}
	c.RetryPolicy = &gocql.SimpleRetryPolicy{NumRetries: 1} // on the next host; more is ours
	c.MaxPreparedStmts = 1000
	c.PageSize = 500
	c.Logger = quiet{o.Logger}
	c.MaxWaitSchemaAgreement = 30 * time.Second
	local := gocql.RoundRobinHostPolicy()
	if o.Datacenter != "" {
		local = gocql.DCAwareRoundRobinPolicy(o.Datacenter)
	}
	c.PoolConfig.HostSelectionPolicy = gocql.TokenAwareHostPolicy(local, gocql.ShuffleReplicas())
	if o.Username != "" {
		c.Authenticator = gocql.PasswordAuthenticator{Username: o.Username, Password: o.Password}
	}
	if o.TLS != nil {
		c.SslOpts = &gocql.SslOptions{Config: o.TLS, EnableHostVerification: !o.TLS.InsecureSkipVerify}
	}
	if o.Dial != nil {
		c.Dialer = o.Dial
	}
	return c
}

var errNoKeyspace = errors.New("no such keyspace")

// connect opens a session of the driver. Errors say in one line what an operator
// has to look at.
func (o *Options) connect(keyspace string) (gocqlx.Session, error) {
	s, err := gocqlx.WrapSession(gocql.NewSession(*o.cluster(keyspace)))
	if err == nil {
		return s, nil
	}
	if keyspace != "" {
		// The driver says the same when there is no keyspace and when there is no
		// server.
		if plain, perr := gocqlx.WrapSession(gocql.NewSession(*o.cluster(""))); perr == nil {
			defer plain.Close()
			var n int
			q := plain.Query("SELECT COUNT(*) FROM system_schema.keyspaces WHERE keyspace_name = ?", nil).Bind(strings.ToLower(keyspace))
			if q.Consistency(gocql.One).Scan(&n) == nil && n == 0 {
				err = errNoKeyspace
			}
		} else {
			err = perr
		}
	}
	where := strings.Join(o.Hosts, ", ") + ", port " + strconv.Itoa(o.Port)
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	for _, what := range []string{"gocql: unable to create session: ", "unable to connect to the cluster, last error: ", "unable to discover protocol version: "} {
		text = strings.ReplaceAll(text, what, "")
	}
	var alert tls.AlertError
	var unverified *tls.CertificateVerificationError
	switch {
	case errors.As(err, &alert), errors.As(err, &unverified), strings.Contains(text, "tls: "):
		return s, fmt.Errorf("%w: store.scylla.tls: %s: %s", herald.ErrUnavailable, where, text)
	case o.Datacenter != "" && strings.Contains(text, "datacenter "+o.Datacenter):
		return s, fmt.Errorf("%w: store.scylla.datacenter: %s has no %q", herald.ErrUnavailable, where, o.Datacenter)
	case errors.Is(err, gocql.ErrNoHosts):
		return s, fmt.Errorf("%w: store.scylla.hosts: none given", herald.ErrUnavailable)
	case strings.Contains(text, "Provided username") || strings.Contains(text, "authentication") || strings.Contains(text, "Authentication") || strings.Contains(text, "password"):
		return s, fmt.Errorf("%w: store.scylla.username, password: refused by %s", herald.ErrUnavailable, where)
	case errors.Is(err, errNoKeyspace):
		return s, fmt.Errorf("%w: store.scylla.keyspace: there is no %q on %s (herald schema apply creates it)", herald.ErrUnavailable, keyspace, where)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		text = dns.Error()
	}
	if o.TLS == nil && (strings.Contains(text, "EOF") || strings.Contains(text, "connection reset")) {
		text += " (it closed the connection: it may want store.scylla.tls)"
	}
	return s, fmt.Errorf("%w: store.scylla.hosts: no answer from %s: %s", herald.ErrUnavailable, where, text)
}

// leaseTimeout is for one attempt at a statement about members, of which a lease leaves
// room for several.
const leaseTimeout = 1500 * time.Millisecond

// connectLeases opens the session for the rows of members: what is written and read at
// the same time, however much, stands on no connection of it, so that a lease does not
// run out behind it.
func (o Options) connectLeases() (gocqlx.Session, error) {
	o.Connections, o.Timeout = 1, min(o.Timeout, leaseTimeout)
	return o.connect(o.Keyspace)
}

// quiet hands the driver's remarks to the debug log: what matters of them comes
// back as errors.
type quiet struct{ log *zap.Logger }

func (q quiet) Print(v ...any)                 { q.log.Debug(fmt.Sprint(v...)) }
func (q quiet) Printf(format string, v ...any) { q.log.Debug(fmt.Sprintf(format, v...)) }
func (q quiet) Println(v ...any)               { q.log.Debug(fmt.Sprint(v...)) }

// TLS is the configuration of an encrypted connection.
type TLS = tls.Config
