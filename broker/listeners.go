package broker

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/listen"
)

// bind opens the i-th configured listener.
func (b *Broker) bind(i int, l config.Listener) (*listen.Listener, error) {
	c := listen.Config{
		ID: strconv.Itoa(i) + "-" + l.Protocol, Protocol: l.Protocol, Address: l.Address, Path: l.Path,
		ProxyProtocol: l.ProxyProtocol, MaxConnections: l.MaxConnections,
	}
	switch l.Protocol {
	case config.Unix:
		c.Address, c.Path = l.Path, ""
	case config.TLS, config.WSS:
		var err error
		if c.TLS, err = listen.LoadTLS(l.Cert, l.Key, l.ClientCA); err != nil {
			return nil, fmt.Errorf("listeners[%d]: %w", i, err)
		}
	}
	return listen.New(c, b.loop)
}

// ReloadCertificates reads the files of the TLS and WSS listeners again, where the
// configuration that the node was made with has them: certificates, keys and the
// clients' authorities. It tells how many listeners use what it has read. Where it
// cannot, a listener goes on with what it has; the error names all of them.
func (b *Broker) ReloadCertificates() (n int, err error) {
	for i, l := range b.listeners {
		c := b.cfg.Listeners[i]
		if c.Protocol != config.TLS && c.Protocol != config.WSS {
			continue
		}
		conf, failed := listen.LoadTLS(c.Cert, c.Key, c.ClientCA)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("listeners[%d]: %w", i, failed))
			continue
		}
		l.SetTLS(conf)
		n++
	}
	return n, err
}
