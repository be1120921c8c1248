package listen

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// BenchmarkEcho sends frames of 66 bytes and reads them back, in windows of the
// given size on one connection; syscalls/msg are the broker's.
func BenchmarkEcho(b *testing.B) {
	for _, name := range []string{TCP, Unix, TLS, WS} {
		for _, window := range []int{1, 100, 5000} {
			b.Run(fmt.Sprintf("%s/window=%d", name, window), func(b *testing.B) {
				br := start(b, transport(b, name), LoopConfig{}, nil, nil)
				c := br.connect()
				frame := publishFrame("a/b", string(make([]byte, 59)))
				out := bytes.Repeat(frame, window)
				in := make([]byte, len(out))
				before := br.loop.Stats()
				b.SetBytes(int64(len(frame)))
				b.ReportAllocs()
				b.ResetTimer()
				for n := 0; n < b.N; n += window {
					errs := make(chan error, 1)
					go func() { _, err := c.Write(out); errs <- err }()
					if _, err := io.ReadFull(c, in); err != nil {
						b.Fatal(err)
					}
					if err := <-errs; err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				s := br.loop.Stats()
				msgs := float64(s.BytesIn-before.BytesIn) / float64(len(frame))
				b.ReportMetric(float64(s.Reads-before.Reads+s.Writes-before.Writes+s.Waits-before.Waits)/msgs, "syscalls/msg")
			})
		}
	}
}
