# Herald's tasks. "make" alone lists them.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1.0-dev)
COMMIT   ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
SOAK     ?= 10m
EACH     ?= 60s
# By count, not by time: with a time, go test sometimes fails for no reason when
# it is up.
FUZZTIME ?= 20000x

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help
.PHONY: help build run test test-tools test-go bench soak fuzz lint clean test-cql cassandra cluster bench-store bench-cluster

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/herald
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/herald ./cmd/herald

run: build ## build and start a node: MQTT on 127.0.0.1:1883, data in ./data
	./bin/herald serve

test: test-tools test-cql test-go ## install what the tests need, then run all of them
	$(MAKE) fuzz FUZZTIME=$(FUZZTIME)

# Stock clients, a broker to compare with and the bridge's Redis. Nothing is
# installed where they are already (RUNLEVEL: the packages shall not start a
# service); without root, install mosquitto, mosquitto-clients and redis-server yourself.
test-tools:
	@if command -v mosquitto_pub >/dev/null && { command -v mosquitto || test -x /usr/sbin/mosquitto; } >/dev/null && command -v redis-server >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mosquitto mosquitto-clients redis-server; \
	else echo 'make test: please install mosquitto, mosquitto-clients and redis-server' >&2; exit 1; fi

# What runs Apache Cassandra, which the tests of the shared store talk to unless
# HERALD_TEST_CQL=host:port names a server. Its jars come from Maven Central.
test-cql:
	@if [ -n "$$HERALD_TEST_CQL" ]; then :; \
	elif command -v java >/dev/null && command -v mvn >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends openjdk-17-jre-headless maven; \
	else echo 'make test: please install a JDK 17 and maven' >&2; exit 1; fi

# Not from the cache: some tests run the binary, which the cache does not see.
# What starts databases and clusters comes last, one package after the other: its
# bounds are times, and two of them at once would measure each other.
SERVERS := internal/cassandra|internal/clustertest|persistence/scylla
test-go:
	$(GO) test -race -count=1 -timeout 30m $$($(GO) list ./... | grep -Ev '/($(SERVERS))(/|$$)')
	$(GO) test -race -count=1 -timeout 30m -p 1 $$($(GO) list ./... | grep -E '/($(SERVERS))(/|$$)')
	$(GO) test -count=1 -timeout 20m ./internal/simulation # far more schedules than under the race detector

bench: build ## compare with mosquitto, nats-server and rumqttd; writes bench.json
	./internal/bench/install-peers.sh
	./bin/herald bench --all --json bench.json

# The same benchmarks on the embedded store and on the shared one; then what is asked
# of the shared store, at its full size: each line begins with met or missed.
FIGURES := $(CURDIR)/bench-store.txt
bench-store: test-cql ## compare the stores with each other and with the bare driver
	$(GO) test -run '^$$' -bench 'Store' -benchtime 2s ./persistence/pebble
	$(GO) test -run '^$$' -bench 'Store' -benchtime 2s ./persistence/scylla
	@rm -f $(FIGURES)
	HERALD_TEST_FIGURES=$(FIGURES) $(GO) test -count=1 -timeout 30m -run 'TestShareOfTheBareDriver|TestInboxDoesNotSlowDown|TestStartAtSize' ./persistence/scylla; \
	status=$$?; cat $(FIGURES); exit $$status

bench-cluster: test-tools test-cql ## what crossing from node to node costs, beside two bridged mosquittos; writes bench-cluster.json
	$(GO) run ./internal/bench/cluster -json bench-cluster.json

cassandra: test-cql ## run Apache Cassandra on 127.0.0.1 and on (N=3 nodes, port 9042)
	$(GO) run ./internal/cassandra/run -n $(or $(N),1)

cluster: test-tools test-cql ## Redis, Cassandra and three nodes: MQTT on 1883 to 1885, admin on 8080 to 8082
	$(GO) run ./internal/clustertest/run

# One node, then three nodes under each fault that they have to stand.
soak: test-tools test-cql ## long run of the delivery checker with kills (SOAK=10m), then three nodes (EACH=60s per fault)
	$(GO) run ./internal/checker/soak -for $(SOAK)
	$(GO) run ./internal/clustertest/soak -for $(EACH) -at-least 2000
	SCHEDULES=20000 FLEETS=10000 $(GO) test -count=1 -timeout 3h -run 'Schedules|Fleet' ./internal/simulation

# Go fuzzes one target of one package at a time.
fuzz: ## every fuzz target for a while (FUZZTIME=20000x, or 10m)
	@set -e; grep -r --include='*_test.go' '^func Fuzz' . | \
	sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*).*|\1 \2|' | sort | while read -r pkg target; do \
		echo "fuzz $$pkg $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
	done

lint: ## gofmt, go vet, staticcheck, and golangci-lint where it is installed
	@out="$$(gofmt -l .)"; if [ -n "$$out" ]; then echo "not gofmt'ed:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo 'golangci-lint is not installed: skipped'; fi

clean: ## remove what was built (not ./data)
	rm -rf bin bench.json bench-store.txt bench-cluster.json
