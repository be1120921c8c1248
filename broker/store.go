package broker

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/pebble"
	"github.com/herald-mqtt/herald/persistence/scylla"
)

// openStore opens the store that the configuration names.
func openStore(cfg config.Config, log *zap.Logger) (persistence.Store, error) {
	if cfg.Store.Engine != config.Scylla {
		return pebble.Open(cfg.Node.Data, pebble.Options{Logger: log.Named("store"), InlineUpTo: cfg.Inbox.InlineUpTo})
	}
	opts, err := SharedStore(cfg, log)
	if err != nil {
		return nil, err
	}
	return scylla.Open(opts)
}

// SharedStore says how to reach the shared store. An error is one of the files
// that store.scylla.tls names.
func SharedStore(cfg config.Config, log *zap.Logger) (scylla.Options, error) {
	c := &cfg.Store.Scylla
	o := scylla.Options{
		Hosts: c.Hosts, Port: c.Port, Keyspace: c.Keyspace, Datacenter: c.Datacenter, ReplicationFactor: c.Replication,
		Username: c.Username, Password: c.Password,
		Logger: log.Named("store"), InlineUpTo: cfg.Inbox.InlineUpTo,
		Cluster: cfg.Bridge.Redis != "", Now: clock(),
	}
	for _, d := range c.Datacenters {
		if o.Replication == nil {
			o.Replication = make(map[string]int)
		}
		o.Replication[d.Name] = d.Replication
	}
	if c.TLS != (config.ScyllaTLS{}) {
		t, err := clientTLS(&c.TLS)
		if err != nil {
			return o, &config.Error{Key: "store.scylla.tls", Reason: err.Error()}
		}
		o.TLS = t
	}
	return o, nil
}

func clientTLS(c *config.ScyllaTLS) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.Insecure} //nolint:gosec // only when the operator says so
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no certificate", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
