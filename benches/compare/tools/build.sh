#!/bin/sh
# Builds wire and every peer that can be built here into $CARGO_TARGET_DIR/release (kept outside
# the repository).
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/perf}"
export CARGO_TARGET_DIR
mkdir -p "$CARGO_TARGET_DIR/release"
out=$CARGO_TARGET_DIR/release

(cd "$here" && cargo build --release -j2)
if [ -e /usr/include/amqp.h ]; then
    cc -O2 -Wall -o "$out/peer-rabbitmq-c" "$here/peers/rabbitmq-c/peer.c" -lrabbitmq -lpthread
else
    echo "skipped peer-rabbitmq-c: install librabbitmq-dev"
fi
go_src=${PERF_GOPATH:-/usr/share/gocode}
if command -v go >/dev/null && [ -d "$go_src/src/github.com/rabbitmq/amqp091-go" ]; then
    (cd "$here/peers/go" && GO111MODULE=off GOPATH=$go_src GOCACHE=$CARGO_TARGET_DIR/gocache \
        go build -o "$out/peer-amqp091-go" main.go)
else
    echo "skipped peer-amqp091-go: install golang-go golang-github-rabbitmq-amqp091-go-dev"
fi
cc -O2 -shared -fPIC -o "$out/libmalcount.so" "$here/tools/malcount.c" -ldl
