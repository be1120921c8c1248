package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/herald-mqtt/herald"
)

func TestPublish(t *testing.T) {
	f := frame(0x3d, text("a/b"), u16(0x1234),
		props{propUser, text("k"), text("v"), propMessageExpiry, u32(9), propContentType, text("c"), propTopicAlias, u16(3)}, "payload")
	var p Publish
	if err := ParsePublish(f, v5, &p); err != nil {
		t.Fatal(err)
	}
	if p.QoS() != 2 || !p.Dup() || !p.Retain() || p.PacketID != 0x1234 || p.Alias != 3 || !p.HasExpiry || p.Expiry != 9 ||
		string(p.Topic) != "a/b" || string(p.Payload) != "payload" || p.Same || p.Padded {
		t.Errorf("%+v", p)
	}
	if got := uint16At(f, p.PacketIDAt); got != 0x1234 {
		t.Errorf("packet id at %d: %#x", p.PacketIDAt, got)
	}
	if p.Properties[p.ExpiryAt] != propMessageExpiry || p.Properties[p.AliasAt] != propTopicAlias {
		t.Errorf("expiry at %d, alias at %d of % x", p.ExpiryAt, p.AliasAt, p.Properties)
	}
	want := body(propUser, text("k"), text("v"), propContentType, text("c"))
	if got := p.AppendForward([]byte("x")); string(got) != "x"+string(want) {
		t.Errorf("AppendForward: % x", got)
	}
	if err := ParsePublishSame(f, v5, []byte("a/b"), &p); err != nil || !p.Same {
		t.Errorf("%v, same %v", err, p.Same)
	}
	if err := ParsePublishSame(f, v5, []byte("a/c"), &p); err != nil || p.Same {
		t.Errorf("%v, same %v", err, p.Same)
	}
}

func TestPublishPlain(t *testing.T) {
	for _, v := range []herald.Version{herald.V31, v3, v5} {
		parts := []any{text("t")}
		if v == v5 {
			parts = append(parts, 0)
		}
		var p Publish
		if err := ParsePublish(frame(0x31, parts...), v, &p); err != nil {
			t.Fatal(err)
		}
		if p.QoS() != 0 || !p.Retain() || p.PacketID != 0 || p.PacketIDAt != 0 || p.AliasAt != -1 || p.ExpiryAt != -1 ||
			len(p.Payload) != 0 || (p.Properties == nil) != (v != v5) {
			t.Errorf("version %d: %+v", v, p)
		}
	}
}

// TestPublishCut: whatever stands before, between and behind expiry and alias
// goes on.
func TestPublishCut(t *testing.T) {
	user := props{propUser, text("k"), text("v")}
	expiry, alias := props{propMessageExpiry, u32(1)}, props{propTopicAlias, u16(1)}
	for _, order := range [][]props{
		{}, {user}, {expiry}, {alias}, {expiry, alias}, {alias, expiry}, {user, expiry, user, alias, user},
		{alias, user, expiry}, {user, alias}, {expiry, user, user},
	} {
		var in, want props
		for _, p := range order {
			in = append(in, p...)
			if len(p) == len(user) {
				want = append(want, p...)
			}
		}
		var p Publish
		if err := ParsePublish(frame(0x30, text("t"), in), v5, &p); err != nil {
			t.Fatal(err)
		}
		if got := p.AppendForward(nil); !bytes.Equal(got, body(want...)) {
			t.Errorf("% x: % x", p.Properties, got)
		}
	}
}

func TestPublishRefused(t *testing.T) {
	deep := strings.Repeat("a/", herald.MaxLevels-1) + "a"
	verdicts{
		{"plain", frame(0x30, text("topic"), "payload"), v3, 0},
		{"empty payload", frame(0x31, text("topic")), v3, 0},
		{"MQTT-3.3.1-4 QoS 3", frame(0x36, text("topic"), u16(1)), v3, 0x81},
		{"MQTT-3.3.1-2 DUP at QoS 0", frame(0x38, text("topic")), v3, 0x81},
		{"MQTT-2.3.1-1 packet id 0", frame(0x32, text("topic"), u16(0), "p"), v3, 0x82},
		{"MQTT-2.2.1-3 packet id 0", frame(0x34, text("topic"), u16(0), 0, "p"), v5, 0x82},
		{"packet id missing", frame(0x32, text("topic")), v3, 0x81},
		{"packet id cut", frame(0x32, text("topic"), 1), v3, 0x81},
		{"topic length missing", frame(0x30, 0), v3, 0x81},
		{"empty", frame(0x30), v3, 0x81},
		{"topic longer than the packet", frame(0x30, u16(6), "topic"), v3, 0x81},
		{"MQTT-4.7.3-1 empty topic", frame(0x30, text(""), "p"), v3, 0x81},
		{"empty topic without alias", frame(0x30, text(""), 0, "p"), v5, 0x81},
		{"empty topic with alias", frame(0x30, text(""), props{propTopicAlias, u16(1)}, "p"), v5, 0},
		{"MQTT-3.3.2-8 alias 0", frame(0x30, text("t"), props{propTopicAlias, u16(0)}), v5, 0x94},
		{"MQTT-3.3.2-2 +", frame(0x30, text("a/+")), v3, 0x81},
		{"MQTT-3.3.2-2 #", frame(0x30, text("a/#"), 0), v5, 0x81},
		{"wildcard in a long topic", frame(0x30, text("0123456789abcdef+0123456789abcdef"), 0), v5, 0x81},
		{"wildcard beyond ASCII", frame(0x30, text("é/+"), 0), v5, 0x81},
		{"MQTT-4.7.3-2 U+0000", frame(0x30, text("to\x00ic")), v3, 0x81},
		{"MQTT-1.5.4-1 surrogate", frame(0x30, text("to\xed\xa0\x80"), 0), v5, 0x81},
		{"MQTT-1.5.3-1 overlong", frame(0x30, text("to\xc0\xaf")), v3, 0x81},
		{"MQTT-1.5.3-1 cut", frame(0x30, text("to\xc3")), v3, 0x81},
		{"U+0001", frame(0x30, text("to\x01pic"), 0), v5, 0x81},
		{"U+001F", frame(0x30, text("to\x1fpic"), 0), v5, 0x81},
		{"U+007F", frame(0x30, text("to\x7fpic"), 0), v5, 0x81},
		{"U+009F", frame(0x30, text("to\u009fpic"), 0), v5, 0x81},
		{"U+FFFF", frame(0x30, text("to\uffffpic"), 0), v5, 0x81},
		{"U+1FFFE", frame(0x30, text("to\U0001fffepic"), 0), v5, 0x81},
		{"MQTT-1.5.4-3 U+FEFF", frame(0x30, text("\ufefft"), 0), v5, 0},
		{"U+FFFD", frame(0x30, text("\ufffdt"), 0), v5, 0},
		{"U+2A6D4", frame(0x30, text("A\U0002a6d4")), v3, 0},
		{"as many levels as may be", frame(0x30, text(deep), 0), v5, 0},
		{"too many levels", frame(0x30, text(deep+"/a"), 0), v5, 0x81},
		{"properties missing", frame(0x30, text("topic")), v5, 0x81},
		{"MQTT-3.3.4-6 subscription identifier", frame(0x30, text("t"), props{propSubscriptionIdentifier, 1}), v5, 0x82},
		{"MQTT-3.3.2-14 response topic with +", frame(0x30, text("t"), props{propResponseTopic, text("r/+")}), v5, 0x82},
		{"MQTT-3.3.2-14 response topic with #", frame(0x30, text("t"), props{propResponseTopic, text("#")}), v5, 0x82},
		{"MQTT-4.7.3-1 empty response topic", frame(0x30, text("t"), props{propResponseTopic, text("")}), v5, 0x82},
		{"MQTT-3.3.2-13 response topic not UTF-8", frame(0x30, text("t"), props{propResponseTopic, text("\xff")}), v5, 0x81},
		{"MQTT-3.3.2-19 content type not UTF-8", frame(0x30, text("t"), props{propContentType, text("\xff")}), v5, 0x81},
		{"payload format indicator 2", frame(0x30, text("t"), props{propPayloadFormat, 2}), v5, 0x82},
		{"MQTT-1.5.5-1 padded remaining length", []byte{0x30, 0x84, 0, 0, 1, 't', 0}, v5, 0x81},
		{"3.1.1 padded remaining length", []byte{0x30, 0x84, 0, 0, 1, 't', 0}, v3, 0},
	}.run(t)
}

func TestPadded(t *testing.T) {
	var p Publish
	if err := ParsePublish([]byte{0x30, 0x84, 0, 0, 1, 't', 0}, v3, &p); err != nil || !p.Padded {
		t.Errorf("%v, %+v", err, p)
	}
}

// TestPlain compares the word-wise test with its plain meaning, for every byte at
// every place.
func TestPlain(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				b := bytes.Repeat([]byte{'a'}, n)
				b[at] = byte(c)
				if plain(b) == oddByte(byte(c)) {
					t.Fatalf("plain(%q) = %v", b, plain(b))
				}
			}
		}
	}
	for a := range 256 {
		for c := range 256 {
			b := []byte{'x', byte(a), byte(c), 'x', 'x', 'x', 'x', 'x'}
			if plain(b) != (!oddByte(byte(a)) && !oddByte(byte(c))) {
				t.Fatalf("plain(%q) = %v", b, plain(b))
			}
		}
	}
}

// TestCheckTopic: what wire lets pass is a topic to the rest of Herald too.
func TestCheckTopic(t *testing.T) {
	for _, s := range []string{"a", "/", "a/b", "/a", "a/", "é", "$SYS/x", strings.Repeat("a", 65535), strings.Repeat("/", herald.MaxLevels-1),
		"", "+", "#", "a+", "\x00", "\xff", strings.Repeat("/", herald.MaxLevels)} {
		if e := checkTopic([]byte(s)); (e == nil) != herald.ValidTopic(s) {
			t.Errorf("%.20q: %v", s, e)
		}
	}
	for _, s := range []string{"a", "+", "#", "a/+", "a/#", "+/+", "$share/g/a", "$share/g/#", "$SYS/#", "/", "é/+",
		"", "a+", "#/a", "a#", "$share", "$share/", "$share/g", "$share/g/", "$share//t", "$share/g+/t", "\x00", "\xff/#",
		strings.Repeat("/", herald.MaxLevels)} {
		_, _, shared, ok := herald.SplitShare(s)
		got, e := checkFilter([]byte(s))
		if (e == nil) != ok || e == nil && got != shared {
			t.Errorf("%.20q: shared %v, %v", s, got, e)
		}
	}
}
