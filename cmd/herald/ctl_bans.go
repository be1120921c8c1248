package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/herald-mqtt/herald/broker/admin"
	"github.com/herald-mqtt/herald/broker/ban"
)

// banTarget are the flags that say who a ban concerns.
type banTarget struct{ client, username, address *string }

func newBanTarget(cmd *cobra.Command) *banTarget {
	f := cmd.Flags()
	return &banTarget{
		f.String("client", "", "a client `ID`"),
		f.String("username", "", "the user `NAME` that clients give"),
		f.String("address", "", "an IP address or a network, like 192.0.2.0/24, as `CIDR`"),
	}
}

// ban is a ban of whom the flags name.
func (t *banTarget) ban(cmd *cobra.Command) (admin.Ban, error) {
	var b admin.Ban
	n := 0
	for name, f := range map[string]struct{ from, to **string }{
		"client": {&t.client, &b.Client}, "username": {&t.username, &b.Username}, "address": {&t.address, &b.Address},
	} {
		if cmd.Flags().Changed(name) {
			*f.to = *f.from
			n++
		}
	}
	if n != 1 {
		return b, usage("%s: want one of --client, --username and --address", cmd.CommandPath())
	}
	return b, nil
}

func newBanCommand() *cobra.Command {
	return newCtlStep("ban", "Keep clients from connecting", `Ban refuses the CONNECT of clients by client id, user name or address, at every
node of the cluster, and ends the connections that they have. MQTT 5 clients are told
0x8A, others 0x05. Their sessions stay: they get their queues when the ban has ended. A
ban of the same client, user name or network is replaced.`,
		func(cmd *cobra.Command) func(*ctl) error {
			target := newBanTarget(cmd)
			reason := cmd.Flags().String("reason", "", "`TEXT` for other operators")
			by := cmd.Flags().String("by", "", "`NAME` of who bans; your login unless told")
			last := cmd.Flags().Duration("for", 0, "`TIME` it lasts, like 90m or 24h; for ever unless told")
			return func(c *ctl) error {
				b, err := target.ban(cmd)
				if err != nil {
					return err
				}
				if cmd.Flags().Changed("for") && *last <= 0 {
					return usage("ctl ban: --for %s: want more than 0", *last)
				}
				b.Reason = *reason
				if b.By = *by; b.By == "" {
					b.By = login()
				}
				req := struct {
					admin.Ban
					For string `json:"for,omitempty"`
				}{Ban: b}
				if *last > 0 {
					req.For = last.String()
				}
				return c.ask(http.MethodPost, "/api/v1/bans", req, func(answer []byte) error {
					var made admin.Ban
					if json.Unmarshal(answer, &made) != nil || made.Since == nil {
						return c.misled()
					}
					_, err := io.WriteString(c.out, "banned "+banLine(&made))
					return err
				})
			}
		})
}

// login is who runs this command, as far as it is known.
func login() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(u.Username[:min(len(u.Username), ban.MaxBy)], "")
}

func newUnbanCommand() *cobra.Command {
	return newCtlStep("unban", "Let clients connect again", `Unban removes a ban.`,
		func(cmd *cobra.Command) func(*ctl) error {
			target := newBanTarget(cmd)
			return func(c *ctl) error {
				b, err := target.ban(cmd)
				if err != nil {
					return err
				}
				q := make(url.Values)
				for name, s := range map[string]*string{"client": b.Client, "username": b.Username, "address": b.Address} {
					if s != nil {
						q.Set(name, *s)
					}
				}
				return c.ask(http.MethodDelete, "/api/v1/bans?"+q.Encode(), nil, func([]byte) error {
					_, err := io.WriteString(c.out, "the ban is removed\n")
					return err
				})
			}
		})
}

// bansAtOnce is how many bans are asked for in one request.
const bansAtOnce = 1000

func newBansCommand() *cobra.Command {
	return newCtlStep("bans", "Show who is banned", `Bans shows the bans that are in force, the same at every node.`,
		func(*cobra.Command) func(*ctl) error {
			return func(c *ctl) error {
				c.all = true
				after := ""
				for {
					q := url.Values{"limit": {strconv.Itoa(bansAtOnce)}}
					if after != "" {
						q.Set("after", after)
					}
					var page admin.BanPage
					if err := c.ask(http.MethodGet, "/api/v1/bans?"+q.Encode(), nil, func(answer []byte) error {
						if json.Unmarshal(answer, &page) != nil || page.Bans == nil {
							return c.misled()
						}
						return c.showBans(&page, answer)
					}); err != nil {
						return err
					}
					if page.Next == "" || len(page.Bans) == 0 {
						return nil
					}
					after = page.Next
				}
			}
		})
}

func (c *ctl) showBans(page *admin.BanPage, answer []byte) error {
	if c.raw {
		_, err := c.out.Write(answer)
		return err
	}
	var b strings.Builder
	for i := range page.Bans {
		b.WriteString(banLine(&page.Bans[i]))
	}
	if page.Next == "" {
		fmt.Fprintf(&b, "%d in force\n", page.Total)
	}
	_, err := io.WriteString(c.out, b.String())
	return err
}

// banLine is one ban. What clients or operators chose is quoted: it may hold anything.
func banLine(b *admin.Ban) string {
	var s strings.Builder
	switch {
	case b.Client != nil:
		fmt.Fprintf(&s, "client %q", *b.Client)
	case b.Username != nil:
		fmt.Fprintf(&s, "username %q", *b.Username)
	case b.Address != nil:
		fmt.Fprintf(&s, "address %q", *b.Address)
	}
	if b.Until != nil {
		s.WriteString(" until " + b.Until.Format(time.RFC3339))
	}
	if b.Since != nil {
		s.WriteString(", since " + b.Since.Format(time.RFC3339))
	}
	if b.By != "" {
		fmt.Fprintf(&s, ", by %q", b.By)
	}
	if b.Reason != "" {
		fmt.Fprintf(&s, ": %q", b.Reason)
	}
	return s.String() + "\n"
}

func (c *ctl) misled() error { return errors.New("ctl: " + c.server + ": no Herald answers there") }
