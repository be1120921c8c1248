// Package checker holds a broker to its promise: a message that was
// acknowledged reaches every matching durable session, in order, at QoS 2
// exactly once, and no session is forgotten, while connections break, brokers
// are killed and whatever else a [Fault] does.
//
// [Run] lets publishers and subscribers with durable sessions work against one
// or more brokers. They are small MQTT 3.1.1 and 5 clients on raw sockets that
// do what the specification asks of a client: resend PUBLISH with DUP and the
// same packet identifier in the original order, resend PUBREL until PUBCOMP,
// keep the identifiers of inbound QoS 2 messages over reconnects, honour the
// receive maximum. Every payload says which publisher sent it, to which topic
// and as the how-many-th. At the end what was acknowledged is compared with
// what arrived.
//
// # Words
//
// A stream is what one publisher's session sends to one topic; its sequence
// starts at 1, and all of it has one QoS. An audience is one durable session
// with subscriptions, or one shared group. A publish is acknowledged when its
// PUBACK or PUBREC with a reason below 0x80 has reached the publisher.
//
// An arrival is a PUBLISH that a correct client hands to its application: at
// QoS 1 each one, at QoS 2 only one whose packet identifier the client does
// not hold already (held from PUBLISH until PUBREL). The first arrival of a
// sequence at an audience is its first; later ones are repeats.
//
// # Verdict
//
//   - Lost: acknowledged, published after the audience's SUBACK, and had not
//     arrived when the drain at the end was over.
//   - Reordered: a first arrival whose sequence is below one of the same stream
//     that this session has had already; or, among repeats on one connection, a
//     step back that no resend by the publisher explains. Exempt are groups, whose
//     first arrivals out of order at one member are only counted, and QoS 1
//     publishes from before the subscription that were sent again after it.
//   - Duplicated: a repeat at QoS 2.
//   - Needless: a repeat at QoS 1 that nothing explains, that is, the publisher
//     did not send it again and the receiving session has not reconnected since
//     the first arrival [MQTT-4.4.0-1]. Explained repeats are only counted.
//   - Forgotten: CONNACK says session present 0 although an earlier CONNACK for
//     this durable session was received.
//   - Phantom: never published, or its topic matches no filter of the receiver.
//   - Corrupted: the payload is not what was published, or names another topic.
//   - Unanswered: publishes without PUBACK or PUBCOMP when the drain was over.
//   - Protocol: what a broker must not do and these clients can see, such as
//     acknowledgements out of order [MQTT-4.6.0-2] [MQTT-4.6.0-3], more in
//     flight than the receive maximum [MQTT-3.3.4-9], a packet identifier used
//     again while it is held, a wrong QoS.
//   - Crashes: a broker process that ended without having been told to.
package checker
