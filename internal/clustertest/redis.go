package clustertest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/herald-mqtt/herald/internal/checker"
)

// newRedis prepares a redis-server that writes nothing to disk, so that it is
// empty whenever it starts. (Package redistest is for tests that do more to one;
// this one serves commands too.)
func newRedis(dir string) (p *checker.Process, addr string, err error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, "", fmt.Errorf("clustertest: redis-server is missing: make test-tools installs it: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("clustertest: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, "", fmt.Errorf("clustertest: %w", err)
	}
	ports, err := checker.FreePorts(1)
	if err != nil {
		return nil, "", err
	}
	port := strconv.Itoa(ports[0])
	addr = net.JoinHostPort("127.0.0.1", port)
	return &checker.Process{
		Path: path, Dir: dir,
		Args: []string{"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no"},
		Ready: func(ctx context.Context) error {
			// Who answers may be somebody else who has taken the port.
			reply, err := RedisCommand(ctx, addr, "CONFIG GET dir")
			if err == nil && !strings.Contains(reply, dir) {
				err = fmt.Errorf("redis on %s is not ours: %q", addr, reply)
			}
			return err
		},
	}, addr, nil
}

// RedisAddr is Redis's own address, past all links.
func (c *Cluster) RedisAddr() string { return c.redis }

// RedisCommand sends a Redis one inline command and returns the start of its
// reply, as it stands on the wire, at most 64 KiB of it.
func RedisCommand(ctx context.Context, addr, command string) (string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	// QUIT has the server close when it has answered.
	if _, err := io.WriteString(conn, command+"\r\nQUIT\r\n"); err != nil {
		return "", err
	}
	reply, err := io.ReadAll(io.LimitReader(conn, 64<<10))
	return strings.TrimSuffix(string(reply), "+OK\r\n"), err
}
