package config

import (
	"os"
	"slices"
	"strings"
	"testing"

	yamlv3 "go.yaml.in/yaml/v3"
)

// The nodes of configs/compose.yaml have configurations that are accepted, make one
// cluster, and are what the other services there expect.
func TestComposeFile(t *testing.T) {
	text, err := os.ReadFile("../../configs/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type service struct {
		Image       string
		Command     any
		Environment map[string]string
		Ports       []string
	}
	var file struct {
		Services map[string]service
		Configs  map[string]struct{ Content string }
	}
	if err := yamlv3.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var nodes, hostPorts []string
	for name, s := range file.Services {
		for _, p := range s.Ports {
			hostPorts = append(hostPorts, p[:strings.LastIndexByte(p, ':')])
		}
		if !strings.HasPrefix(s.Image, "herald") {
			continue
		}
		var environ []string
		for k, v := range s.Environment {
			environ = append(environ, k+"="+v)
		}
		c, err := Load(Sources{Environ: environ})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		host := c.Store.Scylla.Hosts[0]
		if _, ok := file.Services[host]; c.Store.Engine != Scylla || !ok {
			t.Errorf("%s: store %s on %s, which is no service", name, c.Store.Engine, host)
		}
		if name == "schema" {
			continue
		}
		nodes = append(nodes, name)
		if c.Node.Name != name || c.Bridge.Redis != "redis://redis:6379" || file.Services["redis"].Image == "" {
			t.Errorf("%s: node.name %s, bridge.redis %s", name, c.Node.Name, c.Bridge.Redis)
		}
		port := c.Cluster.Address[strings.LastIndexByte(c.Cluster.Address, ':')+1:]
		if len(s.Ports) != 2 || s.Ports[0] != port+":1883" || c.Listeners[0].Address != ":1883" {
			t.Errorf("%s: clients are sent to %s, and ports are %v", name, c.Cluster.Address, s.Ports)
		}
		if !strings.HasSuffix(s.Ports[1], c.Admin.Address) || !strings.Contains(file.Configs["prometheus"].Content, `"`+name+c.Admin.Address+`"`) {
			t.Errorf("%s: Prometheus does not ask %s", name, c.Admin.Address)
		}
	}
	if len(nodes) != 3 {
		t.Errorf("nodes %v, want three", nodes)
	}
	slices.Sort(hostPorts)
	if n := len(hostPorts); n != len(slices.Compact(hostPorts)) {
		t.Errorf("two services have one port: %v", hostPorts)
	}
	for name, c := range file.Configs {
		var v map[string]any
		if err := yamlv3.Unmarshal([]byte(c.Content), &v); err != nil || len(v) == 0 {
			t.Errorf("configs.%s: %v", name, err)
		}
	}
}
