package scylla

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// A retained message stands under its topic. The index has the topics in byte
// order, in shards by their hash: a topic's place in it says nothing about the
// load, and a scan merges the shards.
//
// Both rows are one value each, which begins with the message's ID and is written
// with the ID's timestamp, without a time to live: so the newest ID wins, also
// between IDs that share a timestamp, where the greater value does. A removal is
// therefore a value, too, and is swept away when nothing can be older any more. So is
// the end of a message that has expired: greater than the message, under its
// timestamp.
const indexShards = 16

// What a value stands for.
const (
	stateRemoved byte = iota
	stateLive
	stateExpired
)

func indexShard(topic string) int16 {
	h := fnv.New32a()
	h.Write([]byte(topic))
	return int16(h.Sum32() % indexShards)
}

func (p *plan) retain(m *herald.Message) error {
	s := p.s
	if m.Size() > maxMessage {
		return errTooLarge
	}
	s.sawID(uint64(m.ID))
	what := stateLive
	if len(m.Payload) == 0 {
		what = stateRemoved
	}
	state := appendState(m.ID, what)
	row := state[:len(state):len(state)]
	if what == stateLive {
		row = record.AppendMessage(row, m, nil)
		if m.Expires != 0 { // so that it can be found
			state = binary.BigEndian.AppendUint64(state, uint64(m.Expires))
		}
	}
	topic, ts, shard := []byte(m.Topic), idStamp(m.ID), indexShard(m.Topic)
	p.add(putRetained, part{}, len(topic)+len(row), topic, row, int32(0), ts)
	p.add(putIndex, part{partIndex, int64(shard), 0}, len(topic)+len(state), shard, topic, state, int32(0), ts)
	s.caches.changed(m.Topic)
	p.after = append(p.after, func(error) { s.caches.changed(m.Topic) })
	return nil
}

// appendState makes what both tables' values begin with.
func appendState(id herald.ID, what byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{record.V1}, uint64(id)), what)
}

// live tells whether a value, of either table, stands for a message.
func live(row []byte) (id herald.ID, ok bool, err error) {
	d := record.Decoder{B: row}
	d.Version()
	id = herald.ID(d.Uint64())
	ok = d.Byte() == stateLive
	return id, ok, d.Err
}

// expires is what a value of the index says of a message's end (Unix milliseconds); 0:
// it has none.
func expires(state []byte) int64 {
	if len(state) != 18 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(state[10:]))
}

// Retained implements [persistence.Store].
func (s *Store) Retained(ctx context.Context, topic string) (*herald.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("read retained message: %w", err)
	}
	defer s.leave()
	m, err := s.retained(ctx, topic)
	if err == nil && m == nil {
		err = herald.ErrNotFound
	}
	if err != nil {
		return nil, s.failed(ctx, "read retained message", err)
	}
	return m, nil
}

var _ persistence.RetainedReader = (*Store)(nil)

// RetainedOf implements [persistence.RetainedReader].
func (s *Store) RetainedOf(ctx context.Context, topics []string) ([]*herald.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("read retained messages: %w", err)
	}
	defer s.leave()
	asked := make([]*lookup, len(topics))
	for i, topic := range topics {
		asked[i] = s.lookups.ask(topic)
	}
	found := make([]*herald.Message, len(topics))
	for i, a := range asked {
		var err error
		if found[i], err = a.answer(ctx); err != nil {
			return nil, s.failed(ctx, "read retained messages", err)
		}
	}
	return found, nil
}

// retained returns nil if there is none.
func (s *Store) retained(ctx context.Context, topic string) (*herald.Message, error) {
	return s.lookups.ask(topic).answer(ctx)
}

func (s *Store) retainedRow(topic string, row []byte) *herald.Message {
	_, ok, err := live(row)
	if err == nil && !ok {
		return nil
	}
	m := new(herald.Message)
	if err == nil {
		d := record.Decoder{B: row[10:]}
		d.Message(m, nil)
		err = d.Err
	}
	if err != nil {
		s.undecoded("retained", err, zap.String("topic", topic))
		return nil
	}
	return m
}
