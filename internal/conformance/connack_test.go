package conformance

import "time"

var connackCases = []scenario{
	{
		name: "session_present", v311: "3.2.2-1 3.2.2-2 3.2.2-3 3.1.2-4 3.1.2-6 3.1.4-3",
		v5: "3.2.2-2 3.2.2-3 3.1.2-4 3.1.2-5 3.1.2-6 3.1.4-4 3.2.2-1",
		run: func(t *T) {
			id := t.id()
			for i, step := range []struct{ keep, present bool }{
				{keep: false, present: false},
				{keep: true, present: false}, // the session before ended with its connection
				{keep: true, present: true},
				{keep: true, present: true},
				{keep: false, present: false}, // discards it
				{keep: true, present: false},
			} {
				c := t.client(connect{id: id, keep: step.keep})
				if c.hello.present != step.present {
					t.Fatalf("step %d: session present %t, want %t", i, c.hello.present, step.present)
				}
				c.leave()
			}
		},
	},
	{
		name: "session_present_without_disconnect", v311: "3.2.2-2 3.2.2-3", v5: "3.2.2-3 3.1.2-23",
		run: func(t *T) {
			id := t.id()
			t.client(connect{id: id, keep: true}).drop()
			if c := t.client(connect{id: id, keep: true}); !c.hello.present {
				t.Fatal("session present 0")
			}
		},
	},
	{
		name: "session_of_a_live_client_is_present", v311: "3.2.2-2 4.1.0-2", v5: "3.2.2-3 4.1.0-1",
		run: func(t *T) {
			id := t.id()
			t.client(connect{id: id, keep: true})
			if c := t.client(connect{id: id, keep: true}); !c.hello.present {
				t.Fatal("session present 0 though the client is connected")
			}
			if c := t.client(connect{id: id}); c.hello.present {
				t.Fatal("session present 1 on a clean start")
			}
		},
	},
	{
		// Clean start 0 and no expiry: the session ends with the connection, but
		// a session that is there is resumed first.
		name: "clean_start_and_expiry_are_two_things", v5: "3.1.2-5 3.1.2-6 4.1.0-2",
		run: func(t *T) {
			id := t.id()
			t.client(connect{id: id, keep: true}).leave()
			c := t.client(connect{id: id, resume: true})
			if !c.hello.present {
				t.Fatal("session present 0")
			}
			c.leave()
			if c := t.client(connect{id: id, resume: true}); c.hello.present {
				t.Fatal("a session without expiry outlived its connection")
			}
			// Clean start 1 with an expiry leaves a session for later.
			id = t.id()
			t.client(connect{id: id, expiry: 60}).leave()
			if c := t.client(connect{id: id, resume: true}); !c.hello.present {
				t.Fatal("session present 0 after clean start 1 with an expiry")
			}
		},
	},
	{
		name: "refusal_has_no_session_present", v311: "3.2.2-4 3.2.2-5", v5: "3.2.2-6 3.2.2-7 3.2.2-8 4.13.2-1",
		run: func(t *T) {
			id := t.id()
			t.client(connect{id: id, keep: true}).leave()
			// A session exists, and still the refusal must not say so.
			c := t.dial()
			switch t.v {
			case V5:
				c.send(connect{id: id, keep: true, props: [][]byte{propStr(pAuthMethod, "none such")}}.bytes(t.v))
				c.unwelcome(0x8C, 0x87)
			default:
				c.send(connect{keep: true}.bytes(t.v))
				c.unwelcome(0x02)
			}
		},
	},
	{
		name: "accepted_connack", v311: "3.1.4-4 3.2.2-1", v5: "3.1.4-5 3.2.2-1 3.2.2-8 4.12.0-6 3.2.0-1",
		run: func(t *T) {
			c := t.anyone()
			for _, id := range []byte{pAuthMethod, pAuthData, pServerReference} {
				if len(find(c.hello.props, id)) > 0 {
					t.Errorf("CONNACK has property 0x%02x", id)
				}
			}
			for id, low := range map[byte]uint32{pReceiveMax: 1, pMaxPacket: 1} {
				if n, ok := number(c.hello.props, id); ok && n < low {
					t.Errorf("property 0x%02x is %d", id, n)
				}
			}
			for _, id := range []byte{pMaxQoS, pRetainAvailable, pWildcardAvail, pSubIDAvail, pSharedAvail} {
				if n, ok := number(c.hello.props, id); ok && n > 1 {
					t.Errorf("property 0x%02x is %d", id, n)
				} else if ok && n == 0 {
					t.Errorf("property 0x%02x says that a feature is missing", id)
				}
			}
		},
	},
	{
		name: "response_information_only_on_request", v5: "3.1.2-28",
		run: func(t *T) {
			for _, props := range [][][]byte{nil, {prop8(pResponseReq, 0)}} {
				c := t.client(connect{props: props})
				if len(find(c.hello.props, pResponseInfo)) > 0 {
					t.Fatal("CONNACK has response information")
				}
			}
			t.client(connect{props: [][]byte{prop8(pResponseReq, 1)}})
		},
	},
	{
		name: "no_reason_strings_without_problem_information", v5: "3.1.2-29",
		run: func(t *T) {
			c := t.client(connect{props: [][]byte{prop8(pProblemInfo, 0)}})
			none := func(a answer) {
				t.Helper()
				if len(find(a.props, pReasonString))+len(find(a.props, pUserProperty)) > 0 {
					t.Errorf("an answer of type %d has properties %v", a.kind, a.props)
				}
			}
			c.send(publish{topic: t.topic("nobody"), qos: 1, id: 1}.bytes(t.v))
			none(c.acked(tPuback, 1))
			c.send(publish{topic: "$SYS/" + t.prefix, qos: 1, id: 2}.bytes(t.v))
			none(c.acked(tPuback, 2))
			c.send(publish{topic: t.topic("nobody"), qos: 2, id: 3}.bytes(t.v))
			none(c.acked(tPubrec, 3))
			c.send(ack(tPubrel, 3))
			none(c.acked(tPubcomp, 3))
			c.send(ack(tPubrel, 77))
			none(c.acked(tPubcomp, 77))
			c.send(unsubscribe(t.v, 4, t.topic("none")))
			none(c.acked(tUnsuback, 4))
		},
	},
	{
		// A server keepalive is announced only where the server imposes one.
		name: "server_keepalive", v5: "3.2.2-22",
		run: func(t *T) {
			if n, ok := number(t.client(connect{keepalive: 30}).hello.props, pServerKeepalive); ok && n != 30 {
				t.Errorf("server keepalive %d for a client that asked for 30", n)
			}
			if !broker.own {
				t.Skip("what the broker imposes is not known")
			}
			for _, asked := range []uint16{120, 0} {
				if n, ok := number(t.client(connect{keepalive: asked}).hello.props, pServerKeepalive); !ok || n != 60 {
					t.Errorf("server keepalive %d for a client that asked for %d, want 60", n, asked)
				}
			}
		},
	},
	{
		name: "refusal_fits_the_maximum_packet_size", v5: "3.2.2-19 3.14.2-3", bad: true,
		run: func(t *T) {
			// 20 bytes hold any CONNACK or DISCONNECT without a reason string.
			c := t.dial()
			c.send(connect{id: t.id(), props: [][]byte{prop32(pMaxPacket, 20), propStr(pAuthMethod, "none such")}}.bytes(t.v))
			if f, err := c.read(patience); err == nil && 2+len(f.body) > 20 {
				t.Errorf("CONNACK of %d bytes", 2+len(f.body))
			}
			c = t.client(connect{props: [][]byte{prop32(pMaxPacket, 60)}})
			c.send(publish{topic: t.topic("+"), qos: 1, id: 1}.bytes(t.v))
			if f, err := c.read(patience); err == nil && 2+len(f.body) > 60 {
				t.Errorf("DISCONNECT of %d bytes", 2+len(f.body))
			}
			c.closed()
		},
	},
	{
		name: "connect_properties_out_of_range", v5: "3.1.4-1 4.13.1-1", bad: true,
		run: func(t *T) {
			for name, props := range map[string][][]byte{
				"receive maximum 0":                  {prop16(pReceiveMax, 0)},
				"maximum packet size 0":              {prop32(pMaxPacket, 0)},
				"request problem information 2":      {prop8(pProblemInfo, 2)},
				"request response information 2":     {prop8(pResponseReq, 2)},
				"session expiry twice":               {prop32(pSessionExpiry, 1), prop32(pSessionExpiry, 1)},
				"receive maximum twice":              {prop16(pReceiveMax, 9), prop16(pReceiveMax, 9)},
				"topic alias maximum twice":          {prop16(pAliasMax, 9), prop16(pAliasMax, 9)},
				"authentication data without method": {propStr(pAuthData, "x")},
				"a property of CONNACK":              {propStr(pAssignedID, "x")},
				"a property of PUBLISH":              {prop16(pAlias, 1)},
				"an unknown property":                {prop8(0x7e, 1)},
				"property 0":                         {prop8(0, 1)},
			} {
				t.Log(name)
				c := t.dial()
				c.send(connect{id: t.id(), props: props}.bytes(t.v))
				c.unwelcome(0x81, 0x82)
			}
		},
	},
	{
		name: "will_properties_out_of_range", v5: "3.1.4-1 4.13.1-1", bad: true,
		run: func(t *T) {
			for name, props := range map[string][][]byte{
				"will delay twice":       {prop32(pWillDelay, 1), prop32(pWillDelay, 1)},
				"payload format 2":       {prop8(pPayloadFormat, 2)},
				"topic alias":            {prop16(pAlias, 1)},
				"subscription id":        {propVar(pSubscriptionID, 1)},
				"session expiry":         {prop32(pSessionExpiry, 1)},
				"response topic with +":  {propStr(pResponseTopic, "a/+")},
				"an unknown property":    {prop8(0x7e, 1)},
				"property that is short": {{pWillDelay, 0, 0}},
			} {
				t.Log(name)
				c := t.dial()
				c.send(connect{id: t.id(), will: &will{topic: t.topic("w"), props: props}}.bytes(t.v))
				c.unwelcome(0x81, 0x82, 0x90)
			}
		},
	},
	{
		name: "session_expires", v5: "4.1.0-2 3.1.2-23",
		run: func(t *T) {
			id := t.id()
			c := t.client(connect{id: id, expiry: 1})
			c.subscribe(filter{t.topic("a"), 1})
			time.Sleep(1500 * time.Millisecond) // only a closed connection counts
			c.ping()
			c.leave()
			c = t.client(connect{id: id, resume: true, expiry: 1})
			if !c.hello.present {
				t.Fatal("the session expired while its client was connected")
			}
			c.leave()
			time.Sleep(2500 * time.Millisecond) // what is observed is that nothing is left
			if c := t.client(connect{id: id, resume: true, expiry: 1}); c.hello.present {
				t.Fatal("the session outlived its expiry")
			}
		},
	},
	{
		name: "disconnect_changes_the_expiry", v5: "4.1.0-2 3.1.2-23",
		run: func(t *T) {
			id := t.id()
			c := t.client(connect{id: id, expiry: 1})
			c.send(disconnectWith(0, prop32(pSessionExpiry, 3600)))
			c.closed()
			time.Sleep(2500 * time.Millisecond) // past the first expiry
			c = t.client(connect{id: id, resume: true, expiry: 3600})
			if !c.hello.present {
				t.Fatal("the expiry of DISCONNECT did not count")
			}
			c.send(disconnectWith(0, prop32(pSessionExpiry, 0)))
			c.closed()
			if c := t.client(connect{id: id, resume: true, expiry: 3600}); c.hello.present {
				t.Fatal("expiry 0 of DISCONNECT did not count")
			}
		},
	},
	{
		name: "disconnect_must_not_raise_an_expiry_of_0", v5: "4.13.1-1", bad: true,
		run: func(t *T) {
			c := t.anyone()
			c.send(disconnectWith(0, prop32(pSessionExpiry, 60)))
			c.refused(0x82)
		},
	},
	{
		name: "session_that_never_expires", v5: "3.1.2-23",
		run: func(t *T) {
			id := t.id()
			t.client(connect{id: id, expiry: 0xffffffff}).leave()
			if c := t.client(connect{id: id, resume: true}); !c.hello.present {
				t.Fatal("session present 0")
			}
		},
	},
}
