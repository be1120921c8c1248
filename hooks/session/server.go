// Package session joins the embedded mochi-mqtt server to Herald's sessions: it
// is mochi's hook, translates what mochi has decoded, and calls. mochi accepts
// clients and answers CONNECT; everything else is decided behind [Sessions].
package session

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"

	mqtt "github.com/mochi-mqtt/server/v2"
)

// Options are what mochi tells clients about the server.
type Options struct {
	// ReceiveMaximum and MaxQoS stand in CONNACK.
	ReceiveMaximum uint16
	MaxQoS         byte
	// AliasMaximum is how many topic aliases clients may use.
	AliasMaximum uint16
	// MaxPacket is the largest packet that is accepted, in bytes; 0: any.
	MaxPacket uint32
	// Log gets what mochi has to say, without packets.
	Log slog.Handler
}

// NewServer returns a mochi server that keeps nothing of its own: no session,
// subscription, message or will.
func NewServer(o Options, s Sessions) (*mqtt.Server, error) {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.ReceiveMaximum = o.ReceiveMaximum
	caps.MaximumQos = o.MaxQoS
	caps.TopicAliasMaximum = 0 // aliases are resolved before mochi
	caps.MaximumClientWritesPending = 1
	caps.MaximumInflight = 1
	caps.MaximumPacketSize = 0 // the listener checks it
	server := mqtt.New(&mqtt.Options{
		Capabilities:             caps,
		ClientNetReadBufferSize:  16,
		ClientNetWriteBufferSize: 16,
		SysTopicResendInterval:   math.MaxInt32, // Herald has its own
		Logger:                   slog.New(quiet{o.Log}),
	})
	if err := server.AddHook(&hook{opts: o, sessions: s}, nil); err != nil {
		return nil, fmt.Errorf("mochi: %w", err)
	}
	return server, nil
}

// quiet keeps packets, which hold payloads and passwords, out of the log, and
// lowers what mochi calls a warning but any stray client brings about.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, lower(l))
}

func lower(l slog.Level) slog.Level {
	if l < slog.LevelError {
		return slog.LevelDebug
	}
	return l
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, lower(r.Level), "mochi: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if !slices.Contains([]string{"pk", "packet", "payload"}, a.Key) {
			out.AddAttrs(a)
		}
		return true
	})
	return q.Handler.Handle(ctx, out)
}

func (q quiet) WithAttrs(as []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(as)} }
func (q quiet) WithGroup(g string) slog.Handler       { return quiet{q.Handler.WithGroup(g)} }
