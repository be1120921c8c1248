package wire

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/herald-mqtt/herald"
)

func TestEncode(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		name string
		got  []byte
		want []byte
	}{
		{"PUBACK", AppendAck(nil, v3, TypePuback, 0x102, 0), frame(0x40, 1, 2)},
		{"PUBACK, reason in 3.1.1", AppendAck(nil, v3, TypePuback, 0x102, 0x87), frame(0x40, 1, 2)},
		{"PUBACK, reason", AppendAck(nil, v5, TypePuback, 0x102, 0x10), frame(0x40, 1, 2, 0x10)},
		{"nothing to say", AppendAck(nil, v5, TypePubrec, 0x102, 0), frame(0x50, 1, 2)},
		{"MQTT-3.6.1-1 PUBREL", AppendAck([]byte{9}, v5, TypePubrel, 1, 0), append([]byte{9}, frame(0x62, u16(1))...)},
		{"PUBCOMP", AppendAck(nil, v5, TypePubcomp, 1, 0x92), frame(0x70, u16(1), 0x92)},
		{"MQTT-3.9.3-2 SUBACK", AppendSuback(nil, v3, 7, []byte{0, 1, 2, 0x80, 0x87}), frame(0x90, u16(7), 0, 1, 2, 0x80, 0x80)},
		{"MQTT-3.9.3-1 SUBACK", AppendSuback(nil, v5, 7, []byte{0, 0x87}), frame(0x90, u16(7), 0, 0, 0x87)},
		{"UNSUBACK", AppendUnsuback(nil, v3, 7, []byte{0, 0x11}), frame(0xb0, u16(7))},
		{"MQTT-3.11.3-1 UNSUBACK", AppendUnsuback(nil, v5, 7, []byte{0, 0x11}), frame(0xb0, u16(7), 0, 0, 0x11)},
		{"PINGRESP", AppendPingresp(nil), frame(0xd0)},
		{"DISCONNECT in 3.1.1", AppendDisconnect(nil, v3, 0x8b, "x", ""), nil},
		{"DISCONNECT", AppendDisconnect(nil, v5, 0x81, "", ""), frame(0xe0, 0x81)},
		{"DISCONNECT, a reason of CONNACK", AppendDisconnect(nil, v5, ReasonUnavailable, "", ""), frame(0xe0, byte(ReasonBusy))},
		{"DISCONNECT, text", AppendDisconnect(nil, v5, 0x9d, "gone", "b:1883"),
			frame(0xe0, 0x9d, props{propReasonString, text("gone"), propServerReference, text("b:1883")})},
		{"DISCONNECT, long text", AppendDisconnect(nil, v5, 0x81, long, ""), frame(0xe0, 0x81, props{propReasonString, text(long)})},
		{"CONNACK", AppendConnack(nil, v3, true, 0, nil), frame(0x20, 1, 0)},
		{"MQTT-3.2.2-4 session present", AppendConnack(nil, v3, true, 0x85, nil), frame(0x20, 0, 2)},
		{"CONNACK, banned", AppendConnack(nil, herald.V31, false, 0x8a, nil), frame(0x20, 0, 5)},
		{"MQTT-3.2.2-6 no code for it", AppendConnack(nil, v3, false, 0x81, nil), nil},
		{"no version", AppendConnack(nil, 0, false, 0x84, nil), nil},
		{"CONNACK 5", AppendConnack([]byte{9}, v5, true, 0, nil), append([]byte{9}, frame(0x20, 1, 0, 0)...)},
		{"MQTT-3.2.2-6 session present, 5", AppendConnack(nil, v5, true, 0x87, nil), frame(0x20, 0, 0x87, 0)},
		{"empty properties", AppendConnack(nil, v5, false, 0, &ConnackProperties{}), frame(0x20, 0, 0, 0)},
		{"all properties", AppendConnack([]byte{9}, v5, true, 0, &ConnackProperties{
			HasSessionExpiry: true, ReceiveMaximum: 5, HasMaximumQoS: true, MaximumQoS: 1, NoRetain: true, MaximumPacketSize: 6,
			AssignedClientID: "id", TopicAliasMaximum: 7, ReasonString: "r", NoWildcards: true, NoIdentifiers: true, NoShared: true,
			HasKeepalive: true, Keepalive: 8, ResponseInfo: "i", ServerReference: "s", AuthMethod: "m", AuthData: []byte("d")}),
			append([]byte{9}, frame(0x20, 1, 0, props{
				propSessionExpiry, u32(0), propAssignedClientID, text("id"), propServerKeepalive, u16(8), propAuthMethod, text("m"),
				propAuthData, text("d"), propResponseInfo, text("i"), propServerReference, text("s"), propReasonString, text("r"),
				propReceiveMaximum, u16(5), propTopicAliasMaximum, u16(7), propMaximumQoS, 1, propMaximumPacketSize, u32(6),
				propRetainAvailable, 0, propWildcardAvailable, 0, propIdentifiersAvailable, 0, propSharedAvailable, 0})...)},
		{"MQTT-3.2.2-9 maximum QoS 2 goes unsaid", AppendConnack(nil, v5, false, 0, &ConnackProperties{HasMaximumQoS: true, MaximumQoS: 2}),
			frame(0x20, 0, 0, 0)},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: % x, want % x", c.name, c.got, c.want)
		}
	}
}

// TestConnackLengths: both length fields, at every size around where they grow.
func TestConnackLengths(t *testing.T) {
	for _, n := range []int{100, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 16376, 16377, 16378, 16379, 16380, 16381, 16385, 65535} {
		id := strings.Repeat("x", n)
		got := AppendConnack([]byte("ab"), v5, false, 0, &ConnackProperties{AssignedClientID: id})
		if want := append([]byte("ab"), frame(0x20, 0, 0, props{propAssignedClientID, text(id)})...); !bytes.Equal(got, want) {
			t.Errorf("client id of %d bytes: % x, want % x", n, got[:12], want[:12])
		}
	}
}

func TestManyCodes(t *testing.T) {
	codes := bytes.Repeat([]byte{0x87}, 1000)
	if got := AppendSuback(nil, v5, 1, codes); !bytes.Equal(got, frame(0x90, u16(1), 0, codes)) {
		t.Errorf("% x", got[:8])
	}
	if got := AppendUnsuback(nil, v5, 1, codes); !bytes.Equal(got, frame(0xb0, u16(1), 0, codes)) {
		t.Errorf("% x", got[:8])
	}
}

func TestClip(t *testing.T) {
	for _, s := range []string{"", "x", strings.Repeat("x", maxText), strings.Repeat("x", maxText+1), strings.Repeat("é", maxText), "x" + strings.Repeat("€", maxText)} {
		got := clip(s)
		if !strings.HasPrefix(s, got) || len(got) > maxText || !utf8.ValidString(got) || len(s) > maxText && len(got) < maxText-3 {
			t.Errorf("%d bytes: %d", len(s), len(got))
		}
	}
}

// TestConnackCode: the return codes of 3.1.1, Table 3.1.
func TestConnackCode(t *testing.T) {
	for reason, want := range map[byte]int{0: 0, 0x84: 1, 0x85: 2, 0x88: 3, 0x89: 3, 0x86: 4, 0x87: 5, 0x8a: 5, 0x81: -1, 0x82: -1, 0x90: -1, 0x95: -1} {
		code, ok := ConnackCode(v3, reason)
		if ok != (want >= 0) || ok && int(code) != want {
			t.Errorf("%#x: %d, %v", reason, code, ok)
		}
		if code, ok := ConnackCode(v5, reason); !ok || code != reason {
			t.Errorf("%#x in MQTT 5: %#x, %v", reason, code, ok)
		}
	}
}
