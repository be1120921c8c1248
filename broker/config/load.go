package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"sort"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	yamlv3 "go.yaml.in/yaml/v3"
)

const envPrefix = "HERALD_"

// Error tells what was refused: where it was said, which key, and why. It is
// one line.
type Error struct {
	Source string // a file, "environment HERALD_...", "--set"; may be empty
	Key    string // may be empty if the source as a whole is bad
	Reason string
}

func (e *Error) Error() string {
	var parts []string
	for _, p := range []string{e.Source, e.Key, e.Reason} {
		if p != "" {
			parts = append(parts, strings.Join(strings.Fields(p), " "))
		}
	}
	return strings.Join(parts, ": ")
}

// Sources is where a configuration comes from, the later over the earlier; the
// defaults lie under all of them.
type Sources struct {
	// File is a YAML file; empty is none.
	File string
	// Environ has the form of os.Environ. HERALD_STORE__ENGINE sets
	// store.engine; names that do not start with HERALD_ are passed over, and so
	// are those that start with HERALD_TEST_, which are for tests.
	Environ []string
	// Set has elements key=value. A value for a list or a section is YAML or
	// JSON.
	Set []string
}

// Load reads, merges and validates. Errors are of type *Error.
func Load(s Sources) (Config, error) {
	l := loader{merged: koanf.New("."), origin: map[string]string{}}
	for _, step := range []func(Sources) error{l.file, l.environ, l.set} {
		if err := step(s); err != nil {
			return Config{}, err
		}
	}
	c := Default()
	if err := l.merged.Unmarshal("", &c); err != nil {
		return Config{}, &Error{Reason: err.Error()}
	}
	c.fill()
	if err := c.Validate(); err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Source = l.sourceOf(e.Key)
		}
		return Config{}, err
	}
	return c, nil
}

// loader gathers one source after the other. What it holds has been checked
// and has the type of its field.
type loader struct {
	merged *koanf.Koanf
	origin map[string]string // leaf key → the source that set it last
}

func (l *loader) file(s Sources) error {
	if s.File == "" {
		return nil
	}
	if err := checkSize(s.File); err != nil {
		return &Error{Source: s.File, Reason: reason(err).Error()}
	}
	k := koanf.New(".")
	if err := k.Load(file.Provider(s.File), yaml.Parser()); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return &Error{Source: s.File, Reason: err.Error()}
	}
	return l.tree(s.File, "", k.Raw())
}

// kubernetes tells whether a variable is one of those that Kubernetes sets in
// every pod for a service whose name starts with "herald". Nobody means them.
func kubernetes(name, value string) bool {
	if strings.Contains(name, "__") {
		return false
	}
	if strings.Contains(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") {
		return true
	}
	url := strings.HasPrefix(value, "tcp://") || strings.HasPrefix(value, "udp://") || strings.HasPrefix(value, "sctp://")
	return strings.HasSuffix(name, "_PORT") && url ||
		strings.Contains(name, "_TCP") || strings.Contains(name, "_UDP") || strings.Contains(name, "_SCTP")
}

func (l *loader) environ(s Sources) error {
	name := map[string]string{} // key → variable
	provider := env.Provider("", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return s.Environ },
		TransformFunc: func(k, v string) (string, any) {
			if kubernetes(k, v) || strings.HasPrefix(k, envPrefix+"TEST_") {
				return "", nil
			}
			key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(k, envPrefix)), "__", ".")
			name[key] = k
			return key, v
		},
	})
	values, err := provider.Read()
	if err != nil {
		return &Error{Source: "environment", Reason: err.Error()}
	}
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if err := l.text("environment "+name[key], key, values[key].(string)); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) set(s Sources) error {
	for _, kv := range s.Set {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return &Error{Source: "--set", Key: kv, Reason: "want key=value"}
		}
		if err := l.text("--set", strings.TrimSpace(key), value); err != nil {
			return err
		}
	}
	return nil
}

// text takes a value as it stands in the environment or on a command line.
func (l *loader) text(source, key, value string) error {
	t, ok := keyTypes[key]
	if !ok {
		return l.unknown(source, key)
	}
	if t.Kind() == reflect.String || t == typeBytes || t == typeDuration {
		return l.leaf(source, key, value)
	}
	var v any
	if err := yamlv3.Unmarshal([]byte(value), &v); err != nil {
		return &Error{Source: source, Key: key, Reason: err.Error()}
	}
	return l.tree(source, key, v)
}

// tree takes a value of YAML: a section's keys one by one, a leaf as a whole.
func (l *loader) tree(source, key string, v any) error {
	if key != "" {
		t, ok := keyTypes[key]
		if !ok {
			return l.unknown(source, key)
		}
		if t.Kind() != reflect.Struct {
			return l.leaf(source, key, v)
		}
	}
	m, ok := v.(map[string]any)
	if !ok && v != nil { // a section that says nothing is as good as none
		return &Error{Source: source, Key: key, Reason: "want a section with keys, got " + describe(v)}
	}
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		full := name
		if key != "" {
			full = key + "." + name
		}
		if err := l.tree(source, full, m[name]); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) leaf(source, key string, v any) error {
	dst := reflect.New(keyTypes[key]).Elem()
	if err := assign(dst, v, key); err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Source = source
		}
		return err
	}
	l.origin[key] = source
	if err := l.merged.Load(confmap.Provider(map[string]any{key: dst.Interface()}, "."), nil); err != nil {
		return &Error{Source: source, Key: key, Reason: err.Error()}
	}
	return nil
}

func (l *loader) unknown(source, key string) error {
	known := make([]string, 0, len(keyTypes))
	for k := range keyTypes {
		known = append(known, k)
	}
	e := unknown(key, "", known)
	e.Source = source
	return e
}

// sourceOf names who set a key such as listeners[1].address.
func (l *loader) sourceOf(key string) string {
	for k := key; k != ""; {
		if s, ok := l.origin[k]; ok {
			return s
		}
		i := strings.LastIndexAny(k, ".[")
		if i < 0 {
			break
		}
		k = k[:i]
	}
	return "" // a default, or a rule between keys
}

// keyTypes has the type of every key: sections (structs) and leaves.
var keyTypes = types("", reflect.TypeFor[Config](), map[string]reflect.Type{})

func types(prefix string, t reflect.Type, into map[string]reflect.Type) map[string]reflect.Type {
	for i := range t.NumField() {
		f := t.Field(i)
		key := prefix + f.Tag.Get("koanf")
		into[key] = f.Type
		if f.Type.Kind() == reflect.Struct {
			types(key+".", f.Type, into)
		}
	}
	return into
}

// Keys returns every key that holds a value, sorted, without the fields of
// list elements.
func Keys() []string {
	var keys []string
	for k, t := range keyTypes {
		if t.Kind() != reflect.Struct {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}

// unknown says so, with the known name that looks most like it.
func unknown(key, prefix string, known []string) *Error {
	sort.Strings(known)
	best, least := "", min(4, len(key)/2)
	for _, k := range known {
		if d := distance(key, prefix+k, least); d < least {
			best, least = prefix+k, d
		}
	}
	reason := "unknown key"
	if best != "" {
		reason = fmt.Sprintf("unknown key (did you mean %s?)", best)
	}
	return &Error{Key: key, Reason: reason}
}

// distance is the edit distance of a and b, or limit if it is no less.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return min(row[len(b)], limit)
}

// Hostile files are bounded before they are parsed.
const maxFile = 1 << 20

func checkSize(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("is a folder")
	}
	if info.Size() > maxFile {
		return errors.New("larger than 1MiB")
	}
	return nil
}
