package broker

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
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
		if c.TLS, err = loadTLS(l); err != nil {
			return nil, fmt.Errorf("listeners[%d]: %w", i, err)
		}
	}
	return listen.New(c, b.loop)
}

// loadTLS reads certificate, key and, if clients must show certificates, their
// authorities.
func loadTLS(l config.Listener) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(l.Cert, l.Key)
	if err != nil {
		return nil, fmt.Errorf("cert, key: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if l.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(l.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("client_ca: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("client_ca: %s holds no certificate", l.ClientCA)
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}
