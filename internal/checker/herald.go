package checker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build compiles cmd/herald into dir and returns the binary's path. It needs
// the go command and must be called within the module.
func Build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "herald")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/herald-mqtt/herald/cmd/herald")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("checker: build cmd/herald: %w\n%s", err, out)
	}
	return path, nil
}

// Herald is a node on free ports of 127.0.0.1 with its data in dir, ready to
// be started. extra is YAML that is appended to its configuration; log gets
// its output, if not nil.
func Herald(binary, dir, extra string, log io.Writer) (*Process, error) {
	ports, err := FreePorts(2)
	if err != nil {
		return nil, err
	}
	mqtt, admin := fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	var b strings.Builder
	fmt.Fprintf(&b, "node:\n  data: %q\n", filepath.Join(dir, "data"))
	fmt.Fprintf(&b, "listeners:\n  - {protocol: tcp, address: %q}\n", mqtt)
	fmt.Fprintf(&b, "admin:\n  address: %q\n", admin)
	b.WriteString(extra)
	config := filepath.Join(dir, "herald.yaml")
	if err := os.WriteFile(config, []byte(b.String()), 0o600); err != nil {
		return nil, fmt.Errorf("checker: configuration: %w", err)
	}
	return &Process{
		Path: binary, Args: []string{"serve", "--config", config}, Dir: dir,
		Addr: mqtt, URL: "http://" + admin + "/readyz", Log: log,
	}, nil
}

// FreePorts returns ports of 127.0.0.1 that nobody listened on a moment ago.
// They are below the range from which the usual systems take the local ports
// of outgoing connections: while a broker is down, a client that dials its
// port from that same port would be connected with itself, and the broker
// could not have its port back.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("checker: no free port between 20000 and 32000")
}
