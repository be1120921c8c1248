#!/bin/sh
# Installs the brokers that `make bench` compares Herald with: nats-server and
# rumqttd into a folder (default .cache/peers), mosquitto as a package of the
# system. What is there already stays. A peer that cannot be installed is
# named and left out of the table.
set -u
dir=${1:-.cache/peers}
nats=v2.15.2
rumqttd=0.20.0
mkdir -p "$dir/bin" || exit 1
dir=$(cd "$dir" && pwd)

missing() {
    echo "install-peers: $1; it will be missing from the table" >&2
}

if ! command -v mosquitto >/dev/null && [ ! -x /usr/sbin/mosquitto ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # The package would start a service; only the program is wanted.
        apt-get update -q >/dev/null &&
            RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends mosquitto >/dev/null ||
            missing "mosquitto: apt-get failed"
    else
        missing "mosquitto: install the package mosquitto (2.0)"
    fi
fi

if [ ! -x "$dir/bin/nats-server" ]; then
    GOBIN="$dir/bin" go install "github.com/nats-io/nats-server/v2@$nats" || missing "nats-server: go install failed"
fi

if [ ! -x "$dir/bin/rumqttd" ]; then
    if command -v cargo >/dev/null; then
        cargo install --quiet --locked --root "$dir" --version "$rumqttd" rumqttd || missing "rumqttd: cargo install failed"
    else
        missing "rumqttd: needs cargo"
    fi
fi
