// Package simulation runs the real engine with simulated clients, connections
// and store in virtual time, and crashes it between any two effects.
//
// A schedule is made from a seed. Each step does one thing: a client sends or
// reads, the network carries some packets or breaks, the store makes some
// batches durable, or tells that it has, time passes, the whole process dies
// and comes back with what was synced. Between steps everything comes to rest
// (testing/synctest), so what a step brings about is known, and a failing seed
// can be run again. Clients keep to MQTT: they resend with DUP, go on with
// PUBREL, keep the receiver's state of QoS 2. A ledger compares what was
// acknowledged with what arrived.
//
//	Disk, Store   what is stored, and what a crash leaves of it
//	Database      rows that land one by one, whenever they do, and
//	Shared        a store on them, as persistence/scylla is one
//	conn          a connection, as the engine sees it
//	client        an MQTT client
//	ledger        what was promised, and whether it was kept
//	World         all of them, and the schedule
//
// With many nodes the schedule does what clients do, and what goes wrong; all else
// goes on by itself as virtual time passes, in an order that is not the same in every
// run of a seed.
//
//	node, life    a machine, and a process on it with engine and real membership
//	transport     what carries frames and announcements between them
//	Fleet         all of them, with the clients of a World
package simulation
