#!/bin/sh
# Installs what tests the admin API by its own description: target/openapi/venv. Idempotent, as ../clients/setup.sh.
# `--relock` resolves requirements.in again instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out="${CARGO_TARGET_DIR:-$here/../../target}/openapi"
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Two test processes may come at once: the second waits for the first.
exec 9>"$out/.lock"
command -v flock >/dev/null && flock 9

make_venv() {
    rm -rf "$out/venv"
    # Debian splits ensurepip from python3.
    if ! python3 -m venv "$out/venv" >/dev/null 2>&1; then
        rm -rf "$out/venv"
        sudo=''
        [ "$(id -u)" = 0 ] || sudo=sudo
        $sudo apt-get install -y -q python3 python3-venv >/dev/null || {
            $sudo apt-get update -q >/dev/null
            $sudo apt-get install -y -q python3 python3-venv >/dev/null
        }
        python3 -m venv "$out/venv"
    fi
}

pip() { "$out/venv/bin/pip" --disable-pip-version-check "$@"; }

if [ "${1:-}" = --relock ]; then
    make_venv
    pip install -q --no-input pip-tools==7.6.2
    "$out/venv/bin/pip-compile" -q --upgrade --generate-hashes --strip-extras --no-header --no-annotate --no-emit-options \
        -o "$here/requirements.txt" "$here/requirements.in"
    rm -f "$out/.stamp"
fi

stamp=$(cat "$here/requirements.txt" "$here/setup.sh" | sha256sum | cut -d' ' -f1)
if [ ! -f "$out/.stamp" ] || [ "$(cat "$out/.stamp")" != "$stamp" ]; then
    echo "installing schemathesis into $out/venv" >&2
    make_venv
    pip install -q --no-input --no-deps --no-compile --require-hashes -r "$here/requirements.txt"
    echo "$stamp" >"$out/.stamp"
fi
