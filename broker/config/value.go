package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Bytes is a size in bytes. It is written as a number or with a unit: 64KiB,
// 1MiB, 10MB.
type Bytes int64

// String writes b with the largest binary unit that loses nothing.
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

var (
	typeBytes    = reflect.TypeFor[Bytes]()
	typeDuration = reflect.TypeFor[time.Duration]()
)

// assign sets dst, a settable field, from what a YAML document may hold. key is
// dst's name, for the error, which is an *Error without source.
func assign(dst reflect.Value, src any, key string) error {
	bad := func(want string) error {
		return &Error{Key: key, Reason: fmt.Sprintf("want %s, got %s", want, describe(src))}
	}
	switch dst.Type() {
	case typeBytes:
		n, err := parseBytes(src)
		if err != nil {
			return bad("a size such as 64KiB or 1MiB")
		}
		dst.SetInt(int64(n))
		return nil
	case typeDuration:
		d, err := parseDuration(src)
		if err != nil {
			return bad("a duration such as 30s or 24h, or a number of seconds")
		}
		dst.SetInt(int64(d))
		return nil
	}
	switch dst.Kind() {
	case reflect.String:
		s, ok := src.(string)
		if !ok {
			return bad("text (in quotes)")
		}
		dst.SetString(s)
	case reflect.Bool:
		b, ok := src.(bool)
		if !ok {
			return bad("true or false")
		}
		dst.SetBool(b)
	case reflect.Int:
		n, ok := src.(int)
		if !ok {
			return bad("a whole number")
		}
		dst.SetInt(int64(n))
	case reflect.Slice:
		list, ok := src.([]any)
		if !ok {
			return bad("a list such as [a, b]")
		}
		out := reflect.MakeSlice(dst.Type(), len(list), len(list))
		for i, e := range list {
			if err := assign(out.Index(i), e, fmt.Sprintf("%s[%d]", key, i)); err != nil {
				return err
			}
		}
		dst.Set(out)
	case reflect.Map:
		m, ok := src.(map[string]any)
		if !ok {
			return bad("a mapping")
		}
		dst.Set(reflect.ValueOf(m))
	case reflect.Struct:
		m, ok := src.(map[string]any)
		if !ok {
			return bad("a mapping")
		}
		names := make([]string, 0, len(m))
		for name := range m {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			f, ok := field(dst, name)
			if !ok {
				return unknown(key+"."+name, key+".", fieldNames(dst.Type()))
			}
			if err := assign(f, m[name], key+"."+name); err != nil {
				return err
			}
		}
	case reflect.Interface:
		if src == nil {
			return bad("a value")
		}
		dst.Set(reflect.ValueOf(src))
	default:
		panic("config: no rule for a field of type " + dst.Type().String())
	}
	return nil
}

func parseBytes(src any) (Bytes, error) {
	switch v := src.(type) {
	case int:
		if v >= 0 {
			return Bytes(v), nil
		}
	case string:
		n, err := humanize.ParseBytes(v)
		if err == nil && n <= math.MaxInt64 {
			return Bytes(n), nil
		}
	}
	return 0, errors.New("not a size")
}

// parseDuration takes Go's notation, a whole number of days (7d), and a number
// without a unit for seconds, the unit of MQTT.
func parseDuration(src any) (time.Duration, error) {
	switch v := src.(type) {
	case int:
		return times(v, time.Second)
	case string:
		if days, ok := strings.CutSuffix(v, "d"); ok {
			if n, err := strconv.Atoi(days); err == nil {
				return times(n, 24*time.Hour)
			}
		}
		if n, err := strconv.Atoi(v); err == nil {
			return times(n, time.Second)
		}
		if d, err := time.ParseDuration(v); err == nil && d >= 0 {
			return d, nil
		}
	}
	return 0, errors.New("not a duration")
}

func times(n int, unit time.Duration) (time.Duration, error) {
	if n < 0 || n > int(math.MaxInt64/unit) {
		return 0, errors.New("out of range")
	}
	return time.Duration(n) * unit, nil
}

func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case map[string]any, map[any]any:
		return "a mapping"
	case []any:
		return "a list"
	case string:
		return strconv.Quote(v)
	default:
		return fmt.Sprint(v)
	}
}

// field finds the field of a struct by its key.
func field(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("koanf") == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("koanf"))
	}
	return names
}
