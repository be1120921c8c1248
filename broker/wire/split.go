package wire

// MaxRemaining is the greatest remaining length that MQTT can express.
const MaxRemaining = 268_435_455

// flagsOK holds, per first byte of a frame, whether its flags may stand there
// [MQTT-2.2.2-1] (3.1.1), [MQTT-2.1.3-1]. MQTT 3.1 gives the flags of CONNECT no
// meaning, so it is [CheckConnect] that judges those. PUBLISH with QoS 3
// [MQTT-3.3.1-4] or DUP at QoS 0 [MQTT-3.3.1-2] is refused here already.
var flagsOK = func() (ok [256]bool) {
	for b := range ok {
		flags := b & 0x0f
		switch byte(b >> 4) {
		case 0:
		case TypeConnect:
			ok[b] = true
		case TypePublish:
			ok[b] = flags&0x06 != 0x06 && (flags&0x06 != 0 || flags&0x08 == 0)
		case TypePubrel, TypeSubscribe, TypeUnsubscribe:
			ok[b] = flags == 0x02
		default:
			ok[b] = flags == 0
		}
	}
	return ok
}()

// First31 is the first byte of an MQTT 3.1 client's frame in the terms of later
// versions, which Split and the others know: that client sets DUP when it sends a
// PUBREL, SUBSCRIBE or UNSUBSCRIBE again.
func First31(first byte) byte {
	switch first {
	case TypePubrel<<4 | 0x0a, TypeSubscribe<<4 | 0x0a, TypeUnsubscribe<<4 | 0x0a:
		return first &^ 0x08
	}
	return first
}

// Split gives the length of the first frame in b, fixed header included: 0 if b
// does not hold all of it. A frame that can only be refused is refused as soon
// as that shows, with an *Error: a reserved type or reserved flags, a remaining
// length of five bytes, or more than max bytes in all (0: no bound).
//
// Hot: once per frame that arrives, 2 ns.
func Split(b []byte, max int) (n int, err error) {
	if len(b) < 2 {
		if len(b) == 1 && !flagsOK[b[0]] {
			return 0, badFirst(b[0])
		}
		return 0, nil
	}
	if !flagsOK[b[0]] {
		return 0, badFirst(b[0])
	}
	n = int(b[1]) + 2
	if n > 0x7f+2 {
		var e *Error
		if n, e = longLength(b); n == 0 {
			return 0, asError(e)
		}
	}
	if n > max && max > 0 {
		return 0, errTooLarge
	}
	if n > len(b) {
		return 0, nil
	}
	return n, nil
}

// FrameLength gives the length of the first frame in b as far as its fixed
// header tells it: 0 if b does not hold all of that. It is for a caller to whom
// Split said 0, and who wants to know how much to read.
func FrameLength(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	if b[1] < 0x80 {
		return int(b[1]) + 2
	}
	n, _ := longLength(b)
	return n
}

// badFirst says why a first byte is refused: in the terms of mosquitto, for which
// some of what no client may send (AUTH counts, nobody having asked for it) is a
// Protocol Error whatever its flags.
func badFirst(first byte) *Error {
	switch Type(first) {
	case 0:
		return errType
	case TypeConnack, TypePingresp:
		return errServerOnly
	case TypeAuth:
		return errAuthFlags
	}
	return errFlags
}

// longLength gives the length of the frame whose remaining length takes more
// than one byte; 0, nil: not all of that is there yet.
func longLength(b []byte) (int, *Error) {
	n := int(b[1] & 0x7f)
	for i := 2; i < 5; i++ {
		if i == len(b) {
			return 0, nil
		}
		n |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i] < 0x80 {
			return n + i + 1, nil
		}
	}
	return 0, errFrameLength
}

// open tells where the variable header of a whole frame begins. padded: the
// remaining length takes more bytes than it needs.
func open(frame []byte) (at int, padded bool, e *Error) {
	if len(frame) < 2 {
		return 0, false, errIncomplete
	}
	if frame[1] < 0x80 {
		if int(frame[1]) != len(frame)-2 {
			return 0, false, errIncomplete
		}
		return 2, false, nil
	}
	n, e := longLength(frame)
	if e != nil {
		return 0, false, e
	}
	if n != len(frame) {
		return 0, false, errIncomplete
	}
	for at = 2; frame[at] >= 0x80; at++ {
	}
	return at + 1, frame[at] == 0, nil
}

// uvarint reads a variable byte integer at b[at:], in the fewest bytes that can
// hold it [MQTT-1.5.5-1].
func uvarint(b []byte, at int) (v uint32, next int, e *Error) {
	for shift := 0; shift < 28; shift += 7 {
		if at >= len(b) {
			return 0, 0, errTruncated
		}
		c := b[at]
		at++
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			if c == 0 && shift > 0 {
				return 0, 0, errVarint
			}
			return v, at, nil
		}
	}
	return 0, 0, errVarint
}

// bytes16 reads a two-byte length and as many bytes at b[at:].
func bytes16(b []byte, at int) (s []byte, next int, e *Error) {
	if at+2 > len(b) {
		return nil, 0, errTruncated
	}
	n := int(b[at])<<8 | int(b[at+1])
	at += 2
	if at+n > len(b) {
		return nil, 0, errTruncated
	}
	return b[at : at+n : at+n], at + n, nil
}

func uint16At(b []byte, at int) uint16 { return uint16(b[at])<<8 | uint16(b[at+1]) }
