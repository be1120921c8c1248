package main

import (
	"bufio"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/herald-mqtt/herald"
)

// subscriber is what sub is asked to receive.
type subscriber struct {
	connection
	topics, not, unsubscribe []string
	qos                      uint8
	count                    int
	wait                     int
	verbose, noNewline       bool
	noRetained, asPublished  bool
	exitAfter                bool
	format                   string

	mu    sync.Mutex // guards below
	taken int
	out   *bufio.Writer
	err   error
	done  chan struct{} // closed when sub has what it came for, or cannot write
}

func newSubCommand() *cobra.Command {
	s := &subscriber{}
	cmd := &cobra.Command{
		Use:   "sub -t FILTER [-t FILTER]...",
		Short: "Subscribe and print what arrives, with mosquitto_sub's flags",
		Long: `Sub prints the payload of every message, one a line. With -C it ends after so
many, having acknowledged exactly those: what else waits in a durable session
stays there.`,
		Example: "  herald sub -t 'sensors/#' -v\n  herald sub -t jobs -q 1 -i worker-1 -c -C 10",
		Args:    exactly(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			return s.run(ctx, cmd)
		},
	}
	s.flags(cmd)
	f := cmd.Flags()
	f.StringArrayVarP(&s.topics, "topic", "t", nil, "topic `FILTER`, as often as needed")
	f.StringArrayVarP(&s.not, "filter-out", "T", nil, "do not print what matches `FILTER`")
	f.StringArrayVarP(&s.unsubscribe, "unsubscribe", "U", nil, "unsubscribe from `FILTER` first")
	f.Uint8VarP(&s.qos, "qos", "q", 0, "`QOS` of the subscriptions: 0, 1 or 2")
	f.IntVarP(&s.count, "count", "C", 0, "end after `N` messages")
	f.IntVarP(&s.wait, "wait", "W", 0, "end after `SECONDS`; an error if -C is not reached")
	f.BoolVarP(&s.verbose, "verbose", "v", false, "print topic and payload")
	f.BoolVarP(&s.noNewline, "no-newline", "N", false, "no line end after a payload")
	f.BoolVarP(&s.noRetained, "no-retained", "R", false, "do not print retained messages")
	f.BoolVar(&s.asPublished, "retain-as-published", false, "MQTT 5: keep the retain flag as it was published")
	f.BoolVarP(&s.exitAfter, "exit", "E", false, "end when the subscriptions are acknowledged (to prepare a durable session)")
	f.StringVarP(&s.format, "format", "F", "", "print as `FORMAT`: %t topic, %p payload, %x payload in hex, %l length, %q QoS, %r retain, %d DUP, %m packet id, %C content type, %R response topic, %D correlation data, %E expiry, %P user properties, %%; \\n \\t \\\\")
	return cmd
}

func (s *subscriber) run(ctx context.Context, cmd *cobra.Command) error {
	fromURL, err := s.check(cmd)
	if err != nil {
		return err
	}
	if fromURL != "" {
		s.topics = append(s.topics, fromURL)
	}
	switch {
	case len(s.topics) == 0 && len(s.unsubscribe) == 0:
		return usage("sub: wants a topic filter (-t)")
	case s.qos > 2:
		return usage("sub: -q %d: want 0, 1 or 2", s.qos)
	case s.count < 0 || s.wait < 0:
		return usage("sub: -C and -W want a number from 0 on")
	}
	s.out = bufio.NewWriter(cmd.OutOrStdout())
	s.done = make(chan struct{})
	s.receive = s.take
	var timeout <-chan time.Time
	if s.wait > 0 {
		timeout = time.After(time.Duration(s.wait) * time.Second)
	}
	cl, err := s.connect(ctx)
	if err != nil {
		return err
	}
	if err := s.subscribe(ctx, cl); err != nil {
		return errors.Join(err, cl.Disconnect())
	}
	if s.exitAfter {
		return cl.Disconnect()
	}
	select {
	case <-s.done:
	case <-ctx.Done(): // SIGINT is how one ends a sub that has no count
	case err = <-cl.Lost():
		return err
	case <-timeout:
		s.mu.Lock()
		if s.count > 0 && s.taken < s.count {
			err = errors.New("timed out before all messages had come")
		}
		s.mu.Unlock()
	}
	err = errors.Join(err, cl.Disconnect())
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.err)
}

func (s *subscriber) subscribe(ctx context.Context, cl client) error {
	for _, filter := range s.unsubscribe {
		if err := cl.Unsubscribe(ctx, filter); err != nil {
			return err
		}
	}
	for _, filter := range s.topics {
		err := cl.Subscribe(ctx, filter, subscribeOptions{
			qos: s.qos, noRetained: s.noRetained, retainAsPublished: s.asPublished, props: s.parsed["subscribe"],
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// take prints a message, unless it is filtered out or one too many. It is
// called for one message after the other.
func (s *subscriber) take(m message) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.count > 0 && s.taken == s.count {
		return verdict{}
	}
	if s.noRetained && m.retain || s.filteredOut(m.topic) {
		return verdict{acknowledge: true}
	}
	_, err := s.out.Write(s.line(m))
	if err = errors.Join(err, s.out.Flush()); err != nil {
		s.err = err
		close(s.done)
		return verdict{}
	}
	s.taken++
	if s.taken == s.count {
		return verdict{acknowledge: true, then: func() { close(s.done) }}
	}
	return verdict{acknowledge: true}
}

func (s *subscriber) filteredOut(topic string) bool {
	for _, f := range s.not {
		if herald.Matches(f, topic) {
			return true
		}
	}
	return false
}

func (s *subscriber) line(m message) []byte {
	if s.format != "" {
		return append(format(s.format, m), newline(s.noNewline)...)
	}
	var b []byte
	if s.verbose {
		b = append(append(b, m.topic...), ' ')
	}
	return append(append(b, m.payload...), newline(s.noNewline)...)
}

func newline(without bool) string {
	if without {
		return ""
	}
	return "\n"
}
