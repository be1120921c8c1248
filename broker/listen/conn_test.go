package listen

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEcho(t *testing.T) {
	b := start(t, Config{}, LoopConfig{}, nil, nil)
	c := b.connect()
	p := publishFrame("a/b", "hello")
	c.send(p)
	c.expect(p)
	c.send(subscribeFrame(7), p, []byte{0xc0, 0}, p, subscribeFrame(8), p)
	c.expect(subackFrame(7), p, []byte{0xd0, 0}, p, subackFrame(8), p)
	c.send([]byte{0xe0, 0})
	require.Empty(t, c.expectEnd())
	_ = c.Close()
	b.stop()
}
