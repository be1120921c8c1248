package config

import (
	"net/url"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	yamlv3 "go.yaml.in/yaml/v3"
)

const masked = "********"

// Print writes c as YAML in the order of the example file, secrets masked.
// Read again, it gives c, but for the secrets.
func (c *Config) Print() ([]byte, error) {
	var b strings.Builder
	enc := yamlv3.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(node(reflect.ValueOf(*c), "")); err != nil {
		return nil, err
	}
	return []byte(b.String()), enc.Close()
}

func node(v reflect.Value, secret string) *yamlv3.Node {
	scalar := func(tag, s string) *yamlv3.Node {
		return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: tag, Value: s}
	}
	switch x := v.Interface().(type) {
	case Bytes:
		return scalar("", x.String())
	case time.Duration:
		return scalar("", formatDuration(x))
	case string:
		if x != "" && secret != "" {
			x = mask(x, secret)
		}
		n := scalar("!!str", x)
		if x == "" {
			n.Style = yamlv3.DoubleQuotedStyle
		}
		return n
	case bool:
		return scalar("!!bool", strconv.FormatBool(x))
	case int:
		return scalar("!!int", strconv.Itoa(x))
	}
	out := &yamlv3.Node{}
	switch v.Kind() {
	case reflect.Struct:
		out.Kind = yamlv3.MappingNode
		for i := range v.NumField() {
			f := v.Type().Field(i)
			out.Content = append(out.Content, scalar("!!str", f.Tag.Get("koanf")), node(v.Field(i), f.Tag.Get("secret")))
		}
	case reflect.Slice:
		out.Kind = yamlv3.SequenceNode
		for i := range v.Len() {
			n := node(v.Index(i), "")
			if n.Kind == yamlv3.MappingNode {
				n.Content = withoutEmpty(n.Content)
			}
			out.Content = append(out.Content, n)
		}
		if v.Len() == 0 {
			out.Style = yamlv3.FlowStyle
		}
	case reflect.Map:
		out.Kind, out.Style = yamlv3.MappingNode, yamlv3.FlowStyle
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			out.Content = append(out.Content, scalar("!!str", k.String()), scalar("!!str", masked))
		}
	case reflect.Interface:
		return node(v.Elem(), "")
	}
	return out
}

// withoutEmpty leaves out the fields of a list element that say nothing.
func withoutEmpty(pairs []*yamlv3.Node) []*yamlv3.Node {
	var out []*yamlv3.Node
	for i := 0; i+1 < len(pairs); i += 2 {
		if v := pairs[i+1].Value; v != "" && v != "false" && v != "0" {
			out = append(out, pairs[i], pairs[i+1])
		}
	}
	return out
}

// mask hides a secret; of a URL only the password.
func mask(s, kind string) string {
	if kind != "url" {
		return masked
	}
	u, err := url.Parse(s)
	if err != nil {
		return masked
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), "PASSWORD")
		return strings.Replace(u.String(), "PASSWORD@", masked+"@", 1)
	}
	return u.String()
}

// formatDuration is Go's notation without zero units at the end: 24h, not
// 24h0m0s.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// Changed lists the keys in which a and b differ, sorted, and whether each
// takes effect without a restart.
func Changed(a, b Config) []Change {
	var out []Change
	changed("", reflect.ValueOf(a), reflect.ValueOf(b), &out)
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

// Change is a key whose value differs.
type Change struct {
	Key string
	// Reload tells that it takes effect on SIGHUP.
	Reload bool
}

func changed(prefix string, a, b reflect.Value, out *[]Change) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		key := prefix + f.Tag.Get("koanf")
		if f.Type.Kind() == reflect.Struct {
			changed(key+".", a.Field(i), b.Field(i), out)
		} else if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			*out = append(*out, Change{Key: key, Reload: f.Tag.Get("reload") != ""})
		}
	}
}
