package scylla

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"github.com/herald-mqtt/herald"
)

// caches are what the store keeps of what it read.
//
//   - payloads, of wide publishes: they never change, so nothing invalidates them.
//   - topics, retained messages: kept for Options.CacheTTL at most. A commit of
//     this store drops the topics that it writes, before its done is called, and
//     a read that began before that is not kept (gens). Another node's newer
//     message can be missed for CacheTTL.
//   - expiries, buckets of expiry that are listed: this store drops one when it
//     removes it, and nobody removes one that may still be added to.
//
// Rows of sessions are not kept: another node may have the session the next
// moment, and a session that is not found is a session forgotten. Asking at the
// same time is one question, though.
type caches struct {
	payloads *otter.Cache[herald.ID, *herald.Message]
	topics   *otter.Cache[string, *herald.Message] // nil: there is none
	expiries *otter.Cache[int64, struct{}]

	seed maphash.Seed
	gens [256]atomic.Uint64 // by topic: counts the commits
}

func (c *caches) init(o *Options) error {
	weigh := func(m *herald.Message) uint32 {
		if m == nil {
			return 100
		}
		return uint32(m.Size() + 100)
	}
	var err error
	c.payloads, err = otter.New(&otter.Options[herald.ID, *herald.Message]{MaximumWeight: uint64(o.CacheBytes),
		Weigher: func(_ herald.ID, m *herald.Message) uint32 { return weigh(m) }})
	if err != nil {
		return err
	}
	if o.CacheTTL > 0 {
		c.topics, err = otter.New(&otter.Options[string, *herald.Message]{MaximumWeight: uint64(o.CacheBytes),
			Weigher:          func(topic string, m *herald.Message) uint32 { return weigh(m) + uint32(len(topic)) },
			ExpiryCalculator: otter.ExpiryWriting[string, *herald.Message](o.CacheTTL)})
		if err != nil {
			return err
		}
	}
	c.expiries, err = otter.New(&otter.Options[int64, struct{}]{MaximumSize: 10_000})
	c.seed = maphash.MakeSeed()
	return err
}

func (c *caches) payload(id herald.ID) *herald.Message {
	m, _ := c.payloads.GetIfPresent(id)
	return m
}

func (c *caches) gen(topic string) *atomic.Uint64 {
	return &c.gens[maphash.String(c.seed, topic)%uint64(len(c.gens))]
}

// topic is what is kept of a topic.
func (c *caches) topic(topic string) (m *herald.Message, ok bool) {
	if c.topics == nil {
		return nil, false
	}
	return c.topics.GetIfPresent(topic)
}

// changed drops a topic.
func (c *caches) changed(topic string) {
	c.gen(topic).Add(1)
	if c.topics != nil {
		c.topics.Invalidate(topic)
	}
}

// keep keeps what a read that began at generation gen has found.
func (c *caches) keep(topic string, m *herald.Message, gen uint64) {
	if c.topics == nil || c.gen(topic).Load() != gen {
		return
	}
	c.topics.Set(topic, m)
	if c.gen(topic).Load() != gen {
		c.topics.Invalidate(topic)
	}
}

// stop ends what the caches do on their own.
func (c *caches) stop() {
	c.payloads.StopAllGoroutines()
	c.expiries.StopAllGoroutines()
	if c.topics != nil {
		c.topics.StopAllGoroutines()
	}
}
