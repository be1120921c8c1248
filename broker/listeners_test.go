package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/broker/config"
)

// certify writes a certificate that its own key has signed.
func certify(t *testing.T, name, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Certificates are read again while the node runs; those that cannot be used change
// nothing, and hold up no other listener.
func TestCertificatesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Node.Data = filepath.Join(dir, "data")
	cfg.Listeners = nil
	for _, name := range []string{"a", "b"} {
		l := config.Listener{Protocol: config.TLS, Address: "127.0.0.1:0", Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")}
		certify(t, name+" old", l.Cert, l.Key)
		cfg.Listeners = append(cfg.Listeners, l)
	}
	cfg.Listeners = append(cfg.Listeners, config.Listener{Protocol: config.TCP, Address: "127.0.0.1:0"})
	b, _, stop := startConfigured(t, cfg)
	defer stop()
	wants := func(names ...string) {
		t.Helper()
		for i, name := range names {
			_, addr, _ := strings.Cut(b.Listening()[i], " ")
			c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != name {
				t.Errorf("listener %d shows %q, want %q", i, got, name)
			}
			_ = c.Close()
		}
	}
	wants("a old", "b old")
	certify(t, "a new", cfg.Listeners[0].Cert, filepath.Join(dir, "other.key")) // does not fit
	certify(t, "b new", cfg.Listeners[1].Cert, cfg.Listeners[1].Key)
	if n, err := b.ReloadCertificates(); n != 1 || err == nil || !strings.Contains(err.Error(), "listeners[0]") {
		t.Errorf("%d listeners, %v", n, err)
	}
	wants("a old", "b new")
	certify(t, "a new", cfg.Listeners[0].Cert, cfg.Listeners[0].Key)
	if n, err := b.ReloadCertificates(); n != 2 || err != nil {
		t.Errorf("%d listeners, %v", n, err)
	}
	wants("a new", "b new")
}
