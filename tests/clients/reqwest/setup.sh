#!/bin/sh
# Builds the client on reqwest: target/clients/reqwest. Idempotent: cargo knows what is built.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out="${CARGO_TARGET_DIR:-$here/../../../target}/clients"
mkdir -p "$out"
out=$(cd "$out" && pwd)
exec "${CARGO:-cargo}" build -q --locked --manifest-path "$here/Cargo.toml" --target-dir "$out/reqwest"
