//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// retainBatch is how many retained messages are outstanding while loading.
const retainBatch = 500

func retainedTopic(prefix string, i int) string {
	return fmt.Sprintf("%s/%d/%d", prefix, i/1000, i%1000)
}

// Retain publishes n retained messages of 64 bytes at QoS 1 to n topics below
// prefix, a thousand to a level, and returns when all are acknowledged.
func Retain(ctx context.Context, target string, protocol byte, prefix string, n int) error {
	c, _, err := dial(ctx, target, protocol, Session{ClientID: "bench-retain", Clean: true})
	if err != nil {
		return fmt.Errorf("retain: %w", err)
	}
	defer c.close()
	for at := 0; at < n; {
		end := min(at+retainBatch, n)
		var out []byte
		for i := at; i < end; i++ {
			frame, idAt, from := appendPublish(nil, protocol, 1, true, retainedTopic(prefix, i), 64)
			binary.BigEndian.PutUint16(frame[idAt:], uint16(i-at+1))
			stampPublisher(frame[from:], 0, 0)
			binary.BigEndian.PutUint64(frame[from+8:], uint64(i))
			out = append(out, frame...)
		}
		if err := c.write(out); err != nil {
			return fmt.Errorf("retain: %w", err)
		}
		for acked := 0; acked < end-at; {
			err := c.read(20*time.Second, func(first byte, _ []byte) error {
				if first&0xf0 == typePuback {
					acked++
				}
				return nil
			})
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("retain: %d of %d acknowledged: %w", at+acked, n, err)
			}
		}
		at = end
	}
	return nil
}

// Collected is what a subscription to retained messages brought.
type Collected struct {
	Distinct   int           // of the n expected
	Duplicates int           // received again
	Unretained int           // without the retain flag [MQTT-3.3.1-8]
	First      time.Duration // from SUBSCRIBE to the first message
	Last       time.Duration // to the last one
}

// Collect subscribes at QoS 1 to everything below prefix and takes the n
// retained messages that Retain has put there. It ends when all are there, or
// when none has come for quiet.
func Collect(ctx context.Context, target string, protocol byte, prefix string, n int, quiet time.Duration) (Collected, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var got Collected
	c, _, err := dial(ctx, target, protocol, Session{ClientID: "bench-collect", Clean: true})
	if err != nil {
		return got, fmt.Errorf("collect: %w", err)
	}
	defer c.close()
	seen := make([]bool, n)
	start := time.Now()
	if err := c.write(appendSubscribe(nil, protocol, 1, prefix+"/#", 1)); err != nil {
		return got, fmt.Errorf("collect: %w", err)
	}
	handle := func(first byte, body []byte) error {
		if first&0xf0 == typeSuback && body[len(body)-1] >= 0x80 {
			return fmt.Errorf("SUBACK with code %#x", body[len(body)-1])
		}
		if first&0xf0 != typePublish {
			return nil
		}
		p, ok := parsePublish(protocol, first, body)
		if !ok || len(p.payload) < MinPayload {
			return errMalformed
		}
		if p.qos == 1 {
			c.out = appendAck(c.out, typePuback, p.id)
		}
		if first&1 == 0 {
			got.Unretained++
		}
		got.Last = time.Since(start)
		if got.First == 0 {
			got.First = got.Last
		}
		if i := binary.BigEndian.Uint64(p.payload[8:]); i < uint64(n) && !seen[i] {
			seen[i] = true
			got.Distinct++
		} else {
			got.Duplicates++
		}
		return nil
	}
	for got.Distinct < n {
		err := c.read(quiet, handle)
		if errors.Is(err, errTimeout) {
			return got, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return got, fmt.Errorf("collect: %d of %d received: %w", got.Distinct, n, err)
		}
	}
	return got, nil
}
