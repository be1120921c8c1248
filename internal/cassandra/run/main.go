// Command run runs Apache Cassandra on this machine until it is interrupted:
// what the store can be developed against where there is no ScyllaDB.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/herald-mqtt/herald/internal/cassandra"
)

func main() {
	n := flag.Int("n", 1, "number of nodes, on 127.0.0.1, .2, ...")
	port := flag.Int("port", 9042, "port for CQL; 0 is a free one")
	dir := flag.String("dir", "", "folder for data and logs; default: one that is removed at the end")
	heap := flag.Int("heap", 512, "Java heap of each node, in MiB")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := cassandra.Launch(ctx, cassandra.Options{Nodes: *n, Port: *port, Dir: *dir, Heap: *heap, Durable: true,
		Log: func(f string, args ...any) { fmt.Fprintf(os.Stderr, f+"\n", args...) }})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer c.Stop()
	fmt.Printf("Cassandra %s speaks CQL on %s, port %d; Ctrl-C stops it\n", cassandra.Version, strings.Join(c.Hosts(), ", "), c.Port())
	<-ctx.Done()
}
