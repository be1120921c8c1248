// Package bench measures Herald beside its peers: mosquitto, nats-server with
// MQTT and JetStream, and rumqttd. `make bench` runs the whole table, `herald
// bench` measures a broker that is already running. `make bench-cluster` (package
// cluster) measures what crossing from node to node costs.
//
// What is compared is chosen so that no broker is favoured:
//
//   - All brokers of a row run in the same minutes on the same machine, one at
//     a time, interleaved (A B C D A B C D A B C D), each freshly started with
//     fresh data; what counts is the median of the rounds.
//   - Nobody is pinned to a processor or told how many there are. The load
//     generator (package load) takes its share of the same processors; how much
//     is in the JSON as generator_cores, and what everything else on the
//     machine took meanwhile as other_cores.
//   - Each broker has the configuration that does best for it, see package
//     peer. Peers keep everything in memory, Herald's durable sessions are on
//     disk and synced.
//   - Messages are 64 bytes over TCP in MQTT 3.1.1, which all of them speak.
//     Publishers fill a window: 1,000 messages outstanding per publisher in
//     the rows with few connections, 4 in the row with 1,000 pairs. With one
//     publisher and 100 subscribers a message is outstanding until all 100
//     have it. The window also bounds what a broker can gain by buffering.
//   - "4 → 4 on 4 topics" is publisher i to subscriber i; "pairs" likewise.
//   - A rate is counted where messages arrive: in subscribers, during the
//     measured interval, after a warm-up. A run in which a message is lost,
//     or that stops moving, has no rate but an error.
//   - CPU is user and system time of the broker's process, all threads, in the
//     measured interval, divided by the messages delivered in it. The rows
//     with a fixed rate publish 20,000 messages a second evenly spread over
//     time and connections, so each message is a wake-up of its own.
//   - Latency counts from the moment at which a message was due.
//   - QoS 2 is not offered by every broker in the same depth: a broker that
//     delivers at a lower QoS than the subscription's has an error, not a
//     rate.
package bench
