package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	mqtt3 "github.com/eclipse/paho.mqtt.golang"
	"github.com/spf13/cobra"
)

// message is what pub sends and sub receives.
type message struct {
	topic    string
	payload  []byte
	qos      byte
	retain   bool
	dup      bool
	packetID uint16
	props    properties // MQTT 5
}

// verdict is what a receiver says of a message.
type verdict struct {
	// acknowledge it; otherwise a durable session will get it again.
	acknowledge bool
	// then is called after the acknowledgement was written, if it is not nil.
	then func()
}

// client is a connection to a broker. Its methods wait for the answer that the
// protocol foresees and fail if it refuses.
type client interface {
	Publish(ctx context.Context, m message) error
	Subscribe(ctx context.Context, filter string, o subscribeOptions) error
	Unsubscribe(ctx context.Context, filter string) error
	// Disconnect ends the connection in the way that drops the will.
	Disconnect() error
	// Lost gets the reason when the connection ends by itself.
	Lost() <-chan error
}

type subscribeOptions struct {
	qos               byte
	noRetained        bool // MQTT 5: send no retained messages
	retainAsPublished bool // MQTT 5
	props             properties
}

// connection is how to connect: what the flags of pub and sub have in common,
// named as mosquitto's.
type connection struct {
	host, port, url, unix         string
	id, idPrefix, username        string
	password                      string
	version                       string
	keepalive                     uint16
	expiry                        string
	resume                        bool
	cafile, cert, key             string
	insecure                      bool
	willTopic, willPayload        string
	willQoS                       uint8
	willRetain                    bool
	property                      []string
	timeout                       time.Duration
	receive                       func(message) verdict // nil for pub
	parsed                        map[string]properties // by command: connect, publish, will, ...
	usernameGiven, passwordGiven  bool
	protocol                      byte // 3, 4 or 5
	sessionExpiry                 uint32
	scheme, address, path, server string
}

func (c *connection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Bool("help", false, "help for "+cmd.Name()) // without -h, which is the host
	f.StringVarP(&c.host, "host", "h", "localhost", "`HOST` of the broker")
	f.StringVarP(&c.port, "port", "p", "", "`PORT` of the broker (default 1883, 8883 with TLS)")
	f.StringVarP(&c.url, "url", "L", "", "`URL` instead of -h -p -u -P -t: mqtt, mqtts, ws or wss://[user[:password]@]host[:port]/topic")
	f.StringVar(&c.unix, "unix", "", "connect to a Unix socket at `PATH`")
	f.StringVarP(&c.id, "id", "i", "", "client `ID` (default: one is made up)")
	f.StringVarP(&c.idPrefix, "id-prefix", "I", "", "client id is `PREFIX` and the process id")
	f.StringVarP(&c.username, "username", "u", "", "`USER` to log in")
	f.StringVarP(&c.password, "pw", "P", "", "`PASSWORD` to log in")
	f.StringVarP(&c.version, "protocol-version", "V", "5", "MQTT `VERSION`: 5 (mqttv5), 311 (mqttv311) or 31 (mqttv31)")
	f.Uint16VarP(&c.keepalive, "keepalive", "k", 60, "keep alive in `SECONDS`, 0 for none")
	f.StringVarP(&c.expiry, "session-expiry-interval", "x", "", "MQTT 5: how long the session stays after the connection, in `SECONDS`, -1 for ever (default: -1 with -c, else 0)")
	f.BoolVarP(&c.resume, "disable-clean-session", "c", false, "durable session: keep it, and what waits in it, for the next time (needs -i)")
	f.StringVar(&c.cafile, "cafile", "", "TLS: trust the certificates in `FILE`")
	f.StringVar(&c.cert, "cert", "", "TLS: client certificate `FILE`")
	f.StringVar(&c.key, "key", "", "TLS: private key `FILE`")
	f.BoolVar(&c.insecure, "insecure", false, "TLS: do not check the name in the server's certificate; for tests only")
	f.StringVar(&c.willTopic, "will-topic", "", "`TOPIC` of the will")
	f.StringVar(&c.willPayload, "will-payload", "", "`MESSAGE` of the will")
	f.Uint8Var(&c.willQoS, "will-qos", 0, "`QOS` of the will")
	f.BoolVar(&c.willRetain, "will-retain", false, "the will is retained")
	f.StringArrayVarP(&c.property, "property", "D", nil, "MQTT 5 property: -D `COMMAND NAME VALUE`, -D COMMAND user-property NAME VALUE")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "give up when the broker does not answer for so long")
}

// check turns the flags into what the clients need, and returns the topic of
// the URL, if there is one.
func (c *connection) check(cmd *cobra.Command) (topic string, err error) {
	name := cmd.Name()
	switch strings.TrimPrefix(strings.ToLower(c.version), "mqttv") {
	case "5", "50":
		c.protocol = 5
	case "311":
		c.protocol = 4
	case "31":
		c.protocol = 3
	default:
		return "", usage("%s: -V %s: want 5, 311 or 31", name, c.version)
	}
	f := cmd.Flags()
	c.usernameGiven, c.passwordGiven = f.Changed("username"), f.Changed("pw")
	secure := c.cafile != "" || c.cert != "" || c.insecure
	c.scheme = "tcp"
	if secure {
		c.scheme = "tls"
	}
	if c.url != "" {
		if topic, err = c.fromURL(); err != nil {
			return "", usage("%s: -L: %v", name, err)
		}
	}
	if c.port == "" {
		c.port = map[string]string{"tcp": "1883", "tls": "8883", "ws": "80", "wss": "443"}[c.scheme]
	}
	c.address = net.JoinHostPort(c.host, c.port)
	c.server = c.address
	if c.unix != "" {
		c.scheme, c.server = "unix", c.unix
	}
	switch {
	case (c.cert == "") != (c.key == ""):
		return "", usage("%s: --cert and --key go together", name)
	case c.willQoS > 2:
		return "", usage("%s: --will-qos %d: want 0, 1 or 2", name, c.willQoS)
	case c.willTopic == "" && (c.willPayload != "" || c.willRetain || c.willQoS != 0):
		return "", usage("%s: a will needs --will-topic", name)
	case c.resume && c.id == "":
		return "", usage("%s: -c needs a client id (-i)", name)
	case c.passwordGiven && !c.usernameGiven && c.protocol < 5:
		return "", usage("%s: before MQTT 5, -P needs a user name (-u)", name)
	case c.id != "" && c.idPrefix != "":
		return "", usage("%s: -i or -I, not both", name)
	}
	if c.idPrefix != "" {
		c.id = c.idPrefix + strconv.Itoa(os.Getpid())
	}
	if c.id == "" && c.protocol == 3 { // MQTT 3.1 knows no empty client id
		c.id = fmt.Sprintf("herald-%08x", rand.Uint32())
	}
	if err := c.checkSession(); err != nil {
		return "", usage("%s: %v", name, err)
	}
	if c.parsed, err = parseProperties(c.property); err != nil {
		return "", usage("%s: %v", name, err)
	}
	if len(c.property) > 0 && c.protocol < 5 {
		return "", usage("%s: -D needs MQTT 5", name)
	}
	return topic, nil
}

func (c *connection) checkSession() error {
	switch c.expiry {
	case "":
		if c.resume {
			c.sessionExpiry = math.MaxUint32
		}
		return nil
	case "-1", "∞":
		c.sessionExpiry = math.MaxUint32
	default:
		n, err := strconv.ParseUint(c.expiry, 10, 32)
		if err != nil {
			return fmt.Errorf("-x %s: want seconds up to 4294967295, or -1", c.expiry)
		}
		c.sessionExpiry = uint32(n)
	}
	if c.protocol < 5 {
		return errors.New("-x needs MQTT 5")
	}
	return nil
}

func (c *connection) fromURL() (topic string, err error) {
	u, err := url.Parse(c.url)
	if err != nil {
		return "", errors.New("not a URL") // whose text may hold a password
	}
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "tls", "ssl":
		c.scheme = "tls"
	case "ws", "wss":
		c.scheme = u.Scheme
	default:
		return "", fmt.Errorf("scheme %q: want mqtt, mqtts, ws or wss", u.Scheme)
	}
	c.host = u.Hostname()
	if u.Port() != "" {
		c.port = u.Port()
	}
	if u.User != nil {
		c.username, c.usernameGiven = u.User.Username(), true
		c.password, c.passwordGiven = u.User.Password()
	}
	if c.scheme == "ws" || c.scheme == "wss" {
		c.path = u.Path
		if c.path == "" {
			c.path = "/mqtt"
		}
		return "", nil
	}
	return strings.TrimPrefix(u.Path, "/"), nil
}

// open connects to the broker at the level of sockets.
func (c *connection) open(ctx context.Context) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: c.timeout}
	switch c.scheme {
	case "unix":
		return dialer.DialContext(ctx, "unix", c.unix)
	case "tcp":
		return dialer.DialContext(ctx, "tcp", c.address)
	}
	var conf *tls.Config
	if c.scheme != "ws" {
		var err error
		if conf, err = c.tls(); err != nil {
			return nil, err
		}
	}
	if c.scheme == "tls" {
		return (&tls.Dialer{NetDialer: dialer, Config: conf}).DialContext(ctx, "tcp", c.address)
	}
	return mqtt3.NewWebsocket(c.scheme+"://"+c.address+c.path, conf, c.timeout, http.Header{}, nil)
}

func (c *connection) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.host, InsecureSkipVerify: c.insecure}
	if c.cafile != "" {
		pem, err := os.ReadFile(c.cafile)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", c.cafile)
		}
	}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// connect opens a connection that is accepted by the broker.
func (c *connection) connect(ctx context.Context) (client, error) {
	var cl client
	var err error
	if c.protocol == 5 {
		cl, err = connect5(ctx, c)
	} else {
		cl, err = connect3(ctx, c)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.server, err)
	}
	return cl, nil
}

// report hands the first error over; what comes later follows from it.
func report(lost chan<- error, err error) {
	select {
	case lost <- err:
	default:
	}
}
