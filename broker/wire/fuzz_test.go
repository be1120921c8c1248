package wire

import (
	"bytes"
	"testing"
	"unsafe"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/herald-mqtt/herald"
)

// The frames that fuzzing starts from.
func seeds() [][]byte {
	return [][]byte{
		frame(0x30, text("topic"), "payload"),
		frame(0x3d, text("a/b"), u16(1), props{propUser, text("k"), text("v"), propMessageExpiry, u32(9), propTopicAlias, u16(3)}, "p"),
		frame(0x32, text("é/x"), u16(1), props{propResponseTopic, text("r"), propCorrelationData, text("c"), propPayloadFormat, 1}, "p"),
		frame(0x40, u16(1)),
		frame(0x62, u16(1), 0x92, props{propReasonString, text("r")}),
		frame(0x82, u16(7), props{propSubscriptionIdentifier, 0xff, 0x7f}, text("a/#"), 0x2e, text("$share/g/b"), 0x11),
		frame(0x82, u16(7), 0, text("a/#")),
		frame(0x82, u16(7), text("+/x"), 1),
		frame(0xa2, u16(7), 0, text("x"), text("y")),
		frame(0xc0),
		frame(0xe0),
		frame(0xe0, 4, props{propSessionExpiry, u32(77)}),
		frame(0xf0, 0x18, props{propAuthMethod, text("m"), propAuthData, text("d")}),
		frame(0x10, text("MQTT"), 4, 0xee, u16(10), text("p"), text("t"), text(""), text("u"), text("")),
		frame(0x14, text("MQIsdp"), 3, 0xc3, u16(10), text("p"), text("user")),
		frame(0x10, text("MQTT"), 5, 0xf6, u16(30), props{propSessionExpiry, u32(60), propReceiveMaximum, u16(5)}, text("id"),
			props{propContentType, text("c"), propWillDelay, u32(3), propMessageExpiry, u32(4)}, text("w"), text("m"), text("u"), text("p")),
	}
}

func version(v byte) herald.Version { return herald.V31 + herald.Version(v%3) }

// within tells whether part lies in whole.
func within(part, whole []byte) bool {
	if len(part) == 0 {
		return true
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	from := uintptr(unsafe.Pointer(unsafe.SliceData(whole)))
	return at >= from && at+uintptr(cap(part)) <= from+uintptr(len(whole))
}

// alone copies b into memory with nothing readable behind it that belongs to it.
func alone(b []byte) []byte { return append(make([]byte, 0, len(b)), b...)[:len(b):len(b)] }

func FuzzSplit(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, 0)
		f.Add(s[:len(s)-1], 4)
	}
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff}, 1<<20)
	f.Fuzz(func(t *testing.T, b []byte, most int) {
		n, err := Split(b, most)
		whole := FrameLength(b)
		switch {
		case n < 0 || n > len(b) || n == 1 || err != nil && n != 0:
			t.Fatalf("Split: %d, %v", n, err)
		case n > 0 && (n != whole || most > 0 && n > most):
			t.Fatalf("Split: %d, FrameLength: %d, bound %d", n, whole, most)
		case n == 0 && err == nil && whole > 0 && (whole <= len(b) || most > 0 && whole > most):
			t.Fatalf("Split waits for %d bytes with %d there, bound %d", whole, len(b), most)
		}
		if n > 0 {
			if at, _, e := open(b[:n]); e != nil || at < 2 || at > n {
				t.Fatalf("open: %d, %v", at, e)
			}
		} else if err == nil {
			// What is refused when it is whole may be refused early, never the
			// other way round.
			for i := range b {
				if _, err := Split(b[:i], most); err != nil {
					t.Fatalf("refused at %d bytes, not at %d", i, len(b))
				}
			}
		}
	})
}

func FuzzParsePublish(f *testing.F) {
	for i, s := range seeds() {
		f.Add(byte(i), s)
		f.Add(byte(2), s)
	}
	f.Fuzz(func(t *testing.T, v byte, b []byte) {
		b = alone(b)
		var p Publish
		if err := ParsePublish(b, version(v), &p); err != nil {
			reason(t, err)
			return
		}
		if n, err := Split(b, 0); n != len(b) || err != nil {
			t.Fatalf("accepted, but Split says %d, %v", n, err)
		}
		for _, part := range [][]byte{p.Topic, p.Properties, p.Payload} {
			if !within(part, b) {
				t.Fatal("a part reaches beyond the frame")
			}
		}
		if p.QoS() > 2 || (p.QoS() > 0) != (p.PacketID != 0) || p.PacketIDAt+2 > len(b) {
			t.Fatalf("%+v", p)
		}
		if len(p.Topic) > 0 && !herald.ValidTopic(string(p.Topic)) || len(p.Topic) == 0 && p.Alias == 0 {
			t.Fatalf("topic %q", p.Topic)
		}
		cut := len(p.Properties)
		if p.HasExpiry {
			cut -= 5
		}
		if p.Alias != 0 {
			cut -= 3
		}
		if got := len(p.AppendForward(nil)); got != cut {
			t.Fatalf("%d bytes go on, not %d", got, cut)
		}
		var again Publish
		if err := ParsePublishSame(b, version(v), p.Topic, &again); err != nil || again.Same != (len(p.Topic) > 0) {
			t.Fatalf("%v, same %v", err, again.Same)
		}
		pk := decode(t, b, version(v))
		if pk.TopicName != string(p.Topic) || pk.PacketID != p.PacketID || !bytes.Equal(pk.Payload, p.Payload) ||
			pk.Properties.TopicAlias != p.Alias || pk.Properties.MessageExpiryInterval != p.Expiry {
			t.Fatalf("mochi reads %+v, we %+v", pk, p)
		}
	})
}

func FuzzParseAck(f *testing.F) {
	for i, s := range seeds() {
		f.Add(byte(i), s)
		f.Add(byte(2), s)
	}
	f.Fuzz(func(t *testing.T, v byte, b []byte) {
		b = alone(b)
		var a Ack
		if err := ParseAck(b, version(v), &a); err != nil {
			reason(t, err)
			return
		}
		pk := decode(t, b, version(v))
		if pk.FixedHeader.Type != a.Type || pk.PacketID != a.PacketID || pk.ReasonCode != a.Reason || a.PacketID == 0 {
			t.Fatalf("mochi reads %+v, we %+v", pk, a)
		}
		if a.Type != TypePuback && a.Reason != 0 && !pk.ReasonCodeValid() {
			t.Fatalf("reason %#x", a.Reason)
		}
		if got := AppendAck(nil, version(v), a.Type, a.PacketID, a.Reason); len(got) > len(b) {
			t.Fatalf("% x becomes % x", b, got)
		}
	})
}

func FuzzCheck(f *testing.F) {
	for i, s := range seeds() {
		f.Add(byte(i), s)
		f.Add(byte(2), s)
	}
	f.Fuzz(func(t *testing.T, v byte, b []byte) {
		b = alone(b)
		v5 := version(v) == herald.V5
		if err := Check(b, version(v)); err != nil {
			reason(t, err)
			return
		}
		pk := decode(t, b, version(v))
		switch pk.FixedHeader.Type {
		case TypeSubscribe:
			var s Subscribe
			if err := ParseSubscribe(b, version(v), &s); err != nil {
				t.Fatal(err)
			}
			if s.PacketID != pk.PacketID || len(s.Filters) != len(pk.Filters) || pk.SubscribeValidate() != packets.CodeSuccess {
				t.Fatalf("mochi reads %+v, we %+v", pk, s)
			}
			for i, x := range s.Filters {
				y := pk.Filters[i]
				_, _, shared, ok := herald.SplitShare(y.Filter)
				if !within(x.Filter, b) || string(x.Filter) != y.Filter || !ok || shared != x.Shared || x.QoS != y.Qos ||
					v5 && (x.NoLocal != y.NoLocal || x.RetainAsPublished != y.RetainAsPublished || x.RetainHandling != y.RetainHandling ||
						int(s.Identifier) != y.Identifier) {
					t.Fatalf("mochi reads %+v, we %+v", y, x)
				}
			}
		case TypeUnsubscribe:
			var u Unsubscribe
			if err := ParseUnsubscribe(b, version(v), &u); err != nil {
				t.Fatal(err)
			}
			if u.PacketID != pk.PacketID || len(u.Filters) != len(pk.Filters) || pk.UnsubscribeValidate() != packets.CodeSuccess {
				t.Fatalf("mochi reads %+v, we %+v", pk, u)
			}
			for i, x := range u.Filters {
				if !within(x, b) || string(x) != pk.Filters[i].Filter {
					t.Fatalf("mochi reads %+v, we %q", pk.Filters[i], x)
				}
			}
		case TypeDisconnect:
			r, expiry, has, err := ParseDisconnect(b, version(v))
			if err != nil || has != pk.Properties.SessionExpiryIntervalFlag || expiry != pk.Properties.SessionExpiryInterval {
				t.Fatalf("mochi reads %+v, we %#x, %d, %v, %v", pk, r, expiry, has, err)
			}
			// mochi v2.7.9 overlooks a reason that stands alone.
			if r != pk.ReasonCode && len(b) != 3 {
				t.Fatalf("mochi reads %#x, we %#x", pk.ReasonCode, r)
			}
		case TypeAuth:
			if pk.AuthValidate() != packets.CodeSuccess {
				t.Fatalf("%+v", pk)
			}
		}
	})
}

// TestDecoderThatDies holds why Check goes first: bare mochi v2.7.9 panics on an
// MQTT 5 SUBSCRIBE whose options byte is missing.
func TestDecoderThatDies(t *testing.T) {
	f := frame(0x82, u16(7), 0, text("a/#"))
	if reason(t, Check(f, v5)) != ReasonMalformed {
		t.Fatal("the frame is accepted")
	}
	defer func() {
		if recover() == nil {
			t.Error("mochi no longer panics: say so in docs and comments")
		}
	}()
	_, _ = tryDecode(f, v5)
}

func FuzzCheckConnect(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = alone(b)
		c, err := CheckConnect(b)
		if err != nil {
			AppendConnack(nil, c.Version, false, reason(t, err), nil)
			return
		}
		for _, part := range [][]byte{c.ClientID, c.Username, c.Password, c.Properties, c.AuthMethod, c.AuthData, c.WillTopic, c.WillPayload} {
			if !within(part, b) {
				t.Fatal("a part reaches beyond the frame")
			}
		}
		if c.HasWill && (!herald.ValidTopic(string(c.WillTopic)) || c.WillQoS > 2) {
			t.Fatalf("%+v", c)
		}
		// As it came: without a panic. Only MQTT 3.1's own laxness is refused.
		if pk, err := tryDecode(b, 0); err != nil && c.Version != herald.V31 {
			t.Fatalf("mochi: %v", err)
		} else if err == nil && pk.Connect.ClientIdentifier != string(c.ClientID) {
			t.Fatalf("mochi reads %+v", pk)
		}
		// As it is handed on: mochi agrees that it is valid.
		c.HasWill = false
		c.HasPassword = c.HasPassword && len(c.Password) > 0
		pk := decode(t, AppendConnect(nil, &c), 0)
		if code := pk.ConnectValidate(); code != packets.CodeSuccess {
			t.Fatalf("mochi: %v", code)
		}
		if pk.ProtocolVersion != byte(c.Version) || pk.Connect.ClientIdentifier != string(c.ClientID) || pk.Connect.Clean != c.Clean ||
			pk.Connect.Keepalive != c.Keepalive || !bytes.Equal(pk.Connect.Username, c.Username) || !bytes.Equal(pk.Connect.Password, c.Password) ||
			pk.Properties.SessionExpiryInterval != c.SessionExpiry || pk.Properties.TopicAliasMaximum != c.TopicAliasMaximum ||
			pk.Properties.MaximumPacketSize != c.MaximumPacketSize || pk.Properties.AuthenticationMethod != string(c.AuthMethod) {
			t.Fatalf("mochi reads %+v, we %+v", pk, c)
		}
	})
}

// decode has mochi decode a frame as its server does, and fails if it cannot.
func decode(t *testing.T, b []byte, v herald.Version) packets.Packet {
	t.Helper()
	pk, err := tryDecode(b, v)
	if err != nil {
		t.Fatalf("mochi cannot decode % x: %v", b, err)
	}
	return pk
}

// tryDecode follows ReadFixedHeader and ReadPacket of mochi v2.7.9 (clients.go).
func tryDecode(b []byte, v herald.Version) (pk packets.Packet, err error) {
	pk.ProtocolVersion = byte(v)
	if err := pk.FixedHeader.Decode(b[0]); err != nil {
		return pk, err
	}
	n, bu, err := packets.DecodeLength(bytes.NewReader(b[1:]))
	if err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = n
	px := append([]byte{}, b[1+bu:]...)
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectDecode(px)
	case packets.Disconnect:
		err = pk.DisconnectDecode(px)
	case packets.Publish:
		err = pk.PublishDecode(px)
	case packets.Puback:
		err = pk.PubackDecode(px)
	case packets.Pubrec:
		err = pk.PubrecDecode(px)
	case packets.Pubrel:
		err = pk.PubrelDecode(px)
	case packets.Pubcomp:
		err = pk.PubcompDecode(px)
	case packets.Subscribe:
		err = pk.SubscribeDecode(px)
	case packets.Unsubscribe:
		err = pk.UnsubscribeDecode(px)
	case packets.Auth:
		err = pk.AuthDecode(px)
	}
	return pk, err
}
