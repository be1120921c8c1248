// Package load is an MQTT load generator that costs little CPU, because it
// usually shares its machine with the broker that it measures.
//
// How it stays cheap: one thread runs an epoll loop of its own for many
// connections. Frames are built before the run and only sequence, timestamp
// and packet identifier are patched in place; everything that a window allows
// leaves in one write. Reads are large, frames are counted by walking their
// headers where they lie, and the acknowledgements for everything that one
// read brought leave in one write. Nothing is allocated and no goroutine
// wakes per message.
//
// How it stays honest:
//
//   - A run is a closed loop. A publisher has at most Window messages
//     outstanding, and a message is outstanding until every subscriber of its
//     topic has received it and, at QoS 1 and 2, until its publisher's
//     handshake is complete. A broker that drops messages stops its own run.
//   - Every payload carries publisher, sequence and time. Each subscriber
//     checks the sequence of each publisher: lost, duplicated and reordered
//     messages are counted exactly.
//   - A run in which nothing moves for Config.Stall ends with *StallError,
//     which tells how many messages were missing.
//   - In a run with a fixed rate, latency counts from the moment at which the
//     message was due, so a broker (or generator) that holds the run up
//     cannot hide it.
//   - Clients behave: QoS 1 subscribers send PUBACK for each message, QoS 2
//     uses the whole handshake in both directions, a packet identifier is used
//     again only when its handshake is over.
//
// The package needs Linux (epoll).
package load
