package conformance

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// wsConn is a WebSocket client connection, written here so that it can also
// send what no library would.
type wsConn struct {
	t    *T
	conn net.Conn
	in   *bufio.Reader
	sub  string // the subprotocol that the server selected
	rest []byte // of MQTT packets not read yet
}

// Opcodes.
const (
	wsContinue = 0
	wsText     = 1
	wsBinary   = 2
	wsClose    = 8
)

func (t *T) websocket() *wsConn {
	t.Helper()
	if broker.ws == "" {
		t.Skip("no WebSocket address is given")
	}
	host, path, _ := strings.Cut(broker.ws, "/")
	conn, err := net.DialTimeout("tcp", host, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * patience))
	fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n", path, host)
	w := &wsConn{t: t, conn: conn, in: bufio.NewReader(conn)}
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade answered with %s", resp.Status)
	}
	w.sub = resp.Header.Get("Sec-WebSocket-Protocol")
	return w
}

// frame sends one masked frame.
func (w *wsConn) frame(op byte, fin bool, payload []byte) {
	w.t.Helper()
	head := []byte{op, 0x80}
	if fin {
		head[0] |= 0x80
	}
	if len(payload) < 126 {
		head[1] |= byte(len(payload))
	} else {
		head[1] |= 126
		head = binary.BigEndian.AppendUint16(head, uint16(len(payload)))
	}
	head = append(head, 1, 2, 3, 4)
	for i, b := range payload {
		head = append(head, b^byte(i%4+1))
	}
	if _, err := w.conn.Write(head); err != nil {
		w.t.Fatal(err)
	}
}

var errWSClosed = errors.New("the server closed the WebSocket")

// read returns the next data frame.
func (w *wsConn) read() ([]byte, error) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(w.in, head[:]); err != nil {
			return nil, err
		}
		n := uint64(head[1] & 0x7f)
		switch n {
		case 126:
			var b [2]byte
			if _, err := io.ReadFull(w.in, b[:]); err != nil {
				return nil, err
			}
			n = uint64(binary.BigEndian.Uint16(b[:]))
		case 127:
			var b [8]byte
			if _, err := io.ReadFull(w.in, b[:]); err != nil {
				return nil, err
			}
			n = binary.BigEndian.Uint64(b[:])
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(w.in, payload); err != nil {
			return nil, err
		}
		switch head[0] & 0x0f {
		case wsClose:
			return nil, errWSClosed
		case wsBinary, wsContinue:
			return payload, nil
		case wsText:
			w.t.Fatal("the server sent a text frame [MQTT-6.0.0-1]")
		}
	}
}

// next is the next MQTT packet, whatever frames it comes in.
func (w *wsConn) next() frame {
	w.t.Helper()
	for {
		if len(w.rest) >= 2 && w.rest[1] < 0x80 && len(w.rest) >= 2+int(w.rest[1]) {
			n := 2 + int(w.rest[1])
			f := frame{w.rest[0], w.rest[2:n]}
			w.rest = w.rest[n:]
			return f
		}
		more, err := w.read()
		if err != nil {
			w.t.Fatalf("waiting for a packet: %v", err)
		}
		w.rest = append(w.rest, more...)
	}
}

var websocketCases = []scenario{
	{
		name: "subprotocol", v311: "6.0.0-4 7.1.1-1", v5: "6.0.0-4 4.2.0-1",
		run: func(t *T) {
			w := t.websocket()
			if w.sub != "mqtt" {
				t.Fatalf("subprotocol %q, want mqtt", w.sub)
			}
			w.frame(wsBinary, true, connect{id: t.id()}.bytes(t.v))
			if f := w.next(); f.kind() != tConnack || f.body[1] != 0 {
				t.Fatalf("got %v", f)
			}
		},
	},
	{
		name: "text_frame", v311: "6.0.0-1", v5: "6.0.0-1", bad: true,
		run: func(t *T) {
			for _, connected := range []bool{false, true} {
				w := t.websocket()
				if connected {
					w.frame(wsBinary, true, connect{id: t.id()}.bytes(t.v))
					w.next()
					w.frame(wsText, true, pingreq)
				} else {
					w.frame(wsText, true, connect{id: t.id()}.bytes(t.v))
				}
				for {
					b, err := w.read()
					if errors.Is(err, errWSClosed) || gone(err) {
						break
					}
					if err != nil {
						t.Fatalf("not closed: %v", err)
					}
					if len(b) > 0 && b[0]>>4 != tDisconnect {
						t.Fatalf("a text frame was answered with % x", b)
					}
				}
			}
		},
	},
	{
		name: "packets_are_not_aligned_with_frames", v311: "6.0.0-2", v5: "6.0.0-2",
		run: func(t *T) {
			w := t.websocket()
			hello := connect{id: t.id()}.bytes(t.v)
			sub := subscribe(t.v, 1, nil, filter{t.topic("a"), 0})
			pub := publish{topic: t.topic("a"), payload: "x"}.bytes(t.v)
			all := join(hello, sub, pingreq, pub)
			// A packet over two frames, the end of one with the start of the next,
			// single bytes, a fragmented frame.
			w.frame(wsBinary, true, all[:5])
			w.frame(wsBinary, true, all[5:len(hello)+3])
			for _, b := range all[len(hello)+3 : len(hello)+8] {
				w.frame(wsBinary, true, []byte{b})
			}
			w.frame(wsBinary, false, all[len(hello)+8:len(all)-4])
			w.frame(wsContinue, true, all[len(all)-4:])
			seen := map[byte]int{}
			for range 4 {
				seen[w.next().kind()]++
			}
			for _, k := range []byte{tConnack, tSuback, tPingresp, tPublish} {
				if seen[k] != 1 {
					t.Fatalf("packet types %v", seen)
				}
			}
			// Many in one frame.
			w.frame(wsBinary, true, join(pub, pub, pingreq))
			for range 3 {
				w.next()
			}
		},
	},
}
