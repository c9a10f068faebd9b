#!/bin/sh
# Builds what ships into target/dist: aip, aip-control-plane and aip-sidecar. The sidecar is built twice: with counters in
# it, which the traffic of `aip-bench train` drives, and then with what they counted, as a profile that says which code is
# used and which is not. docs/performance.md ("How the release is built") says what that traffic is.
# A second run builds only what has changed.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
work=$target/pgo
profile=$work/sidecar.profdata

fail() {
    printf 'release: %s\n' "$*" >&2
    exit 1
}

# Flags are told apart by blanks.
case $work in *' '*) fail "no blanks may be in the path of the build: $work" ;; esac

# Older ones cannot read what this compiler's counters are written as.
oldest=19

# The compiler's own where rustup has it, then the newest of Debian's, then any that is new enough.
find_profdata() {
    own=$(rustc --print target-libdir)/../bin/llvm-profdata
    if [ -x "$own" ]; then
        echo "$own"
        return
    fi
    version=40
    while [ "$version" -ge "$oldest" ]; do
        if command -v "llvm-profdata-$version"; then return; fi
        version=$((version - 1))
    done
    if command -v llvm-profdata >/dev/null; then
        version=$(llvm-profdata --version | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p')
        if [ "${version:-0}" -ge "$oldest" ]; then command -v llvm-profdata; fi
    fi
}

profdata=$(find_profdata)
if [ -z "$profdata" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "release: installing llvm-$oldest, for llvm-profdata" >&2
    apt-get install -y -q "llvm-$oldest" >/dev/null || {
        apt-get update -q >/dev/null
        apt-get install -y -q "llvm-$oldest" >/dev/null
    }
    profdata=$(find_profdata)
fi
[ -n "$profdata" ] || fail "llvm-profdata $oldest or newer is missing: \`rustup component add llvm-tools\`, or as root" \
    "\`apt-get install llvm-$oldest\`"

host=$(rustc -vV | sed -n 's/^host: //p')
[ -n "$host" ] || fail "rustc does not name the machine it is for (rustc -vV)"

# Naming the target keeps build scripts and macros, which run here, free of the flags. Each has a folder of its own, for
# other flags mean that every dependency is built anew. The settings must be the same ones in both, fat LTO and all: they
# are part of the functions' names, and a profile of other names is a profile of nothing. Only the link of the first may
# be another, as it comes after the counters: a thin one takes a minute less.
build_counting() {
    CARGO_TARGET_DIR=$work/counting RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-generate=$work/raw" \
        $cargo rustc --release --target "$host" -p aip-sidecar --bin aip-sidecar -- -Clto=thin
}

build_optimised() {
    CARGO_TARGET_DIR=$work/optimised RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-use=$profile" \
        $cargo build --release --target "$host" -p aip-sidecar --bin aip-sidecar
}

# One profile for each of the two sidecars, written when it ends.
train() {
    rm -rf "$work/raw" "$work/bin"
    mkdir -p "$work/raw" "$work/bin"
    cp "$target/release/aip-control-plane" "$counting" "$work/bin/"
    LLVM_PROFILE_FILE="$work/raw/%p.profraw" "$target/release/aip-bench" train --bin-dir "$work/bin"
    written=$(find "$work/raw" -name '*.profraw' -size +0 | wc -l)
    [ "$written" -ge 2 ] || fail "$written of two sidecars wrote what they counted ($work/raw)"
    "$profdata" merge -o "$profile.new" "$work"/raw/*.profraw
    # The compiler is told the file's name only, so it would not see that the content is another.
    rm -rf "$work/optimised"
    mv "$profile.new" "$profile"
}

echo "release: the control plane, the command, and what drives the training" >&2
$cargo build --release -p aip -p aip-bench -p aip-control-plane

echo "release: a sidecar that counts" >&2
build_counting
counting=$work/counting/$host/release/aip-sidecar
if [ ! -f "$profile" ] || [ "$counting" -nt "$profile" ] || [ "$target/release/aip-bench" -nt "$profile" ]; then
    echo "release: training, about a minute" >&2
    train
fi

echo "release: the sidecar, by its profile" >&2
build_optimised

# Made beside and then moved: a program that runs is not written over.
mkdir -p "$target/dist"
for built in "$target/release/aip" "$target/release/aip-control-plane" "$work/optimised/$host/release/aip-sidecar"; do
    name=$(basename "$built")
    cp "$built" "$target/dist/$name.new"
    mv "$target/dist/$name.new" "$target/dist/$name"
done
printf 'release: %s\n' "$target"/dist/* >&2
