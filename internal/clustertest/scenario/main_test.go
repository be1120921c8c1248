package scenario

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/herald-mqtt/herald/internal/clustertest"
)

// box is the cluster of all tests: A, B and C are its nodes.
var box *clustertest.Cluster

// The nodes.
const (
	A = iota
	B
	C
)

var brokers = flag.Int("scenario.brokers", 3, "1: one node alone")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var err error
	if box, err = clustertest.Launch(ctx, clustertest.Options{Brokers: *brokers, Extra: "mqtt: {sys_interval: 1s}\n"}); err != nil {
		fmt.Fprintln(os.Stderr, "scenario:", err)
		return 1
	}
	code := m.Run()
	for _, n := range box.Nodes {
		if deaths := n.Deaths(); len(deaths) > 0 {
			fmt.Fprintln(os.Stderr, "scenario: a broker died:", strings.Join(deaths, "\n"))
			code = 1
		}
		if code != 0 && testing.Verbose() {
			output := n.Output()
			fmt.Fprintf(os.Stderr, "scenario: the end of what %s has logged:\n%s\n", n.Name, output[max(0, len(output)-8<<10):])
		}
	}
	if err := box.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "scenario:", err)
		code = 1
	}
	return code
}

// names makes topics and client ids of this test's own.
func names(t *testing.T) func(string) string {
	prefix := fmt.Sprintf("%s-%x", strings.ReplaceAll(t.Name(), "/", "-"), rand.Uint32())
	return func(s string) string { return prefix + "/" + s }
}
