package cassandra_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/herald-mqtt/herald/internal/cassandra"
	"github.com/herald-mqtt/herald/internal/checker"
	"github.com/herald-mqtt/herald/persistence/scylla"
)

// secured is how a node reaches a database; the zero fields are left out.
type secured struct {
	host, keyspace, datacenter, user, password string
	port                                       int
	files                                      cassandra.Files
}

func (s secured) yaml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "store:\n  engine: scylla\n  scylla:\n    hosts: [%q]\n    port: %d\n    keyspace: %s\n", s.host, s.port, s.keyspace)
	fmt.Fprintf(&b, "    datacenters: [{name: %q, replication: 1}]\n", s.datacenter)
	for _, v := range [][2]string{{"datacenter", s.datacenter}, {"username", s.user}, {"password", s.password}} {
		if v[1] != "" {
			fmt.Fprintf(&b, "    %s: %q\n", v[0], v[1])
		}
	}
	if s.files != (cassandra.Files{}) {
		b.WriteString("    tls:\n")
		for _, v := range [][2]string{{"ca", s.files.CA}, {"cert", s.files.Cert}, {"key", s.files.Key}} {
			if v[1] != "" {
				fmt.Fprintf(&b, "      %s: %q\n", v[0], v[1])
			}
		}
	}
	return b.String()
}

// runHerald runs a command of the binary to its end.
func runHerald(t *testing.T, config string, command ...string) (status int, stderr string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(command, "--config", config)...)
	cmd.Env = checker.Environ()
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s", command, err, &said)
	}
	return cmd.ProcessState.ExitCode(), said.String()
}

// A node on a database that wants TLS, a certificate and a login, and whose datacenter
// has a name of its own, works; and each thing that can be wrong with its
// configuration is said in one line, with exit status 3.
func TestSecuredDatabase(t *testing.T) {
	c := cassandra.StartWith(t, cassandra.Options{Password: true, TLS: true, Datacenter: "north", Durable: true})
	right := secured{host: c.Hosts()[0], port: c.Port(), keyspace: "secured", datacenter: "north",
		user: cassandra.User, password: cassandra.Password, files: c.Files()}
	dir := t.TempDir()
	write := func(t *testing.T, s secured) string {
		t.Helper()
		config := filepath.Join(t.TempDir(), "herald.yaml")
		text := s.yaml() + fmt.Sprintf("node: {data: %q}\nlisteners: [{protocol: tcp, address: \"127.0.0.1:0\"}]\nadmin: {address: \"\"}\n", dir)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return config
	}
	other := filepath.Join(dir, "other.pem") // an authority that has signed nothing
	selfSigned(t, other)
	refused := func(t *testing.T, change func(*secured), says string, commands ...string) {
		t.Helper()
		s := right
		change(&s)
		config := write(t, s)
		for _, command := range commands {
			start := time.Now()
			status, stderr := runHerald(t, config, strings.Fields(command)...)
			line := strings.TrimSuffix(stderr, "\n")
			if status != 3 || strings.Contains(line, "\n") || !strings.Contains(line, says) {
				t.Errorf("herald %s: status %d, want 3 and one line with %q:\n%s", command, status, says, stderr)
			}
			if strings.Contains(stderr, "hunter2") {
				t.Errorf("herald %s tells the password: %s", command, stderr)
			}
			t.Logf("herald %s, %v: %s", command, time.Since(start).Round(time.Millisecond), line)
		}
	}
	both := []string{"serve", "schema apply"}
	t.Run("no keyspace", func(t *testing.T) {
		refused(t, func(*secured) {}, `store.scylla.keyspace: there is no "secured"`, "serve")
	})
	t.Run("right", func(t *testing.T) {
		node, err := checker.Herald(must(binary()), t.TempDir(), right.yaml(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, stderr := runHerald(t, filepath.Join(node.Dir, "herald.yaml"), "schema", "apply"); status != 0 {
			t.Fatalf("schema apply: %d\n%s", status, stderr)
		}
		if err := node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		report, err := checker.Run(t.Context(), checker.Config{Addrs: []string{node.Addr}, For: 2 * time.Second, Rate: 100,
			QoS1Publishers: 1, QoS2Publishers: 1, QoS1Subscribers: 1, QoS2Subscribers: 1, Processes: []*checker.Process{node}})
		if err != nil {
			t.Fatal(err)
		}
		if err := report.Err(); err != nil {
			t.Error(err)
		}
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	})
	for name, w := range map[string]struct {
		change func(*secured)
		says   string
	}{
		"wrong password":     {func(s *secured) { s.password = "hunter2" }, "store.scylla.username, password: refused by 127.0.0.1"},
		"nobody":             {func(s *secured) { s.user = "nobody" }, "store.scylla.username, password: refused by 127.0.0.1"},
		"no login":           {func(s *secured) { s.user, s.password = "", "" }, "store.scylla.username, password: refused by 127.0.0.1"},
		"no TLS":             {func(s *secured) { s.files = cassandra.Files{} }, "it may want store.scylla.tls"},
		"wrong authority":    {func(s *secured) { s.files.CA = other }, "store.scylla.tls: "},
		"no certificate":     {func(s *secured) { s.files.Cert, s.files.Key = "", "" }, "store.scylla.tls: "},
		"no such file":       {func(s *secured) { s.files.CA = "/no/such/file" }, "store.scylla.tls"},
		"nobody listens":     {func(s *secured) { s.port = 1 }, "store.scylla.hosts: no answer from 127.0.0.1, port 1"},
		"no such host":       {func(s *secured) { s.host = "no.such.host.invalid" }, "store.scylla.hosts: no answer from no.such.host.invalid"},
		"not that name":      {func(s *secured) { s.host = "localhost" }, "store.scylla.tls: "},
		"datacenter unknown": {func(s *secured) { s.datacenter = "south" }, `store.scylla.datacenter: 127.0.0.1, port `},
	} {
		t.Run(name, func(t *testing.T) { refused(t, w.change, w.says, both...) })
	}
	t.Run("newer schema", func(t *testing.T) {
		cql := gocql.NewCluster(right.host)
		cql.Port, cql.Timeout, cql.ConnectTimeout = right.port, 10*time.Second, 10*time.Second
		cql.Authenticator = gocql.PasswordAuthenticator{Username: right.user, Password: right.password}
		cql.SslOpts = &gocql.SslOptions{CaPath: right.files.CA, CertPath: right.files.Cert, KeyPath: right.files.Key, EnableHostVerification: true}
		s, err := cql.CreateSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var copies map[string]string
		if err := s.Query("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = 'secured'").Scan(&copies); err != nil ||
			copies["north"] != "1" || !strings.HasSuffix(copies["class"], "NetworkTopologyStrategy") {
			t.Errorf("the keyspace is replicated %v (%v)", copies, err)
		}
		newer := fmt.Sprintf("UPDATE secured.herald_schema SET version = %d WHERE name = 'schema' IF EXISTS", scylla.SchemaVersion+1)
		if ok, err := s.Query(newer).MapScanCAS(map[string]any{}); err != nil || !ok {
			t.Fatal(ok, err)
		}
		refused(t, func(*secured) {}, "schema newer than the program", "serve", "schema apply", "schema status")
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// selfSigned writes a certificate that nobody else has signed.
func selfSigned(t *testing.T, path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(7), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
