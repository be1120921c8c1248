package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/herald-mqtt/herald/broker"
)

const (
	ctlTimeout = 10 * time.Second
	// maxAnswer is far more than the status of the largest cluster.
	maxAnswer = 4 << 20
)

// newCtlCommand is the admin API from the shell.
func newCtlCommand() *cobra.Command {
	return group("ctl", "Ask a running node, or tell it what to do",
		newCtlStep("status", "Show what a node is doing", `Status shows whether the node is ready, why not, the other nodes that it
knows, and how far a drain is.`, func(*cobra.Command) func(*ctl) error {
			return func(c *ctl) error { return c.do(http.MethodGet, "/api/v1/status", nil) }
		}),
		newCtlStep("drain", "Send a node's clients to other nodes", `Drain has the node take no new clients and send those it has to other nodes, at a
bounded rate; it returns at once, and "herald ctl status" tells how far it is. The node
stays up, empty, until it is stopped (SIGTERM). It has to be asked on its own machine.`,
			func(cmd *cobra.Command) func(*ctl) error {
				rate := cmd.Flags().Int("rate", broker.DrainRate, "connections `N` that are ended in a second")
				return func(c *ctl) error {
					if *rate <= 0 {
						return usage("ctl drain: --rate %d: want 1 or more", *rate)
					}
					return c.do(http.MethodPost, "/api/v1/drain", map[string]int{"rate": *rate})
				}
			}),
		newKickCommand(), newBanCommand(), newUnbanCommand(), newBansCommand())
}

// newKickCommand ends a client's connection.
func newKickCommand() *cobra.Command {
	cmd := newCtlStep("kick", "End a client's connection", `Kick ends the connection of a client, at whichever node of the cluster it is connected
(MQTT 5: DISCONNECT 0x98). Its session stays; it may come back at once.`,
		func(cmd *cobra.Command) func(*ctl) error {
			return func(c *ctl) error {
				return c.ask(http.MethodPost, "/api/v1/kick", map[string]string{"client": cmd.Flags().Arg(0)}, func(b []byte) error {
					var a struct{ Here bool }
					if err := json.Unmarshal(b, &a); err != nil {
						return c.misled()
					}
					what := "not connected to this node; the others were told\n"
					if a.Here {
						what = "its connection was ended\n"
					}
					_, err := io.WriteString(c.out, what)
					return err
				})
			}
		})
	cmd.Use = "kick CLIENT"
	cmd.Args = exactly(1, "the id of a client")
	return cmd
}

// ctl is one request.
type ctl struct {
	ctx    context.Context
	server string
	raw    bool // the answer as it came
	all    bool // show is called all the same
	out    io.Writer
}

func newCtlStep(use, short, long string, step func(*cobra.Command) func(*ctl) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: exactly(0, "")}
	server := cmd.Flags().String("admin", "http://127.0.0.1:8080", "`URL` of the node's admin endpoint")
	raw := cmd.Flags().Bool("json", false, "print the node's answer as JSON, for scripts")
	run := step(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		u, err := url.Parse(*server)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return usage("%s: --admin %q: want http://HOST:PORT", cmd.CommandPath(), *server)
		}
		ctx, cancel := interrupted(cmd.Context())
		defer cancel()
		return run(&ctl{ctx: ctx, server: u.Scheme + "://" + u.Host, raw: *raw, out: cmd.OutOrStdout()})
	}
	return cmd
}

// do asks the node and prints its status.
func (c *ctl) do(method, path string, body any) error {
	return c.ask(method, path, body, func(answer []byte) error {
		var s broker.Status
		if err := json.Unmarshal(answer, &s); err != nil || s.Node == "" {
			return c.misled()
		}
		return printStatus(c.out, &s)
	})
}

// ask asks the node and prints its answer, as it came or as show does.
func (c *ctl) ask(method, path string, body any, show func(answer []byte) error) error {
	ctx, cancel := context.WithTimeout(c.ctx, ctlTimeout)
	defer cancel()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, content)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// No proxy of the environment: the node wants to be asked from its own machine.
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ctl: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ctl: %s: %w", c.server, err)
	}
	if resp.StatusCode >= 300 {
		var f struct{ Error string }
		if json.Unmarshal(answer, &f) != nil || f.Error == "" {
			f.Error = "no Herald answers there"
		}
		return fmt.Errorf("ctl: %s: %s: %s", c.server, resp.Status, f.Error)
	}
	if c.raw && !c.all {
		_, err = c.out.Write(answer)
		return err
	}
	return show(answer)
}

func printStatus(w io.Writer, s *broker.Status) error {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s", s.Node)
	if s.Number != nil {
		fmt.Fprintf(&b, " (number %d, life %d)", *s.Number, s.Life)
	}
	fmt.Fprintf(&b, ", version %s, %d clients\n", s.Version, s.Clients)
	if s.Ready {
		b.WriteString("ready\n")
	}
	for _, why := range s.Reasons {
		fmt.Fprintf(&b, "not ready: %s\n", why)
	}
	d := &s.Drain
	fmt.Fprint(&b, d.State)
	if d.Rate > 0 {
		fmt.Fprintf(&b, ", %d connections/s", d.Rate)
	}
	if d.State != "serving" || d.Sent > 0 {
		fmt.Fprintf(&b, ": %d clients sent away, %d left", d.Sent, d.Left)
	}
	b.WriteByte('\n')
	for i := range s.Peers {
		p := &s.Peers[i]
		fmt.Fprintf(&b, "peer %s (number %d, life %d)", p.Node, p.Number, p.Life)
		if p.Address != "" {
			fmt.Fprintf(&b, " at %s", p.Address)
		}
		if !p.Redis {
			b.WriteString(", does not reach redis")
		}
		if p.Leaving {
			b.WriteString(", takes no clients")
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
