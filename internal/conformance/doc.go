// Package conformance holds the broker to MQTT 3.1.1 and MQTT 5.0 from
// outside: raw packets go in, every byte that comes back is judged.
//
// The tables in statements311.go and statements5.go list every normative
// statement of both specifications in a few words of our own. Each one is
// covered by at least one case of the suite, or carries the reason why no test
// against a server can reach it; a test holds the two together. The page
// docs/conformance.md is written from the tables and the results:
//
//	go generate ./internal/conformance
//
// The suite builds and starts cmd/herald once. It runs against any other
// broker when HERALD_CONFORMANCE_ADDR names it (host:port, and for MQTT over
// WebSocket HERALD_CONFORMANCE_WS as host:port/path); the broker must accept
// anonymous clients and should cap the keepalive at 60 s.
//
// One case alone:
//
//	go test ./internal/conformance -run 'Conformance/MQTT5/MQTT-3.3.1-3'
package conformance

//go:generate go test -count=1 . -args -conformance.page=../../docs/conformance.md
