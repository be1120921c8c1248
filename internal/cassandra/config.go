package cassandra

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// configure writes the files of a node.
func (c *Cluster) configure(n *node, i int) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	// Tokens are given, evenly: nodes that draw them wait for each other.
	step := ^uint64(0)/uint64(c.opts.Nodes) + 1
	if c.opts.Nodes == 1 {
		step = 0
	}
	token := int64(-1<<63) + int64(step*uint64(i)) + 1
	auth := ""
	if c.opts.Password {
		auth = "authenticator: PasswordAuthenticator\nauthorizer: CassandraAuthorizer\n"
	}
	snitch := "SimpleSnitch"
	if c.opts.Datacenter != "" {
		snitch = "GossipingPropertyFileSnitch"
		where := fmt.Sprintf("dc=%s\nrack=rack1\n", c.opts.Datacenter)
		if err := os.WriteFile(n.path("cassandra-rackdc.properties"), []byte(where), 0o600); err != nil {
			return err
		}
	}
	encryption := ""
	if c.opts.TLS {
		encryption = fmt.Sprintf(`client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: true
  ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}
  keystore: %s
  truststore: %s
`, c.path("server.pem"), c.path("ca.pem"))
	}
	// With the usual periodic one, a node that is killed has lost what it took in
	// its last tenth of a second, or more.
	sync := "commitlog_sync: periodic\ncommitlog_sync_period: 1000ms"
	if c.opts.Durable {
		sync = "commitlog_sync: group\ncommitlog_sync_group_window: 5ms"
	}
	yaml := fmt.Sprintf(`cluster_name: herald-test
num_tokens: 1
initial_token: %d
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: %s
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "127.0.0.1:%d"}]
listen_address: %s
rpc_address: %s
storage_port: %d
native_transport_port: %d
start_native_transport: true
data_file_directories: [%s]
commitlog_directory: %s
hints_directory: %s
saved_caches_directory: %s
cdc_raw_directory: %s
%s
commitlog_segment_size: 16MiB
commitlog_total_space: 256MiB
memtable_heap_space: %dMiB
memtable_offheap_space: 64MiB
memtable_allocation_type: heap_buffers
concurrent_reads: 16
concurrent_writes: 32
concurrent_compactors: 1
compaction_throughput: 64MiB/s
key_cache_size: 8MiB
counter_cache_size: 0MiB
file_cache_size: 32MiB
networking_cache_size: 32MiB
prepared_statements_cache_size: 8MiB
auto_snapshot: false
incremental_backups: false
disk_failure_policy: stop
commit_failure_policy: stop
hinted_handoff_enabled: true
dynamic_snitch: false
materialized_views_enabled: false
batch_size_warn_threshold: 256KiB
batch_size_fail_threshold: 4096KiB
native_transport_max_frame_size: 32MiB
%s%s`, token, snitch, c.peers, n.host, n.host, c.peers, c.port,
		n.path("data"), n.path("commitlog"), n.path("hints"), n.path("caches"), n.path("cdc"), sync,
		max(c.opts.Heap/6, 32), auth, encryption)
	if err := os.WriteFile(n.path("cassandra.yaml"), []byte(yaml), 0o600); err != nil {
		return err
	}
	return os.WriteFile(n.path("logback.xml"), []byte(`<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{ISO8601} %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
`), 0o600)
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// modules opens what Cassandra needs of the JDK's insides (what its
// jvm17-server.options lists).
var modules = struct{ exports, opens []string }{
	exports: []string{
		"java.base/jdk.internal.misc", "java.management.rmi/com.sun.jmx.remote.internal.rmi",
		"java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.sql/java.sql",
		"java.base/java.lang.ref", "jdk.unsupported/sun.misc",
		"jdk.compiler/com.sun.tools.javac.file", "jdk.attach/sun.tools.attach",
	},
	opens: []string{
		"java.base/java.lang.module", "java.base/jdk.internal.loader", "java.base/jdk.internal.ref",
		"java.base/jdk.internal.reflect", "java.base/jdk.internal.math", "java.base/jdk.internal.module",
		"java.base/jdk.internal.util.jar", "jdk.management/com.sun.management.internal",
		"java.base/sun.nio.ch", "java.base/java.io", "java.base/java.lang.reflect",
		"jdk.compiler/com.sun.tools.javac", "java.base/java.lang", "java.base/java.util",
		"java.base/java.nio", "java.base/java.util.concurrent",
	},
}

// arguments is the command line of java.
func (c *Cluster) arguments(n *node) []string {
	args := []string{
		fmt.Sprintf("-Xms%dM", c.opts.Heap), fmt.Sprintf("-Xmx%dM", c.opts.Heap), "-XX:MaxDirectMemorySize=128M",
		"-Xss256k", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData",
		"-Djava.net.preferIPv4Stack=true", "-Djdk.attach.allowAttachSelf=true",
		"-Dio.netty.tryReflectionSetAccessible=true", "-Djava.awt.headless=true",
		"-Dcassandra-foreground=yes", "-Dcassandra.config=file://" + n.path("cassandra.yaml"),
		"-Dlogback.configurationFile=" + n.path("logback.xml"),
		"-Dcassandra-rackdc.properties=file://" + n.path("cassandra-rackdc.properties"),
		"-Dcassandra.storagedir=" + n.dir, "-Dcassandra.logdir=" + n.dir,
		// Nothing to wait for: the ring is known.
		"-Dcassandra.ring_delay_ms=1000", "-Dcassandra.skip_wait_for_gossip_to_settle=0",
		"-Dcassandra.consistent.rangemovement=false", "-Dcassandra.superuser_setup_delay_ms=100",
		"-Djna.tmpdir=" + n.dir, "-Djava.io.tmpdir=" + n.dir,
	}
	for _, m := range modules.exports {
		args = append(args, "--add-exports", m+"=ALL-UNNAMED")
	}
	for _, m := range modules.opens {
		args = append(args, "--add-opens", m+"=ALL-UNNAMED")
	}
	for _, jar := range c.jars {
		if strings.HasPrefix(filepath.Base(jar), "jamm-") {
			args = append(args, "-javaagent:"+jar)
		}
	}
	return append(args, "-cp", strings.Join(c.jars, string(os.PathListSeparator)),
		"org.apache.cassandra.service.CassandraDaemon")
}

// javaPath is the java to run.
func javaPath() string {
	if home := os.Getenv("JAVA_HOME"); home != "" {
		return filepath.Join(home, "bin", "java")
	}
	return "java"
}
