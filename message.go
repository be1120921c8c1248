package herald

// Message is what was published. It does not change once it has been routed,
// so any number of goroutines may read it.
type Message struct {
	// ID is given by the node that accepted the message.
	ID ID
	// Publisher is the session that sent it, for no-local and for the order
	// that is promised per publisher; 0 for what the broker publishes itself.
	Publisher SessionID
	// Topic is a valid topic name, alias resolved.
	Topic string
	// Properties are the PUBLISH properties of MQTT 5 as they stood on the
	// wire, in their order, without length, topic alias, message expiry
	// interval and subscription identifiers. nil from a 3.1.1 publisher.
	Properties []byte
	// Payload may be empty.
	Payload []byte
	// Expires is when the message is worthless (Unix milliseconds); 0 is never.
	Expires int64
	// QoS is what it was published with: 0, 1 or 2.
	QoS byte
	// Retain is the RETAIN flag that it was published with.
	Retain bool
}

// Size is what the message weighs in a queue, in bytes.
func (m *Message) Size() int {
	return len(m.Topic) + len(m.Properties) + len(m.Payload) + 64
}
