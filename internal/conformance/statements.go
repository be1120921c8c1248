package conformance

// Version is the protocol level whose specification a statement belongs to.
type Version byte

// The two specifications that the suite knows.
const (
	V311 Version = 4
	V5   Version = 5
)

// String is the name of the specification as it stands in test names.
func (v Version) String() string {
	if v == V5 {
		return "MQTT5"
	}
	return "MQTT311"
}

// Statement is one normative statement of a specification.
type Statement struct {
	// Number is the statement's number without the leading "MQTT-", such as
	// "3.3.1-3". Numbers of the two specifications do not correspond.
	Number string
	// Text says in a few words what must hold.
	Text string
	// Unreachable is empty, or says why no test against a server can show the
	// statement kept or broken.
	Unreachable string
}

// Statements are the normative statements of v in the order of its appendix B.
func Statements(v Version) []Statement {
	if v == V5 {
		return statements5
	}
	return statements311
}

// Why a statement has no test.
const (
	clientOnly  = "binds the client only; nothing a server does keeps or breaks it"
	notOffered  = "binds servers that lack the feature; Herald offers it"
	noReason    = "Herald sends no such property in this packet, so it cannot outgrow the limit"
	noSuchAck   = "the packet is never sent with such a property"
	noEnhanced  = "needs a server with an enhanced authentication method; Herald has none and refuses every method"
	transient   = "a transient error inside the server cannot be provoked from outside"
	wholeServer = "speaks of the product as a whole, not of packets"
	oneCopy     = "Herald sends one copy with all identifiers, never one per subscription"
)
