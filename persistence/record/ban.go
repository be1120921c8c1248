package record

import (
	"encoding/binary"

	"github.com/herald-mqtt/herald/persistence"
)

// banGone in the flags of a ban: it is removed.
const banGone = 0x01

// AppendBan encodes a ban or its removal, the row's version included.
func AppendBan(b []byte, c *persistence.BanChange) []byte {
	var f byte
	if c.Gone {
		f |= banGone
	}
	b = append(b, V1, f, byte(c.Kind))
	b = appendString(b, c.Who)
	if c.Gone {
		return b
	}
	b = binary.AppendVarint(b, c.Since)
	b = binary.AppendVarint(b, c.Until)
	b = appendString(b, c.Reason)
	return appendString(b, c.By)
}

// Ban decodes what AppendBan wrote.
func (d *Decoder) Ban() (c persistence.BanChange) {
	d.Version()
	c.Gone = d.Byte()&banGone != 0
	c.Kind = persistence.BanKind(d.Byte())
	if c.Kind < persistence.BanClient || c.Kind > persistence.BanAddress {
		d.Fail("unknown kind of ban")
	}
	c.Who = d.String()
	if c.Gone {
		return c
	}
	c.Since, c.Until = d.Varint(), d.Varint()
	c.Reason, c.By = d.String(), d.String()
	return c
}
