package membership

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
	"github.com/herald-mqtt/herald/persistence/record"
)

// Status is what a node says of itself, in its row.
type Status struct {
	// Clock is its hybrid clock. In a [Peer] it is 0 when it is not to be followed:
	// see [Options.MaxSkew].
	Clock herald.ID
	// Closed: nothing at or below will be committed by this node any more. 0: it has
	// not said so of anything yet.
	Closed herald.ID
	// Owes: what the lives of this number from this one on had begun, up to the one
	// before its own, this life is still finishing. 0: nothing.
	Owes    uint64
	Bridge  bool   // it reaches Redis
	Address string // what a client is told as server reference; may be empty
	// Looked tells for each node up to which of its lives this node has looked at its
	// own sessions' inboxes since that life was Finished. Lives that were over when
	// this node's life began are counted.
	Looked map[uint16]uint64
	// Met tells for each node the newest life of it that this node was told of
	// ([Handler.Peers] has returned).
	Met map[uint16]uint64
	// Covered tells for each node up to which ID its commits were looked for or
	// received here.
	Covered map[uint16]herald.ID
	// Wanted are sessions that this node asks others for, because it cannot tell them
	// in another way. What is too much is left out.
	Wanted  []Want
	Leaving bool  // it drains
	Version uint8 // of the encoding from which it was read
}

// Want asks a node for a session.
type Want struct {
	Node uint16
	Name string // of the client; at most 512 bytes
	// Ends: the session is to end. Expires: the same, if its time has run out.
	Ends, Expires bool
}

// The layout, numbers in big-endian order:
//
//	version 1 | flags 1 | clock 8 | closed 8 | owes 8 | length of address 1 | address
//	| looked: count 2, each node 2, life 8
//	| met: the same
//	| covered: count 2, each node 2, ID 8
//	| wanted: count 2, each node 2, length of name 2, name
//
// Nodes rise within a list. Since version 2 the highest bits of the node of which a
// session is wanted tell whether that is to end. It is written when there is one of these,
// else version 1, which differs in nothing else.
const (
	statusVersion = 2
	wantEnds      = 0x8000
	wantExpires   = 0x4000
	maxAddress    = 255
	maxWanted     = 32
	maxName       = 512
	maxStatus     = 29 + maxAddress + 3*(2+10*(herald.MaxNode+1)) + maxWanted*(4+maxName)

	flagBridge  = 1
	flagLeaving = 2
)

// encode appends nothing that decodeStatus would refuse: what is out of bounds is
// left out, a longer address is cut.
func (s Status) encode() []byte {
	address := s.Address[:min(len(s.Address), maxAddress)]
	var flags byte
	if s.Bridge {
		flags |= flagBridge
	}
	if s.Leaving {
		flags |= flagLeaving
	}
	b := make([]byte, 0, 33+len(address)+10*(len(s.Looked)+len(s.Met)+len(s.Covered)))
	b = append(b, 1, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Clock))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Closed))
	b = binary.BigEndian.AppendUint64(b, s.Owes)
	b = append(b, byte(len(address)))
	b = append(b, address...)
	b = appendNodes(b, s.Looked)
	b = appendNodes(b, s.Met)
	b = appendNodes(b, s.Covered)
	at, count := len(b), uint16(0)
	b = append(b, 0, 0)
	for _, w := range s.Wanted {
		if count == maxWanted {
			break
		}
		if w.Node > herald.MaxNode || len(w.Name) > maxName {
			continue
		}
		node := w.Node
		if w.Ends {
			node |= wantEnds
		}
		if w.Expires {
			node |= wantExpires
		}
		if node != w.Node {
			b[0] = statusVersion
		}
		b = binary.BigEndian.AppendUint16(b, node)
		b = binary.BigEndian.AppendUint16(b, uint16(len(w.Name)))
		b = append(b, w.Name...)
		count++
	}
	binary.BigEndian.PutUint16(b[at:], count)
	return b
}

func appendNodes[V ~uint64](b []byte, m map[uint16]V) []byte {
	at := len(b)
	b = append(b, 0, 0)
	count := uint16(0)
	for _, node := range slices.Sorted(maps.Keys(m)) {
		if node > herald.MaxNode {
			break
		}
		b = binary.BigEndian.AppendUint16(b, node)
		b = binary.BigEndian.AppendUint64(b, uint64(m[node]))
		count++
	}
	binary.BigEndian.PutUint16(b[at:], count)
	return b
}

// decodeStatus reads what encode has written; any other bytes are an error.
func decodeStatus(b []byte) (Status, error) {
	if len(b) > maxStatus {
		return Status{}, fmt.Errorf("membership: status of %d bytes: %w", len(b), herald.ErrCorrupt)
	}
	if len(b) > 0 && b[0] > statusVersion {
		return Status{}, fmt.Errorf("membership: status version %d: %w", b[0], herald.ErrSchemaNewer)
	}
	r := record.Decoder{B: b}
	s := Status{Version: r.Byte()}
	flags := r.Byte()
	s.Bridge, s.Leaving = flags&flagBridge != 0, flags&flagLeaving != 0
	s.Clock, s.Closed = herald.ID(r.Uint64()), herald.ID(r.Uint64())
	s.Owes = r.Uint64()
	s.Address = string(r.Take(uint64(r.Byte())))
	s.Looked = readNodes[uint64](&r)
	s.Met = readNodes[uint64](&r)
	s.Covered = readNodes[herald.ID](&r)
	ends := false
	for range min(r.Uint16(), maxWanted+1) {
		node := r.Uint16()
		w := Want{Node: node}
		if s.Version > 1 {
			w = Want{Node: node &^ (wantEnds | wantExpires), Ends: node&wantEnds != 0, Expires: node&wantExpires != 0}
			ends = ends || w.Ends || w.Expires
		}
		w.Name = string(r.Take(uint64(r.Uint16())))
		if w.Node > herald.MaxNode || len(w.Name) > maxName || len(s.Wanted) == maxWanted {
			r.Fail("what is wanted is out of bounds")
		}
		s.Wanted = append(s.Wanted, w)
	}
	if r.Err != nil || len(r.B) > 0 || s.Version == 0 || ends != (s.Version > 1) || flags&^(flagBridge|flagLeaving) != 0 {
		return Status{}, fmt.Errorf("membership: status: %w", herald.ErrCorrupt)
	}
	return s, nil
}

// owedBy is Status.Owes of a row that is not over.
func owedBy(row persistence.Member) uint64 {
	if b := row.Status; len(b) >= 26 && b[0] >= 1 && b[0] <= statusVersion && (row.State == persistence.Live || row.State == persistence.Dead) {
		return binary.BigEndian.Uint64(b[18:])
	}
	return 0
}

func readNodes[V ~uint64](r *record.Decoder) map[uint16]V {
	count := int(r.Uint16())
	if len(r.B) < 10*count {
		r.Fail("count beyond the status")
		return nil
	}
	if count == 0 {
		return nil
	}
	m := make(map[uint16]V, count)
	for i, last := 0, uint16(0); i < count; i++ {
		node := r.Uint16()
		if node > herald.MaxNode || i > 0 && node <= last {
			r.Fail("nodes out of order")
			return nil
		}
		m[node], last = V(r.Uint64()), node
	}
	return m
}
