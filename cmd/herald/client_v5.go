package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// client5 speaks MQTT 5.
type client5 struct {
	c       *connection
	paho    *paho.Client
	session *ackSession
	lost    chan error
}

// ackSession lets the receiver decide what is acknowledged, and tells it when
// that was written. paho calls the handler and then Ack, both on one goroutine.
type ackSession struct {
	*state.State
	last verdict
}

func (s *ackSession) Ack(p *packets.Publish) error {
	v := s.last
	if !v.acknowledge {
		return nil
	}
	var err error
	if p.QoS > 0 {
		err = s.State.Ack(p)
	}
	if v.then != nil {
		v.then()
	}
	return err
}

func connect5(ctx context.Context, c *connection) (client, error) {
	conn, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	if _, tcp := conn.(*net.TCPConn); !tcp {
		conn = packets.NewThreadSafeConn(conn)
	}
	cl := &client5{c: c, session: &ackSession{State: state.NewInMemory()}, lost: make(chan error, 1)}
	cl.paho = paho.NewClient(paho.ClientConfig{
		Conn: conn, Session: cl.session, PacketTimeout: c.timeout,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			cl.session.last = verdict{acknowledge: true}
			if c.receive != nil {
				p := r.Packet
				cl.session.last = c.receive(message{
					topic: p.Topic, payload: p.Payload, qos: p.QoS, retain: p.Retain, dup: p.Duplicate(),
					packetID: p.PacketID, props: fromPublish(p.Properties),
				})
			}
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) {
			report(cl.lost, fmt.Errorf("disconnected by the broker: %s", reason5((&packets.Disconnect{ReasonCode: d.ReasonCode}).Reason(), d.ReasonCode, disconnectReason(d))))
		},
		OnClientError: func(err error) { report(cl.lost, fmt.Errorf("connection lost: %w", err)) },
	})
	ack, err := cl.paho.Connect(ctx, cl.connectPacket())
	if err != nil {
		if ack != nil && ack.ReasonCode >= 0x80 {
			var why string
			if ack.Properties != nil {
				why = ack.Properties.ReasonString
			}
			err = fmt.Errorf("connection refused: %s", reason5((&packets.Connack{ReasonCode: ack.ReasonCode}).Reason(), ack.ReasonCode, why))
		}
		return nil, errors.Join(err, cl.session.Close())
	}
	return cl, nil
}

func disconnectReason(d *paho.Disconnect) string {
	if d.Properties == nil {
		return ""
	}
	return d.Properties.ReasonString
}

// reason5 writes a reason code: what the broker says, or else its meaning.
func reason5(meaning string, code byte, said string) string {
	if said != "" {
		meaning = said
	}
	return fmt.Sprintf("%s (0x%02X)", meaning, code)
}

func (cl *client5) connectPacket() *paho.Connect {
	c := cl.c
	p := &paho.Connect{
		ClientID: c.id, KeepAlive: c.keepalive, CleanStart: !c.resume,
		Username: c.username, UsernameFlag: c.usernameGiven,
		Password: []byte(c.password), PasswordFlag: c.passwordGiven,
		Properties: c.parsed["connect"].connect(),
	}
	if c.sessionExpiry > 0 && p.Properties.SessionExpiryInterval == nil {
		p.Properties.SessionExpiryInterval = &c.sessionExpiry
	}
	if c.willTopic != "" {
		p.WillMessage = &paho.WillMessage{Topic: c.willTopic, Payload: []byte(c.willPayload), QoS: c.willQoS, Retain: c.willRetain}
		p.WillProperties = c.parsed["will"].will()
	}
	return p
}

func (cl *client5) Publish(ctx context.Context, m message) error {
	r, err := cl.paho.Publish(ctx, &paho.Publish{
		Topic: m.topic, Payload: m.payload, QoS: m.qos, Retain: m.retain, Properties: m.props.publish(),
	})
	if r != nil && r.ReasonCode >= 0x80 {
		var why string
		if r.Properties != nil {
			why = r.Properties.ReasonString
		}
		return fmt.Errorf("publish to %s refused: %s", m.topic, reason5((&packets.Puback{ReasonCode: r.ReasonCode}).Reason(), r.ReasonCode, why))
	}
	return err
}

func (cl *client5) Subscribe(ctx context.Context, filter string, o subscribeOptions) error {
	s := paho.SubscribeOptions{Topic: filter, QoS: o.qos, RetainAsPublished: o.retainAsPublished}
	if o.noRetained {
		s.RetainHandling = 2
	}
	a, err := cl.paho.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{s}, Properties: o.props.subscribe()})
	if a != nil && len(a.Reasons) == 1 && a.Reasons[0] >= 0x80 {
		var why string
		if a.Properties != nil {
			why = a.Properties.ReasonString
		}
		return fmt.Errorf("subscription to %s refused: %s", filter, reason5((&packets.Suback{Reasons: a.Reasons}).Reason(0), a.Reasons[0], why))
	}
	return err
}

func (cl *client5) Unsubscribe(ctx context.Context, filter string) error {
	_, err := cl.paho.Unsubscribe(ctx, &paho.Unsubscribe{Topics: []string{filter}})
	return err
}

func (cl *client5) Disconnect() error {
	err := cl.paho.Disconnect(&paho.Disconnect{Properties: cl.c.parsed["disconnect"].disconnect()})
	return errors.Join(err, cl.session.Close())
}

func (cl *client5) Lost() <-chan error { return cl.lost }
