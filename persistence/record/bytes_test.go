package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// sample has one of everything.
func sample() *persistence.Batch {
	row := persistence.Session{ID: 7, Kind: persistence.Client, Name: "c", Version: herald.V5, Epoch: 2, ExpiryInterval: 300,
		Expires: 1000, Connected: 10, Disconnected: 20, Node: 3, Life: 300}
	return &persistence.Batch{
		Spreads: []persistence.Spread{{
			Messages: []*herald.Message{
				{ID: 1, Publisher: 7, Topic: "a/b", Payload: []byte("x"), QoS: 1},
				{ID: 2, Publisher: 7, Topic: "a/b", Payload: []byte("y"), QoS: 2, Properties: []byte{1, 1}, Expires: 99},
			},
			Targets: []persistence.Target{{Session: 7, QoS: 1}, {Session: 8, QoS: 2, Retain: true, Identifiers: []uint32{1, 300}}},
		}},
		Retain:      []*herald.Message{{ID: 3, Topic: "r", Payload: []byte("z"), Retain: true}},
		Held:        []persistence.Held{{Session: 7, PacketID: 5, ID: 2}},
		Sent:        []persistence.Sent{{Session: 8, PacketID: 6, ID: 2, Step: 1, Source: 9}},
		Marks:       []persistence.Mark{{Session: 8, Low: 1, Above: []herald.ID{2, 300}}},
		Sessions:    []persistence.Session{row},
		Subscribe:   []persistence.SubscriptionOf{{Session: 7, Subscription: persistence.Subscription{Filter: "a/#", QoS: 1, NoLocal: true, RetainHandling: 2, Identifier: 9, RetainedUpTo: 4, RetainedAfter: "a"}}},
		Unsubscribe: []persistence.FilterOf{{Session: 7, Filter: "b"}},
		Wills:       []persistence.Will{{Session: 7, Client: "c", Delay: 5, Due: 50, Node: 3, Life: 300, Message: herald.Message{ID: 4, Topic: "w", Payload: []byte("bye")}}},
		WillsGone:   []herald.SessionID{8},
		Delete:      []persistence.Session{row},
	}
}

// What is stored must be read by every later release: whoever changes these bytes
// has to give them another version, and a way to read the old ones.
func TestBytesStayWhatTheyAre(t *testing.T) {
	m := &herald.Message{ID: 1, Publisher: 7, Topic: "a/b", Payload: []byte("x"), QoS: 1, Expires: 99}
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"batch", AppendBatch(nil, sample()), "" +
			"010102210000000000000001000000000000000703612f6201787a00000000000000020000000000000007c601020101017902000000" +
			"00000000070100000000000000080e0201ac0202010400000000000000030172017a0301000000000000000700050000000000000002" +
			"04010000000000000008000600000000000000020100000000000000090501000000000000000800000000000000010201aa02060101" +
			"00000000000000070005016302ac02d00f142803ac020701000000000000000703612f2301e509000000000000000401610801000000" +
			"0000000007016209010100000000000000070163056403ac020000000000000000040177036279650a0100000000000000080b010100" +
			"000000000000070005016302ac02d00f142803ac0200"},
		{"entry", AppendEntry(nil, m, 2, false, nil, false), "0100013100000000000000010000000000000007c60103612f620178"},
		{"expiring entry", AppendExpiringEntry(nil, m, 0, true, []uint32{300}, false), "0102c6010c01ac023100000000000000010000000000000007c60103612f620178"},
		{"pointer", AppendEntry(nil, m, 2, false, nil, true), "010101"},
		{"expiring pointer", AppendExpiringEntry(nil, m, 2, false, nil, true), "0103c60101"},
		{"ban", AppendBan(nil, &persistence.BanChange{Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: persistence.BanUsername, Who: "u"}, Reason: "r", By: "b", Since: 10, Until: 20}}), "0100020175142801720162"},
		{"ban removed", AppendBan(nil, &persistence.BanChange{Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: persistence.BanAddress, Who: "a"}}, Gone: true}), "0101030161"},
		{"batch with a ban", AppendBatch(nil, &persistence.Batch{Bans: []persistence.BanChange{{Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: persistence.BanClient, Who: "c"}}}}}), "0c0101000101630000000000"},
		{"empty batch", AppendBatch(nil, &persistence.Batch{}), "00"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.what, got, c.want)
		}
	}
}

func TestEntriesAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &herald.Message{ID: 1, Topic: "a/b", Payload: []byte("x"), QoS: rapid.ByteMax(2).Draw(t, "its qos"),
			Expires: rapid.Int64Min(0).Draw(t, "expires")}
		qos, retain, pointer := rapid.ByteMax(2).Draw(t, "qos"), rapid.Bool().Draw(t, "retain"), rapid.Bool().Draw(t, "pointer")
		ids := rapid.SliceOfN(rapid.Uint32(), 1, 3).Draw(t, "identifiers")
		expires, row := int64(0), AppendEntry(nil, m, qos, retain, ids, pointer)
		if rapid.Bool().Draw(t, "expiring") {
			expires, row = m.Expires, AppendExpiringEntry(nil, m, qos, retain, ids, pointer)
		}
		want := persistence.Entry{QoS: min(qos, m.QoS), Retain: retain, Identifiers: ids, Message: m}
		if pointer {
			want.Message = nil
		}
		got, err := DecodeEntry(row)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		p, e, err := EntryHead(row)
		if p != pointer || e != expires || err != nil || IsPointer(row) != pointer {
			t.Fatalf("head %v, %d, %v; want %v, %d", p, e, err, pointer, expires)
		}
		if _, err = DecodeEntry(row[:rapid.IntRange(0, len(row)-1).Draw(t, "cut")]); !errors.Is(err, herald.ErrCorrupt) {
			t.Fatalf("an entry that was cut off: %v", err)
		}
	})
}

// A row of a later release is refused, not misread.
func TestUnknownVersion(t *testing.T) {
	b := sample()
	rows := map[string][]byte{
		"session":      AppendSession(nil, &b.Sessions[0]),
		"subscription": AppendSubscription(nil, &b.Subscribe[0].Subscription),
		"will":         AppendWill(nil, &b.Wills[0]),
		"entry":        AppendEntry(nil, b.Retain[0], 0, false, nil, false),
		"message":      AppendMessage([]byte{V1}, b.Retain[0], nil),
		"ban":          AppendBan(nil, &persistence.BanChange{Ban: persistence.Ban{BanKey: persistence.BanKey{Kind: persistence.BanClient}}}),
	}
	for what, row := range rows {
		for version := range 3 {
			row[0] = byte(version)
			d := Decoder{B: row}
			switch what {
			case "session":
				d.Session()
			case "subscription":
				d.Subscription()
			case "will":
				d.Will()
			case "ban":
				d.Ban()
			case "entry":
				_, d.Err = DecodeEntry(row)
			case "message":
				_, d.Err = DecodeMessage(row)
			}
			if (d.Err == nil) != (version == V1) || d.Err != nil && !errors.Is(d.Err, herald.ErrCorrupt) {
				t.Errorf("%s of version %d: %v", what, version, d.Err)
			}
		}
	}
}

// A store keeps what is decoded for as long as it likes, and reads the next row
// into the same slice.
func TestNothingPointsIntoTheInput(t *testing.T) {
	row := AppendBatch(nil, sample())
	in := bytes.Clone(row)
	d := Decoder{B: in}
	got := d.Batch()
	clear(in)
	if again := AppendBatch(nil, got); !bytes.Equal(again, row) {
		t.Errorf("after the input was overwritten:\n got %x\nwant %x", again, row)
	}
}

func publishes() *persistence.Batch {
	msgs := make([]*herald.Message, 200)
	for i := range msgs {
		msgs[i] = &herald.Message{ID: herald.ID(i + 1), Publisher: 1, Topic: "bench/topic", Payload: make([]byte, 64), QoS: 1}
	}
	return &persistence.Batch{Spreads: []persistence.Spread{{Messages: msgs, Targets: []persistence.Target{{Session: 1, QoS: 1}}}}}
}

func TestAppendAllocatesNothing(t *testing.T) {
	all, run := sample(), publishes()
	buf := make([]byte, 0, 64<<10)
	if n := testing.AllocsPerRun(100, func() { buf = AppendBatch(AppendBatch(buf[:0], all), run) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkAppendBatch is what an embedded store's commit does under the lock.
func BenchmarkAppendBatch(b *testing.B) {
	bt := publishes()
	var buf []byte
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		buf = AppendBatch(buf[:0], bt)
		n += len(bt.Spreads[0].Messages)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
}
