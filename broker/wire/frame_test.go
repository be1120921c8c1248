package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/herald-mqtt/herald"
)

// The parts that frame builds packets from: a string is raw bytes, an int one
// byte, text a string behind its length, u16 and u32 integers, props a block of
// properties behind its length.
type (
	text  string
	u16   uint16
	u32   uint32
	props []any
)

// frame builds a packet with the right remaining length.
func frame(first byte, parts ...any) []byte {
	b := body(parts...)
	return append(AppendUvarint([]byte{first}, uint32(len(b))), b...)
}

func body(parts ...any) (b []byte) {
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case byte:
			b = append(b, p)
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		case text:
			b = appendString(b, string(p))
		case u16:
			b = binary.BigEndian.AppendUint16(b, uint16(p))
		case u32:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case props:
			in := body(p...)
			b = append(AppendUvarint(b, uint32(len(in))), in...)
		default:
			panic(fmt.Sprintf("no such part: %T", p))
		}
	}
	return b
}

// reason is the reason of an error of this package; 0 for none.
func reason(t *testing.T, err error) byte {
	t.Helper()
	if err == nil {
		return 0
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is not an *Error: %v", err, err)
	}
	if e == nil || e.Reason < 0x80 || e.Text == "" || e.Error() != e.Text {
		t.Fatalf("incomplete error: %+v", e)
	}
	return e.Reason
}

// verdicts is a table of packets and of what is to be said of them.
type verdicts []struct {
	name  string // the statement that it is about, first
	frame []byte
	v     herald.Version
	want  byte // the error's reason, 0 for none
}

// run puts the table before Check, whole and through Split.
func (vs verdicts) run(t *testing.T) {
	t.Helper()
	for _, c := range vs {
		t.Run(c.name, func(t *testing.T) {
			n, err := Split(c.frame, 0)
			if err == nil {
				if n != len(c.frame) {
					t.Fatalf("Split: %d of %d bytes", n, len(c.frame))
				}
				err = Check(c.frame, c.v)
			} else if got := reason(t, Check(c.frame, c.v)); got == 0 {
				t.Errorf("Split: %v, Check: nothing", err)
			}
			if got := reason(t, err); got != c.want {
				t.Errorf("% x: reason %#x (%v), want %#x", c.frame, got, err, c.want)
			}
		})
	}
}

const (
	v3 = herald.V311
	v5 = herald.V5
)

// properties of each identifier with a valid value.
var sample = map[byte]props{
	propPayloadFormat:          {propPayloadFormat, 1},
	propMessageExpiry:          {propMessageExpiry, u32(7)},
	propContentType:            {propContentType, text("a/b")},
	propResponseTopic:          {propResponseTopic, text("r/t")},
	propCorrelationData:        {propCorrelationData, text("\xff\x00")},
	propSubscriptionIdentifier: {propSubscriptionIdentifier, 1},
	propSessionExpiry:          {propSessionExpiry, u32(60)},
	propAssignedClientID:       {propAssignedClientID, text("id")},
	propServerKeepalive:        {propServerKeepalive, u16(5)},
	propAuthMethod:             {propAuthMethod, text("m")},
	propAuthData:               {propAuthData, text("\xff")},
	propRequestProblemInfo:     {propRequestProblemInfo, 1},
	propWillDelay:              {propWillDelay, u32(1)},
	propRequestResponseInfo:    {propRequestResponseInfo, 1},
	propResponseInfo:           {propResponseInfo, text("i")},
	propServerReference:        {propServerReference, text("s")},
	propReasonString:           {propReasonString, text("r")},
	propReceiveMaximum:         {propReceiveMaximum, u16(10)},
	propTopicAliasMaximum:      {propTopicAliasMaximum, u16(10)},
	propTopicAlias:             {propTopicAlias, u16(1)},
	propMaximumQoS:             {propMaximumQoS, 1},
	propRetainAvailable:        {propRetainAvailable, 1},
	propUser:                   {propUser, text("k"), text("v")},
	propMaximumPacketSize:      {propMaximumPacketSize, u32(1000)},
	propWildcardAvailable:      {propWildcardAvailable, 1},
	propIdentifiersAvailable:   {propIdentifiersAvailable, 1},
	propSharedAvailable:        {propSharedAvailable, 1},
}

// TestProperties: in every packet that a client sends, every property is
// accepted where it belongs, refused elsewhere, refused twice (but for user
// properties, [MQTT-3.1.2-24] and its like), and refused when cut short.
func TestProperties(t *testing.T) {
	packets := []struct {
		name    string
		allowed uint64
		place   byte // what a property gets that does not belong here
		build   func(block []byte) []byte
		check   func(frame []byte) error
	}{
		{"PUBLISH", publishProperties, 0x82, func(b []byte) []byte {
			return frame(0x32, text("topic"), u16(1), b, "payload")
		}, nil},
		{"PUBACK", ackProperties, 0x82, func(b []byte) []byte { return frame(0x40, u16(1), 0, b) }, nil},
		{"PUBREC", ackProperties, 0x82, func(b []byte) []byte { return frame(0x50, u16(1), 0, b) }, nil},
		{"PUBREL", ackProperties, 0x82, func(b []byte) []byte { return frame(0x62, u16(1), 0, b) }, nil},
		{"PUBCOMP", ackProperties, 0x82, func(b []byte) []byte { return frame(0x70, u16(1), 0, b) }, nil},
		{"SUBSCRIBE", subscribeProperties, 0x81, func(b []byte) []byte {
			return frame(0x82, u16(1), b, text("topic"), 0)
		}, nil},
		{"UNSUBSCRIBE", unsubscribeProperties, 0x81, func(b []byte) []byte {
			return frame(0xa2, u16(1), b, text("topic"))
		}, nil},
		{"DISCONNECT", disconnectProperties, 0x82, func(b []byte) []byte { return frame(0xe0, 0, b) }, nil},
		{"AUTH", authProperties, 0x82, func(b []byte) []byte { return frame(0xf0, 0x18, b) }, nil},
		{"CONNECT", connectProperties, 0x82, func(b []byte) []byte {
			return frame(0x10, text("MQTT"), 5, 2, u16(10), b, text("p"))
		}, func(f []byte) error { _, err := CheckConnect(f); return err }},
		{"will", willProperties, 0x82, func(b []byte) []byte {
			return frame(0x10, text("MQTT"), 5, 6, u16(10), 0, text("p"), b, text("t"), text("m"))
		}, func(f []byte) error { _, err := CheckConnect(f); return err }},
	}
	for _, pk := range packets {
		check := func(block []byte, want byte, what string, id int) {
			t.Helper()
			f := pk.build(block)
			var err error
			if pk.check != nil {
				err = pk.check(f)
			} else {
				err = Check(f, v5)
			}
			if got := reason(t, err); got != want {
				t.Errorf("%s, property %#x %s: reason %#x (%v), want %#x", pk.name, id, what, got, err, want)
			}
		}
		for id := 0; id < 256; id++ {
			p, known := sample[byte(id)]
			if !known {
				check(body(props{id, 1}), 0x81, "unknown", id)
				continue
			}
			with := p
			// Some properties need another one.
			need := props{}
			switch {
			case pk.name == "CONNECT" && id == propAuthData, pk.name == "AUTH" && id != propAuthMethod:
				need = sample[propAuthMethod]
			}
			with = append(append(props{}, need...), p...)
			allowed := pk.allowed>>id&1 != 0
			want := byte(0)
			if !allowed {
				want = pk.place
			}
			check(body(with), want, "once", id)
			cut := body(p...)
			check(body(props{cut[:len(cut)-1]}), 0x81, "cut short", id)
			if allowed {
				want = 0x82
				if id == propUser {
					want = 0
				}
				check(body(append(with, p...)), want, "twice", id)
			}
		}
		check(body(0x7f), 0x81, "length beyond the packet", 0)
		check(body(0x80, 0), 0x81, "padded length", 0)
		check(body(0x80, 0x80, 0x80, 0x80, 0), 0x81, "length of five bytes", 0)
		bad := append(append(props{}, sample[propAuthMethod]...), propUser, text("\xc3\x28"), text("v"))
		if pk.allowed>>propAuthMethod&1 == 0 {
			bad = bad[2:]
		}
		check(body(bad), 0x81, "malformed UTF-8", propUser)
		bad[len(bad)-2], bad[len(bad)-1] = text("k"), text("a\x00")
		check(body(bad), 0x81, "U+0000", propUser)
		bad[len(bad)-1] = text("line\nbreak, \u00e9")
		check(body(bad), 0, "line break", propUser)
		bad[len(bad)-2], bad[len(bad)-1] = text(""), text("")
		check(body(bad), 0, "empty", propUser)
	}
}
