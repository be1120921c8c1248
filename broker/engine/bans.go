package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker/ban"
	"github.com/herald-mqtt/herald/broker/listen"
	"github.com/herald-mqtt/herald/broker/wire"
	"github.com/herald-mqtt/herald/persistence"
)

// The list of bans stands in the store. Every node has it in memory, asks the store
// once a second whether it has changed, and at once when another node says so. While
// the store does not answer, the list stays as it was.

const (
	// banLook is how often a node asks for what has changed.
	banLook = time.Second
	// banPatience is how long it waits for the answer: all of a long list takes its time.
	banPatience = 10 * time.Second
	// banWarn is how often a failure is logged while it lasts.
	banWarn = time.Minute
)

// DefaultMaxBans is how many bans there may be.
const DefaultMaxBans = 100_000

// ErrBansFull: there are as many bans as there may be.
var ErrBansFull = errors.New("engine: as many bans as there may be")

var errNoBans = fmt.Errorf("%w: it keeps no bans", herald.ErrUnavailable)

// bans is what a node knows of them.
type bans struct {
	// Fixed at construction.
	most   int
	keeper persistence.Banner // nil: the store keeps none
	wake   chan struct{}      // something was changed elsewhere

	list ban.List

	turn    gate      // held by who asks the store, or changes something there; guards below
	version uint64    // of list
	warned  time.Time // when a failure was logged last
	failing bool
}

func (b *bans) init(most int, store persistence.Store) {
	b.most, b.turn, b.wake = most, newGate(), make(chan struct{}, 1)
	if b.most <= 0 {
		b.most = DefaultMaxBans
	}
	b.keeper, _ = store.(persistence.Banner)
}

// look has the store asked soon.
func (b *bans) look() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Ban keeps clients from connecting, on every node: it makes b, or puts it in the
// place of the ban with its key, and ends the connections that it concerns here; the
// other nodes do so within two seconds. Since is set. It returns what is in force from
// then on. An error is ErrBansFull, wraps herald.ErrUnavailable, or says what is wrong
// with b; after herald.ErrUnavailable the ban may come into force all the same.
func (e *Engine) Ban(ctx context.Context, b persistence.Ban) (persistence.Ban, error) {
	if err := ban.Check(&b); err != nil {
		return b, err
	}
	b.Since = e.now()
	if b.Until != 0 && b.Until <= b.Since {
		return b, errors.New("until: is over already")
	}
	return b, e.changeBan(ctx, persistence.BanChange{Ban: b})
}

// Unban removes a ban. An error wraps herald.ErrNotFound if there is none,
// herald.ErrUnavailable, or says what is wrong with k.
func (e *Engine) Unban(ctx context.Context, k persistence.BanKey) (persistence.BanKey, error) {
	if err := ban.CheckKey(&k); err != nil {
		return k, err
	}
	return k, e.changeBan(ctx, persistence.BanChange{Ban: persistence.Ban{BanKey: k}, Gone: true})
}

// Bans returns at most limit bans that are in force, by kind and who, behind a key (the
// zero key: from the first), how many there are in all, and whether more follow.
func (e *Engine) Bans(behind persistence.BanKey, limit int) (page []persistence.Ban, total int, more bool) {
	return e.bans.list.Page(e.now(), behind, limit)
}

func (e *Engine) changeBan(ctx context.Context, c persistence.BanChange) error {
	b := &e.bans
	if b.keeper == nil {
		return errNoBans
	}
	ctx, cancel := e.banContext(ctx)
	defer cancel()
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return banFailed(ctx.Err())
	}
	defer b.turn.unlock()
	if err := e.learnBans(ctx); err != nil {
		return banFailed(err)
	}
	now := e.now()
	b.list.Expire(now)
	_, there := b.list.Get(now, c.BanKey)
	switch {
	case c.Gone && !there:
		return fmt.Errorf("this ban: %w", herald.ErrNotFound)
	case !c.Gone && !there && b.list.Len() >= b.most:
		return ErrBansFull
	}
	version, err := b.keeper.ChangeBan(ctx, c)
	if err != nil {
		b.look() // whatever became of it
		return banFailed(err)
	}
	if version == b.version+1 {
		b.version = version
		e.applyBans(&persistence.BanNews{Changes: []persistence.BanChange{c}})
	} else if err := e.learnBans(ctx); err != nil { // others were faster
		b.look()
	}
	for _, p := range e.nodes.peers() {
		p.send(appendClosed(nil, frameBans, herald.ID(version)), nil, 0)
	}
	return nil
}

// banContext is for asking the store: it ends with this node's life.
func (e *Engine) banContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, banPatience)
	stop := context.AfterFunc(e.life, cancel)
	return ctx, func() { stop(); cancel() }
}

func banFailed(err error) error {
	if errors.Is(err, herald.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", herald.ErrUnavailable, err)
}

// loadBans reads the list before anybody may connect.
func (e *Engine) loadBans(ctx context.Context) error {
	b := &e.bans
	if b.keeper == nil {
		return nil
	}
	b.turn.lock()
	defer b.turn.unlock()
	return e.learnBans(ctx)
}

// learnBans brings the list to what the store has. The caller has the turn.
func (e *Engine) learnBans(ctx context.Context) error {
	b := &e.bans
	news, err := b.keeper.BanNews(ctx, b.version)
	if err != nil {
		return err
	}
	b.version = news.Version
	e.stats.BansUnreadable.Add(int64(news.Unreadable))
	if len(news.Changes) > 0 || news.Whole && b.list.Len() > 0 {
		e.applyBans(&news)
	}
	return nil
}

func (e *Engine) applyBans(news *persistence.BanNews) {
	e.endBanned(e.bans.list.Apply(e.now(), news))
}

// followBans keeps the list up to date, until Stop.
func (e *Engine) followBans() {
	if e.bans.keeper == nil {
		return
	}
	t := time.NewTicker(banLook)
	defer t.Stop()
	for {
		select {
		case <-e.quit:
			return
		case <-t.C:
		case <-e.bans.wake:
		}
		e.guard("bans", e.lookForBans)
	}
}

func (e *Engine) lookForBans() {
	b := &e.bans
	b.list.Expire(e.now())
	ctx, cancel := e.banContext(e.ctx)
	defer cancel()
	b.turn.lock()
	defer b.turn.unlock()
	err := e.learnBans(ctx)
	switch {
	case err == nil:
		b.failing = false
	case e.life.Err() != nil:
	case !b.failing || time.Since(b.warned) >= banWarn:
		e.log.Warn("the list of bans cannot be read; the last one stays in force", errField(err))
		b.failing, b.warned = true, time.Now()
		fallthrough
	default:
		e.stats.BanReadErrors.Add(1)
	}
}

// refused answers the CONNECT of a client that is banned, and tells whether it is.
func (e *Engine) refused(conn Conn, con *wire.Connect) bool {
	if e.bans.list.Len() == 0 {
		return false
	}
	who := ban.Peer{Client: string(con.ClientID), Username: string(con.Username), HasUsername: con.HasUsername, Addr: ipOf(conn.RemoteAddr())}
	if e.bans.list.Find(e.now(), who) == nil {
		return false
	}
	e.stats.Banned.Add(1)
	conn.CloseAfter(nil, wire.AppendConnack(nil, con.Version, false, wire.ReasonBanned, nil))
	return true
}

func ipOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok && t != nil {
		return t.AddrPort().Addr()
	}
	return netip.Addr{}
}

// endBanned ends the connections that new bans concern. A client that is in clients
// already is found here; one that comes later looks for itself (endIfBanned).
func (e *Engine) endBanned(fresh []persistence.Ban) {
	if len(fresh) == 0 {
		return
	}
	var them []*client
	e.clientsMu.RLock()
	if slices.ContainsFunc(fresh, func(b persistence.Ban) bool { return b.Kind != persistence.BanClient }) {
		them = make([]*client, 0, len(e.clients))
		for _, c := range e.clients {
			them = append(them, c)
		}
	} else {
		for i := range fresh {
			if c := e.clients[fresh[i].Who]; c != nil {
				them = append(them, c)
			}
		}
	}
	e.clientsMu.RUnlock()
	w := listen.NewWorker()
	n := 0
	for _, c := range them {
		if !e.endIfBanned(c, w) {
			continue
		}
		if n++; n%256 == 0 {
			w.Flush()
		}
	}
	w.Flush()
	if n > 0 {
		e.log.Info("connections ended by bans", zap.Int("connections", n))
	}
}

// endIfBanned ends the connection of a client that is banned, and tells whether it
// did. 0x8A is for CONNACK alone: DISCONNECT has no such reason [MQTT-3.14.2-1], so the
// client is told 0x98, and 0x8A when it comes back.
func (e *Engine) endIfBanned(c *client, w *listen.Worker) bool {
	if e.bans.list.Len() == 0 {
		return false
	}
	conn := c.connection()
	if conn == nil {
		return false
	}
	who := ban.Peer{Client: c.name, Username: c.username, HasUsername: c.hasUsername, Addr: ipOf(conn.RemoteAddr())}
	if e.bans.list.Find(e.now(), who) == nil {
		return false
	}
	e.stats.BanEnded.Add(1)
	return e.expel(conn, w)
}
