// Command run runs a cluster on this machine until it is interrupted: Redis,
// Apache Cassandra and some brokers.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/herald-mqtt/herald/internal/clustertest"
)

func main() {
	brokers := flag.Int("brokers", 3, "number of brokers: MQTT on 1883, 1884, ..., admin on 8080, 8081, ...")
	databases := flag.Int("databases", 1, "number of database servers, 1 or 3")
	binary := flag.String("binary", "", "herald binary; empty: it is built")
	dir := flag.String("dir", "", "folder for configuration, data and logs; empty: one that is removed at the end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *brokers, *databases, *binary, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, brokers, databases int, binary, dir string) error {
	opts := clustertest.Options{
		Brokers: brokers, Databases: databases, Binary: binary, Dir: dir, Direct: true,
		Log: func(f string, args ...any) { fmt.Fprintf(os.Stderr, f+"\n", args...) },
	}
	for i := range brokers {
		opts.MQTT = append(opts.MQTT, 1883+i)
		opts.Admin = append(opts.Admin, 8080+i)
	}
	fmt.Println("starting the database, Redis and the brokers: this takes half a minute")
	c, err := clustertest.Launch(ctx, opts)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		fmt.Printf("%s: MQTT on %s, http://%s/\n", n.Name, n.Addr, n.Admin())
	}
	if c.Redis != nil {
		fmt.Println("Redis:  redis://" + c.RedisAddr())
	}
	fmt.Printf("CQL:    %s, port %d\n", strings.Join(c.Store.Hosts(), ", "), c.Store.Port())
	fmt.Println("Ctrl-C stops all of it")
	<-ctx.Done()
	return c.Stop()
}
