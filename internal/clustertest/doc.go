// Package clustertest is a cluster in a box: Redis, Cassandra and several
// brokers as processes of their own on 127.0.0.1, for tests and for developers
// (`make cluster`).
//
// Everything in it can be harmed. A process is killed, stopped or started again;
// each broker's way to Redis and to the database is a [Link] of its own, which
// can be cut, made silent in both or one direction, and healed. [Cluster.Fault]
// makes the checker's faults of these.
//
// A broker that is alone gets no bridge: it is the node that the cluster's
// figures are compared with.
package clustertest
