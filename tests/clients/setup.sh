#!/bin/sh
# Installs the official clients and servers that the tests drive: target/clients/venv and target/clients/node.
# Idempotent: a stamp of the locks makes a second run instant. `--relock` resolves the lists again instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out="${CARGO_TARGET_DIR:-$here/../../target}/clients"
mkdir -p "$out"
out=$(cd "$out" && pwd)

stamp_of() { cat "$@" "$here/setup.sh" | sha256sum | cut -d' ' -f1; }
fresh() { [ -f "$1/.stamp" ] && [ "$(cat "$1/.stamp")" = "$2" ]; }

# Debian's packages, for what a fresh machine lacks.
packages() {
    sudo=''
    [ "$(id -u)" = 0 ] || sudo=sudo
    echo "installing $*" >&2
    $sudo apt-get install -y -q "$@" >/dev/null || {
        $sudo apt-get update -q >/dev/null
        $sudo apt-get install -y -q "$@" >/dev/null
    }
}

need() { command -v "$1" >/dev/null || packages "$2"; }

make_venv() {
    rm -rf "$1"
    # Debian splits ensurepip from python3.
    if ! python3 -m venv "$1" >/dev/null 2>&1; then
        rm -rf "$1"
        packages python3-venv
        python3 -m venv "$1"
    fi
}

pip_install() { "$1/bin/pip" install -q --disable-pip-version-check --no-input -r "$2"; }

if [ "${1:-}" = --relock ]; then
    make_venv "$out/venv"
    pip_install "$out/venv" "$here/requirements.in"
    "$out/venv/bin/pip" freeze --disable-pip-version-check >"$here/requirements.txt"
    mkdir -p "$out/node"
    rm -rf "$out/node/node_modules" "$here/package-lock.json"
    cp "$here/package.json" "$here/.npmrc" "$out/node/"
    (cd "$out/node" && rm -f package-lock.json && npm install --silent --no-progress)
    cp "$out/node/package-lock.json" "$here/"
    rm -f "$out/venv/.stamp" "$out/node/.stamp"
fi

# Two test processes may come at once: the second waits for the first.
exec 9>"$out/.lock"
command -v flock >/dev/null && flock 9

need curl curl
need openssl openssl
need python3 python3
need ip iproute2
need npm npm
need javac default-jdk-headless

stamp=$(stamp_of "$here/requirements.txt")
if ! fresh "$out/venv" "$stamp"; then
    echo "installing the Python clients into $out/venv" >&2
    make_venv "$out/venv"
    pip_install "$out/venv" "$here/requirements.txt"
    echo "$stamp" >"$out/venv/.stamp"
fi

stamp=$(stamp_of "$here/package.json" "$here/package-lock.json")
if ! fresh "$out/node" "$stamp"; then
    echo "installing the Node clients into $out/node" >&2
    rm -rf "$out/node"
    mkdir -p "$out/node"
    cp "$here/package.json" "$here/package-lock.json" "$here/.npmrc" "$out/node/"
    (cd "$out/node" && npm ci --silent --no-progress)
    echo "$stamp" >"$out/node/.stamp"
fi
