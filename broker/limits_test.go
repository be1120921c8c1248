package broker_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/broker/wire"
)

// subscribeAll is a SUBSCRIBE to several filters at QoS 1.
func subscribeAll(v herald.Version, pid uint16, filters ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, pid)
	if v == herald.V5 {
		b = append(b, 0)
	}
	for _, f := range filters {
		b = binary.BigEndian.AppendUint16(b, uint16(len(f)))
		b = append(append(b, f...), 1)
	}
	return append(wire.AppendUvarint([]byte{0x82}, uint32(len(b))), b...)
}

// A client has no more subscriptions than it may: a filter too many is refused, and
// nothing else is. One that is there can be changed, and one that goes makes room, also
// for a session that comes back.
func TestSubscriptionsOfOneClientAreBounded(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Data = t.TempDir()
	cfg.Limits.Subscriptions = 3
	cfg.Listeners = []config.Listener{{Protocol: config.TCP, Address: "127.0.0.1:0"}}
	b, addr, stop := startConfigured(t, cfg)
	defer stop()
	for _, v := range []herald.Version{herald.V5, herald.V311} {
		refused, head := byte(wire.ReasonQuota), 3
		if v != herald.V5 {
			refused, head = 0x80, 2 // [MQTT-3.9.3-2], and no properties
		}
		con := wire.Connect{Version: v, ClientID: []byte{'c', '0' + byte(v)}, SessionExpiry: 600}
		c := connect(t, addr, con)
		wants := func(filters string, codes ...byte) {
			t.Helper()
			c.send(subscribeAll(v, 1, strings.Fields(filters)...))
			if got := c.until(wire.TypeSuback)[head:]; !bytes.Equal(got, codes) {
				t.Errorf("version %d, %s: SUBACK says %#v, want %#v", v, filters, got, codes)
			}
		}
		wants("a a b # $share/g/a c", 1, 1, 1, 1, refused, refused)
		wants("# a", 1, 1)
		wants("d", refused)
		if v == herald.V5 {
			c.send(unsubscribe(2, "a"))
			c.until(wire.TypeUnsuback)
			wants("d e", 1, refused)
		}
		c.conn.Close()
		c = connect(t, addr, con)
		wants("f b", refused, 1)
		c.conn.Close()
	}
	families, err := b.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "herald_subscriptions_refused_total" {
			if n := f.GetMetric()[0].GetCounter().GetValue(); n != 9 {
				t.Errorf("%v filters were counted as refused, want 9", n)
			}
			return
		}
	}
	t.Error("refused filters are not counted")
}
