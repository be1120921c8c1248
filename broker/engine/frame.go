package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/bridge"
	"github.com/herald-mqtt/herald/broker/session"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// grantOf is a grant; see session.
type grantOf = session.Grant

func nodeField(p bridge.Peer) zap.Field {
	return zap.String("node", fmt.Sprintf("%d/%d", p.Node, p.Incarnation))
}

// A frame between nodes begins with its version and its kind. Integers are big
// endian or, where they are usually small, varints.
//
//	publish  whom, flags, publisher, topic, number of messages; of each
//	         [ID] [expires] properties, payload
//	closed   ID: every frame for what lies at or below was sent before
//	kick     name of a client whose connection is to be ended
//	bans     version of the list of bans, which was changed
//	ask      ID: tell when it is closed
//	look     ID: some were lost; look at the inboxes
//	release  request, kind and purpose, epoch, name: who asks wants to serve the session,
//	         or to end it
//	deal     group, session, how, identifiers, publish: for a member of a group
//	done     group, settled IDs, IDs taken back: of what was dealt
//	askheld  request, group
//	held     request, group, sessions and IDs: what members there hold
//	granted  request, epoch: it does, under this epoch; 0: ask the store again
//	withdraw request: of a release; nobody waits for the session any more
//	ready    request: of a release; the session's row will not be written here any more,
//	         if granted follows
const frameVersion = 1

const (
	framePublish byte = iota + 1
	frameClosed
	frameLook
	frameRelease
	frameGranted
	frameDeal
	frameDone
	frameAskHeld
	frameHeld
	frameAsk
	frameKick
	frameBans
	frameWithdraw
	frameReady
)

// To whom on the other node a publish goes.
const (
	// toLive: sessions that end with their connection, and whoever gets it at QoS 0.
	toLive byte = 1 << iota
	// toDurable: sessions in whose inbox it stands.
	toDurable
	toAll = toLive | toDurable
)

const (
	flagQoS      = 0x03
	flagRetain   = 0x04
	flagNumbered = 0x08
	flagExpires  = 0x10
)

// frame is one that was decoded. What it points at belongs to it.
type frame struct {
	kind     byte
	whom     byte
	from     herald.SessionID
	messages []*herald.Message
	id       herald.ID
	request  uint64
	epoch    uint64
	subject  persistence.Kind
	why      purpose
	name     string

	group, session herald.SessionID
	grant          *session.Grant
	settled, back  []herald.ID
	held           []persistence.Sent
}

func begin(b []byte, kind byte) []byte { return append(b, frameVersion, kind) }

func appendPublish(b []byte, msgs []*herald.Message, from herald.SessionID, whom byte) []byte {
	size := 32 + len(msgs[0].Topic)
	for _, m := range msgs {
		size += len(m.Payload) + len(m.Properties) + 24
	}
	if b == nil {
		b = make([]byte, 0, size)
	}
	first := msgs[0]
	flags := first.QoS & flagQoS
	if first.Retain {
		flags |= flagRetain
	}
	if first.ID != 0 {
		flags |= flagNumbered
	}
	for _, m := range msgs {
		if m.Expires != 0 {
			flags |= flagExpires
		}
	}
	b = append(begin(b, framePublish), whom, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	b = appendBytes(b, first.Topic)
	b = binary.AppendUvarint(b, uint64(len(msgs)))
	for _, m := range msgs {
		if flags&flagNumbered != 0 {
			b = binary.BigEndian.AppendUint64(b, uint64(m.ID))
		}
		if flags&flagExpires != 0 {
			b = binary.AppendVarint(b, m.Expires)
		}
		b = appendBytes(b, m.Properties)
		b = appendBytes(b, m.Payload)
	}
	return b
}

// appendPublish appends the frame of the gathered run, which is not numbered, to all:
// what the other appendPublish makes of its messages, without making them.
func (in *intake) appendPublish(b []byte, topic string, from herald.SessionID, now int64) []byte {
	flags := in.flags >> 1 & flagQoS
	if in.flags&1 != 0 {
		flags |= flagRetain
	}
	for i := range in.parts[:in.n] {
		if in.parts[i].hasExpiry {
			flags |= flagExpires
		}
	}
	if b == nil {
		b = make([]byte, 0, 32+len(topic)+int(in.at[in.n])+16*in.n)
	}
	b = append(begin(b, framePublish), toAll, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	b = appendBytes(b, topic)
	b = binary.AppendUvarint(b, uint64(in.n))
	for i := range in.parts[:in.n] {
		p := &in.parts[i]
		if flags&flagExpires != 0 {
			expires := int64(0)
			if p.hasExpiry {
				expires = now + int64(p.expiry)*1000
			}
			b = binary.AppendVarint(b, expires)
		}
		end := in.at[i+1]
		payload := end - p.payload
		if p.cut {
			b = appendBytes(b, p.forward)
		} else {
			b = appendBytes(b, in.frames[payload-p.props:payload])
		}
		b = appendBytes(b, in.frames[payload:end])
	}
	return b
}

func appendBytes[T ~string | ~[]byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendClosed(b []byte, kind byte, id herald.ID) []byte {
	return binary.BigEndian.AppendUint64(begin(b, kind), uint64(id))
}

// Purposes in the kind of a release; none: to serve the session.
const (
	flagEnds    = 0x80 // it is to end
	flagExpired = 0x40 // it is to end if it has expired
)

func appendRelease(b []byte, request uint64, kind persistence.Kind, why purpose, epoch uint64, name string) []byte {
	b = binary.BigEndian.AppendUint64(begin(b, frameRelease), request)
	switch why {
	case toEnd:
		kind |= flagEnds
	case toExpire:
		kind |= flagExpired
	}
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint64(b, epoch)
	return appendBytes(b, name)
}

func appendGranted(b []byte, request, epoch uint64) []byte {
	b = binary.BigEndian.AppendUint64(begin(b, frameGranted), request)
	return binary.BigEndian.AppendUint64(b, epoch)
}

func appendWithdraw(b []byte, request uint64) []byte {
	return binary.BigEndian.AppendUint64(begin(b, frameWithdraw), request)
}

func appendReady(b []byte, request uint64) []byte {
	return binary.BigEndian.AppendUint64(begin(b, frameReady), request)
}

func appendKick(b []byte, name string) []byte { return appendBytes(begin(b, frameKick), name) }

func appendDeal(b []byte, group herald.SessionID, epoch uint64, to herald.SessionID, qos byte, retain bool, ids []uint32, m *herald.Message) []byte {
	b = binary.BigEndian.AppendUint64(begin(b, frameDeal), uint64(group))
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(to))
	if retain {
		qos |= flagRetain
	}
	b = append(b, qos)
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return append(b, appendPublish(nil, []*herald.Message{m}, m.Publisher, toLive)[2:]...)
}

func appendIDs(b []byte, ids []herald.ID) []byte {
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	return b
}

func appendDone(b []byte, group herald.SessionID, settled, back []herald.ID) []byte {
	b = binary.BigEndian.AppendUint64(begin(b, frameDone), uint64(group))
	return appendIDs(appendIDs(b, settled), back)
}

func appendAskHeld(b []byte, request uint64, group herald.SessionID, epoch uint64) []byte {
	b = binary.BigEndian.AppendUint64(begin(b, frameAskHeld), request)
	b = binary.BigEndian.AppendUint64(b, uint64(group))
	return binary.BigEndian.AppendUint64(b, epoch)
}

func appendHeld(b []byte, request uint64, group herald.SessionID, held []persistence.Sent) []byte {
	b = binary.BigEndian.AppendUint64(begin(b, frameHeld), request)
	b = binary.BigEndian.AppendUint64(b, uint64(group))
	b = binary.AppendUvarint(b, uint64(len(held)))
	for i := range held {
		b = binary.BigEndian.AppendUint64(b, uint64(held[i].Session))
		b = binary.BigEndian.AppendUint64(b, uint64(held[i].ID))
	}
	return b
}

var errFrame = errors.New("malformed frame")

func takeIDs(r *record.Decoder) []herald.ID {
	ids := make([]herald.ID, r.Count(8))
	for i := range ids {
		ids[i] = herald.ID(r.Uint64())
	}
	return ids
}

// decodeFrame takes a frame apart; the result points into b.
func decodeFrame(b []byte) (f frame, err error) {
	r := record.Decoder{B: b}
	if v := r.Byte(); v != frameVersion {
		return f, fmt.Errorf("frame of version %d", v)
	}
	f.kind = r.Byte()
	switch f.kind {
	case framePublish:
		f.publish(&r)
	case frameClosed, frameLook, frameAsk, frameBans:
		f.id = herald.ID(r.Uint64())
	case frameRelease:
		f.request, f.subject, f.epoch = r.Uint64(), persistence.Kind(r.Byte()), r.Uint64()
		switch f.subject & (flagEnds | flagExpired) {
		case flagEnds:
			f.why = toEnd
		case flagExpired:
			f.why = toExpire
		case flagEnds | flagExpired:
			r.Fail("two purposes of a release")
		}
		f.subject &^= flagEnds | flagExpired
		f.name = string(r.Bytes())
	case frameGranted:
		f.request, f.epoch = r.Uint64(), r.Uint64()
	case frameKick:
		f.name = string(r.Bytes())
	case frameWithdraw, frameReady:
		f.request = r.Uint64()
	case frameDeal:
		f.group, f.epoch, f.session = herald.SessionID(r.Uint64()), r.Uint64(), herald.SessionID(r.Uint64())
		how := r.Byte()
		f.grant = &session.Grant{QoS: min(how&flagQoS, 2), Retain: how&flagRetain != 0}
		for range r.Count(1) {
			f.grant.Identifiers = append(f.grant.Identifiers, uint32(r.Uvarint()))
		}
		f.publish(&r)
		if len(f.messages) != 1 {
			r.Fail("what is dealt is one message")
		}
	case frameDone:
		f.group = herald.SessionID(r.Uint64())
		f.settled, f.back = takeIDs(&r), takeIDs(&r)
	case frameAskHeld:
		f.request, f.group, f.epoch = r.Uint64(), herald.SessionID(r.Uint64()), r.Uint64()
	case frameHeld:
		f.request, f.group = r.Uint64(), herald.SessionID(r.Uint64())
		for range r.Count(16) {
			f.held = append(f.held, persistence.Sent{
				Session: herald.SessionID(r.Uint64()), ID: herald.ID(r.Uint64()), Source: f.group, Step: persistence.Published,
			})
		}
	default:
		return f, fmt.Errorf("frame of kind %d", f.kind)
	}
	if r.Err != nil || len(r.B) > 0 {
		return frame{}, errFrame
	}
	return f, nil
}

// maxFrameMessages bounds the messages of one frame: in memory they are much larger
// than the least that they take in it. A run has at most maxRun.
const maxFrameMessages = 16 * maxRun

func (f *frame) publish(r *record.Decoder) {
	f.whom = r.Byte()
	flags := r.Byte()
	f.from = herald.SessionID(r.Uint64())
	topic := string(r.Bytes())
	n := r.Count(2)
	if flags&flagQoS == 3 || !herald.ValidTopic(topic) || n == 0 || n > maxFrameMessages {
		r.Fail("no publish")
		return
	}
	all := make([]herald.Message, n)
	f.messages = make([]*herald.Message, n)
	for i := range all {
		m := &all[i]
		f.messages[i] = m
		m.Publisher, m.Topic, m.QoS, m.Retain = f.from, topic, flags&flagQoS, flags&flagRetain != 0
		if flags&flagNumbered != 0 {
			m.ID = herald.ID(r.Uint64())
		}
		if flags&flagExpires != 0 {
			m.Expires = r.Varint()
		}
		if p := r.Bytes(); len(p) > 0 {
			m.Properties = p
		}
		m.Payload = r.Bytes()
	}
}
