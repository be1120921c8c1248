package wire

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/herald-mqtt/herald"
)

func TestConnect(t *testing.T) {
	f := frame(0x10, text("MQTT"), 5, 0xf6, u16(30),
		props{propSessionExpiry, u32(60), propReceiveMaximum, u16(5), propMaximumPacketSize, u32(100), propTopicAliasMaximum, u16(9),
			propRequestResponseInfo, 1, propRequestProblemInfo, 0, propUser, text("k"), text("v"), propAuthMethod, text("m"), propAuthData, text("d")},
		text("id"), props{propContentType, text("c"), propWillDelay, u32(3), propUser, text("k"), text("v"), propMessageExpiry, u32(4)},
		text("will/t"), text("bye"), text("user"), text("\x00pass"))
	c, err := CheckConnect(f)
	if err != nil {
		t.Fatal(err)
	}
	want := Connect{
		Version: v5, Clean: true, Keepalive: 30, ClientID: []byte("id"),
		HasUsername: true, HasPassword: true, Username: []byte("user"), Password: []byte("\x00pass"),
		Properties: c.Properties, HasSessionExpiry: true, SessionExpiry: 60, ReceiveMaximum: 5, MaximumPacketSize: 100,
		TopicAliasMaximum: 9, RequestResponseInfo: true, HasAuth: true, AuthMethod: []byte("m"), AuthData: []byte("d"),
		HasWill: true, WillQoS: 2, WillRetain: true, WillTopic: []byte("will/t"), WillPayload: []byte("bye"),
		WillDelay: 3, HasWillExpiry: true, WillExpiry: 4,
		WillProperties: body(propContentType, text("c"), propUser, text("k"), text("v")),
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	c, err = CheckConnect(frame(0x10, text("MQTT"), 5, 0, u16(0), 0, text("")))
	if err != nil || c.ReceiveMaximum != 65535 || !c.RequestProblemInfo || c.HasSessionExpiry || c.MaximumPacketSize != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestConnectAgain: AppendConnect says what CheckConnect has read.
func TestConnectAgain(t *testing.T) {
	for _, f := range [][]byte{
		frame(0x10, text("MQTT"), 4, 2, u16(10), text("p")),
		frame(0x14, text("MQIsdp"), 3, 0xc3, u16(10), text("p"), text("user")),
		frame(0x10, text("MQTT"), 4, 0xee, u16(10), text("p"), text("t"), text(""), text("u"), text("")),
		frame(0x10, text("MQTT"), 5, 0x42, u16(10), props{propSessionExpiry, u32(1)}, text(""), text("pw")),
		frame(0x10, text("MQTT"), 5, 0x2c, u16(10), 0, text("p"), props{propWillDelay, u32(2), propPayloadFormat, 1}, text("t"), text("m")),
	} {
		c, err := CheckConnect(f)
		if err != nil {
			t.Fatalf("% x: %v", f, err)
		}
		b := AppendConnect(nil, &c)
		again, err := CheckConnect(b)
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("% x\n% x: %v\n%+v\n%+v", f, b, err, c, again)
		}
	}
}

func TestConnectRefused(t *testing.T) {
	const answered = true
	mqtt, isdp := text("MQTT"), text("MQIsdp")
	for _, c := range []struct {
		name  string
		frame []byte
		v     herald.Version // in which it is answered
		want  byte
		said  bool // a CONNACK can be sent
	}{
		{"plain", frame(0x10, mqtt, 4, 2, u16(10), text("p")), v3, 0, answered},
		{"MQTT 3.1", frame(0x10, isdp, 3, 2, u16(10), text("p")), herald.V31, 0, answered},
		{"MQTT 3.1, flags", frame(0x1f, isdp, 3, 3, u16(10), text("p")), herald.V31, 0, answered},
		{"MQTT 3.1, user name and password missing", frame(0x10, isdp, 3, 0xc2, u16(10), text("p")), herald.V31, 0, answered},
		{"MQTT 3.1, long client id", frame(0x10, isdp, 3, 2, u16(10), text("0123456789012345678901234567")), herald.V31, 0, answered},
		{"MQTT 3.1, empty client id", frame(0x10, isdp, 3, 2, u16(10), text("")), herald.V31, 0x85, answered},
		{"MQTT-3.1.3-6 empty client id", frame(0x10, mqtt, 4, 2, u16(10), text("")), v3, 0, answered},
		{"MQTT-3.1.3-8 empty client id, session kept", frame(0x10, mqtt, 4, 0, u16(10), text("")), v3, 0x85, answered},
		{"MQTT-3.1.3-6 empty client id, 5", frame(0x10, mqtt, 5, 0, u16(10), 0, text("")), v5, 0, answered},
		{"MQTT-3.1.0-1 not a CONNECT", frame(0xc0), 0, 0x82, false},
		{"MQTT-3.1.0-1 a PUBLISH", frame(0x30, mqtt, 4, 2, u16(10), text("p")), 0, 0x82, false},
		{"MQTT-3.1.2-1 protocol name", frame(0x10, text("MQTU"), 4, 2, u16(10), text("p")), 0, 0x84, false},
		{"protocol name cut", frame(0x10, text("MQT"), 4, 2, u16(10), text("p")), 0, 0x84, false},
		{"HTTP", []byte("\x10GET / HTTP/1.1\r\n"), 0, 0x81, false},
		{"MQTT-3.1.2-2 level 0", frame(0x10, isdp, 0, 2, u16(10), text("p")), v3, 0x84, answered},
		{"MQTT-3.1.2-2 level 3 under the new name", frame(0x10, mqtt, 3, 2, u16(10), text("p")), v3, 0x84, answered},
		{"MQTT-3.1.2-2 level 4 under the old name", frame(0x10, isdp, 4, 2, u16(10), text("p")), v3, 0x84, answered},
		{"MQTT-3.1.2-2 level 6", frame(0x10, mqtt, 6, 2, u16(10), text("p")), v3, 0x84, answered},
		{"MQTT-3.1.2-2 a mosquitto bridge", frame(0x10, mqtt, 0x84, 2, u16(10), text("p")), v3, 0x84, answered},
		{"MQTT-2.2.2-2 flags", frame(0x12, mqtt, 4, 2, u16(10), text("p")), v3, 0x81, false},
		{"MQTT-2.1.3-1 flags", frame(0x11, mqtt, 5, 2, u16(10), 0, text("p")), v5, 0x81, answered},
		{"MQTT-3.1.2-3 reserved flag", frame(0x10, mqtt, 4, 3, u16(10), text("p")), v3, 0x81, false},
		{"MQTT-3.1.2-3 reserved flag, 5", frame(0x10, mqtt, 5, 3, u16(10), 0, text("p")), v5, 0x81, answered},
		{"MQTT-3.1.2-13 will QoS without a will", frame(0x10, mqtt, 4, 0x0a, u16(10), text("p")), v3, 0x81, false},
		{"MQTT-3.1.2-11 will QoS without a will, 5", frame(0x10, mqtt, 5, 0x0a, u16(10), 0, text("p")), v5, 0x81, answered},
		{"MQTT-3.1.2-15 will retain without a will", frame(0x10, mqtt, 4, 0x22, u16(10), text("p")), v3, 0x81, false},
		{"MQTT-3.1.2-13 will retain without a will, 5", frame(0x10, mqtt, 5, 0x22, u16(10), 0, text("p")), v5, 0x81, answered},
		{"MQTT-3.1.2-14 will QoS 3", frame(0x10, mqtt, 4, 0x1e, u16(10), text("p"), text("t"), text("m")), v3, 0x81, false},
		{"MQTT-3.1.2-12 will QoS 3, 5", frame(0x10, mqtt, 5, 0x1e, u16(10), 0, text("p"), 0, text("t"), text("m")), v5, 0x81, answered},
		{"MQTT-3.1.2-9 will missing", frame(0x10, mqtt, 4, 6, u16(10), text("p")), v3, 0x81, false},
		{"MQTT-3.1.2-9 will message missing", frame(0x10, mqtt, 4, 6, u16(10), text("p"), text("t")), v3, 0x81, false},
		{"empty will message", frame(0x10, mqtt, 4, 6, u16(10), text("p"), text("t"), text("")), v3, 0, answered},
		{"MQTT-3.1.3-10 will topic not UTF-8", frame(0x10, mqtt, 4, 6, u16(10), text("p"), text("\xff"), text("m")), v3, 0x81, false},
		{"MQTT-3.1.3-11 will topic with U+0000", frame(0x10, mqtt, 5, 6, u16(10), 0, text("p"), 0, text("a\x00"), text("m")), v5, 0x81, answered},
		{"MQTT-4.7.1-1 wildcard in a will topic", frame(0x10, mqtt, 4, 6, u16(10), text("p"), text("a/#"), text("m")), v3, 0x90, false},
		{"MQTT-4.7.0-1 wildcard in a will topic, 5", frame(0x10, mqtt, 5, 6, u16(10), 0, text("p"), 0, text("+"), text("m")), v5, 0x90, answered},
		{"MQTT-4.7.3-1 empty will topic", frame(0x10, mqtt, 5, 6, u16(10), 0, text("p"), 0, text(""), text("m")), v5, 0x90, answered},
		{"will response topic", frame(0x10, mqtt, 5, 6, u16(10), 0, text("p"), props{propResponseTopic, text("#")}, text("t"), text("m")), v5, 0x82, answered},
		{"MQTT-3.1.3-4 client id not UTF-8", frame(0x10, mqtt, 4, 2, u16(10), text("\xed\xa0\x80")), v3, 0x81, false},
		{"MQTT-3.1.3-4 client id not UTF-8, 5", frame(0x10, mqtt, 5, 2, u16(10), 0, text("to\x01")), v5, 0x81, answered},
		{"client id with wildcards", frame(0x10, mqtt, 4, 2, u16(10), text("a+b#")), v3, 0, answered},
		{"MQTT-3.1.3-3 client id missing", frame(0x10, mqtt, 4, 2, u16(10)), v3, 0x81, false},
		{"MQTT-3.1.3-11 user name not UTF-8", frame(0x10, mqtt, 4, 0x82, u16(10), text("p"), text("\xff")), v3, 0x81, false},
		{"MQTT-3.1.2-19 user name missing", frame(0x10, mqtt, 4, 0x82, u16(10), text("p")), v3, 0x81, false},
		{"MQTT-3.1.2-17 user name missing, 5", frame(0x10, mqtt, 5, 0x82, u16(10), 0, text("p")), v5, 0x81, answered},
		{"MQTT-3.1.2-18 user name without flag", frame(0x10, mqtt, 4, 2, u16(10), text("p"), text("u")), v3, 0x81, false},
		{"MQTT-3.1.2-16 user name without flag, 5", frame(0x10, mqtt, 5, 2, u16(10), 0, text("p"), text("u")), v5, 0x81, answered},
		{"MQTT-3.1.2-20 password without flag", frame(0x10, mqtt, 4, 0x82, u16(10), text("p"), text("u"), text("w")), v3, 0x81, false},
		{"MQTT-3.1.2-21 password missing", frame(0x10, mqtt, 4, 0xc2, u16(10), text("p"), text("u")), v3, 0x81, false},
		{"MQTT-3.1.2-22 password without user name", frame(0x10, mqtt, 4, 0x42, u16(10), text("p"), text("w")), v3, 0x81, false},
		{"password without user name, 5", frame(0x10, mqtt, 5, 0x42, u16(10), 0, text("p"), text("w")), v5, 0, answered},
		{"receive maximum 0", frame(0x10, mqtt, 5, 2, u16(10), props{propReceiveMaximum, u16(0)}, text("p")), v5, 0x82, answered},
		{"maximum packet size 0", frame(0x10, mqtt, 5, 2, u16(10), props{propMaximumPacketSize, u32(0)}, text("p")), v5, 0x82, answered},
		{"request problem information 2", frame(0x10, mqtt, 5, 2, u16(10), props{propRequestProblemInfo, 2}, text("p")), v5, 0x82, answered},
		{"request response information 2", frame(0x10, mqtt, 5, 2, u16(10), props{propRequestResponseInfo, 2}, text("p")), v5, 0x82, answered},
		{"authentication data without method", frame(0x10, mqtt, 5, 2, u16(10), props{propAuthData, text("d")}, text("p")), v5, 0x82, answered},
		{"properties missing", frame(0x10, mqtt, 5, 2, u16(10)), v5, 0x81, answered},
		{"header cut", frame(0x10, mqtt, 4, 2, 0), 0, 0x81, false},
		{"MQTT-1.5.5-1 padded", append([]byte{0x10, 0x8e, 0}, body(mqtt, 5, 2, u16(10), 0, text("p"))...), v5, 0x81, answered},
		{"3.1.1 padded", append([]byte{0x10, 0x8d, 0}, body(mqtt, 4, 2, u16(10), text("p"))...), v3, 0, answered},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := CheckConnect(c.frame)
			if r := reason(t, err); r != c.want || got.Version != c.v {
				t.Errorf("reason %#x (%v) in version %d, want %#x in %d", r, err, got.Version, c.want, c.v)
			}
			if ack := AppendConnack(nil, got.Version, false, c.want, nil); (len(ack) > 0) != c.said {
				t.Errorf("answered with % x", ack)
			}
		})
	}
	// No CONNECT survives being cut.
	whole := frame(0x10, mqtt, 5, 0xf6, u16(30), props{propSessionExpiry, u32(60)}, text("id"), props{propWillDelay, u32(3)},
		text("t"), text("m"), text("u"), text("p"))
	for n := range whole {
		if _, err := CheckConnect(whole[:n]); err == nil {
			t.Errorf("accepted when cut to %d bytes", n)
		}
		if n >= 2 {
			cut := bytes.Clone(whole[:n])
			cut[1] = byte(n - 2)
			if _, err := CheckConnect(cut); err == nil {
				t.Errorf("accepted with %d bytes", n)
			}
		}
	}
}

func TestDropUserProperties(t *testing.T) {
	user := props{propUser, text("k"), text("v")}
	whole := frame(0x10, text("MQTT"), 5, 2, u16(30), append(append(props{}, user...), append(props{propSessionExpiry, u32(60)}, user...)...), text("id"))
	c, err := CheckConnect(whole)
	if err != nil {
		t.Fatal(err)
	}
	c.DropUserProperties()
	want := frame(0x10, text("MQTT"), 5, 2, u16(30), props{propSessionExpiry, u32(60)}, text("id"))
	if got := AppendConnect(nil, &c); !bytes.Equal(got, want) {
		t.Errorf("got  % x\nwant % x", got, want)
	}
}
