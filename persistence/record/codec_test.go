package record

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// anyBatch generates batches with everything that the encoding keeps.
func anyBatch() *rapid.Generator[*persistence.Batch] {
	ids := rapid.Map(rapid.Uint64Min(1), func(v uint64) herald.ID { return herald.ID(v) })
	sessions := rapid.Map(rapid.Uint64(), func(v uint64) herald.SessionID { return herald.SessionID(v) })
	qos := rapid.ByteMax(2)
	text := rapid.OneOf(rapid.SampledFrom([]string{"a", "a/b", ""}), rapid.StringN(0, 20, 40))
	body := rapid.SliceOfN(rapid.Byte(), 0, 40)
	msg := rapid.Custom(func(t *rapid.T) *herald.Message {
		return &herald.Message{ID: ids.Draw(t, "id"), Publisher: sessions.Draw(t, "publisher"), Topic: text.Draw(t, "topic"),
			Properties: body.Draw(t, "properties"), Payload: body.Draw(t, "payload"), Expires: rapid.Int64Min(0).Draw(t, "expires"),
			QoS: qos.Draw(t, "qos"), Retain: rapid.Bool().Draw(t, "retain")}
	})
	msgs := rapid.SliceOfN(msg, 0, 4)
	return rapid.Custom(func(t *rapid.T) *persistence.Batch {
		b := &persistence.Batch{Retain: msgs.Draw(t, "retain")}
		for range rapid.IntRange(0, 2).Draw(t, "spreads") {
			b.Spreads = append(b.Spreads, persistence.Spread{Messages: msgs.Draw(t, "messages"),
				Targets: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) persistence.Target {
					return persistence.Target{Session: sessions.Draw(t, "session"), QoS: qos.Draw(t, "qos"), Retain: rapid.Bool().Draw(t, "retain"),
						Identifiers: rapid.SliceOfN(rapid.Uint32(), 0, 3).Draw(t, "identifiers")}
				}), 0, 4).Draw(t, "targets")})
		}
		for range rapid.IntRange(0, 2).Draw(t, "others") {
			s, pid := sessions.Draw(t, "session"), rapid.Uint16().Draw(t, "packet id")
			b.Held = append(b.Held, persistence.Held{Session: s, PacketID: pid, ID: ids.Draw(t, "id")})
			b.Sent = append(b.Sent, persistence.Sent{Session: s, PacketID: pid, ID: ids.Draw(t, "id"), Source: sessions.Draw(t, "source"),
				Step: persistence.Step(qos.Draw(t, "step"))})
			low := herald.ID(rapid.Uint32().Draw(t, "low"))
			b.Marks = append(b.Marks, persistence.Mark{Session: s, Low: low, Above: []herald.ID{low + 1, low + 1<<40}})
			row := persistence.Session{ID: s, Kind: persistence.Kind(rapid.ByteMax(1).Draw(t, "kind")), Name: text.Draw(t, "name"), Version: herald.V5,
				Epoch: rapid.Uint64().Draw(t, "epoch"), ExpiryInterval: rapid.Uint32().Draw(t, "interval"), Expires: rapid.Int64().Draw(t, "expires"),
				Connected: rapid.Int64().Draw(t, "connected"), Disconnected: rapid.Int64().Draw(t, "disconnected"),
				Node: rapid.Uint16().Draw(t, "node"), Life: rapid.Uint64().Draw(t, "life")}
			b.Sessions = append(b.Sessions, row)
			b.Delete = append(b.Delete, row)
			b.Subscribe = append(b.Subscribe, persistence.SubscriptionOf{Session: s, Subscription: persistence.Subscription{Filter: text.Draw(t, "filter"),
				QoS: qos.Draw(t, "qos"), NoLocal: rapid.Bool().Draw(t, "no local"), RetainAsPublished: rapid.Bool().Draw(t, "as published"),
				RetainHandling: qos.Draw(t, "handling"), Identifier: rapid.Uint32().Draw(t, "identifier"),
				RetainedAfter: text.Draw(t, "after"), RetainedUpTo: ids.Draw(t, "up to")}})
			b.Unsubscribe = append(b.Unsubscribe, persistence.FilterOf{Session: s, Filter: text.Draw(t, "filter")})
			b.Wills = append(b.Wills, persistence.Will{Session: s, Client: text.Draw(t, "client"), Message: *msg.Draw(t, "will"),
				Delay: rapid.Uint32().Draw(t, "delay"), Due: rapid.Int64().Draw(t, "due"),
				Node: rapid.Uint16().Draw(t, "keeper"), Life: rapid.Uint64().Draw(t, "its life")})
			b.WillsGone = append(b.WillsGone, s)
			ban := persistence.BanChange{Ban: persistence.Ban{BanKey: persistence.BanKey{
				Kind: persistence.BanKind(rapid.ByteRange(1, 3).Draw(t, "kind of ban")), Who: text.Draw(t, "who")}}, Gone: rapid.Bool().Draw(t, "gone")}
			if !ban.Gone {
				ban.Reason, ban.By = text.Draw(t, "reason"), text.Draw(t, "by")
				ban.Since, ban.Until = rapid.Int64().Draw(t, "since"), rapid.Int64().Draw(t, "until")
			}
			b.Bans = append(b.Bans, ban)
		}
		return b
	})
}

func TestBatchesAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(anyBatch(), 1, 3).Draw(t, "batches")
		var b []byte
		for _, bt := range all {
			b = AppendBatch(b, bt)
		}
		d := Decoder{B: b}
		for i, want := range all {
			got := d.Batch()
			if d.Err != nil {
				t.Fatal(d.Err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("batch %d (-want +got):\n%s", i, diff)
			}
		}
		if len(d.B) != 0 {
			t.Fatalf("%d bytes are left", len(d.B))
		}
		// What is cut off is an error, not a panic, nor half a batch.
		cut := Decoder{B: AppendBatch(nil, all[0])}
		cut.B = cut.B[:rapid.IntRange(0, len(cut.B)-1).Draw(t, "cut")]
		if cut.Batch(); cut.Err == nil {
			t.Fatal("a batch that was cut off decodes")
		}
	})
}

// FuzzBatch feeds a Decoder what it could only get from a damaged disk or database.
func FuzzBatch(f *testing.F) {
	f.Add(AppendBatch(nil, &persistence.Batch{}))
	for i := range 20 {
		f.Add(AppendBatch(nil, anyBatch().Example(i)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := Decoder{B: b}
		for len(d.B) > 0 && d.Err == nil {
			d.Batch()
		}
		for _, read := range []func(d *Decoder){
			func(d *Decoder) { d.Session() }, func(d *Decoder) { d.Subscription() }, func(d *Decoder) { d.Will() },
			func(d *Decoder) { d.Mark() }, func(d *Decoder) { d.how() }, func(d *Decoder) { d.Ban() },
			func(d *Decoder) { _, _ = DecodeEntry(d.B) }, func(d *Decoder) { _, _ = DecodeMessage(d.B) },
			func(d *Decoder) { _, _, _ = EntryHead(d.B) },
		} {
			read(&Decoder{B: b})
		}
	})
}

// Whoever reads fields of their own is kept within the bytes that there are, and the
// first thing that does not fit stands in Err, whatever is read after it.
func TestDecoderIsBounded(t *testing.T) {
	for name, read := range map[string]func(*Decoder) bool{
		"take":   func(d *Decoder) bool { return d.Take(4) == nil },
		"bytes":  func(d *Decoder) bool { return d.Bytes() == nil },
		"string": func(d *Decoder) bool { return d.String() == "" },
		"count":  func(d *Decoder) bool { return d.Count(1) == 0 },
		"uint64": func(d *Decoder) bool { return d.Uint64() == 0 },
	} {
		d := Decoder{B: []byte{9, 1, 2}}
		if !read(&d) || !errors.Is(d.Err, herald.ErrCorrupt) || len(d.B) > 0 {
			t.Errorf("%s beyond the end: %v, %d bytes left", name, d.Err, len(d.B))
		}
		first := d.Err
		if d.Fail("later"); d.Take(0) != nil || d.Byte() != 0 || d.Uvarint() != 0 || d.Varint() != 0 || !errors.Is(d.Err, first) {
			t.Errorf("%s: after the error something is read, or it is another", name)
		}
	}
	d := Decoder{B: []byte{2, 1, 2}}
	if b := d.Bytes(); len(b) != 2 || cap(b) != 2 || d.Err != nil {
		t.Errorf("%v with room for %d, %v", b, cap(b), d.Err)
	}
}
