//go:build linux

package load

// maxMissing bounds the memory of one subscriber that loses everything.
const maxMissing = 1 << 20

// order checks, at one subscriber, the sequence of one publisher. In the good
// case it costs a compare and two additions; memory is used only for gaps.
type order struct {
	next       uint64 // the sequence expected
	received   uint64 // distinct messages
	duplicates uint64
	reordered  uint64
	missing    map[uint64]struct{} // below next and not received
}

// add counts the message with this sequence and tells whether it is new.
func (o *order) add(seq uint64) bool {
	if seq == o.next {
		o.next++
		o.received++
		return true
	}
	return o.addOutOfOrder(seq)
}

func (o *order) addOutOfOrder(seq uint64) bool {
	if seq > o.next {
		if o.missing == nil {
			o.missing = make(map[uint64]struct{})
		}
		for s := o.next; s < seq && len(o.missing) < maxMissing; s++ {
			o.missing[s] = struct{}{}
		}
		o.next = seq + 1
		o.received++
		return true
	}
	if _, late := o.missing[seq]; late {
		delete(o.missing, seq)
		o.reordered++
		o.received++
		return true
	}
	o.duplicates++
	return false
}
