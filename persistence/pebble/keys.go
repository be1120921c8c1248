package pebble

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// The first byte of a key says what it holds. Numbers behind it are 8 bytes,
// big endian, so that keys sort as the numbers do; at most one string stands in
// a key, at its end, so that no two different keys look the same. FORMAT.md
// draws them.
const (
	kMeta         = 'M' // name → see meta*
	kSession      = 'n' // kind, name → session row
	kSessionID    = 's' // session → kind, name
	kExpiry       = 'x' // expires, session → kind, name
	kSubscription = 'b' // session, filter → subscription
	kWindow       = 'w' // session, part, ... → see part*
	kInbox        = 'i' // session, message → entry
	kPayload      = 'p' // message → message, of wide entries
	kPointer      = 'q' // message, session → nothing; an entry that points at the payload
	kEntryExpiry  = 'y' // expires, session, message → nothing
	kRetained     = 'r' // topic → message
	kRetainedGone = 't' // topic → ID of the removal
	kRetainExpiry = 'z' // expires, topic → nothing
	kWill         = 'v' // session → will
	kWillDue      = 'u' // due, session → nothing
	kBan          = 'k' // kind, who → ban
)

// Parts of a window.
const (
	partMark = 'm' // → mark
	partHeld = 'h' // packet id → message
	partSent = 't' // packet id → message, step
)

var (
	metaSchema   = []byte("Mschema")   // u32
	metaStore    = []byte("Mstore")    // 16 bytes: whose journal it is
	metaApplied  = []byte("Mapplied")  // segment, offset: everything before is in Pebble
	metaLow      = []byte("Mlow")      // segment: older ones are not needed
	metaMaxID    = []byte("Mmaxid")    // highest ID seen when Mlow was written
	metaRetained = []byte("Mretained") // number of retained messages
)

func key1(b []byte, kind byte, a uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, kind), a)
}

func key2(b []byte, kind byte, a, c uint64) []byte {
	return binary.BigEndian.AppendUint64(key1(b, kind, a), c)
}

// after is the smallest key behind every key that begins with prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func sessionKey(b []byte, kind persistence.Kind, name string) []byte {
	return append(append(b, kSession, byte(kind)), name...)
}

func subscriptionKey(b []byte, s herald.SessionID, filter string) []byte {
	return append(key1(b, kSubscription, uint64(s)), filter...)
}

func windowKey(b []byte, s herald.SessionID, part byte) []byte {
	return append(key1(b, kWindow, uint64(s)), part)
}

func packetKey(b []byte, s herald.SessionID, part byte, packet uint16) []byte {
	return binary.BigEndian.AppendUint16(windowKey(b, s, part), packet)
}

func topicKey(b []byte, kind byte, topic string) []byte {
	return append(append(b, kind), topic...)
}

func u64At(b []byte, at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }

func retainExpiryKey(expires int64, topic string) []byte {
	return append(key1(nil, kRetainExpiry, uint64(expires)), topic...)
}

func entryExpiryKey(expires int64, s herald.SessionID, id herald.ID) []byte {
	return binary.BigEndian.AppendUint64(key2(nil, kEntryExpiry, uint64(expires), uint64(s)), uint64(id))
}
