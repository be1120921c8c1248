package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/eclipse/paho.golang/paho"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// separator joins the words of one -D into one argument. It cannot stand in an
// argument of its own.
const separator = "\x00"

// properties are MQTT 5 properties under mosquitto's names. The zero value has
// none.
type properties struct {
	contentType, responseTopic string
	correlation                []byte
	payloadFormat              *byte
	messageExpiry, willDelay   *uint32
	sessionExpiry, maxPacket   *uint32
	receiveMaximum             *uint16
	subscription               *int
	noProblemInformation       bool
	user                       paho.UserProperties
}

// joinProperties makes one argument of each "-D command name value" and
// "-D command user-property name value" of pub and sub, since flags take one.
func joinProperties(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil || cmd.Flags().Lookup("property") == nil {
		return args
	}
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return append(out, args[i:]...)
		}
		if a == "-D" || a == "--property" {
			n := 3
			if i+2 < len(args) && args[i+2] == "user-property" {
				n = 4
			}
			words := args[i+1 : min(i+1+n, len(args))]
			out = append(out, "--property="+strings.Join(words, separator))
			i += len(words)
			continue
		}
		out = append(out, a)
		if takesNext(cmd.Flags(), a) && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// takesNext tells whether flag a, as written, has its value in the next
// argument.
func takesNext(flags *pflag.FlagSet, a string) bool {
	if name, ok := strings.CutPrefix(a, "--"); ok {
		f := flags.Lookup(name)
		return f != nil && f.NoOptDefVal == ""
	}
	if !strings.HasPrefix(a, "-") {
		return false
	}
	for i := 1; i < len(a); i++ {
		f := flags.ShorthandLookup(a[i : i+1])
		if f == nil {
			return false
		}
		if f.NoOptDefVal == "" { // takes a value: the rest, or the next one
			return i == len(a)-1
		}
	}
	return false
}

// parseProperties reads all -D flags, by command.
func parseProperties(flags []string) (map[string]properties, error) {
	out := map[string]properties{}
	for _, f := range flags {
		words := strings.Split(f, separator)
		if len(words) == 1 {
			words = strings.Fields(f)
		}
		if len(words) < 3 {
			return nil, fmt.Errorf("-D %s: want COMMAND NAME VALUE", strings.Join(words, " "))
		}
		command, name := words[0], words[1]
		known, ok := accepted[command]
		if !ok {
			return nil, fmt.Errorf("-D %s: want connect, publish, will, subscribe or disconnect", command)
		}
		if !strings.Contains(known, " "+name+" ") {
			return nil, fmt.Errorf("-D %s %s: want one of:%s", command, name, strings.TrimRight(known, " "))
		}
		p := out[command]
		if err := p.set(name, words[2:]); err != nil {
			return nil, fmt.Errorf("-D %s %s: %w", command, name, err)
		}
		out[command] = p
	}
	return out, nil
}

// accepted are the properties by command, a space around each.
var accepted = map[string]string{
	"connect":    " maximum-packet-size receive-maximum request-problem-information session-expiry-interval user-property ",
	"publish":    " content-type correlation-data message-expiry-interval payload-format-indicator response-topic user-property ",
	"will":       " content-type correlation-data message-expiry-interval payload-format-indicator response-topic will-delay-interval user-property ",
	"subscribe":  " subscription-identifier user-property ",
	"disconnect": " session-expiry-interval user-property ",
}

func (p *properties) set(name string, values []string) error {
	number := func(bits int, low uint64) (uint64, error) {
		n, err := strconv.ParseUint(values[0], 10, bits)
		if err != nil || n < low {
			return 0, fmt.Errorf("want a number from %d to %d, got %q", low, uint64(1)<<bits-1, values[0])
		}
		return n, nil
	}
	four := func(dst **uint32, low uint64) error {
		n, err := number(32, low)
		v := uint32(n)
		*dst = &v
		return err
	}
	switch name {
	case "user-property":
		if len(values) != 2 {
			return fmt.Errorf("want NAME VALUE")
		}
		p.user = append(p.user, paho.UserProperty{Key: values[0], Value: values[1]})
	case "content-type":
		p.contentType = values[0]
	case "response-topic":
		p.responseTopic = values[0]
	case "correlation-data":
		p.correlation = []byte(values[0])
	case "message-expiry-interval":
		return four(&p.messageExpiry, 0)
	case "will-delay-interval":
		return four(&p.willDelay, 0)
	case "session-expiry-interval":
		return four(&p.sessionExpiry, 0)
	case "maximum-packet-size":
		return four(&p.maxPacket, 1)
	case "receive-maximum":
		n, err := number(16, 1)
		v := uint16(n)
		p.receiveMaximum = &v
		return err
	case "payload-format-indicator":
		n, err := number(1, 0)
		v := byte(n)
		p.payloadFormat = &v
		return err
	case "request-problem-information":
		n, err := number(1, 0)
		p.noProblemInformation = n == 0
		return err
	case "subscription-identifier":
		n, err := number(28, 1)
		v := int(n)
		p.subscription = &v
		return err
	}
	return nil
}

func (p properties) connect() *paho.ConnectProperties {
	return &paho.ConnectProperties{
		SessionExpiryInterval: p.sessionExpiry, ReceiveMaximum: p.receiveMaximum, MaximumPacketSize: p.maxPacket,
		RequestProblemInfo: !p.noProblemInformation, User: p.user,
	}
}

func (p properties) publish() *paho.PublishProperties {
	return &paho.PublishProperties{
		ContentType: p.contentType, ResponseTopic: p.responseTopic, CorrelationData: p.correlation,
		PayloadFormat: p.payloadFormat, MessageExpiry: p.messageExpiry, User: p.user,
	}
}

func (p properties) will() *paho.WillProperties {
	return &paho.WillProperties{
		ContentType: p.contentType, ResponseTopic: p.responseTopic, CorrelationData: p.correlation,
		PayloadFormat: p.payloadFormat, MessageExpiry: p.messageExpiry, WillDelayInterval: p.willDelay, User: p.user,
	}
}

func (p properties) subscribe() *paho.SubscribeProperties {
	return &paho.SubscribeProperties{SubscriptionIdentifier: p.subscription, User: p.user}
}

func (p properties) disconnect() *paho.DisconnectProperties {
	return &paho.DisconnectProperties{SessionExpiryInterval: p.sessionExpiry, User: p.user}
}

func fromPublish(p *paho.PublishProperties) properties {
	if p == nil {
		return properties{}
	}
	return properties{
		contentType: p.ContentType, responseTopic: p.ResponseTopic, correlation: p.CorrelationData,
		payloadFormat: p.PayloadFormat, messageExpiry: p.MessageExpiry, subscription: p.SubscriptionIdentifier, user: p.User,
	}
}
