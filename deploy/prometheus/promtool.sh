#!/bin/sh
# Prints where promtool is; fetches it into target/tools where this machine has none: Debian's package, checked by apt's
# own signatures, unpacked beside the tree and not installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tools="${CARGO_TARGET_DIR:-$here/../../target}/tools"
if command -v promtool; then exit 0; fi
if [ ! -x "$tools/promtool" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    sudo=''
    [ "$(id -u)" = 0 ] || sudo=sudo
    apt-get download -q prometheus >&2 || {
        $sudo apt-get update -q >&2
        apt-get download -q prometheus >&2
    }
    dpkg-deb -x prometheus_*.deb unpacked
    mkdir -p "$tools"
    # Moved into place whole: two tests may come at once.
    cp unpacked/usr/bin/promtool "$tools/promtool.$$"
    mv "$tools/promtool.$$" "$tools/promtool"
fi
cd "$tools"
printf '%s/promtool\n' "$(pwd)"
