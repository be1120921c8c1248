package cassandra

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Files are what a client of a cluster with TLS needs: PEM files.
type Files struct{ CA, Cert, Key string }

// Files returns the client's files; of a cluster without TLS they are empty.
func (c *Cluster) Files() Files {
	if c.tls == nil {
		return Files{}
	}
	return Files{CA: c.path("ca.pem"), Cert: c.path("client.pem"), Key: c.path("client.key")}
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

// certify makes an authority, which signs for the nodes and for a client. server.pem
// has key and certificates in one, as Cassandra wants it.
func (c *Cluster) certify(hosts []string) error {
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour)}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, authority.Public(), authority)
	if err != nil {
		return err
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(c.path("ca.pem"), root, 0o600); err != nil {
		return err
	}
	sign := func(serial int64, name string, hosts []string) (cert, key []byte, err error) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter}
		for _, h := range hosts {
			leaf.IPAddresses = append(leaf.IPAddresses, net.ParseIP(h))
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, private.Public(), authority)
		if err != nil {
			return nil, nil, err
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
	}
	cert, key, err := sign(2, "server", hosts)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("server.pem"), append(append(key, cert...), root...), 0o600); err != nil {
		return err
	}
	if cert, key, err = sign(3, "client", nil); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("client.pem"), cert, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("client.key"), key, 0o600); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: hosts[0]}
	return nil
}
