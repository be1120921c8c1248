//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// ErrForgotten is returned by Probe when the broker does not know the session.
var ErrForgotten = errors.New("session not present")

// Probe checks that the broker serves the durable session of clientID, which
// has a subscription to topic: CONNECT is answered with session present, and
// a message that another client publishes to topic at QoS 1 reaches it. Each
// step may take up to timeout. The session stays, with nothing in its queue.
func Probe(ctx context.Context, target string, protocol byte, clientID, topic string, timeout time.Duration) error {
	c, present, err := dial(ctx, target, protocol, Session{ClientID: clientID})
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer c.close()
	if !present {
		return fmt.Errorf("probe: %w", ErrForgotten)
	}
	pub, _, err := dial(ctx, target, protocol, Session{ClientID: "bench-probe", Clean: true})
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer pub.close()
	frame, idAt, _ := appendPublish(nil, protocol, 1, false, topic, MinPayload)
	binary.BigEndian.PutUint16(frame[idAt:], 1)
	if err := pub.write(frame); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	arrived := false
	for deadline := time.Now().Add(timeout); !arrived; {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("probe: %w", errTimeout)
		}
		err := c.read(left, func(first byte, body []byte) error {
			if first&0xf0 != typePublish {
				return nil
			}
			p, ok := parsePublish(protocol, first, body)
			if !ok {
				return errMalformed
			}
			if p.qos == 1 {
				c.out = appendAck(c.out, typePuback, p.id)
			}
			arrived = arrived || string(p.topic) == topic
			return nil
		})
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
	}
	return nil
}
