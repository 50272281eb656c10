#!/bin/sh
# Builds wireguard-go, a peer of `lab bench dataplane`: build.sh OUT
set -eu
[ $# -eq 1 ] || { echo "usage: build.sh OUT" >&2; exit 2; }
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "build.sh: the Go tool chain is missing: install Go 1.26 or newer and put it on PATH" >&2; exit 1; }
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out" golang.zx2c4.com/wireguard
