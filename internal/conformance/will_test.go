package conformance

import "time"

// watched makes a client with a will on topic w and somebody who watches w at QoS 2.
func watched(t *T, w will, o connect) (dying, watcher *client) {
	t.Helper()
	w.topic = t.topic("w")
	if w.payload == "" {
		w.payload = "will"
	}
	o.will = &w
	watcher = t.subscriber(filter{w.topic, 2}, filter{t.topic("fence"), 2})
	return t.client(o), watcher
}

// noWill demands that the watcher has got no will until now.
func noWill(t *T, watcher *client) {
	t.Helper()
	t.anyone().publish(publish{topic: t.topic("fence"), payload: "fence", qos: 1})
	watcher.takePayloads("fence")
	watcher.quiet()
}

var willCases = []scenario{
	{
		name: "will_when_the_connection_breaks", v311: "3.1.2-8 3.1.2-16 3.1.2-10", v5: "3.1.2-8 3.1.2-7 3.1.2-14 3.1.2-10",
		run: func(t *T) {
			for qos := range byte(3) {
				dying, watcher := watched(t, will{qos: qos}, connect{})
				dying.drop()
				if p := watcher.take(); p.payload != "will" || p.qos != qos || p.retain || p.dup {
					t.Fatalf("will %+v, want QoS %d and not retained", p, qos)
				}
				noWill(t, watcher) // once
				if late := t.subscriber(filter{t.topic("w"), 0}); true {
					late.silent() // not retained
				}
				watcher.leave()
			}
		},
	},
	{
		name: "no_will_after_disconnect", v311: "3.14.4-3 3.1.2-10", v5: "3.14.4-3 3.1.2-10 3.1.2-8",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1}, connect{})
			dying.leave()
			noWill(t, watcher)
		},
	},
	{
		name: "no_will_where_there_is_none", v311: "3.1.2-12",
		run: func(t *T) {
			watcher := t.subscriber(filter{t.topic("w"), 2}, filter{t.topic("fence"), 2})
			id := t.id()
			dying := t.client(connect{id: id, keep: true, will: &will{topic: t.topic("w"), payload: "x"}})
			dying.leave()
			t.client(connect{id: id, keep: true}).drop() // the earlier will is not this connection's
			noWill(t, watcher)
		},
	},
	{
		name: "disconnect_with_will", v5: "3.1.2-8 3.14.4-3",
		run: func(t *T) {
			for _, b := range [][]byte{disconnectWith(0x04), {tDisconnect << 4, 1, 0x04}} {
				dying, watcher := watched(t, will{qos: 1}, connect{})
				dying.send(b)
				watcher.takePayloads("will")
				dying.closed()
			}
		},
	},
	{
		name: "will_after_a_protocol_error", v311: "3.1.2-8 4.8.0-1", v5: "3.1.2-8 4.13.1-1", bad: true,
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1}, connect{})
			dying.send(publish{topic: "a/+", qos: 1, id: 1}.bytes(t.v))
			dying.refused(0x81, 0x82, 0x90)
			watcher.takePayloads("will")
		},
	},
	{
		name: "will_on_take_over", v311: "3.1.2-8 3.1.4-2", v5: "3.1.2-8 3.1.4-3",
		run: func(t *T) {
			id := t.id()
			_, watcher := watched(t, will{qos: 1}, connect{id: id})
			t.client(connect{id: id})
			watcher.takePayloads("will")
		},
	},
	{
		name: "retained_will", v311: "3.1.2-17", v5: "3.1.2-15",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1, retain: true}, connect{})
			dying.drop()
			if p := watcher.take(); p.payload != "will" || p.retain {
				t.Fatalf("will %+v, want RETAIN 0 to an established subscription", p)
			}
			late := t.subscriber(filter{t.topic("w"), 2})
			if p := late.take(); p.payload != "will" || !p.retain || p.qos != 1 {
				t.Fatalf("retained will %+v", p)
			}
			t.anyone().publish(publish{topic: t.topic("w"), retain: true})
		},
	},
	{
		name: "will_with_an_empty_payload", v311: "3.1.2-9", v5: "3.1.2-9",
		run: func(t *T) {
			watcher := t.subscriber(filter{t.topic("w"), 0})
			t.client(connect{will: &will{topic: t.topic("w")}}).drop()
			watcher.takePayloads("")
		},
	},
	{
		name: "will_reaches_a_session_that_is_away", v311: "3.1.2-5 4.5.0-1", v5: "4.5.0-1",
		run: func(t *T) {
			id := t.id()
			away := t.client(connect{id: id, keep: true})
			dying, watcher := watched(t, will{qos: 1}, connect{})
			away.subscribe(filter{t.topic("w"), 1})
			away.leave()
			dying.drop()
			watcher.takePayloads("will")
			t.client(connect{id: id, keep: true}).takePayloads("will")
		},
	},
	{
		name: "will_properties_are_passed_on", v5: "3.1.3-10 3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{
				prop8(pPayloadFormat, 1), propStr(pContentType, "text/plain"), propStr(pResponseTopic, "r/t"),
				propStr(pCorrelation, "\x00\xff"), prop32(pExpiry, 100),
				propPair("b", "2"), propPair("a", "1"), propPair("b", "2"), propPair("", ""),
			}}, connect{})
			dying.drop()
			p := watcher.take()
			wantProps(t, p, prop{id: pPayloadFormat, num: 1}, prop{id: pContentType, text: "text/plain"},
				prop{id: pResponseTopic, text: "r/t"}, prop{id: pCorrelation, text: "\x00\xff"},
				prop{id: pExpiry, num: 100},
				prop{id: pUserProperty, text: "b", value: "2"}, prop{id: pUserProperty, text: "a", value: "1"},
				prop{id: pUserProperty, text: "b", value: "2"}, prop{id: pUserProperty})
		},
	},
	{
		name: "will_delay", v5: "3.1.2-8",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 1)}}, connect{expiry: 60})
			dying.drop()
			wantAfter(t, watcher, 900*time.Millisecond, 3*time.Second)
		},
	},
	{
		// The shorter of the two counts.
		name: "will_delay_longer_than_the_session", v5: "3.1.2-8",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 100)}}, connect{expiry: 1})
			dying.drop()
			wantAfter(t, watcher, 900*time.Millisecond, 4*time.Second)
		},
	},
	{
		name: "will_delay_of_a_session_that_ends_with_its_connection", v5: "3.1.2-8",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 100)}}, connect{})
			dying.drop()
			wantAfter(t, watcher, 0, 2*time.Second)
		},
	},
	{
		name: "will_delay_ends_with_disconnect_expiry_0", v5: "3.1.2-8",
		run: func(t *T) {
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 100)}}, connect{expiry: 60})
			dying.send(disconnectWith(0x04, prop32(pSessionExpiry, 0)))
			wantAfter(t, watcher, 0, 2*time.Second)
		},
	},
	{
		name: "will_delay_ends_with_a_clean_start", v5: "3.1.2-8 3.1.2-4",
		run: func(t *T) {
			id := t.id()
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 100)}}, connect{id: id, expiry: 60})
			dying.drop()
			t.client(connect{id: id})
			wantAfter(t, watcher, 0, 2*time.Second)
		},
	},
	{
		name: "will_delay_is_cancelled_by_a_resume", v5: "3.1.3-9",
		run: func(t *T) {
			id := t.id()
			dying, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 1)}}, connect{id: id, expiry: 60})
			dying.drop()
			t.client(connect{id: id, keep: true})
			time.Sleep(1500 * time.Millisecond) // what is observed is that no will comes
			noWill(t, watcher)
		},
	},
	{
		name: "will_delay_is_cancelled_by_a_take_over", v5: "3.1.3-9",
		run: func(t *T) {
			id := t.id()
			_, watcher := watched(t, will{qos: 1, props: [][]byte{prop32(pWillDelay, 1)}}, connect{id: id, expiry: 60})
			t.client(connect{id: id, keep: true})
			time.Sleep(1500 * time.Millisecond) // what is observed is that no will comes
			noWill(t, watcher)
		},
	},
}

// wantAfter demands the will not before and not after so long.
func wantAfter(t *T, watcher *client, low, high time.Duration) {
	t.Helper()
	start := time.Now()
	watcher.takePayloads("will")
	if d := time.Since(start); d < low || d > high {
		t.Fatalf("the will came after %v, want %v to %v", d, low, high)
	}
}
