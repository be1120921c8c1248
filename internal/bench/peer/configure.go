//go:build linux

package peer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// configure writes the configuration of a broker into dir and returns its
// arguments. ports are free addresses, the first is for MQTT; more is appended.
func (p Peer) configure(dir string, ports []string, more string) ([]string, error) {
	var name, text string
	var args []string
	switch p.Name {
	case Herald:
		name, text = "herald.yaml", heraldConfig(dir, ports)
		args = []string{"serve", "--config"}
	case Mosquitto:
		name, text = "mosquitto.conf", mosquittoConfig(ports[0])
		args = []string{"-c"}
	case NATS:
		name, text = "nats.conf", natsConfig(memoryDir(dir), ports)
		args = []string{"-c"}
	case Rumqttd:
		name, text = "rumqttd.toml", rumqttdConfig(ports[0])
		args = []string{"-q", "-c"}
	default:
		return nil, fmt.Errorf("%s: no configuration is known", p.Name)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text+more), 0o644); err != nil {
		return nil, err
	}
	return append(args, file), nil
}

// memoryDir is a folder in memory for a broker whose folder is dir.
func memoryDir(dir string) string {
	return filepath.Join("/dev/shm", "herald-bench-"+filepath.Base(dir))
}

// Herald runs with its defaults; only what a second instance on the machine
// needs is set, and logging as for the peers.
func heraldConfig(dir string, ports []string) string {
	return fmt.Sprintf(`node:
  name: bench
  data: %s
listeners:
  - {protocol: tcp, address: %s}
admin:
  address: %s
log: {level: error}
`, filepath.Join(dir, "data"), ports[0], ports[1])
}

// No persistence, no log, no bound on what waits or is in flight: with its
// default of 20 in flight mosquitto is slower.
func mosquittoConfig(address string) string {
	host, port, _ := strings.Cut(address, ":")
	return fmt.Sprintf(`listener %s %s
allow_anonymous true
persistence false
log_dest none
max_inflight_messages 0
max_queued_messages 0
max_queued_bytes 0
max_connections -1
set_tcp_nodelay true
`, port, host)
}

// mosquittoBridge passes everything on to another broker at the QoS at which it was
// published, as fast as mosquitto can: a clean session, so that nothing is stored.
func mosquittoBridge(to string) string {
	return fmt.Sprintf(`connection bench
address %s
topic # out 1
cleansession true
notifications false
restart_timeout 1
bridge_protocol_version mqttv311
`, to)
}

// The MQTT layer of nats-server always asks JetStream for streams in files;
// they are put into memory. max_ack_pending is the largest of the round
// numbers that also leaves QoS 2 its share of 65,535 per session. A slow
// reader is not cut off.
func natsConfig(store string, ports []string) string {
	return fmt.Sprintf(`server_name: bench
listen: %s
max_connections: 65536
max_pending: 512MB
write_deadline: "60s"
jetstream { store_dir: %q, max_mem: 4GB, max_file: 8GB }
mqtt { listen: %s, max_ack_pending: 16384, ack_wait: "5m", consumer_memory_storage: true }
`, ports[1], store, ports[0])
}

// The log of a topic in memory is 10 segments of 100 MB, as in rumqttd's own
// example: far more than a window. It wants no more than 100 messages in
// flight to a subscriber (a constant in its source).
func rumqttdConfig(address string) string {
	return fmt.Sprintf(`id = 0
[router]
id = 0
max_connections = 20000
max_outgoing_packet_count = 1000
max_segment_size = 104857600
max_segment_count = 10
[v4.1]
name = "v4"
listen = "%s"
next_connection_delay_ms = 0
[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 1000
dynamic_filters = true
`, address)
}
