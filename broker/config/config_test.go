package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	yamlv3 "go.yaml.in/yaml/v3"
)

const example = "../../configs/herald.yaml"

// write makes a file of text and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "herald.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func load(t *testing.T, s Sources) Config {
	t.Helper()
	c, err := Load(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaultsAreValid(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestExampleEqualsDefaults(t *testing.T) {
	if diff := cmp.Diff(load(t, Sources{}), load(t, Sources{File: example})); diff != "" {
		t.Errorf("%s differs from the defaults:\n%s", example, diff)
	}
}

// The example has every key and no other, each with a comment of its own or of
// its section.
func TestExampleHasEveryKey(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	var doc yamlv3.Node
	if err := yamlv3.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	var walk func(prefix string, n *yamlv3.Node)
	walk = func(prefix string, n *yamlv3.Node) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := prefix + n.Content[i].Value
			if keyTypes[key] != nil && keyTypes[key].Kind() == reflect.Struct {
				walk(key+".", n.Content[i+1])
			} else {
				got = append(got, key)
			}
		}
	}
	walk("", doc.Content[0])
	slices.Sort(got)
	if diff := cmp.Diff(Keys(), got); diff != "" {
		t.Errorf("keys (-known +example):\n%s", diff)
	}
	for _, f := range fieldNames(reflect.TypeFor[Listener]()) {
		if !regexp.MustCompile(`(?m)^#   .*\b` + f + `\b`).Match(text) {
			t.Errorf("the listeners' key %s is not explained", f)
		}
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "queue: {max_messages: 1, max_bytes: 1KiB, full: drop_new}\n")
	c := load(t, Sources{
		File:    file,
		Environ: []string{"HERALD_QUEUE__MAX_MESSAGES=2", "HERALD_QUEUE__MAX_BYTES=2KiB", "HOME=/x"},
		Set:     []string{"queue.max_messages=3", "queue.max_messages=4"},
	})
	want := Queue{MaxMessages: 4, MaxBytes: 2048, Full: DropNew}
	if c.Queue != want {
		t.Errorf("got %+v, want %+v", c.Queue, want)
	}
	if c.MQTT.ReceiveMaximum != 1024 {
		t.Error("what nobody set lost its default")
	}
}

func TestValues(t *testing.T) {
	tests := []struct {
		set  string
		want func(c Config) any
		v    any
	}{
		{"mqtt.max_packet_size=65536", func(c Config) any { return c.MQTT.MaxPacketSize }, Bytes(65536)},
		{"mqtt.max_packet_size=10MB", func(c Config) any { return c.MQTT.MaxPacketSize }, Bytes(10_000_000)},
		{"mqtt.max_keepalive=60", func(c Config) any { return c.MQTT.MaxKeepalive }, time.Minute},
		{"mqtt.session_expiry_v3=7d", func(c Config) any { return c.MQTT.SessionExpiryV3 }, 168 * time.Hour},
		{"mqtt.connect_timeout=1500ms", func(c Config) any { return c.MQTT.ConnectTimeout }, 1500 * time.Millisecond},
		{"node.name=1234", func(c Config) any { return c.Node.Name }, "1234"},
		{"admin.address=", func(c Config) any { return c.Admin.Address }, ""},
		{"admin.pprof=true", func(c Config) any { return c.Admin.Pprof }, true},
		{`shared.durable=["a", "b"]`, func(c Config) any { return c.Shared.Durable }, []string{"a", "b"}},
		{"queue={max_messages: 5, full: disconnect}", func(c Config) any { return c.Queue }, Queue{MaxMessages: 5, Full: Disconnect}},
		{
			`listeners=[{"protocol": "ws", "address": ":0"}, {protocol: unix, path: /run/x, max_connections: 7}]`,
			func(c Config) any { return c.Listeners },
			[]Listener{{Protocol: WS, Address: ":0", Path: "/mqtt"}, {Protocol: Unix, Path: "/run/x", MaxConnections: 7}},
		},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.v, tt.want(load(t, Sources{Set: []string{tt.set}}))); diff != "" {
			t.Errorf("--set %s:\n%s", tt.set, diff)
		}
		key, value, _ := strings.Cut(tt.set, "=")
		variable := "HERALD_" + strings.ToUpper(strings.ReplaceAll(key, ".", "__")) + "=" + value
		if diff := cmp.Diff(tt.v, tt.want(load(t, Sources{Environ: []string{variable}}))); diff != "" {
			t.Errorf("%s:\n%s", variable, diff)
		}
	}
}

func TestRefusedInFile(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown section", "que: {}", "que: unknown key"},
		{"unknown key, with a hint", "queue: {fulll: drop_new}", "queue.fulll: unknown key (did you mean queue.full?)"},
		{"unknown key of a listener", "listeners: [{protocol: tcp, adress: ':1'}]", "listeners[0].adress: unknown key (did you mean listeners[0].address?)"},
		{"section is a value", "queue: 5", "queue: want a section with keys, got 5"},
		{"value is a section", "queue: {full: {a: 1}}", "queue.full: want text (in quotes), got a mapping"},
		{"key without a value", "queue: {full: }", "queue.full: want text (in quotes), got nothing"},
		{"number for text", "node: {name: 12}", "node.name: want text (in quotes), got 12"},
		{"text for number", "mqtt: {max_qos: high}", `mqtt.max_qos: want a whole number, got "high"`},
		{"text for truth", "admin: {pprof: maybe}", `admin.pprof: want true or false, got "maybe"`},
		{"no size", "queue: {max_bytes: lots}", `queue.max_bytes: want a size such as 64KiB or 1MiB, got "lots"`},
		{"negative size", "queue: {max_bytes: -1}", "queue.max_bytes: want a size such as 64KiB or 1MiB, got -1"},
		{"no duration", "shared: {expiry: soon}", `shared.expiry: want a duration such as 30s or 24h, or a number of seconds, got "soon"`},
		{"duration overflows", "shared: {expiry: 99999999999999}", "shared.expiry: want a duration such as 30s or 24h, or a number of seconds, got 99999999999999"},
		{"no list", "shared: {durable: a}", `shared.durable: want a list such as [a, b], got "a"`},
		{"list of numbers", "shared: {durable: [a, 1]}", "shared.durable[1]: want text (in quotes), got 1"},
		{"twice", "log: {level: info, level: warn}", `yaml: unmarshal errors: line 1: mapping key "level" already defined at line 1`},
		{"out of range", "mqtt: {max_qos: 3}", "mqtt.max_qos: must be 0 to 2, not 3"},
		{"not whole seconds", "mqtt: {max_keepalive: 1500ms}", "mqtt.max_keepalive: must be whole seconds, not 1.5s"},
		{"keepalive too long", "mqtt: {max_keepalive: 65536}", "mqtt.max_keepalive: must be 0 to 18h12m15s, not 18h12m16s"},
		{"packet size", "mqtt: {max_packet_size: 1GiB}", "mqtt.max_packet_size: must be 64 bytes to 256MiB, not 1GiB"},
		{"choice", "queue: {full: burst}", `queue.full: must be one of drop_oldest, drop_new, disconnect, not "burst"`},
		{"no listeners", "listeners: []", "listeners: needs at least one"},
		{"listener without protocol", "listeners: [{address: ':1'}]", "listeners[0].protocol: is missing: one of tcp, tls, ws, wss, unix"},
		{"no port", "listeners: [{protocol: tcp, address: localhost}]", `listeners[0].address: must be host:port, not "localhost"`},
		{"bad port", "listeners: [{protocol: tcp, address: ':mqtt'}]", `listeners[0].address: port must be 0 to 65535, not "mqtt"`},
		{"same address", "listeners: [{protocol: tcp, address: ':1'}, {protocol: ws, address: ':1'}]", "listeners[1].address: :1 is already listeners[0]"},
		{"tls without cert", "listeners: [{protocol: tls, address: ':1'}]", "listeners[0].cert: tls needs cert and key"},
		{"cert missing", "listeners: [{protocol: tls, address: ':1', cert: /no/c.pem, key: /no/k.pem}]", ".pem: no such file or directory"},
		{"cert without tls", "listeners: [{protocol: tcp, address: ':1', cert: c.pem}]", "listeners[0].cert: is only for tls and wss"},
		{"unix without path", "listeners: [{protocol: unix}]", "listeners[0].path: must name the socket in 1 to 103 bytes"},
		{"mount", "listeners: [{protocol: tcp, address: ':1', mount: a}]", "listeners[0].mount: not available in this release"},
		{"admin address", "admin: {address: here}", `admin.address: must be host:port, not "here"`},
		{"admin on a listener", "admin: {address: '127.0.0.1:1883'}", "admin.address: 127.0.0.1:1883 is already listeners[0]"},
		{"scylla without hosts", "store: {engine: scylla}", "store.engine: scylla wants store.scylla.hosts"},
		{"scylla keyspace", "store: {engine: scylla, scylla: {hosts: [h], keyspace: a-b}}", `store.scylla.keyspace: must be 1 to 48 letters, digits and underscores, a letter first, not "a-b"`},
		{"scylla datacenters", "store: {scylla: {datacenter: north, datacenters: [{name: south, replication: 3}]}}", "store.scylla.datacenter: must be one of store.scylla.datacenters: a quorum is sought there"},
		{"scylla datacenter without a name", "store: {scylla: {datacenters: [{replication: 3}]}}", "store.scylla.datacenters[0].name: must be there, and differ from the others'"},
		{"scylla datacenter without copies", "store: {scylla: {datacenter: n, datacenters: [{name: n}]}}", "store.scylla.datacenters[0].replication: must be 1 to 9, not 0"},
		{"scylla cert", "store: {engine: scylla, scylla: {hosts: [h], tls: {cert: c.pem}}}", "store.scylla.tls.cert: wants key, too"},
		{"redis", "bridge: {redis: 'redis://:secret@h'}", "bridge.redis: a cluster needs the shared store"},
		{"history", "history: {topics: ['a/#']}", "history.topics: not available in this release"},
		{"auth", "auth: {file: x}", "auth: not available in this release"},
		{"limits", "limits: {subscriptions: -1}", "limits.subscriptions: must be at least 0, not -1"},
		{"pending output", "limits: {pending_output: 100KiB}", "limits.pending_output: must be 0 or at least 1MiB, not 100KiB"},
		{"group name", "shared: {durable: [a, b/+/c, 'c+']}", `shared.durable[2]: must be {group} or {group}/{filter}, not "c+"`},
		{"log level", "log: {level: loud}", `log.level: must be one of debug, info, warn, error, not "loud"`},
		{"not YAML", "a: [", "yaml: "},
		{"stop timeout", "node: {stop_timeout: 0}", "node.stop_timeout: must be 1s to 1h, not 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, tt.text)
			_, err := Load(Sources{File: file})
			if err == nil {
				t.Fatal("accepted")
			}
			got, ok := strings.CutPrefix(err.Error(), file+": ")
			if !ok || !strings.Contains(got, tt.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant %s: ...%s", err, file, tt.want)
			}
			if strings.Contains(got, "secret") {
				t.Error("the error shows a secret")
			}
		})
	}
}

func TestRefusedElsewhere(t *testing.T) {
	tests := []struct {
		s    Sources
		want string
	}{
		{Sources{Environ: []string{"HERALD_STORE__ENGIN=x"}}, "environment HERALD_STORE__ENGIN: store.engin: unknown key (did you mean store.engine?)"},
		{Sources{Environ: []string{"HERALD_PORT=1883"}}, "environment HERALD_PORT: port: unknown key"},
		{Sources{Environ: []string{"HERALD_MQTT__MAX_QOS=7"}}, "environment HERALD_MQTT__MAX_QOS: mqtt.max_qos: must be 0 to 2, not 7"},
		{Sources{Set: []string{"listeners=[{protocol: tcp, address: x}]"}}, `--set: listeners[0].address: must be host:port, not "x"`},
		{Sources{Set: []string{"listeners=[{"}}, "--set: listeners: yaml: "},
		{Sources{Set: []string{"log.level"}}, "--set: log.level: want key=value"},
		{Sources{Set: []string{"=x"}}, "--set: unknown key"},
		{Sources{File: "/no/such/file"}, "/no/such/file: no such file or directory"},
		{Sources{File: "/"}, "/: is a folder"},
	}
	for _, tt := range tests {
		_, err := Load(tt.s)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %s", tt.s, err, tt.want)
		}
	}
}

// In a pod beside a service called herald, these are set by Kubernetes.
func TestKubernetesVariablesAreNotKeys(t *testing.T) {
	load(t, Sources{Environ: []string{
		"HERALD_TEST_CLOCK_AHEAD=2s", "HERALD_SERVICE_HOST=10.0.0.1", "HERALD_SERVICE_PORT=1883", "HERALD_SERVICE_PORT_MQTT=1883",
		"HERALD_PORT=tcp://10.0.0.1:1883", "HERALD_PORT_1883_TCP=tcp://10.0.0.1:1883",
		"HERALD_PORT_1883_TCP_ADDR=10.0.0.1", "HERALD_ADMIN_PORT=tcp://10.0.0.1:8080",
	}})
}

func TestPrintRoundTrip(t *testing.T) {
	want := load(t, Sources{Set: []string{
		"listeners=[{protocol: tcp, address: ':0', proxy_protocol: true}, {protocol: unix, path: /run/x}]",
		"mqtt.max_packet_size=3KiB", "mqtt.session_expiry_v3=90m", "shared.durable=[a, 'true']", "node.name=yes", "log.level=warn",
	}})
	text, err := want.Print()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, load(t, Sources{File: write(t, string(text))})); diff != "" {
		t.Errorf("%s\n%s", text, diff)
	}
}

func TestPrintMasksSecrets(t *testing.T) {
	c := Default()
	c.Store.Scylla.Password = "tell-nobody"
	c.Bridge.Redis = "rediss://user:tell-nobody@host:6379/0"
	c.Auth = map[string]any{"token": "tell-nobody"}
	text, err := c.Print()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "tell-nobody") {
		t.Errorf("a secret is shown:\n%s", text)
	}
	for _, want := range []string{"password: '********'", "rediss://user:********@host:6379/0"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing in:\n%s", want, text)
		}
	}
}

func TestChanged(t *testing.T) {
	a, b := Default(), Default()
	b.Log.Level = "debug"
	b.Listeners = b.Listeners[:1]
	want := []Change{{Key: "listeners"}, {Key: "log.level", Reload: true}}
	if diff := cmp.Diff(want, Changed(a, b)); diff != "" {
		t.Error(diff)
	}
}

func TestBytesString(t *testing.T) {
	for b, want := range map[Bytes]string{0: "0", 1: "1", 1024: "1KiB", 1536: "1536", 1 << 20: "1MiB", 3 << 30: "3GiB"} {
		if got := b.String(); got != want {
			t.Errorf("%d: got %s, want %s", int64(b), got, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("queue: {full: drop_new}\nlisteners: [{protocol: tcp, address: ':0'}]")
	f.Add("? [a]\n: b\n<<: {x: 1}")
	f.Add("auth: {a: {1: 2}}\nshared: {durable: [&a b, *a]}")
	name := filepath.Join(f.TempDir(), "fuzz.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(Sources{File: name})
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			return
		}
		if _, err := c.Print(); err != nil {
			t.Error(err)
		}
	})
}
