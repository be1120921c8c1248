package listen

import (
	"errors"
	"io"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/herald-mqtt/herald/broker/wire"
)

// ErrDetached is what mochi gets when it wants to read the next frame: it lets
// go of the connection, which lives on. It reaches the hooks as OnDisconnect's
// error; they do nothing then.
var ErrDetached = errors.New("connection detached from mochi")

// clientState is what later control frames need to know of the mochi client that
// was built from CONNECT.
type clientState struct {
	id        string
	username  []byte
	keepalive uint16
	clean     bool

	expiry          uint32
	expirySet       bool
	problemInfo     byte
	problemInfoSet  bool
	responseInfo    byte
	maxPacketSize   uint32
	receiveMaximum  uint16
	aliasMaximum    uint16
	aliasMaximumSet bool
}

func (s *clientState) save(cl *mqtt.Client) {
	p := &cl.Properties.Props
	*s = clientState{
		id: cl.ID, username: cl.Properties.Username, keepalive: cl.State.Keepalive, clean: cl.Properties.Clean,
		expiry: p.SessionExpiryInterval, expirySet: p.SessionExpiryIntervalFlag,
		problemInfo: p.RequestProblemInfo, problemInfoSet: p.RequestProblemInfoFlag,
		responseInfo: p.RequestResponseInfo, maxPacketSize: p.MaximumPacketSize,
		receiveMaximum: p.ReceiveMaximum, aliasMaximum: p.TopicAliasMaximum, aliasMaximumSet: p.TopicAliasMaximum > 0,
	}
}

func (s *clientState) restore(cl *mqtt.Client, version byte) {
	cl.ID = s.id
	cl.State.Keepalive = s.keepalive
	p := &cl.Properties
	p.ProtocolVersion, p.Username, p.Clean = version, s.username, s.clean
	p.Props.SessionExpiryInterval, p.Props.SessionExpiryIntervalFlag = s.expiry, s.expirySet
	p.Props.RequestProblemInfo, p.Props.RequestProblemInfoFlag = s.problemInfo, s.problemInfoSet
	p.Props.RequestResponseInfo = s.responseInfo
	p.Props.MaximumPacketSize = s.maxPacketSize
	p.Props.ReceiveMaximum = s.receiveMaximum
	p.Props.TopicAliasMaximum = s.aliasMaximum
}

// detachHook sees mochi let go of a connection.
type detachHook struct {
	mqtt.HookBase
	server *mqtt.Server
}

func (*detachHook) ID() string { return "herald-listen" }

func (*detachHook) Provides(b byte) bool { return b == mqtt.OnDisconnect }

func (h *detachHook) OnDisconnect(cl *mqtt.Client, err error, _ bool) {
	c, ok := cl.Net.Conn.(*Conn)
	if !ok || !errors.Is(err, ErrDetached) {
		return
	}
	c.client.save(cl)
	if cur, ok := h.server.Clients.Get(cl.ID); ok && cur == cl {
		h.server.Clients.Delete(cl.ID)
	}
}

// serve runs mochi for the control frame that is next in the left-over. c.worker
// is set, so nobody else processes anything of c.
func (c *Conn) serve() {
	defer func() {
		if r := recover(); r != nil {
			c.panicked("control", r)
		}
		c.off += c.frame
		c.frame, c.control, c.forMochi = 0, nil, nil
		if c.in != nil && c.off >= len(c.in.b) {
			c.releaseIn()
		}
		again := c.in != nil
		c.heard.Store(c.loop.now.Load()) // nobody listened meanwhile
		c.worker.Store(false)
		if again || c.more.Load() || c.stopped.Load() || c.stream != nil {
			c.post()
		}
	}()
	c.detached.Store(false)
	c.control = c.in.b[c.off : c.off+c.frame]
	c.forMochi = c.control
	if !c.registered {
		c.registered = true
		c.forMochi = plainConnect(c.control)
		err := c.lis.establish(c.lis.cfg.ID, c)
		if !errors.Is(err, ErrDetached) {
			c.loop.log.Debug("connection refused or ended", "listener", c.lis.cfg.ID, "error", err)
			c.CloseAfter(nil, nil)
		}
		return
	}
	server := c.loop.server
	cl := server.NewClient(c, c.lis.cfg.ID, c.client.id, false)
	c.client.restore(cl, byte(c.version.Load()))
	err := cl.Read(func(cl *mqtt.Client, pk packets.Packet) error {
		err := server.InjectPacket(cl, pk)
		if code, ok := errors.AsType[packets.Code](err); ok && byte(c.Version()) == 5 &&
			code.Code >= packets.ErrUnspecifiedError.Code {
			_ = server.DisconnectClient(cl, code)
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrDetached) {
		c.loop.log.Debug("connection ended", "listener", c.lis.cfg.ID, "client", c.client.id, "error", err)
		c.CloseAfter(nil, nil)
		return
	}
	// DISCONNECT may have changed it.
	c.client.expiry = cl.Properties.Props.SessionExpiryInterval
}

// plainConnect is a CONNECT as mochi takes it. It refuses what MQTT allows: a will
// with an empty payload, an empty password, the flags of MQTT 3.1; and thousands
// of user properties make it slow. The will is the engine's business, which reads
// the original.
func plainConnect(frame []byte) []byte {
	con, err := wire.CheckConnect(frame)
	if err != nil {
		return frame // was checked before; mochi will refuse it
	}
	con.HasWill = false
	con.DropUserProperties()
	con.HasPassword = len(con.Password) > 0
	return wire.AppendConnect(make([]byte, 0, len(frame)), &con)
}

// Read is mochi's: the bytes of the one frame that it is run for, then
// ErrDetached.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.forMochi) > 0 && len(p) > 0 {
		n := copy(p, c.forMochi)
		c.forMochi = c.forMochi[n:]
		return n, nil
	}
	if c.stopped.Load() {
		return 0, io.EOF
	}
	c.detached.Store(true)
	return 0, ErrDetached
}
