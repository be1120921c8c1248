package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	mqtt3 "github.com/eclipse/paho.mqtt.golang"
)

// client3 speaks MQTT 3.1.1 and 3.1.
type client3 struct {
	c    *connection
	paho mqtt3.Client
	lost chan error
}

func connect3(ctx context.Context, c *connection) (client, error) {
	cl := &client3{c: c, lost: make(chan error, 1)}
	o := mqtt3.NewClientOptions().
		AddBroker("tcp://" + net.JoinHostPort("broker", "1883")). // not used: open connects
		SetCustomOpenConnectionFn(func(*url.URL, mqtt3.ClientOptions) (net.Conn, error) { return c.open(ctx) }).
		SetProtocolVersion(uint(c.protocol)).
		SetClientID(c.id).
		SetCleanSession(!c.resume).
		SetKeepAlive(time.Duration(c.keepalive) * time.Second).
		SetConnectTimeout(c.timeout).
		SetAutoReconnect(false).
		SetOrderMatters(true).
		SetAutoAckDisabled(true).
		SetConnectionLostHandler(func(_ mqtt3.Client, err error) { report(cl.lost, fmt.Errorf("connection lost: %w", err)) }).
		SetDefaultPublishHandler(cl.received)
	if c.usernameGiven {
		o.SetUsername(c.username)
	}
	if c.passwordGiven {
		o.SetPassword(c.password)
	}
	if c.willTopic != "" {
		o.SetBinaryWill(c.willTopic, []byte(c.willPayload), c.willQoS, c.willRetain)
	}
	cl.paho = mqtt3.NewClient(o)
	if err := cl.wait(ctx, cl.paho.Connect()); err != nil {
		cl.paho.Disconnect(0)
		return nil, err
	}
	return cl, nil
}

func (cl *client3) received(_ mqtt3.Client, m mqtt3.Message) {
	v := verdict{acknowledge: true}
	if cl.c.receive != nil {
		v = cl.c.receive(message{
			topic: m.Topic(), payload: m.Payload(), qos: m.Qos(), retain: m.Retained(),
			dup: m.Duplicate(), packetID: m.MessageID(),
		})
	}
	if v.acknowledge {
		m.Ack()
		if v.then != nil {
			v.then()
		}
	}
}

func (cl *client3) wait(ctx context.Context, t mqtt3.Token) error {
	timeout := time.NewTimer(cl.c.timeout)
	defer timeout.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case err := <-cl.lost:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-timeout.C:
		return errors.New("no answer in time")
	}
}

func (cl *client3) Publish(ctx context.Context, m message) error {
	return cl.wait(ctx, cl.paho.Publish(m.topic, m.qos, m.retain, m.payload))
}

func (cl *client3) Subscribe(ctx context.Context, filter string, o subscribeOptions) error {
	t := cl.paho.Subscribe(filter, o.qos, nil)
	if err := cl.wait(ctx, t); err != nil {
		return fmt.Errorf("subscription to %s: %w", filter, err)
	}
	if s, ok := t.(*mqtt3.SubscribeToken); ok && s.Result()[filter] == 0x80 {
		return fmt.Errorf("subscription to %s refused", filter)
	}
	return nil
}

func (cl *client3) Unsubscribe(ctx context.Context, filter string) error {
	return cl.wait(ctx, cl.paho.Unsubscribe(filter))
}

// Disconnect sends what is queued, then DISCONNECT; 250 ms bound the wait for
// handlers that are still running.
func (cl *client3) Disconnect() error {
	cl.paho.Disconnect(250)
	return nil
}

func (cl *client3) Lost() <-chan error { return cl.lost }
