package broker_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/herald-mqtt/herald"

// rooms says what each package, or everything below it, may import of this
// module beside itself and what lies below it. The longest prefix counts. A
// package that is not here fails the test: a new room is a decision.
var rooms = map[string][]string{
	"":                   {},
	"persistence":        {""},
	"persistence/record": {"", "persistence"},
	"persistence/pebble": {"", "persistence"},
	"persistence/scylla": {"", "persistence"},
	"bridge":             {""},
	"hooks":              {"", "broker/config"},

	// The parts of the broker do not know the whole.
	"broker":          {"", "hooks", "bridge", "persistence", "broker"},
	"broker/admin":    {"", "broker/config"},
	"broker/ban":      {"", "persistence"},
	"broker/config":   {""},
	"broker/topic":    {""},
	"broker/wire":     {""},
	"broker/session":  {"", "broker/wire", "persistence"},
	"broker/listen":   {"", "broker/config", "broker/wire"},
	"broker/retained": {"", "broker/wire", "persistence"},

	"broker/membership": {"", "persistence"},

	"cmd":      {"", "broker", "hooks", "persistence", "internal"},
	"internal": {"", "broker", "hooks", "bridge", "persistence"},
}

// drivers says who alone may import what from outside; somebody without a line
// here may be imported by everybody.
var drivers = map[string][]string{
	"github.com/mochi-mqtt/server":        {"hooks", "broker/listen", "internal"},
	"github.com/pires/go-proxyproto":      {"broker/listen"},
	"github.com/gorilla/websocket":        {"broker/listen"},
	"github.com/cockroachdb/pebble":       {"persistence/pebble"},
	"github.com/gocql/gocql":              {"persistence/scylla"},
	"github.com/scylladb/gocqlx":          {"persistence/scylla"},
	"github.com/redis/go-redis":           {"bridge"},
	"github.com/knadh/koanf":              {"broker/config"},
	"github.com/spf13":                    {"cmd"},
	"github.com/eclipse":                  {"cmd", "internal"},
	"github.com/prometheus/client_golang": {"broker", "cmd", "internal"},
	"net/http/pprof":                      {"broker/admin"},
}

// pure packages have no clock, goroutine, socket or disk of their own, so that
// a test can run thousands of schedules of them.
var pure = []string{"broker/session", "broker/topic", "broker/wire"}

// impure is what would give them one. The types of time are no clock, but
// nothing here needs them.
var impure = []string{"context", "io", "net", "os", "syscall", "time", "math/rand", "math/rand/v2", "go.uber.org/zap"}

type pkg struct {
	ImportPath string
	Imports    []string
}

// The imports of the program itself (not of its tests) go one way:
// cmd → broker → {hooks, bridge, persistence} → herald, and each driver is
// known to one package only.
func TestImportsGoOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		from := relative(p.ImportPath)
		room, ok := roomOf(from)
		if !ok {
			t.Errorf("%s has no room in the table", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module) {
				if to := relative(imp); !below(to, room) && !anyBelow(to, rooms[room]) {
					t.Errorf("%s imports %s, which its room %q may not", p.ImportPath, imp, room)
				}
				continue
			}
			if slices.Contains(pure, from) && slices.Contains(impure, imp) {
				t.Errorf("%s imports %s, and would no longer be pure", p.ImportPath, imp)
			}
			for driver, allowed := range drivers {
				if strings.HasPrefix(imp, driver) && !anyBelow(from, allowed) {
					t.Errorf("%s imports %s, which is for %v", p.ImportPath, imp, allowed)
				}
			}
		}
	}
}

func relative(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
}

// below tells whether path is room or lies below it. Nothing lies below the
// root package, which is a room of its own.
func below(path, room string) bool {
	return path == room || room != "" && strings.HasPrefix(path, room+"/")
}

func anyBelow(path string, rooms []string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool { return below(path, r) })
}

func roomOf(path string) (string, bool) {
	best, found := "", false
	for room := range rooms {
		if below(path, room) && len(room) >= len(best) {
			best, found = room, true
		}
	}
	return best, found
}
