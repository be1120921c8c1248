package engine

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// client is a session with its connection. A new one is made for each
// connection; the old one, if any, is put away before.
type client struct {
	// Fixed at construction.
	e           *Engine
	h           *handle
	name        string
	username    string // of the CONNECT, if hasUsername
	hasUsername bool
	version     herald.Version
	lane        uint32 // chooses the worker
	row         persistence.Session
	core        *session.Session // its methods need mu, but for the inbound packet ids

	// reading is held while what was read is taken in, by whoever reads the
	// connection, and guards aliases and ended. It is taken before the others.
	reading gate
	aliases []string // topic aliases of the client
	ended   bool     // nothing is taken in any more

	mu       sync.Mutex // guards below, and core
	conn     Conn
	subs     map[string]*subscription
	retained []*retainedJob
	will     *persistence.Will
	ending   disconnect // what the client said when it went
	starving []*group   // found it busy
	spilled  bool       // an ephemeral session with an inbox
	routes   []string   // announced to the other nodes

	pmu  sync.Mutex // guards below; taken after mu
	in   Conn
	line []*shipment // under way, in the order of the publishes
	// delivered is how many at the head of the line only wait to be appended.
	delivered int
	unacked   int // QoS 1 publishes in line
	// Where batches are not atomic: what of line waits for the one before it to be
	// committed; anywhere, the error after which nothing more is, nor acknowledged.
	committing bool
	commits    []*shipment
	broken     error
	weight     int // bytes under way
	paused     bool
	drained    chan struct{} // closed when line gets empty; nil if nobody waits

	gone     chan struct{} // closed when the session is put away
	attached atomic.Bool   // the CONNACK was sent
	sent     atomic.Bool   // it was sent elsewhere
}

// subscription is one of a client's, while it is connected.
type subscription struct {
	persistence.Subscription
}

// disconnect is what a client said when it went.
type disconnect struct {
	clean     bool // DISCONNECT came and does not ask for the will
	takenOver bool
	expiry    uint32
	hasExpiry bool
}

var (
	errQoS            = &wire.Error{Reason: wire.ReasonQoS, Text: "QoS not supported"}
	errReceiveMaximum = &wire.Error{Reason: wire.ReasonReceiveMaximum, Text: "receive maximum exceeded"}
	errAlias          = &wire.Error{Reason: wire.ReasonTopicAlias, Text: "topic alias invalid"}
	errAliasUnknown   = &wire.Error{Reason: wire.ReasonProtocol, Text: "topic alias unknown"}
)

// alias resolves, or sets, a topic alias of the client [MQTT-3.3.2-7].
func (c *client) alias(n uint16, topic []byte, maximum uint16) ([]byte, error) {
	if n > maximum {
		return nil, errAlias // [MQTT-3.3.2-9]
	}
	if c.aliases == nil {
		c.aliases = make([]string, int(maximum)+1)
	}
	if len(topic) > 0 {
		if c.aliases[n] != string(topic) {
			c.aliases[n] = string(topic)
		}
		return topic, nil
	}
	if c.aliases[n] == "" {
		return nil, errAliasUnknown
	}
	return []byte(c.aliases[n]), nil
}

// over tells whether another QoS > 0 publish would pass the receive maximum that
// was told to the client. MQTT 3.1.1 has none.
func (c *client) over(in *intake) bool {
	if c.version != herald.V5 {
		return false
	}
	under := c.core.Holding()
	if under < c.e.cfg.ReceiveMaximum {
		c.pmu.Lock()
		under += c.unacked
		c.pmu.Unlock()
		if sh := in.ship; sh != nil && !sh.batch.Empty() {
			under += sh.unacked
		}
	}
	return under >= c.e.cfg.ReceiveMaximum
}

// intake holds up the end of the client's connection while something of it is
// taken in, until release is called, once or more; false: it has ended. Without
// it a session could end, and then be subscribed.
func (c *client) intake() (release func(), ok bool) {
	c.reading.lock()
	if c.ended {
		c.reading.unlock()
		return nil, false
	}
	return sync.OnceFunc(c.reading.unlock), true
}

// idle tells whether nothing of the client is under way.
func (c *client) idle() bool {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	return len(c.line) == 0
}

// settleDown waits until nothing of the client is under way.
func (c *client) settleDown() {
	c.pmu.Lock()
	if len(c.line) == 0 {
		c.pmu.Unlock()
		return
	}
	if c.drained == nil {
		c.drained = make(chan struct{})
	}
	ch := c.drained
	c.pmu.Unlock()
	<-ch
}

func held(c *client, pid uint16, id herald.ID) persistence.Held {
	return persistence.Held{Session: c.h.id, PacketID: pid, ID: id}
}

// claims let one at a time claim a name: a connection a client id, or who joins or
// leaves a shared group its key.
type claims struct {
	mu sync.Mutex
	m  map[string]*claim
}

type claim struct {
	held gate
	n    int
}

// gate is a lock for whoever has to wait for the store while it is held. Unlike
// with a sync.Mutex, a test in virtual time sees who waits for it at rest.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock()   { g <- struct{}{} }
func (g gate) unlock() { <-g }

// lock claims name and returns what gives it back.
func (c *claims) lock(name string) (unlock func()) {
	c.mu.Lock()
	k := c.m[name]
	if k == nil {
		k = &claim{held: newGate()}
		c.m[name] = k
	}
	k.n++
	c.mu.Unlock()
	k.held.lock()
	return func() { c.unlock(name, k) }
}

func (c *claims) unlock(name string, k *claim) {
	k.held.unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.n--; k.n == 0 {
		delete(c.m, name)
	}
}

// tryLock is lock for who does not wait; false: somebody has it.
func (c *claims) tryLock(name string) (unlock func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[name] != nil {
		return nil, false
	}
	k := &claim{held: newGate(), n: 1}
	k.held.lock()
	c.m[name] = k
	return func() { c.unlock(name, k) }, true
}

// asWireError tells why a client is cut off.
func asWireError(err error) *wire.Error {
	var w *wire.Error
	if errors.As(err, &w) {
		return w
	}
	return &wire.Error{Reason: wire.ReasonUnspecified, Text: err.Error()}
}
