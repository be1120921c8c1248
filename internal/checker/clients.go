package checker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"
)

// newRun builds the clients, streams and audiences that cfg asks for. What
// differs between clients goes by their number, so that every run has some of
// each kind.
func newRun(cfg Config) *run {
	id := randomUint64()
	r := &run{
		cfg: cfg,
		ledger: &ledger{
			run: id, start: time.Now(), onAck: cfg.Acknowledged, onReason: cfg.Refused,
			streams: make(map[[2]uint16]*stream),
			report:  Report{Seed: cfg.Seed},
		},
		calm: newGate(), publish: newGate(),
	}
	topics := make([]string, cfg.Topics)
	for i := range topics {
		topics[i] = fmt.Sprintf("checker/%x/t/%d", id, i)
	}
	publisher := func(name string, number int, qos func(topic int) byte) *client {
		c := r.client(name, number)
		c.dropEvery = cfg.PublisherDropEvery
		r.publishes(c, topics, qos)
		return c
	}
	for i := range cfg.QoS1Publishers {
		r.clients = append(r.clients, publisher("pub1", i, func(int) byte { return 1 }))
	}
	for i := range cfg.QoS2Publishers {
		r.clients = append(r.clients, publisher("pub2", i, func(int) byte { return 2 }))
	}
	mixed := func(topic int) byte { return byte(1 + topic%2) }
	for i := range cfg.MixedPublishers {
		r.clients = append(r.clients, publisher("pubmix", i, mixed))
	}
	for i := range cfg.QoS1Subscribers {
		c := r.client("sub1", i)
		r.subscribes(c, i, 1, topics)
		r.clients = append(r.clients, c)
	}
	for i := range cfg.QoS2Subscribers {
		c := r.client("sub2", i)
		r.subscribes(c, i, 2, topics)
		r.clients = append(r.clients, c)
	}
	for i := range cfg.Both {
		c := r.client("both", i)
		r.subscribes(c, i+1, 2, topics)
		r.publishes(c, topics, mixed)
		r.clients = append(r.clients, c)
	}
	for i := range cfg.Joiners {
		c := r.client("join", i)
		r.subscribes(c, i+1, byte(1+i%2), topics)
		r.joiners = append(r.joiners, c)
	}
	r.group(cfg.Members)
	publishing := 0
	for _, c := range r.clients {
		if len(c.out.streams) > 0 {
			publishing++
		}
	}
	for _, c := range r.clients {
		c.out.rate = cfg.Rate / float64(max(publishing, 1))
	}
	return r
}

// client makes a client that does nothing yet. Numbers alternate versions.
func (r *run) client(kind string, number int) *client {
	name := fmt.Sprintf("%s-%d", kind, number)
	c := &client{
		ledger: r.ledger, cfg: &r.cfg,
		name: name, id: fmt.Sprintf("%s-%x", name, r.ledger.run),
		version: v311 + byte(number%2), dropEvery: r.cfg.DropEvery,
		calm: r.calm, publish: r.publish,
		ready: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	// Each client's choices follow from the seed and its name alone.
	var h uint64 = 14695981039346656037
	for _, b := range []byte(name) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	c.rng = rand.New(rand.NewPCG(r.cfg.Seed, h))
	c.readRng = rand.New(rand.NewPCG(r.cfg.Seed, ^h))
	c.out.forget()
	c.in.forget()
	return c
}

// publishes makes c a publisher to topics.
func (r *run) publishes(c *client, topics []string, qos func(topic int) byte) {
	number := uint16(len(r.ledger.streams) / len(topics)) // of this publisher
	for i, topic := range topics {
		s := &stream{publisher: number, topic: uint16(i), who: c.name, name: topic, qos: qos(i)}
		r.ledger.streams[[2]uint16{number, uint16(i)}] = s
		c.out.streams = append(c.out.streams, s)
	}
	c.out.window, c.out.size = r.cfg.Window, r.cfg.Size
	c.out.reuse = number%2 == 1
}

// subscribes makes c a subscriber of one of several kinds.
func (r *run) subscribes(c *client, kind int, qos byte, topics []string) {
	base := fmt.Sprintf("checker/%x/", r.ledger.run)
	below := base + "t/"
	switch shape := kind % 4; {
	case r.cfg.Narrow:
		own := topics[kind%len(topics)]
		c.in.filters = []subscription{{own, qos}}
		if shape == 1 {
			c.in.filters[0].filter = base + "+/" + own[len(below):]
		} else if shape == 2 && !r.cfg.Plain { // overlapping; the highest QoS counts
			c.in.filters = append(c.in.filters, subscription{base + "+/" + own[len(below):], 1})
		} else if shape == 3 {
			next := topics[(kind+1)%len(topics)]
			c.in.filters = append(c.in.filters, subscription{next, qos})
		}
	case shape == 0:
		for _, topic := range topics {
			c.in.filters = append(c.in.filters, subscription{topic, qos})
		}
	case shape == 1 || shape == 2 && r.cfg.Plain:
		c.in.filters = []subscription{{base + "#", qos}}
	case shape == 2: // overlapping; the highest QoS counts
		c.in.filters = []subscription{{below + "+", 1}, {base + "#", qos}, {topics[0], qos}}
	default: // half of the topics, by a wildcard in the middle
		for _, topic := range topics[:(len(topics)+1)/2] {
			c.in.filters = append(c.in.filters, subscription{base + "+/" + topic[len(below):], qos})
		}
	}
	aud := &audience{name: fmt.Sprintf("%s, MQTT %d", c.name, c.version), arrivals: make(map[*stream]*arrivals)}
	r.listens(c, aud, kind)
	aud.name += fmt.Sprintf(", %v", &c.in)
}

// listens fills in how c receives.
func (r *run) listens(c *client, aud *audience, kind int) {
	in := &c.in
	in.aud = aud
	if !slices.Contains(r.ledger.audiences, aud) {
		r.ledger.audiences = append(r.ledger.audiences, aud)
	}
	if c.version == v5 {
		in.subID = 1 + len(r.ledger.audiences)*7
		in.limit = []int{1000, 10, 50, 3}[kind/2%4]
		if r.cfg.Plain {
			in.limit = 1000
		}
		in.aliasMax = []uint16{0, 2, 10}[kind/2%3]
	}
	in.methodA = kind%3 == 1
	in.batch = []int{1, 16, 5}[kind%3]
	in.delay = []time.Duration{0, 20 * time.Millisecond, 5 * time.Millisecond}[kind%3]
	if kind%4 == 3 {
		in.stallEach, in.stall = 2000, 500*time.Millisecond
	}
}

// group adds one shared group with so many members.
func (r *run) group(members int) {
	if members == 0 {
		return
	}
	aud := &audience{name: "shared group", group: true, arrivals: make(map[*stream]*arrivals)}
	filter := fmt.Sprintf("$share/checkers/checker/%x/#", r.ledger.run)
	for i := range members {
		c := r.client("member", i)
		c.version = v5
		c.in.filters = []subscription{{filter, 2}}
		r.listens(c, aud, i)
		r.clients = append(r.clients, c)
	}
}

// remove ends c's session at the brokers, as far as they are reachable.
func (c *client) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	for _, addr := range c.cfg.Addrs {
		dialer := net.Dialer{}
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		err = exchange(conn, connectOptions{
			version: c.version, clientID: c.id, clean: true, keepAlive: keepAlive,
			username: c.cfg.Username, password: c.cfg.Password,
		})
		conn.Close()
		if err == nil {
			return
		}
	}
}
