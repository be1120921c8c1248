package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/admin"
	"github.com/herald-mqtt/herald/broker/engine"
	"github.com/herald-mqtt/herald/persistence"
)

// banKinds are the kinds of ban as operators write them.
var banKinds = map[persistence.BanKind]string{
	persistence.BanClient: "client", persistence.BanUsername: "username", persistence.BanAddress: "address",
}

// Ban keeps clients from connecting to any node; see [engine.Engine.Ban].
func (b *Broker) Ban(ctx context.Context, req admin.Ban) (admin.Ban, error) {
	made := persistence.Ban{BanKey: banKey(req), Reason: req.Reason, By: req.By}
	if req.Until != nil {
		if made.Until = req.Until.UnixMilli(); made.Until <= 0 {
			return req, errors.New("until: is over already")
		}
	}
	made, err := b.engine.Ban(ctx, made)
	if errors.Is(err, engine.ErrBansFull) {
		return req, fmt.Errorf("%w: there are %d (bans.max)", admin.ErrFull, b.cfg.Bans.Max)
	}
	if err != nil {
		return req, err
	}
	fields := append(banFields(made.BanKey), zap.String("reason", made.Reason), zap.String("by", made.By))
	if made.Until != 0 {
		fields = append(fields, zap.Time("until", time.UnixMilli(made.Until)))
	}
	b.log.Info("banned", fields...)
	return banOf(made), nil
}

// Unban removes a ban; see [engine.Engine.Unban].
func (b *Broker) Unban(ctx context.Context, req admin.Ban) error {
	k, err := b.engine.Unban(ctx, banKey(req))
	if err == nil {
		b.log.Info("ban removed", banFields(k)...)
	}
	return err
}

// Bans returns at most limit bans that are in force, behind the one that an earlier
// page named as the next to begin after; empty: from the first.
func (b *Broker) Bans(after string, limit int) (admin.BanPage, error) {
	var behind persistence.BanKey
	if after != "" {
		kind, who, _ := strings.Cut(after, ":")
		for k, name := range banKinds {
			if name == kind {
				behind = persistence.BanKey{Kind: k, Who: who}
			}
		}
		if behind.Kind == 0 {
			return admin.BanPage{}, errors.New("after: want what an earlier answer has as next")
		}
	}
	bans, total, more := b.engine.Bans(behind, limit)
	page := admin.BanPage{Bans: make([]admin.Ban, len(bans)), Total: total}
	for i := range bans {
		page.Bans[i] = banOf(bans[i])
	}
	if more {
		last := bans[len(bans)-1].BanKey
		page.Next = banKinds[last.Kind] + ":" + last.Who
	}
	return page, nil
}

// banKey is the key of a ban of which one thing says who. What names nobody gets no
// kind, which the engine refuses.
func banKey(b admin.Ban) persistence.BanKey {
	switch {
	case b.Client != nil:
		return persistence.BanKey{Kind: persistence.BanClient, Who: *b.Client}
	case b.Username != nil:
		return persistence.BanKey{Kind: persistence.BanUsername, Who: *b.Username}
	case b.Address != nil:
		return persistence.BanKey{Kind: persistence.BanAddress, Who: *b.Address}
	}
	return persistence.BanKey{}
}

func banOf(b persistence.Ban) admin.Ban {
	since := time.UnixMilli(b.Since).UTC()
	out := admin.Ban{Reason: b.Reason, By: b.By, Since: &since}
	if b.Until != 0 {
		until := time.UnixMilli(b.Until).UTC()
		out.Until = &until
	}
	switch b.Kind {
	case persistence.BanClient:
		out.Client = &b.Who
	case persistence.BanUsername:
		out.Username = &b.Who
	default:
		out.Address = &b.Who
	}
	return out
}

func banFields(k persistence.BanKey) []zap.Field {
	return []zap.Field{zap.String(banKinds[k.Kind], k.Who)}
}
