// Package ban knows who may not connect: the list of bans as a node has it in memory,
// and what a ban may look like. It reads no clock and no store.
package ban

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/herald-mqtt/herald/persistence"
)

// What a ban may hold, in bytes: a list of 100,000 is in the memory of every node.
const (
	MaxWho    = 1024
	MaxReason = 256
	MaxBy     = 128
)

// Check tells what is wrong with a ban, if anything, and brings its key into the form
// under which it is kept: an address becomes a network.
func Check(b *persistence.Ban) error {
	if err := CheckKey(&b.BanKey); err != nil {
		return err
	}
	if err := line("reason", b.Reason, MaxReason); err != nil {
		return err
	}
	return line("by", b.By, MaxBy)
}

// CheckKey is Check for a key alone.
func CheckKey(k *persistence.BanKey) error {
	switch k.Kind {
	case persistence.BanClient:
		return name("client", k.Who, 1)
	case persistence.BanUsername:
		return name("username", k.Who, 0)
	case persistence.BanAddress:
		p, err := network(k.Who)
		if err != nil {
			return err
		}
		k.Who = p.String()
		return nil
	}
	return errors.New("want a client, a username or an address")
}

func name(what, s string, least int) error {
	switch {
	case len(s) < least || len(s) > MaxWho:
		return fmt.Errorf("%s: want %d to %d bytes", what, least, MaxWho)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return fmt.Errorf("%s: want UTF-8 without U+0000, as MQTT has it", what)
	}
	return nil
}

func line(what, s string, most int) error {
	switch {
	case len(s) > most:
		return fmt.Errorf("%s: has more than %d bytes", what, most)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("%s: want one line of UTF-8", what)
	}
	return nil
}

// network reads an address, or a network in CIDR notation.
func network(s string) (netip.Prefix, error) {
	var p netip.Prefix
	if strings.ContainsRune(s, '/') {
		var err error
		if p, err = netip.ParsePrefix(s); err != nil {
			return p, fmt.Errorf("address: %q is no network in CIDR notation", cut(s))
		}
	} else {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return p, fmt.Errorf("address: %q is neither an IP address nor a network in CIDR notation", cut(s))
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	// Clients that come over IPv4 have IPv4 addresses here, however they are written.
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return p, fmt.Errorf("address: %q is wider than IPv4", cut(s))
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// cut is as much of s as an error shows.
func cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), 64)], "?") }
