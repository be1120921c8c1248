package wire

import (
	"strings"
	"testing"

	"github.com/herald-mqtt/herald"
)

func TestAck(t *testing.T) {
	for _, c := range []struct {
		frame []byte
		v     herald.Version
		want  Ack
	}{
		{frame(0x40, u16(1)), v3, Ack{TypePuback, 1, 0}},
		{frame(0x50, u16(0xffff)), v5, Ack{TypePubrec, 0xffff, 0}},
		{frame(0x62, u16(2)), v5, Ack{TypePubrel, 2, 0}},
		{frame(0x70, u16(2)), v3, Ack{TypePubcomp, 2, 0}},
		{frame(0x50, u16(2), 0x97), v5, Ack{TypePubrec, 2, 0x97}},
		{frame(0x62, u16(2), 0x92, 0), v5, Ack{TypePubrel, 2, 0x92}},
		{frame(0x40, u16(2), 0x10, props{propReasonString, text("r")}), v5, Ack{TypePuback, 2, 0x10}},
		{[]byte{0x40, 0x82, 0, 0, 7}, v3, Ack{TypePuback, 7, 0}},
	} {
		var a Ack
		if err := ParseAck(c.frame, c.v, &a); err != nil || a != c.want {
			t.Errorf("% x: %+v, %v", c.frame, a, err)
		}
	}
	var a Ack
	if reason(t, ParseAck(frame(0x30, text("")), v3, &a)) == 0 || reason(t, ParseAck(nil, v3, &a)) == 0 {
		t.Error("ParseAck takes what is none")
	}
}

// TestAckReasons: of all reason codes, those of Tables 3.4.2.1 to 3.7.2.1
// ([MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1]).
func TestAckReasons(t *testing.T) {
	for first, allowed := range map[byte]string{
		0x40: "\x00\x10\x80\x83\x87\x90\x91\x97\x99", 0x50: "\x00\x10\x80\x83\x87\x90\x91\x97\x99",
		0x62: "\x00\x92", 0x70: "\x00\x92",
	} {
		for c := range 256 {
			want := byte(0x82)
			if strings.IndexByte(allowed, byte(c)) >= 0 {
				want = 0
			}
			if got := reason(t, Check(frame(first, u16(1), c), v5)); got != want {
				t.Errorf("%#x with reason %#x: %#x", first, c, got)
			}
		}
	}
}

func TestAckRefused(t *testing.T) {
	for _, first := range []byte{0x40, 0x50, 0x62, 0x70} {
		verdicts{
			{"3.1.1 long", frame(first, u16(1), 0), v3, 0x81},
			{"3.1.1 packet id 0", frame(first, u16(0)), v3, 0x82},
			{"empty", frame(first), v3, 0x81},
			{"cut", frame(first, 1), v5, 0x81},
			{"packet id 0", frame(first, u16(0)), v5, 0x82},
			{"packet id 0 with reason", frame(first, u16(0), 0), v5, 0x82},
			{"behind the properties", frame(first, u16(1), 0, 0, 0), v5, 0x81},
			{"properties cut", frame(first, u16(1), 0, 1), v5, 0x81},
			{"padded", []byte{first, 0x82, 0, 0, 7}, v5, 0x81},
		}.run(t)
	}
	verdicts{
		{"MQTT-2.1.3-1 PUBACK", frame(0x41, u16(1)), v5, 0x81},
		{"MQTT-2.1.3-1 PUBREC", frame(0x52, u16(1)), v5, 0x81},
		{"MQTT-3.6.1-1 PUBREL", frame(0x60, u16(1)), v5, 0x81},
		{"MQTT-3.6.1-1 PUBREL with DUP", frame(0x6a, u16(1)), v3, 0x81},
		{"MQTT-2.1.3-1 PUBCOMP", frame(0x78, u16(1)), v3, 0x81},
	}.run(t)
}

func TestSubscribe(t *testing.T) {
	f := frame(0x82, u16(7), props{propSubscriptionIdentifier, 0xff, 0x7f, propUser, text("k"), text("v")},
		text("a/#"), 0x2e, text("$share/g/b"), 0x11)
	s := Subscribe{Filters: make([]SubscribeFilter, 5)}
	if err := ParseSubscribe(f, v5, &s); err != nil {
		t.Fatal(err)
	}
	if s.PacketID != 7 || s.Identifier != 16383 || len(s.Filters) != 2 {
		t.Fatalf("%+v", s)
	}
	if a := s.Filters[0]; string(a.Filter) != "a/#" || a.Shared || a.QoS != 2 || !a.NoLocal || !a.RetainAsPublished || a.RetainHandling != 2 {
		t.Errorf("%+v", a)
	}
	if b := s.Filters[1]; string(b.Filter) != "$share/g/b" || !b.Shared || b.QoS != 1 || b.NoLocal || b.RetainAsPublished || b.RetainHandling != 1 {
		t.Errorf("%+v", b)
	}
	if err := ParseSubscribe(frame(0x82, u16(8), text("x"), 1), v3, &s); err != nil || s.PacketID != 8 || s.Identifier != 0 ||
		len(s.Filters) != 1 || s.Filters[0].QoS != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	u := Unsubscribe{Filters: make([][]byte, 3)}
	if err := ParseUnsubscribe(frame(0xa2, u16(9), 0, text("x"), text("$share/g/+")), v5, &u); err != nil || u.PacketID != 9 ||
		len(u.Filters) != 2 || string(u.Filters[1]) != "$share/g/+" {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestSubscribeRefused(t *testing.T) {
	vs := verdicts{
		{"plain", frame(0x82, u16(1), text("p"), 2), v3, 0},
		{"several", frame(0x82, u16(1), text("p"), 2, text("q/+"), 0, text("#"), 1), v3, 0},
		{"MQTT-3.8.1-1 flags", frame(0x80, u16(1), text("p"), 0), v3, 0x81},
		{"MQTT-3.8.1-1 flags 3", frame(0x83, u16(1), 0, text("p"), 0), v5, 0x81},
		{"MQTT-2.3.1-1 packet id 0", frame(0x82, u16(0), text("p"), 0), v3, 0x81},
		{"MQTT-2.2.1-3 packet id 0", frame(0x82, u16(0), 0, text("p"), 0), v5, 0x81},
		{"MQTT-3.8.3-3 no filter", frame(0x82, u16(1)), v3, 0x81},
		{"MQTT-3.8.3-2 no filter", frame(0x82, u16(1), 0), v5, 0x81},
		{"packet id cut", frame(0x82, 1), v3, 0x81},
		{"empty", frame(0x82), v5, 0x81},
		{"options missing", frame(0x82, u16(1), text("p")), v3, 0x81},
		{"options missing, which mochi v2.7.9 dies of", frame(0x82, u16(1), 0, text("p")), v5, 0x81},
		{"second options missing", frame(0x82, u16(1), 0, text("p"), 0, text("q")), v5, 0x81},
		{"surplus", frame(0x82, u16(1), 0, text("p"), 0, 0), v5, 0x81},
		{"filter cut", frame(0x82, u16(1), 0, u16(3), "ab"), v5, 0x81},
		{"MQTT-3-8.3-4 QoS 3", frame(0x82, u16(1), text("p"), 3), v3, 0x81},
		{"QoS 3", frame(0x82, u16(1), 0, text("p"), 3), v5, 0x81},
		{"retain handling 3", frame(0x82, u16(1), 0, text("p"), 0x30), v5, 0x81},
		{"MQTT-3.8.3-4 no-local on $share", frame(0x82, u16(1), 0, text("$share/g/t"), 4), v5, 0x82},
		{"MQTT-3.8.3-1 not UTF-8", frame(0x82, u16(1), text("\xff"), 0), v3, 0x81},
		{"control character", frame(0x82, u16(1), 0, text("to\x01p"), 0), v5, 0x81},
		{"subscription identifier 0", frame(0x82, u16(1), props{propSubscriptionIdentifier, 0}, text("p"), 0), v5, 0x81},
		{"subscription identifier padded", frame(0x82, u16(1), props{propSubscriptionIdentifier, 0x80, 0}, text("p"), 0), v5, 0x81},
		{"subscription identifier of five bytes", frame(0x82, u16(1), props{propSubscriptionIdentifier, "\x80\x80\x80\x80\x01"}, text("p"), 0), v5, 0x81},
		{"largest subscription identifier", frame(0x82, u16(1), props{propSubscriptionIdentifier, "\xff\xff\xff\x7f"}, text("p"), 0), v5, 0},
		{"padded", []byte{0x82, 0x87, 0, 0, 1, 0, 0, 1, 'p', 0}, v5, 0x81},
		{"levels", frame(0x82, u16(1), 0, text(strings.Repeat("/", 256)), 0), v5, 0x81},
	}
	for bit := 2; bit < 8; bit++ {
		want := byte(0)
		if bit >= 6 {
			want = 0x81
		}
		vs = append(vs, verdicts{
			{"MQTT-3-8.3-4 reserved bits", frame(0x82, u16(1), text("p"), 1<<bit), v3, 0x81},
			{"MQTT-3.8.3-5 reserved bits", frame(0x82, u16(1), 0, text("p"), 1<<bit), v5, want},
		}...)
	}
	for _, bad := range []string{"", "a+", "+a", "a/#/b", "#a", "##", "$share", "$share/", "$share/g", "$share/g/", "$share//t",
		"$share/+/t", "$share/g#/t", "$share/g/a+"} {
		want := byte(0x81)
		if strings.HasPrefix(bad, "$share") {
			want = 0x82
		}
		vs = append(vs, verdicts{
			{"MQTT-4.7.1-1 MQTT-4.8.2-1 filter " + bad, frame(0x82, u16(1), 0, text(bad), 0), v5, want},
			{"MQTT-4.7.1-2 second filter " + bad, frame(0x82, u16(1), text("p"), 0, text(bad), 0), v3, want},
			{"MQTT-3.10.3-1 unsubscribe " + bad, frame(0xa2, u16(1), 0, text(bad)), v5, want},
		}...)
	}
	vs.run(t)
}

func TestUnsubscribeRefused(t *testing.T) {
	verdicts{
		{"plain", frame(0xa2, u16(1), text("p")), v3, 0},
		{"several", frame(0xa2, u16(1), 0, text("p"), text("#")), v5, 0},
		{"MQTT-3.10.1-1 flags", frame(0xa0, u16(1), text("p")), v3, 0x81},
		{"MQTT-3.10.1-1 flags 6", frame(0xa6, u16(1), 0, text("p")), v5, 0x81},
		{"packet id 0", frame(0xa2, u16(0), 0, text("p")), v5, 0x81},
		{"MQTT-3.10.3-2 no filter", frame(0xa2, u16(1)), v3, 0x81},
		{"MQTT-3.10.3-2 no filter, 5", frame(0xa2, u16(1), 0), v5, 0x81},
		{"properties missing", frame(0xa2, u16(1)), v5, 0x81},
		{"filter cut", frame(0xa2, u16(1), 0, u16(2), "a"), v5, 0x81},
		{"surplus", frame(0xa2, u16(1), 0, text("p"), 0), v5, 0x81},
	}.run(t)
}

func TestOthersRefused(t *testing.T) {
	vs := verdicts{
		{"PINGREQ", frame(0xc0), v3, 0},
		{"PINGREQ 5", frame(0xc0), v5, 0},
		{"PINGREQ with a body", frame(0xc0, 0), v3, 0x81},
		{"PINGREQ padded", []byte{0xc0, 0x80, 0}, v3, 0x81},
		{"MQTT-2.1.3-1 PINGREQ", frame(0xc1), v5, 0x81},
		{"DISCONNECT", frame(0xe0), v3, 0},
		{"DISCONNECT with a body", frame(0xe0, 0), v3, 0x81},
		{"MQTT-3.14.1-1 DISCONNECT", frame(0xe2), v5, 0x81},
		{"behind the properties", frame(0xe0, 0, 0, 0), v5, 0x81},
		{"AUTH in 3.1.1", frame(0xf0), v3, 0x82},
		{"MQTT-3.15.1-1 AUTH", frame(0xf1), v5, 0x82},
		{"AUTH says success", frame(0xf0), v5, 0x82},
		{"AUTH without method", frame(0xf0, 0x18), v5, 0x82},
		{"AUTH without method, empty properties", frame(0xf0, 0x18, 0), v5, 0x82},
		{"AUTH", frame(0xf0, 0x19, props{propAuthMethod, text("m"), propAuthData, text("\xff")}), v5, 0},
		{"AUTH, surplus", frame(0xf0, 0x19, props{propAuthMethod, text("m")}, 0), v5, 0x81},
		{"MQTT-3.1.0-2 second CONNECT", frame(0x10, text("MQTT"), 4, 2, u16(10), text("p")), v3, 0x82},
		{"no type", frame(0x00), v5, 0x82},
	}
	for _, first := range []byte{0x20, 0x90, 0xb0, 0xd0} {
		flags := byte(0x82)
		if first == 0x90 || first == 0xb0 {
			flags = 0x81
		}
		vs = append(vs, verdicts{
			{"from a server", frame(first, u16(1), 0), v5, 0x82},
			{"from a server, empty", frame(first), v3, 0x82},
			{"from a server, flags", frame(first | 9), v5, flags},
		}...)
	}
	vs.run(t)
	for _, b := range [][]byte{nil, {0xc0}, {0xe0, 1}, {0x82, 0x80}} {
		if reason(t, Check(b, v5)) == 0 {
			t.Errorf("Check accepts % x", b)
		}
	}
}

func TestDisconnect(t *testing.T) {
	const allowed = "\x00\x04\x80\x81\x82\x83\x90\x93\x94\x95\x96\x97\x98\x99" // Table 3.14.2.1
	for c := range 256 {
		want := byte(0x82)
		if strings.IndexByte(allowed, byte(c)) >= 0 {
			want = 0
		}
		for _, f := range [][]byte{frame(0xe0, c), frame(0xe0, c, 0)} {
			r, _, has, err := ParseDisconnect(f, v5)
			if got := reason(t, err); got != want || has || err == nil && r != byte(c) {
				t.Errorf("MQTT-3.14.2-1 reason %#x: %#x, %v", c, r, err)
			}
		}
	}
	r, expiry, has, err := ParseDisconnect(frame(0xe0, 4, props{propSessionExpiry, u32(77), propReasonString, text("r")}), v5)
	if r != 4 || expiry != 77 || !has || err != nil {
		t.Errorf("%#x, %d, %v, %v", r, expiry, has, err)
	}
	if reason(t, func() error { _, _, _, err := ParseDisconnect(frame(0xc0), v5); return err }()) == 0 {
		t.Error("ParseDisconnect takes a PINGREQ")
	}
}
