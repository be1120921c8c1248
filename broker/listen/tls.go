package listen

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// LoadTLS reads the PEM files of a TLS or WSS listener: certificate chain, key,
// and the authorities one of which must have signed each client's certificate
// (empty: clients need none). The error says which file is at fault.
func LoadTLS(cert, key, clientCA string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("listen: certificate %s, key %s: %w", cert, key, err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if clientCA == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, fmt.Errorf("listen: client_ca: %w", err)
	}
	conf.ClientCAs = x509.NewCertPool()
	if !conf.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("listen: client_ca %s: %w", clientCA, errNoCertificate)
	}
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	return conf, nil
}

var errNoCertificate = errors.New("no certificate in it")
