package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// What one message may weigh: the largest packet of MQTT.
const maxPayload = 268_435_455

// publication is what pub is asked to send.
type publication struct {
	connection
	topic, message, file       string
	null, lines, stdin, retain bool
	qos                        uint8
	repeat                     int
	delay                      time.Duration
}

func newPubCommand() *cobra.Command {
	p := &publication{}
	cmd := &cobra.Command{
		Use:   "pub -t TOPIC (-m MESSAGE | -f FILE | -l | -n | -s)",
		Short: "Publish, with mosquitto_pub's flags",
		Long: `Pub publishes one message, or one per line of standard input (-l), and ends when
the broker has acknowledged it; each line is acknowledged before the next is
sent.`,
		Example: "  herald pub -t greet -m hello -q 1\n  herald pub -t status -m on -r -D publish user-property room kitchen",
		Args:    exactly(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			return p.run(ctx, cmd)
		},
	}
	p.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&p.topic, "topic", "t", "", "`TOPIC` to publish to")
	f.StringVarP(&p.message, "message", "m", "", "`MESSAGE` to send")
	f.StringVarP(&p.file, "file", "f", "", "send the contents of `FILE`")
	f.BoolVarP(&p.lines, "stdin-line", "l", false, "send every line of standard input as a message")
	f.BoolVarP(&p.stdin, "stdin-file", "s", false, "send standard input as one message")
	f.BoolVarP(&p.null, "null-message", "n", false, "send an empty message (with -r: remove the retained one)")
	f.Uint8VarP(&p.qos, "qos", "q", 0, "`QOS`: 0, 1 or 2")
	f.BoolVarP(&p.retain, "retain", "r", false, "the broker keeps the message for later subscribers")
	f.IntVar(&p.repeat, "repeat", 1, "send the message `N` times")
	f.DurationVar(&p.delay, "repeat-delay", 0, "pause between repetitions")
	return cmd
}

func (p *publication) run(ctx context.Context, cmd *cobra.Command) error {
	given := 0
	for _, name := range []string{"message", "file", "stdin-line", "stdin-file", "null-message"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	fromURL, err := p.check(cmd)
	if err != nil {
		return err
	}
	if p.topic == "" {
		p.topic = fromURL
	}
	switch {
	case p.topic == "":
		return usage("pub: wants a topic (-t)")
	case strings.ContainsAny(p.topic, "+#"):
		return usage("pub: -t %s: a topic to publish to has no wildcards", p.topic)
	case given != 1:
		return usage("pub: wants one of -m, -f, -l, -n, -s")
	case p.qos > 2:
		return usage("pub: -q %d: want 0, 1 or 2", p.qos)
	case p.repeat < 1:
		return usage("pub: --repeat %d: want at least 1", p.repeat)
	}
	payload, err := p.payload(cmd.InOrStdin())
	if err != nil {
		return err
	}
	cl, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if p.lines {
		err = p.sendLines(ctx, cl, cmd.InOrStdin())
	} else {
		err = p.sendRepeated(ctx, cl, payload)
	}
	return errors.Join(err, cl.Disconnect())
}

func (p *publication) payload(in io.Reader) ([]byte, error) {
	switch {
	case p.file != "":
		f, err := os.Open(p.file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		return readAll(f)
	case p.stdin:
		return readAll(in)
	}
	return []byte(p.message), nil
}

func readAll(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
	if err == nil && len(b) > maxPayload {
		err = errors.New("message larger than MQTT allows (256 MB)")
	}
	return b, err
}

func (p *publication) send(ctx context.Context, cl client, payload []byte) error {
	return cl.Publish(ctx, message{
		topic: p.topic, payload: payload, qos: p.qos, retain: p.retain, props: p.parsed["publish"],
	})
}

func (p *publication) sendRepeated(ctx context.Context, cl client, payload []byte) error {
	for i := range p.repeat {
		if i > 0 && p.delay > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(p.delay):
			}
		}
		if err := p.send(ctx, cl, payload); err != nil {
			return err
		}
	}
	return nil
}

func (p *publication) sendLines(ctx context.Context, cl client, in io.Reader) error {
	lines := make(chan []byte)
	read := make(chan error, 1)
	go func() { // ends with the input, or with the program
		s := bufio.NewScanner(in)
		s.Buffer(nil, maxPayload)
		for s.Scan() {
			select {
			case lines <- append([]byte(nil), s.Bytes()...):
			case <-ctx.Done():
				read <- ctx.Err()
				return
			}
		}
		read <- s.Err()
	}()
	for {
		select {
		case line := <-lines:
			if err := p.send(ctx, cl, line); err != nil {
				return err
			}
		case err := <-read:
			return err
		case err := <-cl.Lost():
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
